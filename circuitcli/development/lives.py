"""The lives of features: chains of matches from checkpoint to checkpoint, with births and deaths; torch-free.

The file reports/development.json of a run holds all that `circuit develop` found:

    {"checkpoints": [{"name": "step0", "step": 0, "path": "checkpoints/step0", ...}],   in order; numbers count these
     "by": "activation", "assignment": "hungarian", "least": 0.7, "n_tokens": 262144,
     "coders": [{"checkpoint": "step0", "seed": 0, "hook": "resid.3", "explained_variance": 0.9, "l0": 16.0,
                 "loss_recovered": 0.99, "dead": 0.0, "ce_clean": 2.1, "n_live": 510, "n_token_level": 400}],
     "matches": [match records: see `MatchRecord`],
     "development": [development records, one for each hook point: see `DevelopmentRecord`],
     "lives": {"resid.3": [{"first": 0, "features": [17, 4], "cosines": [0.91], "label": "..."}]}}

A life is a feature's number at the checkpoint ``first`` and at each after it, and the cosine of each step.
"""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitcli.hookpoints import HookPoint
from circuitcli.reading import parse_object, read_bytes

# From each checkpoint to the next: feature of the earlier -> (that of the later, cosine).
Steps = Sequence[Mapping[int, tuple[int, float]]]


@dataclass(frozen=True)
class Life:
    """One feature through training: its number at the checkpoint ``first`` and at each after it, and the cosine of each
    step from one to the next."""

    first: int
    features: tuple[int, ...]
    cosines: tuple[float, ...]
    label: str = ""

    @property
    def last(self) -> int:
        """The last checkpoint at which it is there."""
        return self.first + len(self.features) - 1

    def content(self) -> dict[str, Any]:
        """As the report holds it."""
        return {"first": self.first, "features": self.features, "cosines": self.cosines, "label": self.label}

    def at(self, number: int) -> int | None:
        """Its number among the features of a checkpoint; None where it is not there."""
        return self.features[number - self.first] if self.first <= number <= self.last else None


def lives(live: Sequence[Collection[int]], steps: Steps) -> list[Life]:
    """A life for each feature that is live at some checkpoint and begins there: by first checkpoint, then by number.

    live: features that are live at each checkpoint. steps: one fewer; no feature of the later is given to two.
    """
    found = []
    continued: set[int] = set()
    for first, features in enumerate(live):
        for feature in sorted(set(features) - continued):
            found.append(_life(first, feature, steps))
        continued = {later for later, _ in steps[first].values()} if first < len(steps) else set()
    return found


def _life(first: int, feature: int, steps: Steps) -> Life:
    features, cosines = [feature], []
    for step in steps[first:]:
        following = step.get(features[-1])
        if following is None:
            break
        features.append(following[0])
        cosines.append(following[1])
    return Life(first, tuple(features), tuple(cosines))


@dataclass(frozen=True)
class History:
    """Lives in numbers, by checkpoint: ``born`` there (of the first all), ``died`` after it (of the last none);
    ``still``: of the features of the first checkpoint the share that lives; ``since``: of those of the last the share
    that lives already."""

    live: tuple[int, ...]
    born: tuple[int, ...]
    died: tuple[int, ...]
    still: tuple[float, ...]
    since: tuple[float, ...]
    n_whole: int

    @classmethod
    def of(cls, found: Sequence[Life], n: int) -> "History":
        """Of lives through n checkpoints."""
        last = n - 1
        live = tuple(sum(one.at(number) is not None for one in found) for number in range(n))
        of_first = [one for one in found if one.first == 0]
        of_last = [one for one in found if one.last == last]
        return cls(
            live=live,
            born=tuple(sum(one.first == number for one in found) for number in range(n)),
            died=tuple(sum(one.last == number < last for one in found) for number in range(n)),
            still=tuple(_share(sum(one.last >= number for one in of_first), len(of_first)) for number in range(n)),
            since=tuple(_share(sum(one.first <= number for one in of_last), len(of_last)) for number in range(n)),
            n_whole=sum(one.first == 0 and one.last == last for one in found),
        )


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def table(found: Sequence[Life], names: Sequence[str]) -> str:
    """CSV: a line for each life, with the feature's number at each checkpoint, empty where it is not there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["born", "died", "checkpoints", "mean_cosine", "label", *names])
    for one in found:
        died = "" if one.last == len(names) - 1 else names[one.last + 1]
        mean = f"{sum(one.cosines) / len(one.cosines):.4f}" if one.cosines else ""
        numbers = ["" if (at := one.at(number)) is None else at for number in range(len(names))]
        writer.writerow([names[one.first], died, len(one.features), mean, one.label, *numbers])
    return text.getvalue()


def read_lives(report: Path) -> dict[HookPoint, list[Life]]:
    """The lives of a report, by hook point. Raises InputError for a file that is no such report."""
    content = parse_object(read_bytes(report, hint="run `circuit develop`"), name=str(report))
    told: Mapping[str, Sequence[Mapping[str, Any]]] = content.get("lives") or {}
    return {
        HookPoint.parse(hook): [
            Life(one["first"], tuple(one["features"]), tuple(one["cosines"]), one.get("label", "")) for one in each
        ]
        for hook, each in told.items()
    }


def steps_of(found: Sequence[Life], n: int) -> list[dict[int, int]]:
    """From each checkpoint to the next: features of the later by those of the earlier that are the same."""
    steps: list[dict[int, int]] = [{} for _ in range(n - 1)]
    for one in found:
        for place, (earlier, later) in enumerate(zip(one.features, one.features[1:], strict=False)):
            steps[one.first + place][earlier] = later
    return steps
