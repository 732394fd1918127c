"""Qwen Scope: TopK SAEs of the residual stream, a .pt file a layer; the repository's name holds model, width and k."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.place import About, Place

if TYPE_CHECKING:
    from circuitcli.saes.exchange.tensors import Foreign

NAME = "qwen_scope"
_FILE = re.compile(r"layer([0-9]{1,9})\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(?P<model>[^/]+)-W[0-9]{1,9}K-L0_(?P<k>[0-9]{1,9})")


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAEs whose files lie in the directory, by layer."""
    layers = sorted(int(found[1]) for name in names if (found := _FILE.fullmatch(name)))
    repository = _REPOSITORY.search(str(directory))
    model = f"Qwen/{repository['model']}" if repository else None
    paths = {layer: directory / f"layer{layer}.sae.pt" for layer in layers}
    return [Place(NAME, path, (path,), HookPoint(layer, "resid"), model=model) for layer, path in paths.items()]


def read(place: Place) -> "Foreign":
    """The SAE. Raises InputError if no folder above it has the repository's name, and for bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    repository = _REPOSITORY.search(str(place.path))
    if repository is None:
        raise InputError(
            f"nothing says how many features of {place.path} are active",
            hint="keep it in a folder with the name of its repository, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50",
        )
    tensors = Tensors.pickled(place.files[0])
    parameters = tensors.linear_layers("W_enc", "b_enc", "W_dec", "b_dec")
    d_in, d_sae = parameters["W_enc"].shape
    assert place.hook is not None
    config = SaeConfig(place.hook, d_in, d_sae, subtract_decoder_bias=False)
    k = int(repository["k"])
    about = About(model=place.model, dtype=tensors.dtype_of("W_enc"), training={"k": k})
    return Foreign(build("topk", config, parameters, path=tensors.path, k=k), about)
