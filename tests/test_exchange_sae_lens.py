"""SAELens in both directions, against the real package."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exchange_support import (
    D_IN,
    D_OUT,
    D_SAE,
    HOOK,
    MLP,
    MLP_IN,
    K,
    assert_same,
    inputs,
    only,
    random_sae,
    random_transcoder,
    written,
)
from safetensors.torch import load_file, save_file

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes import folding
from circuitcli.saes.exchange import formats

sae_lens = pytest.importorskip("sae_lens")
from sae_lens import SAE  # noqa: E402
from sae_lens.loading import pretrained_sae_loaders as loaders  # noqa: E402
from sae_lens.registry import get_sae_class, get_sae_training_class  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402

# SAELens warns of SAEs of centred models.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

INFERENCE = ["standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit"]
TRANSCODERS = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
TRAINING = ["standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk"]
METADATA = {"model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_post", "context_size": 128}


def options(architecture: str) -> dict[str, Any]:
    """What a config of this architecture needs beside the sizes."""
    if "transcoder" in architecture:
        return {"d_out": D_OUT, "apply_b_dec_to_input": False}
    needs_k = architecture.endswith("topk")
    widths = {"matryoshka_widths": [5, D_SAE]} if architecture.startswith("matryoshka") else {}
    return ({"k": K} if needs_k else {}) | widths


def filled(sae: Any, seed: int = 0) -> Any:
    """Every parameter random; thresholds positive."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        if "threshold" in name:
            parameter.data = parameter.data.abs()
        if "pursuit" in sae.cfg.architecture() and name == "W_dec":
            parameter.data = torch.nn.functional.normalize(parameter.data, dim=1)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold = torch.tensor(0.9, dtype=torch.double)
    return sae.eval()


def inference_sae(architecture: str, metadata: dict[str, Any] | None = None, **config: Any) -> Any:
    made, made_config = get_sae_class(architecture)
    about = METADATA | (metadata or {})
    if "transcoder" in architecture:
        about |= {"hook_name": "blocks.2.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"}
    chosen = {"d_in": D_IN, "d_sae": D_SAE, **options(architecture), **config}
    return filled(made(made_config(metadata=sae_lens.saes.sae.SAEMetadata(**about), **chosen)))


def training_sae(architecture: str, **config: Any) -> Any:
    made, made_config = get_sae_training_class(architecture)
    chosen = {"d_in": D_IN, "d_sae": D_SAE, **options(architecture), **config}
    return filled(made(made_config(metadata=sae_lens.saes.sae.SAEMetadata(**METADATA), **chosen)))


def theirs(sae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return sae.encode(inputs()), sae(inputs())


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", INFERENCE)
def test_saes_of_sae_lens_give_the_same_here(architecture: str, normalisation: str, subtract: bool, tmp_path: Path):
    sae = inference_sae(architecture, apply_b_dec_to_input=subtract, normalize_activations=normalisation)
    sae.save_model(tmp_path)
    found = only(tmp_path)
    assert_same(found.sae, *theirs(sae), inputs())
    assert found.sae.hook == HOOK and not found.sae.is_transcoder
    assert (found.about.model, found.about.context_length, found.about.dtype) == ("gpt2-small", 128, "float32")


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_transcoders_of_sae_lens_give_the_same_here(architecture: str, normalisation: str, tmp_path: Path):
    sae = inference_sae(architecture, normalize_activations=normalisation)
    sae.save_model(tmp_path)
    found = only(tmp_path).sae
    assert_same(found, *theirs(sae), inputs())
    assert (found.hook, found.target, found.d_out) == (MLP_IN, MLP, D_OUT)


@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_topk_that_selects_by_decoder_norm_becomes_an_equal_plain_topk(
    architecture: str, rescales: bool, tmp_path: Path
):
    sae = inference_sae(architecture, rescale_acts_by_decoder_norm=rescales)
    sae.save_model(tmp_path)
    found = only(tmp_path)
    assert_same(found.sae, *theirs(sae), inputs())
    assert bool(found.about.notes) == rescales


@pytest.mark.parametrize("architecture", [*TRAINING, "matching_pursuit"])
def test_finished_trainings_give_the_same_here(architecture: str, tmp_path: Path):
    training_sae(architecture).save_inference_model(tmp_path)
    assert_same(only(tmp_path).sae, *theirs(SAE.load_from_disk(tmp_path)), inputs())


@pytest.mark.parametrize("architecture", [*TRAINING, "matching_pursuit"])
def test_checkpoints_give_what_the_finished_training_would(architecture: str, tmp_path: Path):
    sae = training_sae(architecture)
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "finished")
    if architecture.endswith("batchtopk"):
        with pytest.raises(KeyError):
            SAE.load_from_disk(tmp_path / "checkpoint")
    assert_same(only(tmp_path / "checkpoint").sae, *theirs(SAE.load_from_disk(tmp_path / "finished")), inputs())


