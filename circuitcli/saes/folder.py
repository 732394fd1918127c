"""The files of a native SAE's directory: what config.json may say, and the digest of an SAE; needs no torch."""

import logging
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from circuitcli import runs
from circuitcli.errors import InputError, SettingsError
from circuitcli.faults import first_fault
from circuitcli.hookpoints import HookPoint
from circuitcli.reading import read_object

logger = logging.getLogger(__name__)

FORMAT = 1
WEIGHTS, CONFIG = "weights.safetensors", "config.json"
# What each architecture needs beside what all have.
OPTIONS: dict[str, tuple[str, ...]] = {
    "relu": (),
    "gated": (),
    "topk": ("k",),
    "abstopk": ("k",),
    "signed_topk": ("k",),
    "jumprelu": (),
    "matching_pursuit": ("max_iterations", "residual_threshold", "stop_on_duplicate_support"),
    "crosscoder": ("hooks",),
    "checkpoint_crosscoder": ("checkpoints", "scales"),
    "temporal": ("k", "n_heads", "n_attention_layers", "bottleneck_factor"),
}
_AGAIN = "train or copy the SAE again"


def _is_hook(text: str) -> str:
    try:
        HookPoint.parse(text)
    except SettingsError as error:
        raise ValueError(error.message) from None
    return text


_Hook = Annotated[str, AfterValidator(_is_hook)]
_Count = Annotated[int, Field(ge=1, lt=2**31)]


class NativeConfig(BaseModel):
    """What config.json must and may say; further fields are facts of the training."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    architecture: str
    hook: _Hook
    d_in: _Count
    d_sae: _Count
    normalisation: Literal["none", "centre", "layer-norm", "rms-norm"] = "none"
    subtract_decoder_bias: bool = True
    target: _Hook | None = None
    d_out: _Count | None = None
    skip: bool = False
    further: list[_Hook] = []
    before_gain: bool | None = None

    k: _Count | None = None
    hooks: Annotated[list[_Hook], Field(min_length=2)] | None = None
    checkpoints: Annotated[list[str], Field(min_length=2)] | None = None
    scales: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    max_iterations: _Count | None = None
    residual_threshold: float = Field(0.01, ge=0, allow_inf_nan=False)
    stop_on_duplicate_support: bool = True
    n_heads: Annotated[int, Field(ge=1, le=4096)] | None = None
    n_attention_layers: Annotated[int, Field(ge=1, le=1024)] | None = None
    bottleneck_factor: _Count | None = None

    # These decide no code.
    model: str | None = None
    bos: bool | None = None
    context_length: int | None = None
    dataset: str | None = None
    notes: list[str] = []
    explained_variance: float | None = None
    l0: float | None = None
    dead: float | None = None

    def deciding(self) -> dict[str, Any]:
        """What decides the codes and their place in a model, in one form whatever else the file says."""
        shape = ("architecture", "hook", "d_in", "d_sae", "normalisation", "subtract_decoder_bias", "target", "d_out")
        return {
            **{name: getattr(self, name) for name in (*shape, "skip", *OPTIONS[self.architecture])},
            # What was written before it could be said keeps its digest.
            **({"further": self.further} if self.further else {}),
            "before_gain": bool(self.before_gain),
        }


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a native SAE, checked. Raises InputError if there is none, or if a field makes no sense."""
    path = directory / CONFIG
    # Scores of a diverged training are no finite numbers.
    content = read_object(path, finite=False, hint="name a directory that `circuit train` wrote")
    if (version := content.get("format")) != FORMAT or isinstance(version, bool):
        raise InputError(f"{path} has SAE format {version!r:.40}; this version reads {FORMAT}", hint=_AGAIN)
    return content | checked(content, path).model_dump(include=set(content))


def checked(content: dict[str, Any], path: Path) -> NativeConfig:
    """The fields of a config that are known. Raises InputError, naming file, field and value, if one makes no sense."""
    try:
        config = NativeConfig.model_validate(content)
    except ValidationError as error:
        fault = first_fault(error)
        if fault.is_missing:
            raise InputError(f"{path} lacks '{fault.field}'", hint=_AGAIN) from None
        raise InputError(f"{path}: '{fault.field}' is {fault.value!r:.60}: {fault.reason}", hint=_AGAIN) from None
    if config.architecture not in OPTIONS:
        raise InputError(
            f"{path.parent}: architecture '{config.architecture:.40}' is not known",
            hint=f"known are {' '.join(OPTIONS)}",
        )
    if missing := [name for name in OPTIONS[config.architecture] if name not in content]:
        raise InputError(f"{path} lacks '{missing[0]}'", hint=_AGAIN)
    if "k" in OPTIONS[config.architecture] and (config.k or 0) > config.d_sae:
        raise InputError(f"{path}: 'k' is {config.k}, more than the {config.d_sae} features", hint=_AGAIN)
    _check_ends(config, path)
    return config


def _check_ends(config: NativeConfig, path: Path) -> None:
    """Raise InputError where what only a transcoder has does not fit."""
    if config.target is not None:
        if HookPoint.parse(config.target) < HookPoint.parse(config.hook):
            raise InputError(
                f"{path}: it predicts {config.target} from {config.hook}, which comes after it", hint=_AGAIN
            )
        _check_further(config, path)
    elif config.skip or config.further or config.d_out not in (None, config.d_in):
        what = "a skip connection" if config.skip else f"{len(config.further) + 1} hook points that it writes"
        what = f"{config.d_out} outputs" if config.d_out not in (None, config.d_in) else what
        raise InputError(f"{path}: an SAE of {config.d_in} inputs that predicts no 'target' has {what}", hint=_AGAIN)


def _check_further(config: NativeConfig, path: Path) -> None:
    """Raise InputError unless the hook points that it writes follow each other, each once."""
    writes = [HookPoint.parse(name) for name in (config.target or config.hook, *config.further)]
    for before, after in pairwise(writes):
        if not before < after:
            raise InputError(f"{path}: it writes {after} behind {before}, which is not before it", hint=_AGAIN)


def sae_digest(directory: Path) -> str:
    """``sha256:...`` of an SAE's weights and of all in its config that decides its codes.

    Scores and other facts may change. Raises InputError if there is no such SAE.
    """
    config = checked(read_config(directory), directory / CONFIG)
    return runs.digest([_weights_digest(directory), config.deciding()])


def is_recorded(directory: Path, digest: str) -> bool:
    """Whether a digest in a record is of this SAE.

    One of its weights alone, as records had before the configuration counted, is taken with a warning. Raises
    InputError if there is no such SAE.
    """
    if sae_digest(directory) == digest:
        return True
    if _weights_digest(directory) != digest:
        return False
    logger.warning(
        "the record of the SAE in %s is of an earlier version and holds for its weights alone: nothing tells whether "
        "its %s was changed; `circuit train --force` makes both anew",
        directory,
        CONFIG,
    )
    return True


def check_file(path: Path) -> None:
    """Raise InputError for what is no regular file: a pipe or a device might never end."""
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        what = "it is not a file" if os.path.lexists(path) else "there is no such file"
        raise InputError(f"cannot read {path}: {what}", hint=_AGAIN)


def _weights_digest(directory: Path) -> str:
    path = directory / WEIGHTS
    check_file(path)
    try:
        return runs.file_digest(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint=_AGAIN) from None
