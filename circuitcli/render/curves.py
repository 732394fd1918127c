"""Training curves: what metrics.jsonl says of each autoencoder, as a row of small plots over tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from circuitcli.hookpoints import HookPoint, is_hook
from circuitcli.render.plots import Axis, Panel, Plot, Series
from circuitcli.training.log import METRICS, PART, Numbers, read_metrics

# What is drawn, left to right: the number's name, the title, and the axis.
PLOTS = (
    ("loss", "loss", Axis("loss", "auto", from_zero=True)),
    ("fvu", "missed variance", Axis("share (FVU)", "auto", from_zero=True)),
    ("l0", "L0", Axis("active features per token", "auto", from_zero=True)),
    ("dead", "dead features", Axis("share", from_zero=True)),
    ("learning_rate", "learning rate", Axis("step size", from_zero=True)),
)
TOKENS = Axis("tokens", from_zero=True, is_count=True)
# The folder of variants below RUN/saes, and the name of the run's own SAEs beside them.
SWEEP, OWN = "sweep", "the run's own"
# Below it lies what is to take the place of a finished training, and what is left of it while it is removed.
UNFINISHED, REMOVED, IN_TRAINING = ("checkpoint", "saes"), ".removed", "in training"


@dataclass(frozen=True)
class Curve:
    """The training of one autoencoder; ``label`` tells those of one hook point apart."""

    hook: str
    label: str
    lines: Sequence[Numbers]


def find_curves(saes: Path) -> list[Curve]:
    """All trainings that left numbers below RUN/saes, finished or not, in the order of the model."""
    found = []
    for path in sorted(saes.rglob(METRICS)):
        place = path.parent.relative_to(saes)
        lines = [] if any(part.endswith(REMOVED) for part in place.parts) else read_metrics(path)
        if lines:
            hook, label = _named(place)
            found.append(Curve(hook, label, lines))
    return sorted(found, key=lambda curve: (_order(curve.hook), curve.label))


def plot(curves: Sequence[Curve], *, title: str) -> Plot:
    """A row for each hook point; plots below each other share their axes.

    Where a hook point has one training only, the parts of its loss are drawn too.
    """
    rows = []
    hooks = list(dict.fromkeys(curve.hook for curve in curves))
    for hook in hooks:
        own = [curve for curve in curves if curve.hook == hook]
        tokens = TOKENS if hook == hooks[-1] else replace(TOKENS, label="")
        rows.append([Panel(_series(own, name), tokens, axis, f"{hook}: {heading}") for name, heading, axis in PLOTS])
    return Plot(rows, title=title, shares=True)


def _series(own: Sequence[Curve], name: str) -> list[Series]:
    if len(own) > 1:
        return [_line(curve, name, curve.label or OWN) for curve in own]
    if name != "loss":
        return [_line(own[0], name, own[0].label)]
    curve = own[0]
    return [
        _line(curve, name, "loss" if _parts(curve) else ""),
        *(_line(curve, part, part.removeprefix(PART).replace("_", " ")) for part in _parts(curve)),
    ]


def _line(curve: Curve, name: str, label: str) -> Series:
    lines = [line for line in curve.lines if name in line]
    return Series([line["tokens"] for line in lines], [line[name] for line in lines], label)


def _parts(curve: Curve) -> list[str]:
    """Names of the parts of the loss; a part that appears later counts too."""
    return list(dict.fromkeys(name for line in curve.lines for name in line if name.startswith(PART)))


def _named(place: Path) -> tuple[str, str]:
    """Hook point and label of a folder below RUN/saes: the first part that names a hook point, and all others."""
    parts = list(place.parts)
    for part in parts:
        if is_hook(part):
            others = [other for other in parts if other not in (part, SWEEP, *UNFINISHED)]
            return part, " ".join([*others, IN_TRAINING] if UNFINISHED[0] in parts else others)
    return place.as_posix(), ""


def _order(hook: str) -> tuple[int, int, str]:
    if is_hook(hook):
        return *HookPoint.parse(hook).order, hook
    return 10**9, 0, hook
