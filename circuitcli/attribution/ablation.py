"""The naive graph: one node at a time is taken away, and the change of later features and of the metric is measured.

Weight of u -> d is ``f_d(clean) - f_d(ablated)``: what u contributes, in d's activation units. Ablations run in
batches, from the cached residual before the block of the ablated hook point, and equal one separate forward pass each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback, keep
from circuitcli.saes.base import Coded
from circuitcli.saes.splice import shifted


@dataclass(frozen=True)
class Source:
    """What is ablated: feature ``index`` (None: the error) at one spliced position, or at all (None)."""

    index: int | None
    position: int | None


@dataclass(frozen=True)
class Ablated:
    """What a batch of ablations did: effect on the metric, and codes at each measured hook point."""

    sources: Sequence[Source]
    effect: Float[Tensor, " source"]
    codes: Mapping[HookPoint, Float[Tensor, "source position d_sae"]]


def live_sources(subject: Subject, hook: HookPoint, baseline: Baseline, *, positions: str) -> list[Source]:
    """Every feature that differs from its baseline somewhere, and the error.

    positions: sum for one source at all positions, all for one at each, last for those of the last position alone.
    """
    different = (subject.coded[hook].codes != baseline[hook].codes)[0]
    if positions == "sum":
        features = different.any(dim=0).nonzero()[:, 0].tolist()
        return [*(Source(index, None) for index in features), Source(None, None)]
    n_positions = subject.prompt.n_spliced
    first = n_positions - 1 if positions == "last" else 0
    pairs = different[first:].nonzero().tolist()
    errors = [Source(None, position) for position in range(first, n_positions)]
    return [*(Source(index, first + position) for position, index in pairs), *errors]


def pinned_sources(
    subject: Subject, hook: HookPoint, features: Sequence[int], live: Sequence[Source], *, where: str = "in this prompt"
) -> list[Source]:
    """The live sources among the pinned features. Raises InputError if one is not live or does not exist."""
    d_sae = subject.saes[hook].d_sae
    for index in features:
        if index >= d_sae:
            raise InputError(
                f"{hook} has no feature {index}: its SAE has {d_sae}", hint=f"features are 0 to {d_sae - 1}"
            )
        if not any(source.index == index for source in live):
            raise InputError(
                f"feature {hook}/{index} is silent {where}, so ablating it changes nothing",
                hint=f"live features of {hook}: {_some(live)}",
            )
    return [source for source in live if source.index in set(features)]


def _some(live: Sequence[Source]) -> str:
    indices = sorted({source.index for source in live if source.index is not None})
    return " ".join(str(index) for index in indices[:12]) + (" ..." if len(indices) > 12 else "")


def ablate(
    subject: Subject,
    hook: HookPoint,
    sources: Sequence[Source],
    baseline: Baseline,
    *,
    measured: Sequence[HookPoint],
    batch_size: int,
) -> Iterator[Ablated]:
    """Ablate each source alone, in batches."""
    for begin in range(0, len(sources), batch_size):
        rows = sources[begin : begin + batch_size]
        moves = ablation_moves(subject, hook, rows, baseline)
        seen: dict[HookPoint, Tensor] = {}
        callbacks: dict[HookPoint, Callback] = {other: keep(seen, other) for other in measured}
        callbacks[hook] = lambda x, moves=moves: shifted(x, moves, first=subject.prompt.first)  # type: ignore[misc]
        with torch.no_grad():
            logits = subject.logits(callbacks, rows=len(rows), start=first_block(hook))
            codes = {other: _codes(subject, other, seen[other]) for other in measured}
        yield Ablated(rows, subject.metric_clean - subject.metric.value(logits), codes)


def _codes(subject: Subject, hook: HookPoint, x: Tensor) -> Float[Tensor, "source position d_sae"]:
    sae = subject.saes[hook]
    return sae.encode(x[:, subject.prompt.first :].to(sae.W_enc))


def ablation_moves(
    subject: Subject, hook: HookPoint, sources: Sequence[Source], baseline: Baseline
) -> Float[Tensor, "source position d_in"]:
    """Change of the clean activation for each ablation."""
    sae, coded, absent = subject.saes[hook], subject.coded[hook], baseline[hook]
    n_positions = subject.prompt.n_spliced
    moves = sae.W_enc.new_zeros(len(sources), n_positions, sae.d_in)
    for row, source in enumerate(sources):
        places = slice(None) if source.position is None else slice(source.position, source.position + 1)
        moves[row, places] = _move(sae.W_dec, coded, absent.codes, absent.error, source.index)[places]
    return moves


def _move(
    decoder: Tensor, coded: Coded, codes: Tensor, error: Tensor, index: int | None
) -> Float[Tensor, "position d_in"]:
    """Change at every position when one feature, or the error, goes to its baseline."""
    if index is None:
        return (error - coded.error)[0]
    amount = (codes[..., index] - coded.codes[..., index])[0]  # (position,)
    move = amount[:, None] * decoder[index]
    return move if coded.frame is None else move * coded.frame.scale[0]
