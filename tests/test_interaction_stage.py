# ruff: noqa: F811 (fixtures of another file)
"""`validate --interaction`: what it records and prints, what it keeps, and with which status it refuses."""

import json

import pytest
import torch
from cli_support import here
from safetensors.torch import load_file
from test_validate_stage import _one_model, ask, collected, run  # noqa: F401

from circuitcli.cli.told import told
from circuitcli.records import InteractionRecord
from circuitcli.runs import remember
from circuitcli.stages import interaction, validate
from circuitcli.validation import feature_edges
from circuitcli.validation import interaction as scalar

ASKED = {"validate__interaction": "resid.1,resid.2", "graph__ig_steps": 2}


def test_a_curve_on_the_runs_own_text_is_recorded_reported_and_not_made_twice(ask, run, monkeypatch):
    points, whole = [], scalar._point

    def counted(between, order, n, rule):
        if len(points) == 3 and not (run.path / "stopped").exists():
            (run.path / "stopped").touch()
            raise KeyboardInterrupt
        points.append(n)
        return whole(between, order, n, rule)

    monkeypatch.setattr(scalar, "_point", counted)
    with pytest.raises(KeyboardInterrupt):
        validate.run(ask(validate__sequences=2, **ASKED))
    attributed, record, figure = validate.run(ask(validate__sequences=2, **ASKED))
    assert points == list(record.n_edges[:-1]), "a kill loses no point, and none is made twice"
    assert not [*(run.path / "reports").glob("*partial*")]
    assert isinstance(record, InteractionRecord) and (record.source, record.target) == ("resid.1", "resid.2")
    assert record.n_prompts == 2 and record.n_edges[0] == 0 and record.n_edges[-1] == record.n_possible == 60 * 60
    assert record.n_live in record.n_edges and record.kl[-1] == record.floor > 0
    assert record.kl_low[0] <= record.kl[0] <= record.kl_high[0]
    report = json.loads((run.path / record.path).read_text())
    each = torch.tensor(report["kl_of_prompts"]).double()
    assert each.mean(dim=0).tolist() == pytest.approx(list(record.kl))
    area = sum(
        (b - a) * (x + y) / 2
        for a, b, x, y in zip(record.n_edges, record.n_edges[1:], record.kl, record.kl[1:], strict=False)
    )
    assert record.absolute["value"] == pytest.approx(area)
    assert record.relative["value"] == pytest.approx(area / 3600)
    assert record.absolute_above["value"] == pytest.approx(area - 3600 * record.floor, rel=1e-6, abs=1e-6)
    above = record.absolute_above["value"]
    assert record.live_above["value"] == pytest.approx(above / record.n_live)
    assert "3,600 possible" in next(told([record]))
    assert b"possible edges" in (run.path / figure.path).read_bytes()
    monkeypatch.setattr(interaction, "_work", lambda *given: pytest.fail("it was done before"))
    assert validate.run(ask(validate__sequences=2, **ASKED)) == [attributed, record, figure]


