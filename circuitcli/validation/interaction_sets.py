"""Sets of SAEs side by side: by how much fewer edges between its SAEs one needs than another (SCALAR).

Areas under the curves of `interaction` are compared prompt by prompt: both sets were measured on the same prompts,
which are drawn again together, so that what makes a prompt hard for both is no part of the interval. Needs no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from circuitcli.errors import InputError
from circuitcli.reading import read_object
from circuitcli.records import InteractionComparisonRecord, InteractionRecord

# Where the paper's curves end: all edges of two SAEs of 512 features.
CAP = 262_144
_HINT = "make one with `circuit validate --interaction`; it is RUN/reports/NAME.json"
SCORES = ("absolute", "relative", "absolute_above", "relative_above", "capped", "relative_capped")

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Measured:
    """The curve of one pair of hook points, prompt by prompt: kl (prompt, point), floor (prompt,), in nats."""

    record: InteractionRecord
    kl: Array
    floor: Array

    @property
    def pair(self) -> tuple[str, str]:
        """The names of both hook points."""
        return self.record.source, self.record.target

    def scores(self) -> dict[str, Array]:
        """Areas of each prompt."""
        at, n = np.array(self.record.n_edges, dtype=np.float64), self.record.n_possible
        whole, above = _area(at, self.kl), _area(at, self.kl - self.floor[:, None])
        capped = _area(at, self.kl, up_to=CAP)
        return {
            "absolute": whole,
            "relative": whole / n,
            "absolute_above": above,
            "relative_above": above / n,
            "capped": capped,
            "relative_capped": capped / n,
        }


@dataclass(frozen=True)
class CoderSet:
    """A set of SAEs, by the name of its report, and what was measured between them."""

    name: str
    pairs: tuple[Measured, ...]


def _area(at: Array, values: Array, *, up_to: int | None = None) -> Array:
    if up_to is not None and up_to < at[-1]:
        ends = np.append(at[at <= up_to], up_to)
        values = np.stack([np.interp(ends, at, row) for row in values])
        at = ends
    found: Array = ((values[:, 1:] + values[:, :-1]) / 2 * np.diff(at)).sum(axis=1)
    return found


def read_sets(paths: Sequence[Path]) -> list[CoderSet]:
    """The sets of such reports, by names that tell them apart. Raises InputError for what is no report of curves."""
    found = [(path, _pairs(path)) for path in paths]
    for names in (
        [pairs[0].record.name for _, pairs in found],
        [path.resolve().parents[1].name for path, _ in found],
        [str(path) for path, _ in found],
    ):
        if len(set(names)) == len(names):
            return [CoderSet(name, pairs) for name, (_, pairs) in zip(names, found, strict=True)]
    raise InputError(f"a report is named twice: {' '.join(map(str, paths))}", hint="name each once")


def _pairs(path: Path) -> tuple[Measured, ...]:
    content = read_object(path, hint=_HINT)
    told = content["pairs"] if isinstance(content.get("pairs"), list) else [content]
    try:
        found = tuple(_measured(one) for one in told)
    except (ValidationError, KeyError, TypeError, ValueError):
        found = ()
    if not found:
        raise InputError(
            f"{path} is not a report of interaction curves",
            hint=_HINT,
        )
    return found


def _measured(content: dict[str, Any]) -> Measured:
    extra = ("kl_of_prompts", "floor_of_prompts")
    kl, floor = (np.array(content[name], dtype=np.float64) for name in extra)
    record = InteractionRecord.model_validate({name: value for name, value in content.items() if name not in extra})
    if kl.shape != (record.n_prompts, len(record.n_edges)) or floor.shape != (record.n_prompts,):
        raise ValueError("numbers are missing")
    return Measured(record, kl, floor)


def compared(other: CoderSet, against: CoderSet, *, bootstrap: int, seed: int) -> Iterator[InteractionComparisonRecord]:
    """For each pair of hook points that both have, and for all of them together, by how much less the first set has.

    Together: of the sum of areas over pairs, the mean of relative ones. Raises InputError for sets without a pair in
    common, and for those that were measured on other prompts.
    """
    theirs = {one.pair: one for one in against.pairs}
    both = [(one, theirs[one.pair]) for one in other.pairs if one.pair in theirs]
    if not both:
        raise InputError(
            f"{other.name} and {against.name} have no pair of hook points in common",
            hint="measure both with the same --interaction",
        )
    for one, two in both:
        if (one.record.n_prompts, one.record.n_tokens) != (two.record.n_prompts, two.record.n_tokens):
            raise InputError(
                f"{other.name} was measured on {one.record.n_prompts} prompts of {one.record.n_tokens} tokens, "
                f"{against.name} on {two.record.n_prompts} of {two.record.n_tokens}",
                hint="measure both on the same text or --prompts",
            )
    sums: list[tuple[dict[str, Array], dict[str, Array]]] = []
    for one, two in both:
        sums.append((one.scores(), two.scores()))
        named = {"source": one.pair[0], "target": one.pair[1]}
        yield _record(other, against, sums[-1:], named, bootstrap=bootstrap, seed=seed)
    if len(both) > 1:
        yield _record(other, against, sums, {}, bootstrap=bootstrap, seed=seed)


def _record(
    other: CoderSet,
    against: CoderSet,
    scores: Sequence[tuple[dict[str, Array], dict[str, Array]]],
    named: dict[str, str],
    *,
    bootstrap: int,
    seed: int,
) -> InteractionComparisonRecord:
    numbers = {}
    for name in SCORES:
        mine, theirs = (np.sum([pair[side][name] for pair in scores], axis=0) for side in (0, 1))
        per = len(scores) if name.startswith("relative") else 1
        numbers[name] = {
            "value": float(mine.mean()) / per,
            "against": float(theirs.mean()) / per,
            **_improvement(mine, theirs, bootstrap=bootstrap, seed=seed),
        }
    n_prompts = len(scores[0][0]["absolute"])
    return InteractionComparisonRecord(
        name=other.name, against=against.name, n_pairs=len(scores), n_prompts=n_prompts, unit="nats", **named, **numbers
    )


def _improvement(mine: Array, theirs: Array, *, bootstrap: int, seed: int) -> dict[str, float | None]:
    """By how many percent of theirs mine is less, with the bounds over prompts, paired, and half their distance."""
    value = _percent(mine.mean(), theirs.mean())
    if len(mine) < 2 or bootstrap == 0 or value is None:
        return {"improvement": value, "low": None, "high": None, "error": None}
    draws = np.random.default_rng(seed).integers(len(mine), size=(bootstrap, len(mine)))
    drawn = [_percent(mine[draw].mean(), theirs[draw].mean()) for draw in draws]
    low, high = (float(bound) for bound in np.quantile([one for one in drawn if one is not None], [0.025, 0.975]))
    return {"improvement": value, "low": low, "high": high, "error": (high - low) / 2}


def _percent(mine: float, theirs: float) -> float | None:
    return 100 * (1 - float(mine) / float(theirs)) if theirs > 0 else None
