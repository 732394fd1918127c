"""Response curves: every point is that of one separate pass, at 0 and 1 they are the naive graph's numbers."""

import json
from pathlib import Path

import pytest
import torch
from random_run import asking, random_saes
from subjects import panel_of, random_subject, subject_with
from support import adapter_of, random_coders

from circuitcli import records
from circuitcli.attribution import baselines
from circuitcli.attribution.naive import NaiveSearch
from circuitcli.attribution.responses import responses
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.taps import tapped
from circuitcli.records import FigureRecord, ReportRecord, ResponseRecord, Stream
from circuitcli.render import responses as drawing
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.section import factors
from circuitcli.stages import graph_grad, graph_naive


def searched(subject, hook, *, positions, n=2, **settings):
    """A naive search of the first features that are active, and their numbers."""
    active = subject.codes[hook].flatten(0, 1).any(dim=0).nonzero()[:n, 0].tolist()
    panel = panel_of(subject, baselines.zero(subject.coders), positions=positions)
    return NaiveSearch(panel, GraphSettings(**settings), {hook: active}, 0), active


def separate(subject, source, coefficient, reader, text):
    """Metric and activation of one pass of the whole model with a feature multiplied."""
    where = slice(None) if source.position is None else source.position - subject.first
    seen, taps = {}, {}
    for place in subject.coders[source.hook].writes:
        codes = torch.zeros_like(subject.codes[source.hook][text])
        codes[where, source.index] = (coefficient - 1) * subject.codes[source.hook][text][where, source.index]
        move = codes @ subject.coders[source.hook].decoder(place)
        taps[place] = lambda x, move=move: torch.cat([x[:, : subject.first], x[:, subject.first :] + move], dim=1)
    own = taps.get(reader.hook, lambda x: None)
    reads_what_goes_on = subject.coders[reader.hook].is_transcoder

    def read(x):
        moved = own(x)
        seen["x"] = moved if moved is not None and reads_what_goes_on else x
        return moved

    with torch.no_grad(), tapped(subject.adapter, taps | {reader.hook: read}):
        logits = subject.adapter.logits(subject.clean.input_ids[text : text + 1])
        codes = subject.coders[reader.hook].encode(seen["x"][:, subject.first :])[0, :, reader.index]
        metric = subject.metric.value(logits, torch.tensor([text]))
    return float(metric), float(codes.sum() if reader.position is None else codes[reader.position - subject.first])


@pytest.mark.parametrize(("positions", "batch_size"), [("sum", 64), ("all", 3)])
@pytest.mark.parametrize("n_texts", [1, 2])
def test_every_point_of_a_curve_is_one_separate_pass(positions, batch_size, n_texts):
    coefficients = (0.0, 0.5, 1.0, 2.0, -1.0)
    subject = subject_with(adapter_of("gpt2"), random_coders("clt-resid"), n=5, first=1, n_texts=n_texts)
    hook = HookPoint(0, "mlp_in")
    search, _ = searched(subject, hook, positions=positions, n=1, to="all", batch_size=batch_size)
    found = responses(search, coefficients, n_readers=4)
    assert found and all(len(one.readers) == 4 for one in found)
    for response in found[:2]:
        source = NodeId.parse(response.source)
        for curve in response.readers:
            for at, coefficient in enumerate(coefficients):
                points = [
                    separate(subject, source, coefficient, NodeId.parse(curve.of), text) for text in range(n_texts)
                ]
                metric, activation = (sum(values) / n_texts for values in zip(*points, strict=True))
                assert response.metric.values[at].value == pytest.approx(metric, abs=1e-9)
                assert curve.values[at].value == pytest.approx(activation, abs=1e-9)
        is_several = n_texts > 1
        assert all((value.standard_error is not None) == is_several for value in response.metric.values)