@pytest.mark.parametrize("architecture", TRAINING)
def test_the_scale_of_a_checkpoints_inputs_is_applied(architecture: str, tmp_path: Path):
    sae = training_sae(architecture, normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path / "checkpoint")
    scaler = ActivationScaler(scaling_factor=0.37)
    scaler.save(str(tmp_path / "checkpoint/activation_scaler.json"))
    sae.fold_activation_norm_scaling_factor(0.37)
    sae.save_inference_model(tmp_path / "finished")
    found = only(tmp_path / "checkpoint")
    assert_same(found.sae, *theirs(SAE.load_from_disk(tmp_path / "finished")), inputs())
    assert any("0.37" in note for note in found.about.notes)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", TRAINING)
def test_the_whitening_of_a_checkpoints_inputs_is_applied(architecture: str, subtract: bool, tmp_path: Path):
    sae = training_sae(architecture, normalize_activations="covariance_whitening", apply_b_dec_to_input=subtract)
    sae.save_model(tmp_path / "checkpoint")
    scaler = ActivationScaler()
    batches = iter([inputs(400) @ torch.diag(torch.arange(1.0, D_IN + 1))])
    scaler.estimate_whitening(D_IN, batches, n_batches_for_norm_estimate=1)
    scaler.save(str(tmp_path / "checkpoint/activation_scaler.json"))
    kept = scaler.whitening
    sae.fold_activation_whitening(kept.mean, kept.matrix, kept.inverse_matrix)
    sae.save_inference_model(tmp_path / "finished")
    assert_same(only(tmp_path / "checkpoint").sae, *theirs(SAE.load_from_disk(tmp_path / "finished")), inputs())


def test_a_checkpoint_without_its_scale_is_read_as_sae_lens_does_and_says_so(tmp_path: Path):
    sae = inference_sae("standard", normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path)
    found = only(tmp_path)
    assert_same(found.sae, *theirs(SAE.load_from_disk(tmp_path)), inputs())
    assert "expected_average_only_in" in " ".join(found.about.notes)


def flat(sae: Any, directory: Path, **config: Any) -> Path:
    """The files of version 5: no levels, no version."""
    sae.save_model(directory)
    content = {
        "architecture": sae.cfg.architecture(),
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "model_name": "pythia-70m-deduped",
        "hook_name": "blocks.2.hook_resid_post",
        "hook_layer": 2,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "prepend_bos": False,
        "context_size": 64,
        "normalize_activations": "none",
        **config,
    }
    (directory / "cfg.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", False, None])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_flat_files_of_version_5_give_the_same_here(architecture: str, normalisation: Any, tmp_path: Path):
    sae = inference_sae(architecture, normalize_activations=normalisation or "none")
    found = only(flat(sae, tmp_path, normalize_activations=normalisation))
    assert_same(found.sae, *theirs(SAE.load_from_disk(tmp_path)), inputs())
    assert (found.about.model, found.about.bos, found.about.context_length) == ("pythia-70m-deduped", False, 64)


def test_topk_of_version_5_is_named_by_its_activation_function(tmp_path: Path):
    sae = inference_sae("topk")
    config = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    found = only(flat(sae, tmp_path, **config)).sae
    assert (found.architecture, found.options) == ("topk", {"k": K})
    assert_same(found, *theirs(SAE.load_from_disk(tmp_path)), inputs())


