"""Commands on models whose hook points take more than naming modules, and configurations that ask for too much."""

import json
import math
from pathlib import Path

import pytest
import torch
from support_collect import hf_tokenizer
from zoo import zoo_model

from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models import checking
from circuitcli.models.loading import load_model, load_outline
from circuitcli.records import EdgeRecord, NodeRecord, Stream
from circuitcli.runs import Run
from circuitcli.settings.model import ModelSettings
from circuitcli.settings.sources import load
from circuitcli.stages import collect, graph_grad, graph_naive, interp, train
from circuitcli.stages.request import Request

SITES = ("resid_pre", "attn", "mlp", "resid")
SMALL = {
    "model.device": "cpu",
    "data.layers": "1:2",
    "data.sites": "resid_pre,attn,mlp,resid",
    "data.dtype": "float32",
    "data.tokens": 400,
    "data.block_length": 16,
    "sae.k": 4,
    "sae.d_sae": 60,
    "train.batch_size": 64,
    "train.eval_tokens": 64,
    "train.loss_tokens": 64,
    "graph.prompt": "some text to",
    "graph.ig_steps": 2,
    "graph.down": 2,
    "graph.up": 1,
    "graph.baseline_tokens": 64,
    "interp.tokens": 64,
}


def saved(folder: Path, name: str) -> Path:
    """A model with a tokenizer of bytes, in a directory that `--model` takes."""
    zoo_model(name, dtype=torch.float32, vocab_size=260).save_pretrained(folder)
    hf_tokenizer().save_pretrained(folder)
    return folder


def request(run: Run, model: Path, **changes) -> Request:
    values = SMALL | {"model.name": str(model)} | {name.replace("__", "."): value for name, value in changes.items()}
    settings = load(values, environment={}, directory=Path("/nonexistent")).settings
    return Request(settings, run.stream() if run.path.exists() else Stream(), run)


@pytest.mark.parametrize("name", ["bloom", "falcon-7b", "gemma3"])
def test_all_commands_work_where_modules_add_the_residual_change_in_place_or_see_too(tmp_path, name):
    model, run, text = saved(tmp_path / "model", name), Run(tmp_path / "run"), tmp_path / "text.txt"
    text.write_text("".join(chr(97 + n * n % 23) for n in range(900)))
    collect.run(request(run, model, data__text=str(text)))
    hooks = [HookPoint(1, site) for site in SITES]
    cache = ActivationCache(run.path / "activations", hooks)
    before, attn, mlp, after = (cache.rows(hook, 0, cache.n_tokens) for hook in hooks)
    torch.testing.assert_close(before + attn + mlp, after, rtol=1e-4, atol=1e-4)
    train.run(request(run, model, data__text=str(text)))
    described = interp.run(request(run, model, data__text=str(text)))
    assert described
    for stage in (graph_grad, graph_naive):
        made = stage.run(request(run, model, data__text=str(text)))
        edges = [record for record in made if isinstance(record, EdgeRecord)]
        nodes = [record for record in made if isinstance(record, NodeRecord)]
        assert edges and nodes and all(math.isfinite(edge.weight) for edge in edges)


def test_sites_that_a_model_has_not_right_are_refused_at_collect_with_those_that_it_has(tmp_path):
    model, run, text = saved(tmp_path / "model", "minimax"), Run(tmp_path / "run"), tmp_path / "text.txt"
    text.write_text("some text " * 90)
    with pytest.raises(SettingsError, match=r"attn\.1 is not offered for model type 'minimax': .* \d+ %") as caught:
        collect.run(request(run, model, data__text=str(text)))
    assert caught.value.hint == "use --sites resid; this block offers resid_pre attn_in mlp_in resid"
    assert not (run.path / "activations").exists()
    made = collect.run(request(run, model, data__text=str(text), data__sites="resid"))
    assert len(made) == 2


def test_a_site_that_some_blocks_have_is_refused_with_their_numbers():
    adapter = checking.adapter_of(zoo_model("jamba"))
    with pytest.raises(SettingsError, match=r"attn\.0 does not exist: it has JambaMamba") as caught:
        adapter.check(HookPoint(0, "attn"))
    assert caught.value.hint.startswith(
        "use --sites resid, or --layers of those with attn: 1; this block offers resid_pre"
    )
    adapter.check(HookPoint(1, "attn"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 10**6}, "asks for n_layer=1,000,000"),
        ({"n_layer": 2**70}, "asks for n_layer="),
        ({"n_layer": 0}, "has 0 layers"),
        ({"n_layer": -1}, "has -1 layers"),
        ({"n_layer": "12"}, "Validation error"),
        ({"n_embd": 10**18}, "cannot load model"),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**8}}, "asks for num_hidden_layers="),
        ({"model_type": "gemma3", "vision_config": {"num_hidden_layers": 10**6}}, "asks for num_hidden_layers="),
        ({"model_type": "mixtral", "num_local_experts": 10**9}, "asks for num_local_experts="),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_monstrous_and_empty_models_are_refused_before_anything_is_built(tmp_path, changes, message):
    content = {"model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_layer": 2, "vocab_size": 50} | changes
    (tmp_path / "config.json").write_text(json.dumps(content))
    for door in (load_outline, load_model):
        with pytest.raises(InputError, match=message):
            door(ModelSettings(name=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("name", ["gemma3", "llava", "granite", "bloom"])
def test_the_outline_of_a_model_without_weights_knows_its_layers_and_width(tmp_path, name):
    zoo_model(name).config.save_pretrained(tmp_path)
    outline = load_outline(ModelSettings(name=str(tmp_path)))
    assert (outline.n_layers, outline.d_model, outline.device.type) == (2, 24, "meta")
    assert all(outline.offers(HookPoint(1, site)) for site in SITES)
