"""Goodfire's ReLU SAEs of Llama's residual stream: one file of two linear layers, named for the model and the layer."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.place import About, Place

if TYPE_CHECKING:
    from circuitcli.saes.exchange.tensors import Foreign

NAME = "goodfire"
_FILE = re.compile(r"(?P<model>Llama-.+)-SAE-l(?P<layer>[0-9]{1,9})\.pth?")
_DATASET = "lmsys/lmsys-chat-1m"


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAEs whose files lie in the directory."""
    return [
        Place(
            NAME,
            directory / name,
            (directory / name,),
            HookPoint(int(found["layer"]), "resid"),
            model=f"meta-llama/{found['model']}",
        )
        for name in sorted(names)
        if (found := _FILE.fullmatch(name))
    ]


def read(place: Place) -> "Foreign":
    """The SAE. Raises InputError for a pickle with code in it and bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    tensors = Tensors.pickled(place.files[0])
    parameters = tensors.linear_layers(
        "encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"
    )
    d_in, d_sae = parameters["W_enc"].shape
    assert place.hook is not None
    config = SaeConfig(place.hook, d_in, d_sae, subtract_decoder_bias=False)
    about = About(model=place.model, dtype=tensors.dtype_of("encoder_linear.weight"), dataset=_DATASET)
    return Foreign(build("relu", config, parameters, path=tensors.path), about)