# Fields of SAEConfig in sae-lens 5.11 that have no default there, not even when it reads a file.
NEEDED_BY_VERSION_5 = {
    *("architecture", "d_in", "d_sae", "dtype"),
    *("context_size", "model_name", "hook_name", "hook_layer", "hook_head_index", "dataset_path"),
}


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("architecture", ["relu", "gated", "topk", "jumprelu"])
def test_what_we_write_is_a_file_of_version_5_too(architecture: str, bos: bool | None, tmp_path: Path):
    ours = random_sae(architecture, normalisation="layer-norm", subtract_decoder_bias=False)
    path = written(ours, "sae_lens", tmp_path, model="gpt2", bos=bos, context_length=64, dataset="text")
    content = json.loads((path / "cfg.json").read_text())
    # Without what 5.x does not know, the reader of such files takes it for one.
    assert content.pop("metadata")["hook_name"] == content["hook_name"] == "blocks.2.hook_resid_post"
    assert content.keys() >= NEEDED_BY_VERSION_5
    assert content.get("prepend_bos") == bos and ("prepend_bos" in content) == (bos is not None)
    for name in ("k", "rescale_acts_by_decoder_norm", "reshape_activations"):
        content.pop(name, None)
    if architecture == "topk":
        content["architecture"] = "standard"
    (path / "cfg.json").write_text(json.dumps(content))
    assert_same(only(path).sae, ours.encode(inputs()), ours.reconstruct(inputs()), inputs())
    assert_same(ours, *theirs(SAE.load_from_disk(path)), inputs())


def oldest(directory: Path, **config: Any) -> Any:
    """The files of 2024: ``hook_point``, and nothing of architecture, normalisation or BOS."""
    sae = inference_sae("standard")
    sae.save_model(directory)
    content = {
        "hook_point": "blocks.2.hook_resid_pre",
        "hook_point_layer": 2,
        "hook_point_head_index": None,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "l1_coefficient": 8e-05,
        "context_size": 128,
        "device": "mps",
        **config,
    }
    (directory / "cfg.json").write_text(json.dumps(content))
    return sae


def test_the_oldest_files_mean_centred_activations_where_the_model_has_layer_norm(tmp_path: Path):
    sae = oldest(tmp_path, model_name="gpt2-small")
    found = only(tmp_path)
    centred = inputs() - inputs().mean(dim=1, keepdim=True)
    with torch.no_grad():
        codes, reconstruction = sae.encode(centred), sae(centred)
    assert_same(found.sae, codes, reconstruction + inputs().mean(dim=1, keepdim=True), inputs())
    assert found.sae.hook == HookPoint(2, "resid_pre") and found.about.bos is True
    assert found.about.training == {"l1_coefficient": 8e-05}


@pytest.mark.parametrize("config", [{"model_name": "gemma-2b"}, {}])
def test_the_oldest_files_of_other_models_are_not_centred(config: dict, tmp_path: Path):
    sae = oldest(tmp_path, **config)
    assert_same(only(tmp_path).sae, *theirs(sae), inputs())


@pytest.mark.parametrize("centred", [True, False])
def test_centring_follows_what_the_config_says_of_the_model(centred: bool, tmp_path: Path):
    kwargs = {"model_from_pretrained_kwargs": {"center_writing_weights": centred}}
    inference_sae("standard", metadata=kwargs).save_model(tmp_path)
    assert only(tmp_path).sae.config.normalisation == ("centre" if centred else "none")


@pytest.mark.parametrize(
    ("version", "config", "centred"),
    [
        ("3.0.0", {}, True),
        ("3.19.1", {}, True),
        ("3.19.2", {}, False),
        ("2.1.3", {}, False),
        ("6.1.0", {}, False),
        ("garbage", {}, False),
        ("3.5.0", {"model_name": "gemma-2b"}, False),
        ("3.5.0", {"model_from_pretrained_kwargs": {"center_writing_weights": False}}, False),
        ("3.5.0", {"hook_name": "blocks.2.mlp.hook_in"}, False),
    ],
)
def test_the_version_that_trained_an_sae_tells_whether_its_model_was_centred(
    version: str, config: dict, centred: bool, tmp_path: Path
):
    metadata = {"sae_lens_training_version": version, "model_name": "gpt2-small"} | config
    inference_sae("standard").save_model(tmp_path)
    path = tmp_path / "cfg.json"
    content = json.loads(path.read_text())
    flat = {name: value for name, value in content.items() if name != "metadata"} | content["metadata"] | metadata
    path.write_text(json.dumps({name: value for name, value in flat.items() if value is not None}))
    found = only(tmp_path)
    assert found.sae.config.normalisation == ("centre" if centred else "none")
    assert any("centred writing weights" in note for note in found.about.notes) == centred


