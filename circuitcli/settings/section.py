"""What all sections of the settings share."""

import math
import re
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import SITES, AttentionScore, HookPoint, check_site, parse_pins, parse_scales, parse_slice
from circuitcli.reading import as_path, is_text

# Of what is counted in tokens: more than any corpus has, and far from the end of 64 bits.
MOST_TOKENS = 2**50
# Of a sweep: far more than a curve needs.
MOST_FACTORS = 1001
# All pairs of a kind that have SAEs: across a block; across an MLP with its norm and skip; across an MLP; these all.
PAIRS = ("blocks", "mlp-blocks", "mlp-layers", "all")
# PyTorch knows which names there are, but it takes seconds to load; these are its own.
_DEVICES = (
    "auto cpu cuda mps xpu hpu mtia xla ve hip ipu maia fpga lazy meta vulkan opengl opencl ideep mkldnn privateuseone"
)
_DEVICE = re.compile(r"([a-zA-Z][a-zA-Z0-9_]{0,30})(:[0-9]{1,4})?")
# Under which packages announce that they teach PyTorch another device, by whatever name.
_TEACHING = "torch.backends"


class Section(BaseModel):
    """Frozen; an unknown key is refused; the docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, populate_by_name=True
    )

    @field_validator("*", mode="after")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and (not is_text(text) or "\0" in text):
                raise ValueError("Value should be UTF-8 text without NUL")
        return value


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _lines(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


# "resid,attn" from a flag or the environment, ["resid", "attn"] from a file.
Split = BeforeValidator(_split)
Words = Annotated[tuple[str, ...], Split]
# Token ids, "464,3139,286" likewise.
Ids = Annotated[tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...], Split]
# A list whose entries may hold commas; a single text is a list of one.
Texts = Annotated[tuple[str, ...], BeforeValidator(_lines)]
# "0.25,0.5,1" likewise.
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(_split)]


def _device(name: str) -> str:
    found = _DEVICE.fullmatch(name)
    if found is None or not _is_device(found[1]):
        raise SettingsError(f"'{name}' is not a device", hint="use cpu, cuda, cuda:1 or mps")
    return name


def _is_device(kind: str) -> bool:
    """Whether PyTorch may know it: asked itself where it is loaded already."""
    if kind in _DEVICES.split() or entry_points(group=_TEACHING):
        return True
    loaded = sys.modules.get("torch")
    try:
        return loaded is not None and bool(loaded.device(kind))
    except RuntimeError:
        return False


def _slice(text: str) -> str:
    parse_slice(text)
    return text


def _sites(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise SettingsError("the list of sites is empty", hint=f"sites are {' '.join(SITES)}")
    for name in names:
        check_site(name)
    return names


def _pins(texts: tuple[str, ...]) -> tuple[str, ...]:
    parse_pins(texts)
    return texts


def _scores(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(AttentionScore.parse(text)) for text in texts))


def _scales(texts: tuple[str, ...]) -> tuple[str, ...]:
    parse_scales(texts)
    return texts


def factors(text: str) -> tuple[float, ...]:
    """The numbers that FIRST:LAST:STEP names, both ends among them. Raises SettingsError for anything else."""
    try:
        first, last, step = (float(part) for part in text.split(":"))
        n_steps = math.floor((last - first) / step + 1e-6)
    except (ValueError, ArithmeticError):
        n_steps = -1
    if not 0 <= n_steps < MOST_FACTORS:
        raise SettingsError(
            f"'{text[:60]}' is not FIRST:LAST:STEP with at most {MOST_FACTORS:,} numbers", hint="write it as 0:2:0.1"
        )
    return tuple(round(first + number * step, 12) for number in range(n_steps + 1))


def _factors(text: str) -> str:
    factors(text)
    return text


def _pairs(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_pair(text.strip()) for text in texts))


def _pair(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if text in PAIRS:
        return text
    if len(names) != 2:
        raise SettingsError(
            f"'{text[:60]}' is not two hook points",
            hint=f"for example resid.2,resid.3, or all pairs of a kind: {' '.join(PAIRS)}",
        )
    return ",".join(str(HookPoint.parse(name)) for name in names)


def _hooks(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(hook) for hook in sorted({HookPoint.parse(name) for name in names}))


def _named(text: str) -> str:
    if not text.strip():
        raise ValueError("input should not be empty")
    return text


def _expanded(text: str) -> str:
    return str(as_path(text, error=SettingsError)) if text.startswith("~") else text


def reachable(text: str) -> str:
    """The text, which may name a file. Raises SettingsError if it is one in the home folder of nobody."""
    # sae_lens:~/saes names a home folder too.
    for path in _paths(text):
        as_path(path, error=SettingsError)
    return text


def _paths(text: str) -> Iterable[str]:
    return (text, text.partition(":")[2])


# What a run is needed for is not all that can be wrong with these: their notation is looked at before one is sought.
Layers = Annotated[str, AfterValidator(_slice)]
Device = Annotated[str, AfterValidator(_device)]
Sites = Annotated[Words, AfterValidator(_sites)]
Pins = Annotated[Texts, AfterValidator(_pins)]
# Pairs of hook points, "resid.2,resid.3", or names of all pairs of a kind.
Pairs = Annotated[Texts, AfterValidator(_pairs)]
# Any number of them, each once, by its own name and in the order of the model.
Hooks = Annotated[Words, AfterValidator(_hooks)]
Scales = Annotated[Texts, AfterValidator(_scales)]
# "0:2:0.1": from the first to the last, by a step.
Factors = Annotated[str, AfterValidator(_factors)]
Scores = Annotated[Texts, AfterValidator(_scores)]
# A file or folder, or FORMAT:PATH, or a name of another kind.
FilePath = Annotated[str, AfterValidator(_named), AfterValidator(reachable)]
FilePaths = Annotated[tuple[FilePath, ...], BeforeValidator(_lines)]
FolderPath = Annotated[str, AfterValidator(_named), AfterValidator(_expanded)]
