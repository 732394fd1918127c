"""Where an SAE lies and what its files say of it; needs no torch."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from circuitcli import reading
from circuitcli.errors import InputError, first_line
from circuitcli.hookpoints import HookPoint
from circuitcli.runs import digest, file_digest
from circuitcli.saes.folder import is_recorded, sae_digest

if TYPE_CHECKING:
    from circuitcli.saes.base import Normalisation

NATIVE = "circuit"
_AGAIN, _CLT = "copy the SAE again", "clt"
# What is noted of a layer of a cross-layer transcoder.
ACROSS = "a layer of a cross-layer transcoder: what it writes adds to what other layers write"
# Of the hub's cache: the folder of all contents; small files are called by another, shorter digest there.
_BLOBS, _SHA256 = "blobs", re.compile("[0-9a-f]{64}")
# Of a file of so many bytes the digest is kept while size and time stay: a clock ticks while such a file is written.
_LARGE = 2**24


@dataclass(frozen=True)
class About:
    """What is known of an SAE besides its weights; None where its files do not say.

    hook and target: in the source's own words. bos: whether it was trained behind a BOS token. dtype: of the stored
    weights. before_gain: it reads a norm's output before the norm's weight and bias. module: the path of the Hugging
    Face module whose output it reconstructs, where the model was at hand. notes: conventions of the source that
    reading had to undo, in words. training: other facts, named as in the source.
    """

    model: str | None = None
    hook: str | None = None
    target: str | None = None
    bos: bool | None = None
    context_length: int | None = None
    dtype: str | None = None
    dataset: str | None = None
    before_gain: bool = False
    module: str | None = None
    notes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def writes_with_others(self) -> bool:
        """Whether it is known to explain what it writes together with other coders, so that it is not judged alone."""
        return ACROSS in self.notes or self.training.get("trained_as") == _CLT

    def noting(self, *notes: str) -> "About":
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class Changes:
    """What is known of an SAE from elsewhere and its files do not say: a catalogue, or the person who names it.

    scale: the factor by which inputs were multiplied in training, for files that say that there was one but not which.
    """

    hook: HookPoint | None = None
    target: HookPoint | None = None
    normalisation: "Normalisation | None" = None
    scale: float | None = None
    model: str | None = None
    bos: bool | None = None


@dataclass(frozen=True)
class Place:
    """One SAE on disk. hook is None where neither files nor path tell it.

    files: those that decide its codes, weights first; they are digested. transcodes: it is known to be a transcoder,
    even where its two hook points are not known. further: what it writes beside its target. Of a place that was cut,
    ``uncut`` is all that its files write. neuronpedia: what Neuronpedia calls it, if it is known to be there.
    """

    format: str
    path: Path
    files: tuple[Path, ...]
    hook: HookPoint | None
    target: HookPoint | None = None
    model: str | None = None
    changes: Changes = Changes()
    transcodes: bool = False
    further: tuple[HookPoint, ...] = ()
    uncut: tuple[HookPoint, ...] = ()
    neuronpedia: str | None = None

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """What it writes, in the order of its decoders; nothing where its hook point is not known."""
        first = self.target or self.hook
        return () if first is None else (first, *self.further)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which of the decoders that its files hold are read, counted from 0."""
        return tuple((self.uncut or self.writes).index(hook) for hook in self.writes)

    def cut(self, hooks: Container[HookPoint]) -> "Place | None":
        """The same coder, of which only the decoders of these hook points are read; None if it writes none of them."""
        kept = tuple(hook for hook in self.writes if hook in hooks)
        if not kept or kept == self.writes:
            return self if kept else None
        return replace(self, target=kept[0], further=kept[1:], uncut=self.uncut or self.writes)

    @property
    def digest(self) -> str:
        """Of all that decides its codes: for a native SAE `sae_digest`, for others all files; and what was changed."""
        for path in self.files:
            if not path.is_file():
                raise InputError(f"{path} is gone", hint="copy the SAE again")
        if self.format == NATIVE:
            own = sae_digest(self.path)
            return own if self.changes == Changes() else digest([own, *map(str, vars(self.changes).values())])
        return digest([*(_content_digest(path) for path in self.files), *map(str, vars(self.changes).values())])

    def is_recorded_as(self, recorded: str) -> bool:
        """Whether a digest in a record is of this SAE; see `folder.is_recorded` for those of earlier versions."""
        if self.format == NATIVE and self.changes == Changes():
            return is_recorded(self.path, recorded)
        return self.digest == recorded

    def changed(self, changes: Changes) -> "Place":
        """The same SAE with what is known from elsewhere."""
        return replace(
            self,
            changes=changes,
            hook=changes.hook or self.hook,
            target=changes.target or self.target,
            model=changes.model or self.model,
        )


def _content_digest(path: Path) -> str:
    """Of a file's bytes. The hub's cache calls large files by it, so that they need not be read."""
    content = path.resolve()
    if content != path and content.parent.name == _BLOBS and _SHA256.fullmatch(content.name):
        return f"sha256:{content.name}"
    found = content.stat()
    if found.st_size < _LARGE:
        return file_digest(path)
    return _large_digest(content, (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=4096)
def _large_digest(path: Path, _stamp: tuple[int, ...]) -> str:
    """Of a file as it is now: layers whose decoders lie in each other's files have it in common."""
    return file_digest(path)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError, naming the file, if there is none."""
    return reading.read_object(path, finite=False, hint=_AGAIN)


def read_yaml(path: Path) -> dict[str, Any]:
    """The YAML mapping in a file, empty for anything else. Raises InputError, naming the file, if it cannot be read."""
    text = reading.read_text(path, hint=_AGAIN)
    try:
        content = yaml.safe_load(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}", hint=_AGAIN) from None
    except RecursionError:
        raise InputError(f"cannot read {path}: it is nested too deep", hint=_AGAIN) from None
    return content if isinstance(content, dict) else {}


def scaled_note(factor: float) -> str:
    """What is told of inputs that were multiplied by a factor in training."""
    return f"inputs were multiplied by {factor:.4g} in training; the factor is folded into the weights"