def test_a_batchtopk_may_keep_a_fraction_of_a_feature_on_average(tmp_path: Path):
    sae = training_sae("batchtopk", k=4.5)
    sae.save_model(tmp_path)
    assert only(tmp_path).sae.architecture == "jumprelu"
    content = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(content | {"architecture": "topk"}))
    with pytest.raises(InputError, match=r"'k' is 4\.5, not a whole number above zero"):
        only(tmp_path)


def test_firing_frequencies_come_along(tmp_path: Path):
    inference_sae("standard").save_model(tmp_path)
    save_file({"sparsity": torch.linspace(-10, -1, D_SAE)}, tmp_path / "sparsity.safetensors")
    frequency = only(tmp_path).frequency
    assert float(frequency[-1]) == pytest.approx(0.1) and float(frequency[0]) == pytest.approx(1e-10)


@pytest.mark.parametrize("uses", [True, False])
def test_a_finetuned_scale_of_features_is_folded_or_refused(uses: bool, tmp_path: Path):
    sae = inference_sae("standard")
    flat(sae, tmp_path, finetuning_scaling_factor=uses)
    factor = torch.linspace(0.5, 2, D_SAE)
    save_file({**load_file(tmp_path / "sae_weights.safetensors"), "scaling_factor": factor}, path := tmp_path / "new")
    path.rename(tmp_path / "sae_weights.safetensors")
    if not uses:
        with pytest.raises(InputError, match="scaling_factor"):
            only(tmp_path)
        return
    codes, _ = theirs(sae)
    with torch.no_grad():
        assert_same(only(tmp_path).sae, codes, (codes * factor) @ sae.W_dec + sae.b_dec, inputs())


def test_a_finetuned_scale_of_ones_says_nothing(tmp_path: Path):
    sae = inference_sae("standard")
    flat(sae, tmp_path, finetuning_scaling_factor=False)
    ones = {**load_file(tmp_path / "sae_weights.safetensors"), "scaling_factor": torch.ones(D_SAE)}
    save_file(ones, path := tmp_path / "new")
    path.rename(tmp_path / "sae_weights.safetensors")
    assert_same(only(tmp_path).sae, *theirs(sae), inputs())


def test_version_5_said_true_for_a_factor_of_the_mean_norm(tmp_path: Path):
    sae = inference_sae("standard")
    flat(sae, tmp_path, normalize_activations=True)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    found = only(tmp_path)
    x = 0.37 * inputs()
    with torch.no_grad():
        assert torch.allclose(found.sae.encode(inputs()), sae.encode(x), rtol=1e-4, atol=1e-4)
        assert torch.allclose(found.sae.reconstruct(inputs()) * 0.37, sae(x), rtol=1e-4, atol=1e-4)
    assert any("multiplied by 0.37" in note for note in found.about.notes)


