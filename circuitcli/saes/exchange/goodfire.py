"""Goodfire's ReLU SAEs of Llama's residual stream, and Qresearch's of DeepSeek's distilled one in the same manner.

One file of two linear layers, named for the model and the layer.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.place import About, Place

if TYPE_CHECKING:
    from circuitcli.saes.exchange.tensors import Foreign

NAME = "goodfire"
_OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}
_FILE = re.compile(r"(?P<model>(?P<family>Llama|DeepSeek)-.+)-SAE-l(?P<layer>[0-9]{1,9})\.pth?")
_DATASET = "lmsys/lmsys-chat-1m"


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAEs whose files lie in the directory."""
    return [
        Place(
            NAME,
            directory / name,
            (directory / name,),
            HookPoint(int(found["layer"]), "resid"),
            model=f"{_OWNERS[found['family']]}/{found['model']}",
        )
        for name in sorted(names)
        if (found := _FILE.fullmatch(name))
    ]


def read(place: Place) -> "Foreign":
    """The SAE. Raises InputError for a pickle with code in it and bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    tensors = Tensors.pickled(place.files[0])
    names = ("encoder_linear", "decoder_linear") if "encoder_linear.weight" in tensors else ("encoder", "decoder")
    parameters = tensors.linear_layers(*(f"{name}.{kind}" for name in names for kind in ("weight", "bias")))
    d_in, d_sae = parameters["W_enc"].shape
    assert place.hook is not None
    config = SaeConfig(place.hook, d_in, d_sae, subtract_decoder_bias=False)
    about = About(model=place.model, dtype=tensors.dtype_of(f"{names[0]}.weight"), dataset=_DATASET)
    return Foreign(build("relu", config, parameters, path=tensors.path), about)