def test_several_pairs_are_measured_in_one_process_and_a_kill_loses_no_ranking(ask, run, monkeypatch):
    ranked, whole = [], feature_edges.attributions

    def counted(between, method):
        ranked.append(between[0].target)
        return whole(between, method)

    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_edges, "attributions", counted)
    asked = {"validate__interaction": ["blocks", "resid.1,resid.2"], "graph__ig_steps": 1, "validate__sequences": 1}
    asked |= {"interaction__points": "0,3,9", "interaction__length": 12, "interaction__pieces": "first"}
    with monkeypatch.context() as patch:
        patch.setattr(scalar, "_point", stopped)
        with pytest.raises(KeyboardInterrupt):
            validate.run(ask(**asked))
    attributed, curve, _ = validate.run(ask(**asked))
    assert len(ranked) == 1 and (curve.source, curve.target) == ("resid.1", "resid.2")
    assert curve.n_edges == (0, 3, 9, 3600) and curve.n_tokens == 11 and len(curve.kl_circuit) == 4
    # Whatever points are asked for, areas are of all possible edges, and near to the floor some are.
    assert curve.kl[-1] == curve.floor and f"{curve.n_live:,} of" in next(told([curve]))
    assert not [*(run.path / "reports").glob("*partial*")]
    assert attributed.path == "reports/interaction-2-pairs.resid.1-resid.2.safetensors"
    stored = load_file(run.path / attributed.path)["attributions"]
    assert stored.shape == (attributed.n_sources, attributed.n_targets) == (60, 60)
    assert int((stored > 0).sum()) == attributed.n_nonzero > 0
    # Without a curve the attributions are the result.
    (alone,) = validate.run(ask(**asked | {"interaction__points": "none", "interaction__kept_edges": 5}))
    assert alone.n_kept == 5 and alone.name == "interaction-2-pairs-2"
    largest = load_file(run.path / alone.path)
    assert torch.equal(largest["attribution"], stored.flatten().topk(5).values)
    assert torch.equal(stored[largest["source"].long(), largest["target"].long()], largest["attribution"])


def test_the_curve_is_the_same_whatever_other_points_are_taken_before(ask):
    """The published code takes each point in a process of its own; here what did not change is not run again."""
    asked = {**ASKED, "validate__sequences": 2, "interaction__method": "paper", "interaction__rule": "paper"}
    asked |= {"interaction__length": 12}
    points = (0, 16, 700, 3600)
    _, whole, _ = validate.run(ask(**asked, interaction__points=",".join(map(str, points)), validate__name="whole"))
    for number in (1, 2, 3):
        _, one, _ = validate.run(ask(**asked, interaction__points=str(points[number]), validate__name=f"p{number}"))
        # No edges and all of them are at its ends, or its area would be the smaller the fewer points there are.
        assert (one.n_edges[0], one.n_edges[-1]) == (0, 3600) and one.kl[0] == pytest.approx(whole.kl[0], rel=1e-5)
        assert one.kl[1] == pytest.approx(whole.kl[number], rel=1e-5)
        assert one.kl_circuit[1] == pytest.approx(whole.kl_circuit[number], rel=1e-4, abs=1e-7)
    _, beyond, _ = validate.run(ask(**asked, interaction__points="3601", validate__name="beyond"))
    assert beyond.n_edges == (0, 3600) and beyond.absolute["value"] > 0
    assert whole.kl[-1] == whole.floor and whole.kl_circuit[-1] == pytest.approx(0, abs=1e-7)


def test_what_has_no_curve_is_one_error_with_a_hint_and_its_status(ask, collected, run, tmp_path):
    remember(run)
    saes = ("--sae", str(collected / "saes"), "--device", "cpu", "--run", str(run.path))
    for words, status in (
        (("--interaction", "resid.2,resid.1", "--prompt", "import os"), 3),
        (("--interaction", "resid.1,resid.1", "--prompt", "import os"), 3),
        (("--interaction", "resid.1,resid.3", "--prompt", "import os"), 3),
        (("--interaction", "resid.1"), 2),
        (("--interaction", "mlp-layers", "--prompt", "import os"), 3),
        (("--interaction", "blocks", "--set", "interaction.points=4,2", "--prompt", "a"), 2),
        (("--interaction", "blocks", "--set", "interaction.method=ma", "--prompt", "a"), 2),
        (("--interaction", "resid.1,resid.2,resid.3"), 2),
        (("--interaction", "resid.1,nowhere.2"), 2),
        (("--interaction", "resid.1,resid.2", "--scale", "1:3=2", "--prompt", "a"), 2),
    ):
        done = here("validate", *saes, *words, cwd=tmp_path)
        assert (done.status, len(done.errors)) == (status, 2), (words, done.stderr)
    _, record, _ = validate.run(ask(graph__prompt="import os", **ASKED))
    assert record.n_prompts == 1 and record.kl_low is None and record.absolute.get("low") is None
