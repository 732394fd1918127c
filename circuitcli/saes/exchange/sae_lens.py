"""SAELens: today's files (6.x), the flat ones of 5.x, and the oldest, which name a ``hook_point``.

A directory holds cfg.json and sae_weights.safetensors; beside them may lie sparsity.safetensors (log10 of firing
frequencies), and in a checkpoint activation_scaler.json and activation_whitening.safetensors, which SAELens itself does
not apply when it loads the SAE.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.saes.exchange import hooks, temporal
from circuitcli.saes.exchange.fields import COUNT, POSITIVE, checked, field_of
from circuitcli.saes.exchange.place import About, Place, read_object, scaled_note
from circuitcli.saes.exchange.sae_lens_config import NORMALISATIONS, TRAINING, config_of, is_centred
from circuitcli.saes.exchange.sae_lens_writing import CONFIG, WEIGHTS, write

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.saes.base import SaeConfig, SparseCoder
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

# `write` is this format's own too.
__all__ = ["CONFIG", "NAME", "WEIGHTS", "places", "read", "write"]

NAME = "sae_lens"
SPARSITY = "sparsity.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

_ARCHITECTURES = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "matching_pursuit": "matching_pursuit",
    "temporal": "temporal",
}
_PURSUIT, _TEMPORAL = "matching_pursuit", "temporal"
_SCALER_FIELDS = {"scaling_factor": POSITIVE}


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAE of a directory with these files. Raises InputError for one at a hook point that is not known here."""
    if not {CONFIG, WEIGHTS} <= names:
        return []
    config = config_of(directory / CONFIG)
    if config.get("hook_head_index") is not None or config.get("reshape_activations", "none") != "none":
        raise InputError(
            f"{directory} holds an SAE of single heads or of hook_z, which circuit does not know: {hooks.OF_HEADS}",
            hint="name an SAE of attn, which is behind that projection, of mlp or of a residual stream",
        )
    hook = _hook(config, "hook_name", directory)
    is_transcoder = "transcoder" in config["architecture"]
    target = _hook(config, "hook_name_out", directory).hook if is_transcoder else None
    files = tuple(directory / name for name in (WEIGHTS, CONFIG, SCALER, WHITENING) if name in names)
    return [Place(NAME, directory, files, hook.hook, target, config.get("model_name"))]


def _hook(config: Mapping[str, Any], name: str, directory: Path) -> hooks.NamedHook:
    """The hook point of a field; a Hugging Face module that stands beside it says more exactly which is meant."""
    module = config.get("hf_" + name)
    if module is not None:
        try:
            return hooks.NamedHook(hooks.from_module(module, model=config.get("model_name")))
        except InputError:
            pass
    return hooks.from_transformer_lens(field_of(config, name, directory / CONFIG))


def read(place: Place) -> "Foreign":
    """The SAE with its conventions applied. Raises InputError for an architecture that is not known, or bad files."""
    from circuitcli.saes.exchange.tensors import Foreign, Tensors

    config = config_of(place.path / CONFIG)
    tensors = Tensors.safetensors(place.path / WEIGHTS)
    sae, notes = _built(place, config, tensors)
    frequency = None
    if (place.path / SPARSITY).is_file():
        found = Tensors.safetensors(place.path / SPARSITY).take("sparsity", shape=(sae.d_sae,))
        frequency = 10**found
    return Foreign(sae, _about(config, tensors).noting(*notes), frequency)


