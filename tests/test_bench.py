"""The programs that measure speed still run: on as little as they can be given."""

from pathlib import Path

import pytest
import torch

from circuitcli.activations.storage.shards import RowsShard
from circuitcli.activations.storage.stored_rows import StoredRows
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import load_model
from circuitcli.pretraining.optimiser import new_model
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import ModelSettings
from circuitcli.settings.pretrain import PretrainSettings
from tests.bench import bench_collect, bench_frozen, bench_graphs, bench_pretrain, bench_writer, graph_scaling
from tests.bench.graph_scaling import COMMANDS, Point
from tests.bench.random_graphs import TINY, Setting


def test_collecting_is_measured_beside_the_bare_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    small = bench_collect.DATA.model_copy(update={"batch_size": 4, "block_length": 32})
    monkeypatch.setattr(bench_collect, "DATA", small)
    model = load_model(ModelSettings(name="builtin:tiny"))
    found = bench_collect.measure(model, [HookPoint(0, "resid")], seconds_wanted=0.01, rounds=1)
    assert found.n_tokens > 100 and min(found.bare, found.collecting, found.reading) > 0


def test_pretraining_is_measured_beside_the_same_model_in_bare_pytorch():
    settings = PretrainSettings(n_layers=2, n_heads=2, d_model=8, context_length=12, batch_size=2, accumulation=2)
    device = torch.device("cpu")
    rows = bench_pretrain.compared(settings, device=device, rounds=1, n=1)
    assert [row.name for row in rows] == ["circuit", "plain"] and min(row.tokens_per_s for row in rows) > 0
    assert bench_pretrain.table(rows).count("\n") == 1
    plain = bench_pretrain.Plain(settings)
    assert sum(p.numel() for p in plain.parameters()) == sum(
        p.numel() for p in new_model(settings, n_ids=bench_pretrain.N_IDS, end_of_text=None, seed=0).parameters()
    )


@pytest.mark.parametrize("name", bench_writer.WAYS)
def test_every_way_of_writing_writes_the_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_writer, "N_ROWS", 2 * bench_writer.BATCH)
    rows = StoredRows.of(torch.randn(bench_writer.BATCH, 3).half())
    with bench_writer.way(name) as writer:
        bench_writer.write(tmp_path, writer, hooks=2, rows=rows)
    files = sorted(tmp_path.rglob("*.h5"))
    assert len(files) == 2 * bench_writer.N_SHARDS
    if name != "h5py":
        back = torch.empty_like(rows.values)
        RowsShard.open(files[-1]).read_into(back, bench_writer.BATCH)
        assert torch.equal(back, rows.values)


@pytest.mark.parametrize("across", [False, True])
def test_attribution_graphs_are_measured_beside_their_estimate_the_plain_way_and_the_bare_passes(across: bool):
    subject = bench_frozen.subject_with(TINY, across=across)
    lines = bench_frozen.report(subject, GraphSettings(frozen=True, batch_size=4), plain=True)
    assert [line.partition(" ")[0] for line in lines[1:]] == ["edges", "memory", "plain:", "floor:"]


@pytest.mark.parametrize("part", bench_graphs.PARTS)
def test_graphs_are_measured_beside_the_plain_way_and_have_its_numbers(part: str):
    settings = GraphSettings(baseline="zero", ig_steps=5, down=3, up=2)
    rows = bench_graphs.measured(part, Setting(TINY), settings, watch=bench_graphs.Watch(), n_ablations=5)
    assert min(row.seconds for row in rows) > 0
    compared = rows[1].compared
    assert compared is not None and compared.n > 5 and compared.difference < 1e-5
    assert bench_graphs.table(part, rows).count("\n") == len(rows) + 1


def test_graphs_are_measured_along_every_axis_and_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        graph_scaling, "in_own_process", lambda point: graph_scaling.measured(Point.read(point.written()))
    )
    base = Point(TINY, nodes=12, method="atp")
    costs = graph_scaling.measured(base.at("nodes", 24))
    assert costs.keys() == set(COMMANDS) and min(cost.seconds for cost in costs.values()) > 0
    assert costs["graph-naive"].n_nodes == 24
    axes = {"tokens": (4, 99), "nodes": (6,), "layers": (1,), "prompts": (3,)}
    monkeypatch.setattr(graph_scaling, "AXES", axes)
    graph_scaling.scaled(base, list(axes), most=3, output=tmp_path / "scaling.png")
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[1:3] for line in lines] == [["1", "layers"], ["3", "prompts"]]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
