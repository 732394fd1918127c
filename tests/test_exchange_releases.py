"""Gemma Scope 1 and 2, OpenAI's SAEs, Llama Scope and circuit-tracer's transcoders, against their forward passes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from exchange_support import (
    D_IN,
    D_OUT,
    D_SAE,
    HOOK,
    K,
    assert_same,
    inputs,
    only,
    random_sae,
    random_transcoder,
    written,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import formats
from circuitcli.saes.exchange.naming import named
from circuitcli.saes.exchange.place import About, Changes
from circuitcli.saes.exchange.tensors import Foreign

GEMMA = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,), "threshold": (D_SAE,)}


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random tensors; thresholds are positive."""
    generator = torch.Generator().manual_seed(11)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: tensor.abs() if "threshold" in name else tensor for name, tensor in made.items()}


def gemma_forward(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """As the Gemma Scope tutorial has it: no subtraction, a threshold for each feature, an affine skip ``x @ A``."""
    w = {name.replace("w_", "W_"): tensor for name, tensor in w.items()}
    pre = x @ w["W_enc"] + w["b_enc"]
    codes = (pre > w["threshold"]) * torch.relu(pre)
    output = codes @ w["W_dec"] + w["b_dec"]
    return codes, output + x @ w["affine_skip_connection"] if "affine_skip_connection" in w else output


def first(directory: Path) -> dict[str, Tensor]:
    """The files of Gemma Scope 1."""
    tensors = random_tensors(GEMMA)
    directory.mkdir(parents=True)
    np.savez(directory / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    return tensors


@pytest.mark.parametrize(
    ("folder", "hook", "model"),
    [
        ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "resid.12", "google/gemma-2-2b"),
        ("models--google--gemma-scope-9b-pt-mlp/snapshots/0/layer_3/x/average_l0_8", "mlp.3", "google/gemma-2-9b"),
        ("gemma-scope-9b-it-res/layer_9/width_16k/average_l0_88", "resid.9", "google/gemma-2-9b-it"),
    ],
)
def test_gemma_scope_saes_do_not_subtract_their_decoder_bias(folder: str, hook: str, model: str, tmp_path: Path):
    tensors = first(tmp_path / folder)
    found = only(tmp_path)
    assert_same(found.sae, *gemma_forward(tensors, inputs()), inputs())
    assert (str(found.sae.hook), found.about.model, found.about.bos) == (hook, model, True)
    assert found.about.training == {"l0": int(folder.rpartition("_")[2])}


def test_gemma_scope_transcoders_read_the_norm_before_its_weight(tmp_path: Path):
    tensors = first(tmp_path / "gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_35")
    found = only(tmp_path)
    assert_same(found.sae, *gemma_forward(tensors, inputs()), inputs())
    assert (str(found.sae.hook), str(found.sae.target), found.about.before_gain) == ("mlp_in.5", "mlp.5", True)


def test_gemma_scope_embedding_saes_read_what_the_model_makes_of_a_row(tmp_path: Path):
    tensors = first(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44")
    found = only(tmp_path)
    codes, rows = gemma_forward(tensors, inputs())
    assert str(found.sae.hook) == "embed" and found.about.notes
    assert_same(found.sae, codes, rows * math.sqrt(D_IN), inputs() * math.sqrt(D_IN))


def test_gemma_scope_saes_of_attention_heads_are_refused(tmp_path: Path):
    first(tmp_path / "gemma-scope-2b-pt-att/layer_5/width_16k/average_l0_35")
    with pytest.raises(InputError, match="attention heads"):
        formats.find(tmp_path)


def test_gemma_scope_files_under_another_name_need_their_hook_point_said(tmp_path: Path):
    tensors = first(tmp_path / "mine")
    (place,) = formats.find(tmp_path / "mine/params.npz")
    assert place.hook is None
    found = only(tmp_path, changes=Changes(hook=HOOK)).sae
    assert found.hook == HOOK
    assert_same(found, *gemma_forward(tensors, inputs()), inputs())


def test_cut_and_incomplete_npz_files_are_refused_by_name(tmp_path: Path):
    first(tmp_path / "gemma-scope-2b-pt-res/layer_1/x")
    path = tmp_path / "gemma-scope-2b-pt-res/layer_1/x/params.npz"
    content = path.read_bytes()
    np.savez(path, **{name: array for name, array in np.load(path).items() if name != "threshold"})
    with pytest.raises(InputError, match=r"params.npz has no tensor threshold"):
        only(tmp_path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot read .*params.npz"):
        only(tmp_path)
    np.savez(path, W_enc=np.array([object()]))
    with pytest.raises(InputError, match=r"cannot read .*params.npz"):
        only(tmp_path)


def second(directory: Path, *, skips: bool = False, **config: Any) -> dict[str, Tensor]:
    """The files of Gemma Scope 2, with names in lower case."""
    d_out = D_OUT if config.get("hf_hook_point_out") else D_IN
    shapes = {"w_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "w_dec": (D_SAE, d_out), "b_dec": (d_out,)}
    shapes |= {"threshold": (D_SAE,)} | ({"affine_skip_connection": (D_IN, d_out)} if skips else {})
    tensors = random_tensors(shapes)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "params.safetensors")
    if config:
        content = {"architecture": "jump_relu", "width": D_SAE, "l0": 60, "affine_connection": skips, **config}
        (directory / "config.json").write_text(json.dumps(content))
    return tensors


def test_gemma_scope_2_saes_name_their_module(tmp_path: Path):
    config = {"model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.7.output"}
    tensors = second(tmp_path / "resid_post/layer_7_width_16k_l0_medium", **config)
    found = only(tmp_path)
    assert_same(found.sae, *gemma_forward(tensors, inputs()), inputs())
    assert (str(found.sae.hook), found.about.model, found.about.training) == (
        "resid.7",
        "google/gemma-3-1b-pt",
        {"l0": 60},
    )


@pytest.mark.parametrize("skips", [True, False])
def test_gemma_scope_2_transcoders_have_an_affine_skip_the_other_way_round(skips: bool, tmp_path: Path):
    config = {
        "model_name": "google/gemma-3-270m-pt",
        "hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output",
    }
    tensors = second(tmp_path / "transcoder/layer_7_width_16k_l0_small", skips=skips, **config)
    found = only(tmp_path)
    assert_same(found.sae, *gemma_forward(tensors, inputs()), inputs())
    assert (found.sae.hook, found.sae.target) == (HookPoint(7, "mlp_in"), HookPoint(7, "mlp"))
    assert found.about.model == "google/gemma-3-270m" and not found.about.before_gain


@pytest.mark.parametrize(
    ("folder", "hook", "target"),
    [("resid_post_all", "resid.3", None), ("mlp_out", "mlp.3", None), ("transcoder_all", "mlp_in.3", "mlp.3")],
)
def test_gemma_scope_2_without_its_config_is_told_by_its_folder(folder: str, hook: str, target: str, tmp_path: Path):
    second(tmp_path / f"gemma-scope-2-1b-it/{folder}/layer_3_width_16k_l0_small")
    (place,) = formats.find(tmp_path)
    assert (str(place.hook), place.model) == (hook, "google/gemma-3-1b-it")
    assert place.target == (HookPoint.parse(target) if target else None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hf_hook_point_in": "model.layers.7.self_attn.o_proj.input"}, "is not one that circuit knows"),
        ({"hf_hook_point_in": "model.layers.7.output", "architecture": "topk"}, "'topk' is not known"),
        ({"hf_hook_point_in": "model.layers.7.output", "type": "clt"}, "many layers"),
    ],
)
def test_gemma_scope_2_refuses_what_it_cannot_represent(config: dict, message: str, tmp_path: Path):
    second(tmp_path / "x/layer_7_width_16k_l0_small", **config)
    with pytest.raises(InputError, match=message):
        formats.find(tmp_path)


def openai_file(path: Path, *, activation: str = "TopK", **changes: Any) -> dict[str, Any]:
    """A state dict as OpenAI's Autoencoder makes it."""
    shapes = {"pre_bias": (D_IN,), "latent_bias": (D_SAE,), "encoder.weight": (D_SAE, D_IN)}
    state: dict[str, Any] = random_tensors(shapes | {"decoder.weight": (D_IN, D_SAE)})
    state |= {"stats_last_nonzero": torch.zeros(D_SAE), "activation": activation}
    if activation == "TopK":
        state["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
    state |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


def openai_forward(w: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Layer norm (unbiased deviation, epsilon added to it) around a TopK; nothing around a ReLU."""
    mean, deviation = torch.zeros(1), torch.ones(1)
    if w["activation"] == "TopK":
        mean, deviation = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        x = (x - mean) / (deviation + 1e-5)
    pre = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    codes = torch.relu(pre)
    if w["activation"] == "TopK":
        values, indices = pre.topk(K, dim=-1)
        codes = torch.zeros_like(pre).scatter(-1, indices, values.relu())
    return codes, (codes @ w["decoder.weight"].T + w["pre_bias"]) * deviation + mean


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
@pytest.mark.parametrize(
    ("location", "hook"),
    [
        ("resid_delta_attn", "attn.8"),
        ("resid_post_attn", "resid_mid.8"),
        ("resid_delta_mlp", "mlp.8"),
        ("resid_post_mlp", "resid.8"),
    ],
)
def test_openai_saes_take_layer_normed_input_if_they_are_topk(
    location: str, hook: str, activation: str, tmp_path: Path
):
    state = openai_file(tmp_path / f"{location}_v5_32k/autoencoders/8.pt", activation=activation)
    found = only(tmp_path)
    assert_same(found.sae, *openai_forward(state, inputs()), inputs())
    assert (str(found.sae.hook), found.about.model, found.about.bos) == (hook, "gpt2", False)
    assert (found.sae.config.normalisation == "layer-norm") == (activation == "TopK")


def test_all_layers_of_an_openai_folder_are_found(tmp_path: Path):
    for layer in (0, 3, 11):
        openai_file(tmp_path / f"resid_post_mlp_v5_32k/autoencoders/{layer}.pt")
    assert [str(place.hook) for place in formats.find(tmp_path)] == ["resid.0", "resid.3", "resid.11"]


def test_openai_frequencies_come_along(tmp_path: Path):
    frequency = torch.linspace(0, 0.5, D_SAE)
    openai_file(tmp_path / "resid_post_mlp_v5_32k/autoencoders/8.pt", latents_activation_frequency=frequency)
    assert torch.allclose(only(tmp_path).frequency, frequency)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "Softplus"}, "'Softplus' is not known"),
        ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "Identity behind it"),
        ({"latent_bias": torch.zeros(3)}, rf"latent_bias has shape .3,., expected .{D_SAE}."),
    ],
)
def test_openai_files_that_do_not_fit_are_refused_by_name(changes: dict, message: str, tmp_path: Path):
    openai_file(tmp_path / "resid_post_mlp_v5_32k/autoencoders/8.pt", **changes)
    with pytest.raises(InputError, match=message):
        only(tmp_path)


QWEN = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_4"


def qwen_file(path: Path, **changes: Any) -> dict[str, Any]:
    shapes = {"W_enc": (D_SAE, D_IN), "b_enc": (D_SAE,), "W_dec": (D_IN, D_SAE), "b_dec": (D_IN,)}
    state = random_tensors(shapes) | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


def test_qwen_scope_keeps_the_k_largest_of_the_plain_input(tmp_path: Path):
    state = qwen_file(tmp_path / f"models--Qwen--{QWEN}/snapshots/0/layer7.sae.pt")
    qwen_file(tmp_path / f"models--Qwen--{QWEN}/snapshots/0/layer10.sae.pt")
    assert [str(place.hook) for place in formats.find(tmp_path)] == ["resid.7", "resid.10"]
    found = only(tmp_path / f"models--Qwen--{QWEN}/snapshots/0/layer7.sae.pt")
    pre = inputs() @ state["W_enc"].T + state["b_enc"]
    kept = pre.topk(4, dim=1)
    codes = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
    assert_same(found.sae, codes, codes @ state["W_dec"].T + state["b_dec"], inputs())
    assert (str(found.sae.hook), found.about.model) == ("resid.7", "Qwen/Qwen3-1.7B-Base")


def test_qwen_scope_needs_the_name_of_the_repository(tmp_path: Path):
    qwen_file(tmp_path / "layer7.sae.pt")
    with pytest.raises(InputError, match=r"how many features .* are active") as caught:
        only(tmp_path)
    assert "W32K-L0_50" in caught.value.hint
    qwen_file(tmp_path / QWEN / "layer7.sae.pt", b_enc=torch.zeros(3))
    with pytest.raises(InputError, match=rf"b_enc has shape .3,., expected .{D_SAE}."):
        only(tmp_path / QWEN)


@pytest.mark.parametrize(
    ("name", "hook", "model"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", "resid.19", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Llama-3.3-70B-Instruct-SAE-l50.pt", "resid.50", "meta-llama/Llama-3.3-70B-Instruct"),
    ],
)
def test_goodfire_saes_are_two_linear_layers(name: str, hook: str, model: str, tmp_path: Path):
    encoder, decoder = torch.nn.Linear(D_IN, D_SAE), torch.nn.Linear(D_SAE, D_IN)
    parts = {"encoder_linear": encoder, "decoder_linear": decoder}
    torch.save(
        {f"{part}.{name}": value for part, of in parts.items() for name, value in of.state_dict().items()},
        tmp_path / name,
    )
    found = only(tmp_path)
    with torch.no_grad():
        codes = encoder(inputs()).relu()
        assert_same(found.sae, codes, decoder(codes), inputs())
    assert (str(found.sae.hook), found.about.model, found.about.dtype) == (hook, model, "float32")


@pytest.mark.parametrize(
    ("format_", "config"),
    [("sae_lens", "cfg.json"), ("dictionary_learning", "config.json"), ("circuit", "config.json")],
)
def test_a_config_without_weights_says_which_file_is_missing(format_: str, config: str, tmp_path: Path):
    path = written(random_sae("relu"), format_, tmp_path / "whole")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / config).write_bytes((path / config).read_bytes())
    weights = next(file.name for file in path.iterdir() if file.name != config)
    with pytest.raises(InputError, match=f"it has {config}, but the weights .{weights} in {format_}. are missing"):
        formats.find(tmp_path / "part", format_)
    with pytest.raises(InputError, match=f"it has {config}, but the weights"):
        formats.find(tmp_path / "part")


MEAN_NORM = 3.0


def llama_files(directory: Path, **config: Any) -> dict[str, Tensor]:
    """The files of Llama Scope."""
    shapes = {"encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,)}
    tensors = random_tensors(shapes | {"decoder.weight": (D_IN, D_SAE), "decoder.bias": (D_IN,)})
    (directory / "checkpoints").mkdir(parents=True)
    save_file(tensors, directory / "checkpoints/final.safetensors")
    content = {
        "hook_point_in": "blocks.5.hook_resid_post",
        "hook_point_out": "blocks.5.hook_resid_post",
        "d_model": D_IN,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.8,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": MEAN_NORM, "out": MEAN_NORM},
        "sparsity_include_decoder_norm": True,
        "apply_decoder_bias_to_pre_encoder": False,
        **config,
    }
    (directory / "hyperparams.json").write_text(json.dumps(content))
    return tensors


def llama_forward(w: dict[str, Tensor], x: Tensor, *, by_norm: bool) -> tuple[Tensor, Tensor]:
    """Codes of the scaled activation; a pre-activation (times its decoder norm) over the scaled threshold stays."""
    scale = math.sqrt(D_IN) / MEAN_NORM
    pre = (x * scale) @ w["encoder.weight"].T + w["encoder.bias"]
    compared = pre * w["decoder.weight"].norm(dim=0) if by_norm else pre
    codes = torch.relu(pre) * (compared > 0.8 * scale)
    return codes, (codes @ w["decoder.weight"].T + w["decoder.bias"]) / scale


@pytest.mark.parametrize("by_norm", [True, False])
def test_llama_scope_scales_its_input_and_its_one_threshold(by_norm: bool, tmp_path: Path):
    tensors = llama_files(tmp_path / "Llama3_1-8B-Base-L5R-8x", sparsity_include_decoder_norm=by_norm)
    found = only(tmp_path)
    assert_same(found.sae, *llama_forward(tensors, inputs(), by_norm=by_norm), inputs())
    assert (str(found.sae.hook), found.about.model) == ("resid.5", "meta-llama/Llama-3.1-8B")


def test_llama_scope_transcoders_have_a_scale_at_each_end(tmp_path: Path):
    ends = {"hook_point_in": "blocks.5.ln2.hook_normalized", "hook_point_out": "blocks.5.hook_mlp_out"}
    tensors = llama_files(tmp_path, dataset_average_activation_norm={"in": MEAN_NORM, "out": 7.0}, **ends)
    found = only(tmp_path)
    codes, output = llama_forward(tensors, inputs(), by_norm=True)
    assert_same(found.sae, codes, output * 7.0 / MEAN_NORM, inputs())
    assert (str(found.sae.hook), str(found.sae.target), found.about.before_gain) == ("mlp_in.5", "mlp.5", True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"act_fn": "topk"}, "'topk' is not known"),
        ({"norm_activation": "token-wise"}, "'token-wise' is not known"),
        ({"jump_relu_threshold": None}, "lacks 'jump_relu_threshold'"),
        ({"hook_point_in": "blocks.5.attn.hook_z"}, "is not one that circuit knows"),
    ],
)
def test_llama_scope_refuses_what_it_cannot_represent(config: dict, message: str, tmp_path: Path):
    llama_files(tmp_path, **config)
    with pytest.raises(InputError, match=message):
        only(tmp_path)


TRACER = {"W_enc": (D_SAE, D_IN), "W_dec": (D_SAE, D_OUT), "b_enc": (D_SAE,), "b_dec": (D_OUT,)}
THRESHOLD = "activation_function.threshold"


def tracer_files(directory: Path, *, layers: tuple[int, ...] = (4,), **changes: Any) -> dict[str, Tensor]:
    """A set of transcoders; ``changes`` add tensors, or leave them out where None; config_ ones go into the config."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(TRACER | {THRESHOLD: (D_SAE,), "W_skip": (D_OUT, D_IN)})
    tensors |= {name: value for name, value in changes.items() if not name.startswith("config_")}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for layer in layers:
        save_file(tensors, directory / f"layer_{layer}.safetensors")
    content = {
        "model_name": "Qwen/Qwen3-0.6B",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "qwen3",
    }
    content |= {name.removeprefix("config_"): value for name, value in changes.items() if name.startswith("config_")}
    (directory / "config.yaml").write_text(yaml.safe_dump(content))
    return tensors


def tracer_forward(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """circuit-tracer's: a pre-activation over its threshold passes, whatever its sign; the skip reads x."""
    pre = x @ w["W_enc"].T + w["b_enc"]
    codes = pre * (pre > w[THRESHOLD]) if THRESHOLD in w else torch.relu(pre)
    output = codes @ w["W_dec"] + w["b_dec"]
    return codes, output + x @ w["W_skip"].T if "W_skip" in w else output


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("has_threshold", [True, False])
def test_transcoders_of_circuit_tracer_give_the_same_here(has_threshold: bool, skips: bool, tmp_path: Path):
    left_out = ({} if has_threshold else {THRESHOLD: None}) | ({} if skips else {"W_skip": None})
    tensors = tracer_files(tmp_path, **left_out)
    found = only(tmp_path)
    assert_same(found.sae, *tracer_forward(tensors, inputs()), inputs())
    assert (str(found.sae.hook), str(found.sae.target)) == ("mlp_in.4", "mlp.4")
    assert found.about.model == "Qwen/Qwen3-0.6B" and not found.about.before_gain


def signed_topk(w: dict[str, Tensor], x: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """circuit-tracer's TopK: a gate of the k largest, and no ReLU."""
    pre = x @ w["W_enc"].T + w["b_enc"]
    codes = pre * (pre >= pre.topk(k).values[:, -1:])
    return codes, codes @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)


# Half of the features: a few of the kept ones are negative.
MANY = D_SAE // 2 + 3


@pytest.mark.parametrize("place", ["file", "config"])
def test_a_topk_of_circuit_tracer_keeps_the_largest_whatever_their_sign(place: str, tmp_path: Path):
    told = {"k": torch.tensor(MANY)} if place == "file" else {"config_activation": "topk", "config_k": MANY}
    tensors = tracer_files(tmp_path, **{THRESHOLD: None}, **told)
    found = only(tmp_path).sae
    codes, output = signed_topk(tensors, inputs(), k=MANY)
    assert bool((codes < 0).any()) and bool(((codes != 0).sum(dim=1) == MANY).all())
    assert found.options == {"k": MANY}
    assert_same(found, codes, output, inputs())


def test_the_k_of_a_release_without_one_is_known(tmp_path: Path):
    changes = {THRESHOLD: None, "W_enc": torch.randn(200, D_IN), "b_enc": torch.randn(200), "config_activation": "topk"}
    changes |= {"W_dec": torch.randn(200, D_OUT)}
    tracer_files(tmp_path / "models--facebook--crv-8b-instruct-transcoders/snapshots/0", **changes)
    assert only(tmp_path).sae.options == {"k": 128}
    tracer_files(tmp_path / "other", **changes, config_scan="facebook/crv-8b-instruct-transcoders")
    assert only(tmp_path / "other").sae.options == {"k": 128}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_activation": "topk"}, "activation topk, but there is no k"),
        ({"config_activation": "batchtopk", "config_k": K}, "activation batchtopk, but there are no thresholds"),
        ({"config_activation": "jumprelu"}, "activation jumprelu, but there are no thresholds"),
        ({"config_activation": "softplus"}, "the activation 'softplus' is not known"),
        ({"config_activation": "relu", "config_k": K}, "activation relu, but k is 4"),
        ({"config_k": K}, "no activation, but k is 4"),
        ({"config_activation": "topk", THRESHOLD: torch.zeros(D_SAE)}, "activation topk, but there are thresholds"),
        ({"config_activation": "topk", "config_k": D_SAE + 1}, "k=18 is more than the 17 features"),
    ],
)
def test_an_activation_that_nothing_tells_or_that_tensors_contradict_is_refused(
    changes: dict, message: str, tmp_path: Path
):
    tracer_files(tmp_path, **({THRESHOLD: None} | changes))
    with pytest.raises(InputError, match=message) as caught:
        only(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("said", [{}, {"config_activation": "jumprelu"}, {"config_activation": "batchtopk"}])
def test_thresholds_make_a_jumprelu_of_a_transcoder(said: dict, tmp_path: Path):
    tensors = tracer_files(tmp_path, **said)
    assert_same(only(tmp_path).sae, *tracer_forward(tensors, inputs()), inputs())


def test_a_norm_before_its_weight_is_remembered(tmp_path: Path):
    tracer_files(tmp_path, config_feature_input_hook="ln2.hook_normalized")
    assert only(tmp_path).about.before_gain


def test_each_layer_of_a_set_is_an_sae_of_its_own(tmp_path: Path):
    tracer_files(tmp_path, layers=(0, 1, 10))
    assert [str(place.hook) for place in formats.find(tmp_path)] == ["mlp_in.0", "mlp_in.1", "mlp_in.10"]
    assert len(formats.find(tmp_path / "layer_10.safetensors")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({THRESHOLD: -torch.ones(D_SAE)}, "negative thresholds"),
        ({"config_model_kind": "cross_layer_transcoder"}, "says model_kind cross_layer_transcoder, and files of that"),
        ({"config_feature_input_hook": "attn.hook_z"}, "is not one that circuit knows"),
        ({"b_enc": None}, "has no tensor b_enc"),
    ],
)
def test_circuit_tracer_sets_that_cannot_be_represented_are_refused(changes: dict, message: str, tmp_path: Path):
    tracer_files(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        only(tmp_path)


def test_a_list_of_transcoders_elsewhere_is_refused_with_what_to_name(tmp_path: Path):
    tracer_files(tmp_path, layers=(), config_transcoders=["hf://google/gemma-scope-2b-pt-transcoders/x/params.npz"])
    with pytest.raises(InputError, match="names transcoders elsewhere: hf://google") as caught:
        formats.find(tmp_path)
    assert "gemma-scope-2b-pt-transcoders/" in caught.value.hint


def test_of_a_list_of_transcoders_elsewhere_the_layers_of_the_graph_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    commit = "0123456789abcdef0123456789abcdef01234567"
    paths = [f"layer_{layer}/width_16k/average_l0_{30 + layer}/params.npz" for layer in range(4)]
    for name, revision, path in (
        ("google--gemma-scope-2b-pt-transcoders", "main", paths[1]),
        ("o--r", "v2", "layer_9.safetensors"),
    ):
        root = tmp_path / f"hub/models--{name}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / revision).write_text(commit)
        if path.endswith("npz"):
            gemma = first((root / "snapshots" / commit / path).parent)
        else:
            tracer = tracer_files(tmp_path / "made", **{"W_skip": None})
            (root / "snapshots" / commit).mkdir(parents=True)
            (tmp_path / "made/layer_4.safetensors").rename(root / "snapshots" / commit / path)
    uris = [f"hf://google/gemma-scope-2b-pt-transcoders/{path}" for path in paths[:3]]
    uris += ["hf://o/r/layer_9.safetensors?revision=v2"]
    tracer_files(tmp_path / "set", layers=(), config_transcoders=uris)
    # All others are not there.
    places = named(str(tmp_path / "set"), hooks=[HookPoint(1, "mlp_in"), HookPoint(3, "mlp")])
    one, three = (formats.read(place) for place in places)
    assert_same(one.sae, *gemma_forward(gemma, inputs()), inputs())
    assert_same(three.sae, *tracer_forward(tracer, inputs()), inputs())
    assert [str(found.sae.hook) for found in (one, three)] == ["mlp_in.1", "mlp_in.3"] and one.about.before_gain
    with pytest.raises(InputError, match="names transcoders elsewhere: hf://google"):
        named(str(tmp_path / "set"))
    for listed, message in (
        ([3], "transcoder 0 is 3, not a file in a repository"),
        (uris[3:], "transcoder 0 reads a norm before its weight"),
    ):
        ends = {"config_feature_input_hook": "ln2.hook_normalized"}
        tracer_files(tmp_path / "set", layers=(), config_transcoders=listed, **ends)
        with pytest.raises(InputError, match=message):
            named(f"circuit_tracer:{tmp_path}/set/config.yaml", hooks=[HookPoint(0, "mlp")])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_our_transcoders_give_the_same_in_circuit_tracer(architecture: str, skip: bool, tmp_path: Path):
    sae = random_transcoder(architecture, skip=skip, d_out=D_IN)
    path = written(sae, "circuit_tracer", tmp_path, model="org/model")
    assert path.name == "layer_2.safetensors"
    assert_same(sae, *tracer_forward(load_file(path), inputs()), inputs())
    again = only(path)
    assert (again.sae.config, again.about.model) == (sae.config, "org/model")


def test_negative_thresholds_give_no_negative_codes_in_circuit_tracer(tmp_path: Path):
    sae = random_transcoder("jumprelu", d_out=D_IN)
    sae.threshold[:5] = -0.7
    path = written(sae, "circuit_tracer", tmp_path)
    pre = inputs() @ sae.W_enc + sae.b_enc
    assert bool(((pre > sae.threshold) & (pre < 0)).any())
    assert_same(sae, *tracer_forward(load_file(path), inputs()), inputs())
    assert_same(only(path).sae, *tracer_forward(load_file(path), inputs()), inputs())


@pytest.mark.parametrize("architecture", ["topk", "signed_topk"])
def test_our_topk_transcoders_say_so_to_circuit_tracer(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    sae = random_transcoder(architecture, d_out=D_IN, layer=0)
    tensors = load_file(written(sae, "circuit_tracer", tmp_path, model="org/model"))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["activation"], config["k"]) == ("topk", K) and "k" not in tensors
    assert ("fewer than k features are positive" in caplog.text) == (architecture == "topk")
    x = inputs()[(sae.pre_activations(inputs()) > 0).sum(dim=1) >= K]
    assert len(x) > 30
    assert_same(sae, *signed_topk(tensors, x, k=K), x)
    assert only(tmp_path).sae.architecture == "signed_topk"


def test_what_circuit_tracer_cannot_load_is_not_written(tmp_path: Path):
    write = formats.WRITABLE["circuit_tracer"].write
    with pytest.raises(InputError, match="of 6 inputs and 5 outputs") as caught:
        write([Foreign(random_transcoder("relu"), About())], tmp_path)
    assert "sae_lens" in caught.value.hint
    same_width = [random_transcoder("topk", d_out=D_IN, layer=0), random_transcoder("relu", d_out=D_IN, layer=1)]
    with pytest.raises(InputError, match="all of one kind and width"):
        write([Foreign(sae, About()) for sae in same_width], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_set_without_all_layers_is_written_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    items = [Foreign(random_transcoder("relu", layer=layer, d_out=D_IN), About()) for layer in (0, 1)]
    formats.WRITABLE["circuit_tracer"].write(items, tmp_path / "whole")
    assert not caplog.records
    formats.WRITABLE["circuit_tracer"].write(items[1:], tmp_path / "part")
    assert "for each layer; this one has [1]" in caplog.text


def test_circuit_tracer_gets_one_set_of_one_kind(tmp_path: Path):
    write = formats.WRITABLE["circuit_tracer"].write
    layers = [random_transcoder("relu", d_out=D_IN), random_sae("relu")]
    with pytest.raises(InputError, match=r"cannot hold the relu SAE at resid\.2"):
        write([Foreign(sae, About()) for sae in layers], tmp_path)
    with pytest.raises(InputError, match="one transcoder a layer"):
        write([Foreign(random_transcoder("relu", d_out=D_IN), About())] * 2, tmp_path)
    with pytest.raises(InputError, match="cannot hold the gated transcoder"):
        write([Foreign(random_transcoder("gated"), About())], tmp_path)