def test_a_curve_between_zero_and_one_is_the_naive_graphs_edge_and_effect():
    subject = random_subject("gpt2")
    hook = HookPoint(0, "resid")
    search, _ = searched(subject, hook, positions="sum", threshold_exp=-30)
    part = search.part(hook)
    edges = {(edge.source, edge.target): edge.weight for edge in part.edges}
    effects = {node.id: node.effect for node in part.nodes if node.effect is not None}
    for response in responses(search, (0.0, 1.0), n_readers=6):
        first, last = (value.value for value in response.metric.values)
        assert last - first == pytest.approx(effects[response.source])
        changes = [curve.values[1].value - curve.values[0].value for curve in response.readers]
        assert changes == pytest.approx([edges[response.source, curve.of] for curve in response.readers])
        strongest = sorted((abs(w) for (s, t), w in edges.items() if s == response.source), reverse=True)[:6]
        assert [abs(change) for change in changes] == pytest.approx(strongest)


def test_coefficients_are_written_as_a_range_with_both_ends():
    assert factors("0:2:0.5") == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert len(factors("0:2:0.1")) == 21 and factors("0:2:0.1")[3] == 0.3
    assert factors("1:1:1") == (1.0,) and factors("0:1:0.4") == (0.0, 0.4, 0.8) and factors("2:0:-1") == (2.0, 1.0, 0.0)
    for text in ("", "0:2", "0:2:0", "2:0:1", "0:1:1e-9", "a:b:c", "0:inf:1", "nan:1:1", "0:1:0.1:3"):
        with pytest.raises(SettingsError, match="is not FIRST:LAST:STEP"):
            factors(text)


def test_a_feature_that_nothing_reads_has_no_empty_panel():
    metric = ResponseRecord(
        graph="swept", source="resid.2/1", of=OUTPUT, coefficients=(0.0, 1.0), values=(0.0, 2.0), unit="nats"
    )
    read = metric.model_copy(update={"source": "resid.1/1", "of": "resid.2/1", "unit": "activation"})
    assert [[panel.title for panel in row] for row in drawing.plot([metric], title="").rows] == [["resid.2/1: metric"]]
    rows = drawing.plot([metric, read], title="").rows
    assert [panel.title for row in rows for panel in row if panel.series] == [
        "resid.2/1: metric",
        "resid.1/1: readers",
    ]
    assert len({len(row) for row in rows}) == 1


def test_a_sweep_leaves_its_numbers_and_its_plot_in_the_run(tmp_path: Path):
    ask = asking(random_saes(tmp_path / "saes"), tmp_path)
    graph = graph_naive.run(ask())
    feature = next(NodeId.parse(r.source) for r in graph if r.kind == "edge" and r.source.startswith("resid.1/"))
    pin = {"graph__pin": f"1:{feature.index}", "graph__name": "swept"}
    request = ask(graph__sweep_coefficient="0:2:0.5", graph__sweep_readers=3, **pin)
    made = graph_naive.run(request)
    curves = [record for record in made if isinstance(record, ResponseRecord)]
    assert [curve.of == OUTPUT for curve in curves] == [True, False, False, False]
    assert all(curve.coefficients == (0.0, 0.5, 1.0, 1.5, 2.0) and len(curve.values) == 5 for curve in curves)
    assert [curve.unit for curve in curves] == ["nats", *["activation"] * 3]
    run = request.run.path
    (report,) = [record for record in made if isinstance(record, ReportRecord)]
    (figure,) = [record for record in made if isinstance(record, FigureRecord)]
    told = json.loads((run / report.path).read_text(encoding="utf-8"))
    assert [value["value"] for value in told["responses"][0]["metric"]["values"]] == list(curves[0].values)
    drawn = (run / figure.path).read_text(encoding="utf-8")
    assert all(curve.of in drawn for curve in curves[1:]) and "coefficient of the feature" in drawn
    stored = records.read_file(run / "graphs" / "swept.jsonl")
    assert stored.of(ResponseRecord) == curves == Stream(graph_naive.run(request)).of(ResponseRecord)
    with pytest.raises(SettingsError, match="needs the feature to multiply"):
        graph_naive.run(ask(graph__sweep_coefficient="0:2:0.5"))
    with pytest.raises(InputError, match="is silent"):
        silent = next(i for i in range(300) if f"resid.1/{i}" not in {r.source for r in graph if r.kind == "edge"})
        graph_naive.run(ask(graph__sweep_coefficient="0:2:0.5", graph__pin=f"1:{silent}", graph__name="none"))
    # What only the naive graph reads is no setting of the other's.
    assert graph_grad.run(ask(graph__sweep_coefficient="0:2:0.5", graph__method="atp"))