def test_thresholds_may_be_stored_as_logarithms(tmp_path: Path):
    sae = inference_sae("jumprelu")
    sae.save_model(tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    save_file(tensors | {"log_threshold": tensors.pop("threshold").log()}, tmp_path / "sae_weights.safetensors")
    assert_same(only(tmp_path).sae, *theirs(sae), inputs())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "crosscoder"}, "no architecture like SAELens's 'crosscoder'"),
        ({"hook_name": "blocks.2.attn.hook_z"}, "'blocks.2.attn.hook_z' is not one that circuit knows"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"hook_head_index": 3}, "single heads"),
        ({"hook_name": None}, "lacks 'hook_name'"),
        ({"activation_fn_str": "tanh-relu"}, "'tanh-relu' is not known"),
        ({"normalize_activations": "tanh"}, "normalisation 'tanh' is not known"),
        ({"d_sae": D_SAE + 1}, f"W_enc has shape .{D_IN}, {D_SAE}., cfg.json says d_sae {D_SAE + 1}"),
        ({"architecture": "jumprelu"}, "has no tensor threshold"),
        ({"architecture": "topk"}, "lacks 'k'"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(config: dict, message: str, tmp_path: Path):
    flat(inference_sae("standard"), tmp_path, **config)
    with pytest.raises(InputError, match=message) as caught:
        only(tmp_path)
    assert str(tmp_path) in caught.value.message


def test_cut_and_missing_weights_are_refused_by_name(tmp_path: Path):
    inference_sae("standard").save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    tensors, content = load_file(path), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot read .*sae_weights.safetensors"):
        only(tmp_path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "b_dec"}, path)
    with pytest.raises(InputError, match=r"sae_weights.safetensors has no tensor b_dec"):
        only(tmp_path)
    save_file({**tensors, "W_dec": tensors["W_dec"][:-1].contiguous()}, path)
    with pytest.raises(InputError, match=rf"W_dec has shape .{D_SAE - 1}, {D_IN}., expected .{D_SAE}, any"):
        only(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(InputError, match=r"cfg.json is not JSON"):
        only(tmp_path)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("normalisation", ["none", "layer-norm", "rms-norm"])
@pytest.mark.parametrize("architecture", ["relu", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit"])
def test_ours_give_the_same_in_sae_lens(architecture: str, normalisation: str, subtract: bool, tmp_path: Path):
    sae = random_sae(architecture, normalisation=normalisation, subtract_decoder_bias=subtract)
    path = written(sae, "sae_lens", tmp_path, model="gpt2", bos=True, context_length=64)
    loaded = SAE.load_from_disk(path)
    assert_same(sae, *theirs(loaded), inputs())
    assert path.name == loaded.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    assert (loaded.cfg.metadata.model_name, loaded.cfg.metadata.prepend_bos) == ("gpt2", True)
    assert_same(only(path).sae, *theirs(loaded), inputs())


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_our_transcoders_give_the_same_in_sae_lens(architecture: str, skip: bool, tmp_path: Path):
    sae = random_transcoder(architecture, skip=skip)
    loaded = SAE.load_from_disk(written(sae, "sae_lens", tmp_path))
    assert_same(sae, *theirs(loaded), inputs())
    assert loaded.cfg.metadata.hook_name_out == "blocks.2.hook_mlp_out"


def test_a_transcoder_that_subtracts_its_decoder_bias_keeps_its_codes(tmp_path: Path):
    sae = random_transcoder("jumprelu", subtract_decoder_bias=True, d_out=D_IN)
    assert_same(sae, *theirs(SAE.load_from_disk(written(sae, "sae_lens", tmp_path))), inputs())


def test_a_centred_sae_says_so_to_sae_lens_and_comes_back(tmp_path: Path):
    sae = random_sae("relu", normalisation="centre")
    path = written(sae, "sae_lens", tmp_path, model="gpt2")
    loaded = SAE.load_from_disk(path)
    assert loaded.cfg.metadata.model_from_pretrained_kwargs == {"center_writing_weights": True}
    centred = inputs() - inputs().mean(dim=1, keepdim=True)
    with torch.no_grad():
        assert torch.allclose(loaded.encode(centred), sae.encode(inputs()), atol=1e-5)
    assert only(path).sae.config.normalisation == "centre"


@pytest.mark.parametrize(
    "rule", [{}, {"residual_threshold": 1.5}, {"max_iterations": 2}, {"stop_on_duplicate_support": False}]
)
def test_matching_pursuit_stops_by_its_own_rules(rule: dict, tmp_path: Path):
    theirs_ = inference_sae("matching_pursuit", **rule)
    theirs_.save_model(tmp_path / "theirs")
    found = only(tmp_path / "theirs").sae
    assert_same(found, *theirs(theirs_), inputs())
    again = SAE.load_from_disk(written(found, "sae_lens", tmp_path / "ours"))
    assert_same(found, *theirs(again), inputs())


def test_the_scale_of_a_pursuits_inputs_is_applied_and_then_it_is_not_tied(tmp_path: Path):
    sae = inference_sae("matching_pursuit", normalize_activations="expected_average_only_in", residual_threshold=0.5)
    sae.save_model(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    found = only(tmp_path).sae
    with torch.no_grad():
        assert torch.allclose(found.encode(inputs()), sae.encode(0.37 * inputs()), rtol=1e-4, atol=1e-5)
        assert torch.allclose(0.37 * found.reconstruct(inputs()), sae(0.37 * inputs()), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="SAELens ties encoder and decoder"):
        written(found, "sae_lens", tmp_path / "again")
    for fold in (folding.fold_decoder_norms, lambda it: folding.with_decoder_bias_rule(it, subtracts=False)):
        with pytest.raises(InputError, match="stops by the length of the remainder"):
            fold(found)


def test_transcoders_that_sae_lens_lacks_are_not_written(tmp_path: Path):
    with pytest.raises(InputError, match="no topk transcoder"):
        written(random_transcoder("topk"), "sae_lens", tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that SAELens's own readers of other formats take for the hub."""
    monkeypatch.setattr(
        loaders,
        "hf_hub_download",
        lambda repo_id, filename, subfolder="", force_download=False, revision=None: str(
            tmp_path / repo_id / subfolder / filename
        ),
    )
    return tmp_path


def through_sae_lens(loader: str, repo: str, folder: str, *, scale: float | None = None) -> Any:
    """The SAE as SAELens converts it."""
    config, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](repo, folder, "cpu", False, {"dtype": "float32"})
    config = loaders.handle_config_defaulting(config | {"dtype": "float32"})
    made, made_config = get_sae_class(config["architecture"])
    sae = made(made_config.from_dict(config))
    sae.load_state_dict(state)
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    return sae.float()


def test_gemma_scope_is_read_as_sae_lens_does(hub: Path):
    repo, folder = "google/gemma-scope-2b-pt-res", "layer_2/width_16k/average_l0_82"
    sae = random_sae("jumprelu")
    arrays = {name: tensor.numpy() for name, tensor in sae.state_dict().items()}
    (hub / repo / folder).mkdir(parents=True)
    np.savez(hub / repo / folder / "params.npz", **arrays)
    made, made_config = get_sae_class("jumprelu")
    config, state, _ = loaders.gemma_2_sae_huggingface_loader(repo, folder)
    config = loaders.handle_config_defaulting(config | {"d_in": D_IN, "d_sae": D_SAE})
    theirs_read = made(made_config.from_dict(config))
    theirs_read.load_state_dict(state)
    found = only(hub)
    assert_same(found.sae, *theirs(theirs_read), inputs())
    assert found.sae.hook == HOOK and config["metadata"]["hook_name"] == "blocks.2.hook_resid_post"


def test_llama_scope_is_read_as_sae_lens_does_where_decoder_rows_have_length_1(hub: Path):
    repo, folder = "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L2R-8x"
    sae = random_sae("relu")
    W_dec = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "decoder.weight": W_dec.T}
    (hub / repo / folder / "checkpoints").mkdir(parents=True)
    kept = {name: tensor.contiguous() for name, tensor in {**tensors, "decoder.bias": sae.b_dec}.items()}
    save_file(kept, hub / repo / folder / "checkpoints/final.safetensors")
    content = {
        "hook_point_in": "blocks.2.hook_resid_post",
        "hook_point_out": "blocks.2.hook_resid_post",
        "d_model": D_IN,
        "d_sae": D_SAE,
        "jump_relu_threshold": 0.6,
        "dataset_average_activation_norm": {"in": 3.0, "out": 3.0},
        "sparsity_include_decoder_norm": True,
    }
    (hub / repo / folder / "hyperparams.json").write_text(json.dumps(content))
    read_there = through_sae_lens("llama_scope", repo, folder, scale=D_IN**0.5 / 3.0)
    assert_same(only(hub).sae, *theirs(read_there), inputs())


def test_all_saes_of_a_folder_are_found(tmp_path: Path):
    for layer in (1, 3):
        metadata = {"hook_name": f"blocks.{layer}.hook_mlp_out"}
        inference_sae("standard", metadata=metadata).save_model(tmp_path / f"deep/{layer}")
    found = formats.find(tmp_path, "sae_lens")
    assert [str(place.hook) for place in found] == ["mlp.1", "mlp.3"]
    assert len({place.digest for place in found}) == 2


def test_the_digest_follows_weights_and_config(tmp_path: Path):
    inference_sae("topk").save_model(tmp_path)
    (place,) = formats.find(tmp_path)
    before = place.digest
    assert before == formats.find(tmp_path)[0].digest
    content = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**content, "k": K + 1}))
    assert formats.find(tmp_path)[0].digest != before


def test_the_hf_module_decides_where_sae_lens_is_vague(tmp_path: Path):
    metadata = {
        "hook_name": "blocks.2.hook_mlp_in",
        "hf_hook_name": "model.layers.2.pre_feedforward_layernorm.output",
        "model_name": "google/gemma-3-1b-pt",
    }
    sae = inference_sae("standard", metadata=metadata)
    sae.save_model(tmp_path)
    assert only(tmp_path).sae.hook == MLP_IN


def test_the_version_that_is_written_is_one_that_keeps_the_metadata(tmp_path: Path):
    path = written(random_sae("relu"), "sae_lens", tmp_path, model="gpt2")
    version = json.loads((path / "cfg.json").read_text())["metadata"]["sae_lens_version"]
    assert int(version.partition(".")[0]) >= 6
