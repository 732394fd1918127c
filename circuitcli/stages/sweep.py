"""``circuit train --sweep``: variants of the settings, trained side by side on the same batches, and compared."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from circuitcli import processes
from circuitcli.errors import SettingsError
from circuitcli.records import FigureRecord, Record, SweepRecord
from circuitcli.render.pareto import pareto
from circuitcli.render.plots import write_plot
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed
from circuitcli.training.readers import unread

if TYPE_CHECKING:
    from circuitcli.stages.training import Finished, Training

# What may differ between SAEs that see the same batches.
_SWEPT = (
    "sae.",
    "train.learning_rate",
    "train.warmup",
    "train.decay",
    "train.clip",
    "train.auxk_weight",
    "train.dead_tokens",
)
FIGURE = "figures/sweep.svg"


def variants(settings: Settings) -> dict[str, Settings]:
    """Settings by the name of their variant: all combinations of the values that are swept; without a sweep one, "".

    Raises SettingsError for a setting that cannot be swept and for values that do not fit.
    """
    axes = [_axis(text) for text in settings.train.sweep]
    names = [name for name, _ in axes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingsError(f"--sweep names {twice} twice", hint="give all its values at once: NAME=VALUE,VALUE")
    by_name = {}
    for values in product(*(values for _, values in axes)):
        chosen = dict(zip(names, values, strict=True))
        by_name[",".join(f"{name}={value}" for name, value in chosen.items())] = changed(settings, chosen)
    ignored = unread(by_name.values())
    if pointless := [name for name in names if name in ignored]:
        raise SettingsError(
            f"--sweep {pointless[0]} makes no difference: {settings.sae.architecture} does not read it",
            hint="choose another setting or another architecture",
        )
    return by_name


def _axis(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    chosen = [value.strip() for value in values.split(",") if value.strip()]
    if not equals or not chosen:
        raise SettingsError(
            f"--sweep {text} has no values", hint="write --sweep NAME=VALUE,VALUE, for example --sweep sae.k=16,32,64"
        )
    if not name.startswith(_SWEPT):
        raise SettingsError(
            f"{name} cannot be swept: all SAEs of a sweep see the same batches",
            hint="sweep " + ", ".join(f"{known}*" if known.endswith(".") else known for known in _SWEPT),
        )
    if any("/" in value for value in chosen) or len(set(chosen)) < len(chosen):
        raise SettingsError(f"--sweep {text}: values must differ and hold no '/'", hint="they name directories")
    return name, chosen


def swept(training: "Training", finished: "Sequence[Finished]") -> list[Record]:
    """A record for each SAE of the sweep, and the plot that compares them."""
    records = [SweepRecord(variant=one.variant, **one.fields) for one in finished]
    if not processes.is_main():
        return list(records)
    drawing = pareto(records, title=f"sweep of {' and '.join(training.request.settings.train.sweep)}")
    write_plot(drawing, training.request.run.path / FIGURE)
    return [*records, FigureRecord(path=FIGURE)]
