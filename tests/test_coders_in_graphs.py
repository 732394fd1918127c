"""Coders in files of several kinds, from `--sae` into a graph and its validation, on the built-in model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import circuitcli as circuit
from circuitcli import graphs
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import load_model
from circuitcli.records import ScoreRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files, stored
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import load
from circuitcli.stages import graph_grad, graph_naive, validate
from circuitcli.stages.request import Request

PROMPT, D_SAE = "for i in range(", 40
SMALL = {"model.device": "cpu", "graph.prompt": PROMPT, "graph.down": 2, "graph.up": 2, "graph.baseline": "zero"}
SMALL |= {"graph.method": "atp", "validate.samples": 2, "graph.threshold_exp": -30}


@pytest.fixture(scope="module")
def shape() -> tuple[int, int]:
    """Layers and width of the model."""
    adapter = load_model(settings("x").model).adapter
    return adapter.n_layers, adapter.d_model


def settings(sae_path: object, **changes: Any) -> Settings:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    told = SMALL | {"sae_path": str(sae_path), "model.name": "builtin:tiny"} | named
    return load(told, environment={}, directory=Path("/nonexistent")).settings


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coder(
    hook: str, d_model: int, *, target: str | None = None, skip: bool = False, d_out: int | None = None
) -> SparseCoder:
    """A ReLU coder of random weights, about a tenth of whose features are active."""
    written = None if target is None else HookPoint.parse(target)
    config = {"target": written, "skip": skip, "d_out": d_out or d_model, "subtract_decoder_bias": False}
    made = ARCHITECTURES["relu"](SaeConfig(HookPoint.parse(hook), d_model, D_SAE, **config))
    for number, parameter in enumerate(made.parameters()):
        parameter.data = random(*parameter.shape, seed=number, scale=0.05)
    return made.requires_grad_(False)


def empty_run(directory: Path) -> Run:
    """A run in which nothing was collected or trained."""
    (directory / "run").mkdir()
    return Run(directory / "run")


def tracer_clt(directory: Path, n_layers: int, d_model: int) -> Path:
    """The files of a cross-layer transcoder of circuit-tracer, of all layers."""
    directory.mkdir()
    for layer in range(n_layers):
        encoder = {
            f"W_enc_{layer}": random(D_SAE, d_model, seed=layer, scale=0.1),
            f"b_enc_{layer}": random(D_SAE, seed=layer) - 1,
            f"b_dec_{layer}": random(d_model, seed=layer, scale=0.1),
        }
        decoder = random(D_SAE, n_layers - layer, d_model, seed=9 + layer, scale=0.1)
        save_file(encoder, directory / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": decoder}, directory / f"W_dec_{layer}.safetensors")
    (directory / "config.yaml").write_text("feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
    return directory


def test_a_graph_through_a_clt_reads_its_layers_alone_and_is_validated(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, d_model = shape
    clt = tracer_clt(tmp_path / "clt", *shape)
    files.save(coder("resid.1", d_model), tmp_path / "resid.1")
    files.save(coder("attn_in.1", d_model, target="attn.1", skip=True), tmp_path / "attn")
    sae_path = f"{clt},{tmp_path}/resid.1,{tmp_path}/attn"
    read: list[str] = []
    real = stored.StoredTensors.read

    def noted(self: stored.StoredTensors, name: str, *, column: int | None = None) -> Tensor:
        read.append(name if column is None else f"{name}[:, {column}]")
        return real(self, name, column=column)

    monkeypatch.setattr(stored.StoredTensors, "read", noted)
    run = empty_run(tmp_path)
    made = graph_grad.run(Request(settings(sae_path, graph__layers=":2"), Stream(), run))
    graph = graphs.from_records(Stream(made))[-1]
    hooks = {str(node.place.hook) for node in graph.nodes if node.place}
    assert hooks <= {"mlp_in.0", "mlp_in.1", "mlp.0", "mlp.1", "resid.1", "attn_in.1", "attn.1"} and len(hooks) > 3
    decoders = {"W_dec_0[:, 0]", "W_dec_0[:, 1]", "W_dec_1[:, 0]"}
    assert {name for name in read if ":" in name} == decoders
    assert {name for name in read if name.startswith("W_enc_")} == {"W_enc_0", "W_enc_1"}
    read.clear()
    scores = validate.run(Request(settings(sae_path), run.stream(), run))
    faithfulness = [record for record in scores if isinstance(record, ScoreRecord) and record.name == "faithfulness"]
    assert faithfulness and all(record.value is not None for record in faithfulness)
    # Of later layers, whose codes are looked at, no more than is needed to load them.
    assert {name for name in read if ":" in name} == decoders | {"W_dec_2[:, 0]", "W_dec_3[:, 0]"}
    naive = graph_naive.run(Request(settings(sae_path, graph__layers=":2", graph__sites=["mlp"]), Stream(), run))
    hooks = {str(node.place.hook) for node in graphs.from_records(Stream(naive))[-1].nodes if node.place}
    assert hooks <= {"mlp_in.0", "mlp_in.1", "mlp.0", "mlp.1"} and hooks


def test_coders_that_no_graph_can_be_made_of_are_refused_by_their_paths(shape: tuple[int, int], tmp_path: Path):
    n_layers, d_model = shape
    clt, run = tracer_clt(tmp_path / "clt", *shape), empty_run(tmp_path)
    for name, made in {
        "mlp": coder("mlp.1", d_model),
        "again": coder("mlp_in.1", d_model, target="mlp.1"),
        "narrow": coder("mlp_in.0", d_model, target="mlp.0", d_out=5),
        "other": coder("mlp_in.0", d_model, target=f"mlp.{n_layers}"),
    }.items():
        files.save(made, tmp_path / name)
    for names, told in {
        f"{clt},{tmp_path}/again": ("more than one SAE at mlp_in.1", "again", "W_enc_1"),
        f"{clt},{tmp_path}/mlp": ("mlp.1 is explained twice", str(tmp_path / "mlp"), "W_enc_"),
        f"{tmp_path}/narrow": ("writes activations of width 5", "narrow", str(d_model)),
        f"{tmp_path}/other": (f"writes mlp.{n_layers}", "other", f"{n_layers} layers"),
    }.items():
        for stage in (graph_grad, graph_naive):
            with pytest.raises(InputError) as caught:
                stage.run(Request(settings(names), Stream(), run))
            assert all(part in caught.value.message for part in told), caught.value.message
            assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint
    # What collides is left out by its site.
    asked = settings(f"{clt},{tmp_path}/mlp", graph__sites=["mlp_in"], graph__layers="1:2")
    assert graph_grad.run(Request(asked, Stream(), run))


def test_coders_of_some_layers_are_loaded_from_python_and_make_a_circuit(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, d_model = shape
    clt = tracer_clt(tmp_path / "clt", *shape)
    files.save(coder("attn_in.1", d_model, target="attn.2"), tmp_path / "attn")
    read: list[str] = []
    real = stored.StoredTensors.read

    def noted(self: stored.StoredTensors, name: str, *, column: int | None = None) -> Tensor:
        read.append(name if column is None else f"{name}[:, {column}]")
        return real(self, name, column=column)

    monkeypatch.setattr(stored.StoredTensors, "read", noted)
    coders = circuit.load_coders([clt, tmp_path / "attn"], layers=":2")
    assert {str(hook): [str(place) for place in found.writes] for hook, found in coders.items()} == {
        "mlp_in.0": ["mlp.0", "mlp.1"],
        "mlp_in.1": ["mlp.1"],
    }
    assert {name for name in read if ":" in name} == {"W_dec_0[:, 0]", "W_dec_0[:, 1]", "W_dec_1[:, 0]"}
    whole = circuit.load_coders([clt, tmp_path / "attn"])
    again = circuit.load_coders([*whole.values()], layers=":2")
    assert {hook: found.config for hook, found in again.items()} == {
        hook: found.config for hook, found in coders.items()
    }
    model = circuit.load_model("builtin:tiny", device="cpu")
    assert len(circuit.load_coders(clt, layers="-2:", model=model)) == 2
    with pytest.raises(circuit.CircuitError, match="counted from the model's last one"):
        circuit.load_coders(clt, layers="-2:")
    # Of coders that lie in no file, cut by the circuit itself.
    for found in whole.values():
        found.digest = None
    options: dict[str, Any] = {"method": "atp", "baseline": "zero", "down": 2, "up": 2}
    graph = circuit.find_circuit(model, whole, PROMPT, layers=":2", **options)
    assert set(graph.head.saes) == {"mlp_in.0", "mlp_in.1"}
    assert circuit.validate(model, whole, graph)
