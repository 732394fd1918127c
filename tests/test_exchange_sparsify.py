"""sparsify's files, held against its documented forward pass; each fault of SAELens's reader of them is a test here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange_support import D_IN, D_SAE, K, assert_same, inputs, only, random_sae, random_transcoder, written
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import formats

SHAPES = {"encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}


def saved(directory: Path, *, dtype: torch.dtype = torch.float32, run: dict | None = None, **config: Any) -> dict:
    """The files of one hook point; returns its tensors."""
    generator = torch.Generator().manual_seed(5)
    shapes = SHAPES | ({"W_skip": (D_IN, D_IN)} if config.get("skip_connection") else {})
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    directory.mkdir(parents=True)
    save_file(tensors, directory / "sae.safetensors")
    content = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": D_SAE,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_IN,
        **config,
    }
    (directory / "cfg.json").write_text(json.dumps(content))
    if run is not None:
        (directory.parent / "config.json").write_text(json.dumps(run))
    return {name: tensor.float() for name, tensor in tensors.items()}


def forward(w: dict[str, Tensor], x: Tensor, *, transcode: bool = False) -> tuple[Tensor, Tensor]:
    """Codes and output as sparsify's SparseCoder documents them."""
    pre = torch.relu((x if transcode else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    values, indices = pre.topk(K, dim=-1)
    codes = torch.zeros_like(pre).scatter(-1, indices, values)
    output = codes @ w["W_dec"] + w["b_dec"]
    return codes, output + x @ w["W_skip"].T if "W_skip" in w else output


@pytest.mark.parametrize("normalize_decoder", [True, False])
@pytest.mark.parametrize("folder", ["layers.10", "h.10", "layers.10.mlp"])
def test_codes_and_reconstructions_are_those_of_sparsify(folder: str, normalize_decoder: bool, tmp_path: Path):
    """SAELens transposes W_dec, does not subtract b_dec where the decoder was normalised, and knows no h.N."""
    run = {"model": "EleutherAI/pythia-160m", "dataset": "some/text", "ctx_len": 2048, "lr": 1e-4}
    tensors = saved(tmp_path / folder, normalize_decoder=normalize_decoder, run=run)
    found = only(tmp_path / folder)
    assert_same(found.sae, *forward(tensors, inputs()), inputs())
    assert (found.about.model, found.about.dataset, found.about.context_length) == (
        "EleutherAI/pythia-160m",
        "some/text",
        2048,
    )
    assert found.about.hook == folder and found.about.training == {"lr": 1e-4}


@pytest.mark.parametrize(
    ("folder", "hook"),
    [
        ("layers.3", "resid.3"),
        ("layers.3.mlp", "mlp.3"),
        ("layers.3.self_attn", "attn.3"),
        ("layers.3.attention", "attn.3"),
        ("h.3.attn", "attn.3"),
        ("h.3.mlp", "mlp.3"),
        ("embed_tokens", "embed"),
        ("model.layers.3", "resid.3"),
    ],
)
def test_the_folder_names_the_module_and_mlp_is_not_the_residual_stream(folder: str, hook: str, tmp_path: Path):
    saved(tmp_path / folder)
    assert [str(place.hook) for place in formats.find(tmp_path)] == [hook]


def test_weights_keep_their_precision(tmp_path: Path):
    tensors = saved(tmp_path / "layers.1")
    assert torch.equal(only(tmp_path).sae.W_dec, tensors["W_dec"])


@pytest.mark.parametrize("skip", [True, False])
def test_transcoders_read_the_modules_input_and_do_not_subtract(skip: bool, tmp_path: Path):
    tensors = saved(tmp_path / "layers.4.mlp", transcode=True, skip_connection=skip)
    found = only(tmp_path).sae
    assert_same(found, *forward(tensors, inputs(), transcode=True), inputs())
    assert (str(found.hook), str(found.target), found.config.skip) == ("mlp_in.4", "mlp.4", skip)


def test_multi_topk_matters_in_training_only(tmp_path: Path):
    tensors = saved(tmp_path / "layers.4", multi_topk=True)
    assert_same(only(tmp_path).sae, *forward(tensors, inputs()), inputs())


def test_no_number_of_latents_means_the_expansion(tmp_path: Path):
    saved(tmp_path / "layers.4", num_latents=0, expansion_factor=3)
    with pytest.raises(InputError, match=rf"W_dec has shape .{D_SAE}, {D_IN}., cfg.json says .{3 * D_IN}"):
        only(tmp_path)


def test_signed_ones_of_older_versions_keep_the_sign(tmp_path: Path):
    tensors = saved(tmp_path / "layers.4", signed=True)
    pre = (inputs() - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    indices = pre.abs().topk(K, dim=-1).indices
    codes = torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))
    assert (codes < 0).any()
    assert_same(only(tmp_path).sae, codes, codes @ tensors["W_dec"] + tensors["b_dec"], inputs())


def test_old_weights_in_bfloat16_load(tmp_path: Path):
    tensors = saved(tmp_path / "layers.4", dtype=torch.bfloat16)
    found = only(tmp_path)
    assert found.about.dtype == "bfloat16"
    assert_same(found.sae, *forward(tensors, inputs()), inputs())


@pytest.mark.parametrize(
    ("folder", "config", "message"),
    [
        ("layers.4", {"activation": "groupmax"}, "no 'groupmax' of sparsify"),
        ("layers.4", {"skip_connection": True}, "skip connection that is not a transcoder"),
        ("layers.4", {"k": None}, "lacks 'k'"),
        ("layers.4", {"k": "many"}, "'k' is 'many', not a whole number"),
        ("layers.4", {"k": 2.5}, "'k' is 2.5, not a whole number"),
        ("layers.4", {"k": D_SAE + 1}, f"sae.safetensors: .*k={D_SAE + 1} is more than the {D_SAE} features"),
        ("layers.4", {"d_in": D_IN + 1}, f"cfg.json says .*{D_IN + 1}"),
        ("layers.4.mlp.down_proj", {}, "is not one that circuit knows"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(folder: str, config: dict, message: str, tmp_path: Path):
    saved(tmp_path / folder, **config)
    with pytest.raises(InputError, match=message):
        only(tmp_path)


def test_the_mlp_of_gemma_2_is_not_what_it_adds_to_the_stream(tmp_path: Path):
    saved(tmp_path / "layers.4.mlp", run={"model": "google/gemma-2-2b"})
    with pytest.raises(InputError, match="is not one that circuit knows"):
        formats.find(tmp_path)


def test_missing_and_cut_weights_are_refused_by_name(tmp_path: Path):
    tensors = saved(tmp_path / "layers.4")
    path = tmp_path / "layers.4/sae.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if name != "encoder.bias"}, path)
    with pytest.raises(InputError, match=r"sae.safetensors has no tensor encoder.bias"):
        only(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot read .*sae.safetensors"):
        only(tmp_path)


@pytest.mark.parametrize("subtract", [True, False])
def test_ours_give_the_same_in_sparsify(subtract: bool, tmp_path: Path):
    sae = random_sae("topk", subtract_decoder_bias=subtract)
    path = written(sae, "sparsify", tmp_path, model="org/model", module="model.layers.2")
    assert path.name == "layers.2"
    assert_same(sae, *forward(load_file(path / "sae.safetensors"), inputs()), inputs())
    assert_same(only(path).sae, sae.encode(inputs()), sae.reconstruct(inputs()), inputs())
    assert json.loads((tmp_path / "config.json").read_text())["model"] == "org/model"


@pytest.mark.parametrize("skip", [True, False])
def test_our_transcoders_give_the_same_in_sparsify(skip: bool, tmp_path: Path):
    sae = random_transcoder("topk", skip=skip, d_out=D_IN)
    path = written(sae, "sparsify", tmp_path, module="transformer.h.2.mlp")
    assert path.name == "h.2.mlp"
    assert_same(sae, *forward(load_file(path / "sae.safetensors"), inputs(), transcode=True), inputs())
    assert only(path).sae.config == sae.config


@pytest.mark.parametrize(
    ("sae", "module", "message"),
    [
        (random_sae("relu"), "model.layers.2", "cannot hold the relu SAE at resid.2"),
        (random_sae("topk", normalisation="layer-norm"), "model.layers.2", "cannot hold"),
        (random_transcoder("topk"), "model.layers.2.mlp", "cannot hold the topk transcoder"),
        (random_transcoder("topk", d_out=D_IN, target=HookPoint(3, "mlp")), "model.layers.3.mlp", "cannot hold"),
        (random_sae("topk"), None, "depends on the model"),
    ],
)
def test_what_sparsify_cannot_hold_is_not_written(sae: Any, module: str | None, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        written(sae, "sparsify", tmp_path, module=module)
