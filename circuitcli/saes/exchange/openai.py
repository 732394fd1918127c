"""OpenAI's sparse_autoencoder for GPT-2 small: one .pt file a layer, in folders that are named for the hook point.

TopK models take layer-normed input, ReLU models plain input; ``pre_bias`` is subtracted and added again.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.place import About, Place

if TYPE_CHECKING:
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

NAME = "openai"
_LOCATIONS = {
    "resid_delta_attn": "attn",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp",
    "resid_post_mlp": "resid",
}
_FILE = re.compile(r"[0-9]{1,9}\.pt")
_CONTEXT_LENGTH = 64
_MODEL, _DATASET = "gpt2", "openwebtext"


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAEs of a directory whose .pt files are numbered, or which holds a single .pt file."""
    site = next((site for name, site in _LOCATIONS.items() if re.search(name, str(directory))), None)
    numbered = sorted(int(name.removesuffix(".pt")) for name in names if _FILE.fullmatch(name))
    if numbered:
        hooks = [None if site is None else HookPoint(layer, site) for layer in numbered]
        return [_place(directory / f"{layer}.pt", hook) for layer, hook in zip(numbered, hooks, strict=True)]
    alone = [name for name in names if name.endswith(".pt")]
    return [_place(directory / alone[0], None)] if len(names) == len(alone) == 1 else []


def _place(path: Path, hook: HookPoint | None) -> Place:
    return Place(NAME, path, (path,), hook, model=_MODEL)


def read(place: Place) -> "Foreign":
    """The SAE. Raises InputError for an activation that is not known, a pickle with code in it, and bad files."""
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign, Tensors, build

    tensors = Tensors.pickled(place.files[0])
    architecture, options = _activation(tensors)
    parameters = tensors.linear_layers("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
    d_in, d_sae = parameters["W_enc"].shape
    assert place.hook is not None
    normalisation: Any = "layer-norm" if architecture == "topk" else "none"
    config = SaeConfig(place.hook, d_in, d_sae, normalisation=normalisation)
    sae = build(architecture, config, parameters, path=tensors.path, **options)
    frequency = None
    if "latents_activation_frequency" in tensors:
        frequency = tensors.take("latents_activation_frequency", shape=(d_sae,))
        # Stored as counts by some versions, as shares by others.
        frequency = frequency / frequency.max() if bool((frequency > 1).any()) else frequency
    about = About(
        model=_MODEL,
        hook=next((name for name in _LOCATIONS if name in str(place.path)), None),
        bos=False,
        context_length=_CONTEXT_LENGTH,
        dtype=tensors.dtype_of("encoder.weight"),
        dataset=_DATASET,
        training=options,
    )
    return Foreign(sae, about, frequency)


def _activation(tensors: "Tensors") -> tuple[str, dict[str, int]]:
    """The architecture and its options."""
    name = tensors.content.get("activation", "ReLU")
    if name == "ReLU":
        return "relu", {}
    state = tensors.content.get("activation_state_dict")
    if name != "TopK" or not isinstance(state, Mapping):
        raise InputError(f"{tensors.path}: the activation '{name}' is not known", hint="ReLU and TopK are")
    post = state.get("postact_fn", "ReLU")
    if post != "ReLU" or "k" not in state:
        raise InputError(f"{tensors.path}: a TopK with {post} behind it, or without k, is not known")
    return "topk", {"k": int(state["k"])}
