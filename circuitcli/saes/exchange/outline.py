"""What the files of a coder tell of it without its weights being read: widths, architecture, size; needs no torch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.place import NATIVE, Place
from circuitcli.saes.folder import OPTIONS, read_config
from circuitcli.saes.stored import StoredTensors

_AGAIN = "copy the SAE again"
_SAFE = ".safetensors"


@dataclass(frozen=True)
class Outline:
    """Shape and size of a coder. n_bytes: of its files of weights. options: what its architecture needs."""

    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    n_bytes: int
    dtype: str
    skip: bool = False
    options: Mapping[str, Any] | None = None


def outlined(place: Place) -> Outline | None:
    """The outline of a coder in a format of cross-layer transcoders; None in others, whose weights tell their shape."""
    made = _OF.get(place.format)
    return None if made is None else made(place)


def across_layers(places: Iterable[Place]) -> list[Place]:
    """Those that write several hook points, or one that a coder of another layer writes too: layers of cross-layer
    transcoders. Of one layer there may be several, as in a sweep."""
    found = [place for place in places if place.target is not None]
    reads: dict[HookPoint, set[HookPoint | None]] = {}
    for place in found:
        for hook in place.writes:
            reads.setdefault(hook, set()).add(place.hook)
    return [place for place in found if place.further or any(len(reads[hook]) > 1 for hook in place.writes)]


def _native(place: Place) -> Outline:
    config = read_config(place.path)
    return Outline(
        architecture=config["architecture"],
        d_in=config["d_in"],
        d_sae=config["d_sae"],
        d_out=config.get("d_out") or config["d_in"],
        n_bytes=_size(place),
        dtype="float32",
        skip=config.get("skip", False),
        options={name: config[name] for name in OPTIONS[config["architecture"]]},
    )


def _circuit_tracer(place: Place) -> Outline | None:
    encoder = StoredTensors(place.files[0], hint=_AGAIN)
    name = next((name for name in encoder.shapes if name.startswith("W_enc_")), None)
    if name is None:
        return None
    d_sae, d_in = encoder.shapes[name]
    has_threshold = any(name.startswith("threshold_") for name in encoder.shapes)
    return Outline("jumprelu" if has_threshold else "relu", d_in, d_sae, d_in, _size(place), _dtype(encoder, name))


def _gemma_scope(place: Place) -> Outline | None:
    if place.files[0].suffix != _SAFE:
        return None
    stored = StoredTensors(place.files[0], hint=_AGAIN)
    d_in, d_sae = stored.shapes["w_enc"]
    skips = "affine_skip_connection" in stored.shapes
    return Outline(
        "jumprelu", d_in, d_sae, stored.shapes["w_dec"][-1], _size(place), _dtype(stored, "w_enc"), skip=skips
    )


def _sparsify(place: Place) -> Outline | None:
    stored = StoredTensors(place.files[0], hint=_AGAIN)
    if "encoder.weight" not in stored.shapes:
        return None
    d_sae, d_in = stored.shapes["encoder.weight"]
    skips = any(name.startswith("W_skip") for name in stored.shapes)
    # Others are those of layers that it writes, and their own.
    n_bytes = stored.path.stat().st_size
    return Outline("topk", d_in, d_sae, d_in, n_bytes, _dtype(stored, "encoder.weight"), skip=skips)


_OF: dict[str, Callable[[Place], Outline | None]] = {
    NATIVE: _native,
    "circuit_tracer": _circuit_tracer,
    "gemma_scope": _gemma_scope,
    "sparsify": _sparsify,
}


def _size(place: Place) -> int:
    return sum(path.stat().st_size for path in place.files if path.suffix == _SAFE)


def _dtype(stored: StoredTensors, name: str) -> str:
    known = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return known.get(stored.dtypes[name], stored.dtypes[name])
