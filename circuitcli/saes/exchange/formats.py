"""All formats by name: finding SAEs on disk, which needs no torch, and reading them."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from circuitcli.errors import InputError
from circuitcli.saes.exchange import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    goodfire,
    llama_scope,
    native,
    openai,
    qwen_scope,
    sae_lens,
    sparsify,
    temporal,
)
from circuitcli.saes.exchange.layers import check_between
from circuitcli.saes.exchange.place import Place

if TYPE_CHECKING:
    from circuitcli.saes.exchange.tensors import Foreign

# How far below a named directory SAEs are looked for.
DEPTH = 6


@runtime_checkable
class Format(Protocol):
    """What each format's file provides."""

    NAME: str

    def places(self, directory: Path, names: frozenset[str]) -> list[Place]:
        """The SAEs whose files lie in this directory, judged by the names of the files there; torch-free."""
        ...

    def read(self, place: Place) -> "Foreign":
        """The SAE of a place, with the source's conventions applied."""
        ...


@runtime_checkable
class WritableFormat(Format, Protocol):
    """A format that is written too."""

    def write(self, items: "Sequence[Foreign]", directory: Path) -> list[Path]:
        """Write SAEs below a directory and return where each is."""
        ...


WRITABLE: dict[str, WritableFormat] = {
    made.NAME: made for made in (native, sae_lens, dictionary_learning, sparsify, circuit_tracer)
}
# In the order in which they are asked whether files are theirs.
FORMATS: dict[str, Format] = {
    **WRITABLE,
    **{made.NAME: made for made in (gemma_scope, llama_scope, goodfire, qwen_scope, temporal, openai)},
}


def find(path: Path, name: str | None = None, *, depth: int = DEPTH) -> list[Place]:
    """The SAEs at a path, which is a file, the directory of one SAE, or one of several; by name of format or of any.

    depth: how many directories below it are looked into, one in the other.
    Raises InputError if there is none.
    """
    chosen = list(FORMATS.values()) if name is None else [FORMATS[name]]
    if path.is_file():
        found = _claimed(path.parent, frozenset({path.name}), chosen)
    else:
        found = _below(path, chosen, depth=depth)
    if not found:
        if path.is_dir():
            _check_whole(path, chosen)
        is_there = os.path.lexists(path)
        what = f"no SAE in {path}" if is_there else f"there is no {path}"
        raise InputError(
            what if name is None or not is_there else f"{what} in the format of {name}",
            hint=f"formats are {' '.join(FORMATS)}; to say which, write FORMAT:PATH",
        )
    check_between(path, found)
    return found


def _check_whole(directory: Path, formats: Sequence[Format]) -> None:
    """Raises InputError for a directory that has a config of a format and lacks the weights."""
    for made in formats:
        config, weights = getattr(made, "CONFIG", None), getattr(made, "WEIGHTS", None)
        if config is not None and weights is not None and (directory / config).is_file():
            raise InputError(
                f"no SAE in {directory}: it has {config}, but the weights ({weights} in {made.NAME}) are missing",
                hint="copy the SAE again, with its weights",
            )


def _below(directory: Path, formats: Sequence[Format], *, depth: int) -> list[Place]:
    """SAEs of this directory, else of those in it: below an SAE there are only its checkpoints."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return []
    names = frozenset(entry.name for entry in entries if entry.is_file())
    found = _claimed(directory, names, formats)
    if found or not depth:
        return found
    folders = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return [place for folder in folders for place in _below(folder, formats, depth=depth - 1)]


def _claimed(directory: Path, names: frozenset[str], formats: Sequence[Format]) -> list[Place]:
    """What the first format that knows these files finds in them."""
    for made in formats:
        try:
            found = made.places(directory, names)
        except InputError as error:
            if str(directory) in error.message:
                raise
            raise InputError(f"{directory}: {error.message}", hint=error.hint) from None
        if found:
            return found
    return []


def read(place: Place) -> "Foreign":
    """The SAE of a place, with its own conventions and what is known from elsewhere applied; of one that writes more
    hook points than the place, only the decoders of these are read.

    Raises InputError for missing, damaged or misfitting files, naming file and tensor.
    """
    sae, about, frequency = found = FORMATS[place.format].read(place)
    changes = place.changes
    if changes.normalisation is not None and changes.normalisation != sae.config.normalisation:
        sae.config = replace(sae.config, normalisation=changes.normalisation)
        about = about.noting(f"the release's inputs are normalised: {changes.normalisation}")
    sae.config = replace(sae.config, hook=changes.hook or sae.hook, target=changes.target or sae.config.target)
    if place.uncut:
        sae.config = replace(sae.config, target=place.target, further=place.further)
    about = replace(about, model=changes.model or about.model, bos=about.bos if changes.bos is None else changes.bos)
    return found._replace(sae=sae, about=about, frequency=frequency)
