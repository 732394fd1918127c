"""Cross-layer transcoders of clt-training, EleutherAI's fork of sparsify: of each layer a folder with sparsify's files.

cfg.json says by ``n_targets`` how many layers a folder's coder writes, its own first; of each, n from 0 on, there is a
decoder W_decs.n (d_sae, d_in) with its bias b_decs.n (d_in,). Only options that leave each layer a TopK of its own are
known; what else a file says or holds is refused by name, so that nothing is read wrongly.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.saes.exchange.fields import FLAG, INDEX, TEXT, field_of
from circuitcli.saes.exchange.place import Place
from circuitcli.saes.stored import StoredTensors

if TYPE_CHECKING:
    from circuitcli.saes.base import SparseCoder

_AGAIN = "copy the cross-layer transcoder again, with its own config"
# What would make the codes or the outputs of a layer depend on more than its own encoder and decoders.
_SWITCHES = ("normalize_io", "divide_cross_layer", "post_encoder_scale", "topk_coalesced", "per_source_tied")
FIELDS = {"n_targets": INDEX, "coalesce_topk": TEXT, **dict.fromkeys(_SWITCHES, FLAG)}


def read(place: Place, config: Mapping[str, Any]) -> "tuple[SparseCoder, str]":
    """A layer, with the decoders that the place lists, and the number type of its weights; no other decoder is read.

    Raises InputError for options and tensors that are not known here, and for shapes that do not fit each other.
    """
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Tensors, build, decoders

    _check_options(place, config)
    stored = StoredTensors(place.files[0], hint=_AGAIN)
    _check_names(stored, config["n_targets"])
    names = ["encoder.weight", "encoder.bias"]
    names += [f"{part}.{number}" for number in place.numbers for part in ("W_decs", "b_decs")]
    tensors = Tensors(stored.path, {name: stored.read(name) for name in names})
    encoder = tensors.take("encoder.weight", shape=(config.get("num_latents") or None, config.get("d_in")))
    d_sae, d_in = encoder.shape
    written = (
        (
            tensors.take(f"W_decs.{number}", shape=(d_sae, d_in)),
            tensors.take(f"b_decs.{number}", shape=(d_in,)),
        )
        for number in place.numbers
    )
    parameters = {
        "W_enc": encoder.T,
        "b_enc": tensors.take("encoder.bias", shape=(d_sae,)),
        **decoders(written, d_out=d_in),
    }
    assert place.hook is not None
    sae_config = SaeConfig(
        place.hook,
        d_in,
        d_sae,
        subtract_decoder_bias=False,
        target=place.target,
        d_out=d_in,
        further=place.further,
    )
    k = field_of(config, "k", place.files[1])
    coder = build("topk", sae_config, parameters, path=stored.path, k=k)
    return coder, tensors.dtype_of("encoder.weight")


def _check_options(place: Place, config: Mapping[str, Any]) -> None:
    on = [name for name in _SWITCHES if config.get(name)]
    on += [name for name in ("skip_connection", "signed") if config.get(name)]
    if config.get("coalesce_topk", "none") != "none":
        on.append(f"coalesce_topk {config['coalesce_topk']}")
    if on or config.get("activation", "topk") != "topk":
        what = " ".join(on) or f"the activation {config['activation']}"
        raise InputError(
            f"{place.path} is a cross-layer transcoder with {what}, which circuit does not know",
            hint="those whose layers have a TopK of their own are read; convert others to circuit-tracer's files",
        )


def _check_names(stored: StoredTensors, n_targets: int) -> None:
    """Raise InputError for tensors that are missing, and for others, which might change what is given."""
    wanted = {"encoder.weight", "encoder.bias"}
    wanted |= {f"{part}.{number}" for number in range(n_targets) for part in ("W_decs", "b_decs")}
    for names, what in (
        (wanted - stored.shapes.keys(), "has no"),
        (stored.shapes.keys() - wanted, "has, unlike known ones,"),
    ):
        if names:
            raise InputError(
                f"{stored.path} {what} {' '.join(sorted(names)[:4])}; of a cross-layer transcoder of {n_targets} layers"
                " encoder.weight, encoder.bias, W_decs.n and b_decs.n are read",
                hint=_AGAIN,
            )