def _built(place: Place, config: Mapping[str, Any], tensors: "Tensors") -> "tuple[SparseCoder, list[str]]":
    from circuitcli.saes.exchange.tensors import build

    name = config["architecture"]
    if name not in _ARCHITECTURES:
        raise InputError(
            f"{place.path}: circuit has no architecture like SAELens's '{name}'",
            hint=f"it reads {' '.join(_ARCHITECTURES)}",
        )
    architecture = _ARCHITECTURES[name]
    if architecture == _PURSUIT:
        _complete(tensors, subtracts=config.get("apply_b_dec_to_input", True))
    if architecture == _TEMPORAL:
        temporal.complete(tensors, config)
    sae_config = _sae_config(place, config, tensors)
    options = _options(architecture, config, place)
    parameters = _parameters(architecture, sae_config, tensors, config)
    if architecture == _TEMPORAL:
        parameters |= temporal.attention(tensors, n_layers=options["n_attention_layers"])
    sae = build(architecture, sae_config, parameters, path=tensors.path, **options)
    notes = _fold(sae, place, config)
    if sae_config.normalisation == "centre":
        notes.append("activations of TransformerLens with centred writing weights: the mean over the width is removed")
    return sae, notes


def _options(architecture: str, config: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """What the architecture takes beside its parameters."""
    if architecture in ("topk", "abstopk"):
        path = place.path / CONFIG
        return checked({"k": field_of(config, "k", path)}, {"k": COUNT}, path)
    if architecture == _TEMPORAL:
        return temporal.options(config, place.path / CONFIG)
    names = ("max_iterations", "residual_threshold", "stop_on_duplicate_support") if architecture == _PURSUIT else ()
    return {name: config[name] for name in names if name in config}


def _complete(tensors: "Tensors", *, subtracts: bool) -> None:
    """Add what matching pursuit does without: its encoder is the decoder; a bias that it does not subtract is none."""
    W_dec = tensors.take("W_dec", shape=(None, None))
    tensors.content |= {"W_enc": W_dec.T, "b_enc": W_dec.new_zeros(len(W_dec))}
    if not subtracts:
        tensors.content["b_dec"] = W_dec.new_zeros(W_dec.shape[1])


def _sae_config(place: Place, config: Mapping[str, Any], tensors: "Tensors") -> "SaeConfig":
    from circuitcli.saes.base import SaeConfig

    assert place.hook is not None
    W_enc = tensors.take("W_enc", shape=(None, None))
    W_dec = tensors.take("W_dec", shape=(W_enc.shape[1], None))
    for name, size in zip(("d_in", "d_sae"), W_enc.shape, strict=True):
        if config.get(name, size) != size:
            raise InputError(
                f"{tensors.path}: W_enc has shape {tuple(W_enc.shape)}, {CONFIG} says {name} {config[name]}",
                hint="copy the SAE again, with its own config",
            )
    return SaeConfig(
        place.hook,
        d_in=W_enc.shape[0],
        d_sae=W_enc.shape[1],
        normalisation=_normalisation(place, config),
        subtract_decoder_bias=bool(config.get("apply_b_dec_to_input", True)) and place.target is None,
        target=place.target,
        d_out=W_dec.shape[1] if place.target is not None else None,
        skip="skip" in config["architecture"],
    )


def _normalisation(place: Place, config: Mapping[str, Any]) -> Any:
    name = config["normalize_activations"]
    if name not in NORMALISATIONS:
        raise InputError(f"{place.path}: the normalisation '{name}' is not known")
    found = NORMALISATIONS[name]
    assert place.hook is not None
    return "centre" if found == "none" and is_centred(config, place.hook) else found


def _parameters(
    architecture: str, config: "SaeConfig", tensors: "Tensors", said: Mapping[str, Any]
) -> "dict[str, Tensor]":
    d_in, d_sae, d_out = config.d_in, config.d_sae, config.d_out or config.d_in
    found = {
        "W_enc": tensors.take("W_enc", shape=(d_in, d_sae)),
        "b_enc": tensors.take("b_gate" if architecture == "gated" else "b_enc", shape=(d_sae,)),
        "W_dec": tensors.take("W_dec", shape=(d_sae, d_out)),
        "b_dec": tensors.take("b_dec", shape=(d_out,)),
    }
    if architecture == "gated":
        found |= {name: tensors.take(name, shape=(d_sae,)) for name in ("r_mag", "b_mag")}
    if architecture == "jumprelu":
        found["threshold"] = _threshold(tensors, found["W_dec"], said)
    if config.skip:
        found["W_skip"] = tensors.take("W_skip", shape=(d_out, d_in))
    if "scaling_factor" in tensors:
        factor = tensors.take("scaling_factor", shape=(d_sae,))
        if not said.get("finetuning_scaling_factor") and bool(((factor - 1).abs() > 1e-5).any()):
            raise InputError(f"{tensors.path} has a scaling_factor that {CONFIG} does not mention")
        found["W_dec"] = found["W_dec"] * factor[:, None]
    return found


def _threshold(tensors: "Tensors", W_dec: "Tensor", said: Mapping[str, Any]) -> "Tensor":
    """One threshold for each feature; stored so, as its logarithm, or as the one of a BatchTopK."""
    if "topk_threshold" in tensors:
        norms = W_dec.norm(dim=1).clamp_min(1e-8)  # (d_sae,)
        one = tensors.number("topk_threshold")
        # It is one for pre-activations times these norms.
        return one / norms if said.get("rescale_acts_by_decoder_norm") else 0 * norms + one
    name = tensors.name_of("threshold", "log_threshold")
    found = tensors.take(name, shape=(W_dec.shape[0],))
    return found.exp() if name == "log_threshold" else found


def _fold(sae: "SparseCoder", place: Place, config: Mapping[str, Any]) -> list[str]:
    """Fold decoder norms and what was done to the inputs into the weights; what to tell of it."""
    from circuitcli.saes import folding

    notes = [temporal.NOTE] if config["architecture"] == _TEMPORAL else []
    rescales = bool(config.get("rescale_acts_by_decoder_norm"))
    if config["architecture"] == _TEMPORAL and (scale := config.get(temporal.FACTOR, 1.0)) != 1:
        folding.scale_input(sae, scale)
        notes.append(scaled_note(scale))
    if rescales:
        folding.fold_decoder_norms(sae)
        notes.append("codes are multiplied by the norms of the decoder's rows, as in SAELens; the norms are folded")
    name = config["normalize_activations"]
    factor = place.changes.scale or _factor(place.path / SCALER)
    if name == "expected_average_only_in" and factor is not None:
        folding.scale_input(sae, factor)
        if rescales:
            folding.fold_decoder_norms(sae)
        notes.append(scaled_note(factor))
    elif name == "covariance_whitening" and (place.path / WHITENING).is_file():
        _unwhiten(sae, place.path / WHITENING)
        notes.append("inputs were whitened in training; that is folded into the weights")
    elif name in ("expected_average_only_in", "covariance_whitening"):
        notes.append(f"trained with normalize_activations={name}; taken to be in the weights already, as in SAELens")
    return notes


def _factor(path: Path) -> float | None:
    """The factor by which a checkpoint's inputs were multiplied, if it was kept."""
    return checked(read_object(path), _SCALER_FIELDS, path).get("scaling_factor") if path.is_file() else None


def _unwhiten(sae: "SparseCoder", path: Path) -> None:
    from circuitcli.saes import folding
    from circuitcli.saes.exchange.tensors import Tensors

    kept, d_in = Tensors.safetensors(path), sae.d_in
    folding.whiten_input(
        sae,
        mean=kept.take("mean", shape=(d_in,)),
        matrix=kept.take("matrix", shape=(d_in, d_in)),
        inverse=kept.take("inverse_matrix", shape=(d_in, d_in)),
    )


def _about(config: Mapping[str, Any], tensors: "Tensors") -> About:
    hook = config["hook_name"]
    return About(
        model=config.get("model_name"),
        hook=hook,
        target=config.get("hook_name_out"),
        bos=config.get("prepend_bos", True if config["is_oldest"] else None),
        context_length=config.get("context_size"),
        dtype=tensors.dtype_of("W_dec"),
        dataset=config.get("dataset_path"),
        before_gain="hf_hook_name" not in config and hooks.from_transformer_lens(hook).before_gain,
        training={name: config[name] for name in TRAINING if config.get(name) is not None},
    )
