"""Training from finished coders on: which settings they decide, and whether they are such as can be trained here."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.plan import coder_shapes, hook_groups

if TYPE_CHECKING:
    from circuitcli.saes.base import SparseCoder

_T = TypeVar("_T")
ARCHITECTURE, K, D_SAE = "sae.architecture", "sae.k", "sae.d_sae"
# Rows that statistics are taken from which no file tells.
SAMPLE_ROWS = 8192
_ANEW = "train new ones: leave --from out"
# Autoencoders that learn alone, by what their files hold.
_ALONE = ("relu", "gated", "topk", "jumprelu", "crosscoder")


@dataclass(frozen=True)
class Start:
    """A finished coder that training begins from. trained_as: the architecture that it had then, where it is known."""

    coder: "SparseCoder"
    trained_as: str | None = None


def hooks_of(starts: Mapping[HookPoint, Start]) -> frozenset[HookPoint]:
    """All that the coders read and write."""
    return frozenset(hook for one in starts.values() for hook in (*one.coder.reads, *one.coder.writes))


def started(settings: Settings, starts: Mapping[HookPoint, Start], *, explicit: Collection[str]) -> Settings:
    """The settings with architecture, width and, unless it is set, k of the coders.

    explicit: dotted names of the settings that somebody chose. Raises SettingsError where these are of other coders,
    InputError for coders that cannot be trained here, or not together.
    """
    architecture = _architecture(settings, starts, explicit)
    values = {ARCHITECTURE: architecture, D_SAE: _width(architecture, starts)}
    if D_SAE in explicit and settings.sae.d_sae != values[D_SAE]:
        raise SettingsError(
            f"sae.d_sae={settings.sae.d_sae}, but the coders of --from have {values[D_SAE]}",
            hint="leave sae.d_sae out, or train new ones",
        )
    k = _only({getattr(one.coder, "k", None) for one in starts.values()}, "codes per token (k)")
    if k is not None and K not in explicit:
        values[K] = k
    return changed(settings, values, origin="--from")


def _architecture(settings: Settings, starts: Mapping[HookPoint, Start], explicit: Collection[str]) -> str:
    own = _only({_of(one) for one in starts.values()}, "architecture")
    if ARCHITECTURE not in explicit or settings.sae.architecture == own:
        return own
    chosen = settings.sae.architecture
    kinds = {one.coder.architecture for one in starts.values()}
    if kinds != {DESCRIPTIONS[chosen].finished_as}:
        raise SettingsError(
            f"sae.architecture={chosen} cannot go on from {' '.join(sorted(kinds))} coders",
            hint=f"leave sae.architecture out, which keeps {own}",
        )
    return chosen


def _only(values: Collection[_T], what: str) -> _T:
    if len(values) > 1:
        raise InputError(
            f"the coders of --from have not one {what} but {' '.join(sorted(map(str, values)))}",
            hint="train them on one after the other, each in a run of its own: --from SAE --run DIR",
        )
    return next(iter(values))


def _of(start: Start) -> str:
    """The architecture that a coder is trained as. Raises InputError if there is none."""
    coder, told = start.coder, start.trained_as
    if told in DESCRIPTIONS and DESCRIPTIONS[told].finished_as == coder.architecture:
        return told
    if not coder.is_transcoder or coder.architecture == "crosscoder":
        if coder.architecture in _ALONE:
            return coder.architecture
    elif coder.architecture == "topk" and len(coder.writes) == 1:
        return "skip-transcoder" if coder.config.skip else "transcoder"
    what = "transcoder" if coder.is_transcoder else "SAE"
    raise InputError(
        f"the {what} at {coder.hook} has {coder.architecture} codes, as none that is trained here", hint=_ANEW
    )


def _width(architecture: str, starts: Mapping[HookPoint, Start]) -> int:
    """``sae.d_sae`` of the coders, which are those of whole groups. Raises InputError if they are not."""
    widths: set[int] = set()
    for group in hook_groups(architecture, sorted(hooks_of(starts))):
        for shape in coder_shapes(architecture, group):
            start = starts.get(shape.reads[0])
            has_skip = start is not None and start.coder.config.skip
            fits = start is not None and (start.coder.reads, start.coder.writes) == (shape.reads, shape.writes)
            if start is None or not fits or has_skip != DESCRIPTIONS[architecture].has_skip:
                raise InputError(
                    f"no {architecture} coder in --from reads {' '.join(map(str, shape.reads))} "
                    f"and writes {' '.join(map(str, shape.writes))}",
                    hint="name all coders of the set, or another sae.architecture",
                )
            width, rest = divmod(start.coder.d_sae, shape.width)
            if rest:
                raise InputError(f"the {start.coder.d_sae} features at {start.coder.hook} are not {shape.width} steps")
            widths.add(width)
    return _only(widths, "width")
