"""Figures of what a run measured: their numbers are those of the records, and nothing is cut off."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pypdf import PdfReader
from test_render import details, head, requested, small_graph
from test_tiles import fonts, is_embedded

from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.features.lines import Details
from circuitcli.graphs import CircuitGraph, Node, Trace, to_records
from circuitcli.records import CurveRecord, FeaturesRecord, Record, ResponseRecord, SaeRecord, SweepRecord
from circuitcli.render import faithfulness
from circuitcli.render.activation_maps import BEFORE, context_maps, prompt_map
from circuitcli.render.attributions import attribution_maps, effect_bars
from circuitcli.render.bars import Bars, draw_bars
from circuitcli.render.charts import Chart, draw_chart
from circuitcli.render.densities import Densities, densities_plot, steps
from circuitcli.render.pareto import coders_plot
from circuitcli.render.plots import styled
from circuitcli.stages import render_figure

FIGURES = tuple(render_figure._MAKERS)
LONG = "a label of many words, 东京 <b> " * 400


def curve(of: str = "nodes", **changes: object) -> CurveRecord:
    counts, values = (1, 2, 5, 10), (0.25, 1.5, 0.5, 1.0)
    shares = [count / 10 for count in counts]
    cmd = float(np.trapezoid([abs(1 - value) for value in values], shares))
    areas = {"cmd": cmd, "cmd_log": 0.5, "cpr": 0.5, "cpr_log": 0.5, "best_cpr": 0.9, "best_cpr_log": 2.0}
    rest = {
        "total": 10,
        "largest": 1.5,
        "largest_count": 2,
        "graph": "circuit",
        "low": (0, 1, 0.25, 1),
        "high": (1, 2, 1, 1),
    }
    return CurveRecord.model_validate(
        {"of": of, "ranked": "graph", "counts": counts, "values": values, **areas, **rest, **changes}
    )


def sae(hook: str, **changes: object) -> dict[str, object]:
    measured = {"explained_variance": 0.75, "l0": 32.0, "loss_recovered": 0.9}
    return {
        "hook": hook,
        "architecture": "topk",
        "d_in": 4,
        "d_sae": 8,
        "path": f"saes/{hook}",
        "digest": "sha256:a",
        **measured,
        **changes,
    }


def records() -> list[Record]:
    """All that figures are made from."""
    response = {
        "source": "resid.0/7",
        "coefficients": (0, 1, 2),
        "values": (0.5, 1, 2),
        "unit": "nats",
        "graph": "circuit",
    }
    return [
        *(SaeRecord.model_validate(sae(hook)) for hook in ("resid.0", "mlp.1")),
        SweepRecord.model_validate(sae("resid.0", variant="sae.k=8")),
        FeaturesRecord(hook="resid.0", n_live=2, n_dead=6, path="features/resid.0.jsonl", digest="sha256:x"),
        *to_records(small_graph(effects={"resid.0": {"features": 1.0, "errors": 0.5, "gap": -0.25}})),
        curve(),
        curve("edges"),
        *(ResponseRecord.model_validate({**response, "of": of}) for of in ("output", "mlp.1/12")),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with features of one hook point."""
    (tmp_path / "run" / "features").mkdir(parents=True)
    context = {"tokens": [" a", "<pad>", "\n", ' "q"'], "activations": [0.0, 1.0, 0.0, 4.0], "peak": 3}
    lines = [
        {"id": f"resid.0/{n}", "label": LONG, "density": 10.0**-n, "max": 4.0, "contexts": [context]} for n in (1, 7)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run" / "features" / "resid.0.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "run"


def drawn(run: Path, figure: str, **fields: object) -> str:
    stdout = io.StringIO()
    render_figure.run(requested(run, records(), figure=figure, output="-", **fields), stdout=stdout)
    return stdout.getvalue()


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_is_drawn_whole_without_any_program(
    run: Path, figure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(run))
    made: list[Chart] = []
    monkeypatch.setattr(render_figure, "chart_picture", lambda chart, suffix: made.append(chart) or b"<svg/>")
    assert drawn(run, figure) == "<svg/>"
    with styled():
        shown = draw_chart(made[0])
        shown.draw_without_rendering()
        box, size = shown.get_tightbbox(), shown.get_size_inches()
    # A hundredth of an inch is less than a letter's side.
    assert min(box.x0, box.y0, size[0] - box.x1, size[1] - box.y1) > -0.01, (box, size)
    # Every pair of axes says what it shows.
    axes = [one for one in shown.axes if one.axison]
    assert axes and all(one.get_title(loc="left") or one.get_ylabel() for one in axes)


def test_figures_go_into_the_run_or_where_they_are_asked_for_with_their_fonts(run: Path, tmp_path: Path) -> None:
    [made] = render_figure.run(requested(run, records(), figure="attribution"), stdout=io.StringIO())
    assert (
        getattr(made, "path", "") == "figures/circuit-attribution.svg"
        and (run / "figures/circuit-attribution.svg").is_file()
    )
    paths = [str(tmp_path / name) for name in ("a.pdf", "a.png")]
    render_figure.run(requested(run, records(), figure="effects", output=tuple(paths), dpi=40), stdout=io.StringIO())
    [page] = PdfReader(paths[0]).pages
    found = fonts(page["/Resources"].get_object())
    assert found and all(map(is_embedded, found)) and {font["/Subtype"] for font in found} <= {"/Type0", "/TrueType"}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_run_without_the_numbers_is_told_what_makes_them(tmp_path: Path, figure: str) -> None:
    bare = CircuitGraph(head(tokens=()), (Node("resid.0/1"), Node("output")))
    request = requested(tmp_path, to_records(bare), figure=figure)
    with pytest.raises(InputError, match=f"nothing to draw as '{figure}'") as raised:
        render_figure.run(request, stdout=io.StringIO())
    assert "circuit" in raised.value.hint or "--figure" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_names_of_figures_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="gif"):
        render_figure.run(requested(tmp_path, records(), figure="effects", output="x.gif"), stdout=io.StringIO())
    with pytest.raises((ValueError, CircuitError)):
        requested(tmp_path, [], figure="nonsense")


def test_maps_over_positions_and_hook_points_sum_the_effects_of_nodes() -> None:
    graph = small_graph()
    maps = attribution_maps(graph)
    assert maps is not None and maps.rows == ["resid.0", "mlp.1"]
    assert maps.columns == ['2 " "Mary""', '4 "<pad>"', '6 "\\"']
    features, errors = maps.maps
    assert features.values == [[0.5, -0.25, None], [None, 0.75, None]]
    assert errors.values == [[None, None, None], [None, None, 0.0625]]
    assert "3 nodes, +1 nats" in features.title
    total = math.fsum(value or 0.0 for one in maps.maps for row in one.values for value in row)
    assert total == pytest.approx(sum(node.effect or 0.0 for node in graph.nodes))


def test_bars_sum_effects_of_each_hook_point_beside_those_of_all_nodes() -> None:
    bars = effect_bars(small_graph(effects={"resid.0": {"features": 1.0, "errors": 0.5}}))
    assert bars is not None and bars.names == ["resid.0", "mlp.1"]
    assert dict(bars.panels) == {
        "features of the graph (nats)": [0.25, 0.75],
        "its error terms (nats)": [0.0, 0.0625],
        "all features (nats)": [1.0, None],
        "all error terms (nats)": [0.5, None],
    }


def test_histograms_count_every_feature_in_its_place_and_dead_ones_apart() -> None:
    values = [10 ** -(n / 7) for n in range(1, 40)] + [1.0, 1e-6]
    x, y = steps(values)
    bins = list(zip(x[::2], x[1::2] or [], y[1::2], strict=False))
    edges, counts = x[::2], y[1:-1:2]
    assert sum(counts) == len(values) and len(edges) == len(counts) + 1 and bins
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        inside = [value for value in values if low * (1 - 1e-9) <= value < high * (1 - 1e-9)]
        assert len(inside) == count
    plot = densities_plot(
        [Densities("mlp.2", values, 3), Densities("mlp.1", [], 5), Densities("resid.0", [0.5], 0)], title="t"
    )
    (mlp, resid), (dead, _) = plot.rows
    assert resid.title == "resid: 1 features, 0 dead" and mlp.title == f"mlp: {len(values) + 8} features, 8 dead"
    assert (dead.series[0].x, dead.series[0].y) == ([1, 2], [1.0, 3 / (len(values) + 3)])
    assert steps([]) == ([], []) and len(densities_plot([Densities("resid.0", [], 0)], title="t").rows) == 1


def test_features_by_tokens_are_shares_of_the_largest_activation_and_come_from_traces_where_there_are_some() -> None:
    graph = small_graph()
    of_nodes = prompt_map(graph, {})
    assert of_nodes is not None and of_nodes.rows == ["resid.0/7", "mlp.1/12"] and len(of_nodes.columns) == 7
    assert of_nodes.maps[0].values[0] == [0, 0, 1.0, 0, 1.5 / 3.25, 0, 0]
    trace = Trace("resid.0/7", (0.0, 1.0, 2.0, 0.0, 0.0, 0.0, -1.0))
    traced = prompt_map(CircuitGraph(graph.head, graph.nodes, graph.edges, (trace,)), details())
    assert traced is not None and traced.maps[0].values == [[0, 0.25, 0.5, 0, 0, 0, -0.25]]
    assert traced.rows[0].startswith("resid.0/7 names") and traced.maps[0].low == -0.25
    assert traced.maps[0].texts == [["", ".25", ".50", "", "", "", "-0.25"]]


def test_contexts_stand_below_each_other_at_their_peaks_a_trace_of_another_prompt_first() -> None:
    graph = small_graph()
    trace = Trace("resid.0/7", (0.0, 5.0), prompt=2, tokens=("the", "peak"))
    maps = context_maps(CircuitGraph(graph.head, graph.nodes, graph.edges, (trace,)), details())
    assert maps is not None and len(maps.maps) == 1
    first, second = maps.maps[0].texts[-1], maps.maps[0].texts[-2]
    assert (first[BEFORE - 1], first[BEFORE], first[BEFORE + 1]) == ("the", "peak", "")
    assert second[BEFORE] == ' "q"' and maps.maps[0].values[-2][BEFORE - 2] == 1.0
    assert all(value is None for value in maps.maps[0].values[0]), "there are two contexts for six rows"
    assert context_maps(graph, {}) is None
    assert context_maps(graph, {"resid.0/7": Details(id="resid.0/7")}) is None


def test_the_shaded_area_is_the_cmd_and_the_band_the_interval() -> None:
    [upper], [lower] = faithfulness.plot([curve()], title="t").rows
    [area], [interval] = lower.bands, upper.bands
    assert float(np.trapezoid(area.high, area.x)) == pytest.approx(curve().cmd) and set(area.low) == {0.0}
    assert (interval.low, interval.high) == (curve().low, curve().high)
    assert f"CMD {curve().cmd:.3g}" in lower.title
    assert not faithfulness.plot([curve(low=None, high=None)], title="t").rows[0][0].bands


def test_every_coder_is_a_point_by_its_l0_and_quality() -> None:
    coders = [SaeRecord.model_validate(sae(hook, l0=l0)) for hook, l0 in (("resid.0", 8.0), ("mlp.1", 16.0))]
    plot = coders_plot([*coders, SaeRecord.model_validate(sae("resid.1", l0=None))], title="t")
    assert plot is not None
    variance, loss = plot.rows[0]
    assert [(one.label, *one.x, *one.y) for one in variance.series] == [("resid.0", 8.0, 0.75), ("mlp.1", 16.0, 0.75)]
    assert len(loss.series) == 2 and coders_plot([], title="t") is None


@pytest.mark.parametrize("figure", ["attribution", "effects", "activations"])
@pytest.mark.parametrize("name", ["resid.0/7@2", "resid.0/7"])
def test_a_graph_of_one_node_is_drawn_or_told_why_not(run: Path, figure: str, name: str) -> None:
    graph = CircuitGraph(head(tokens=()), (Node(name, 1.0, -0.5, "nats"),))
    stdout = io.StringIO()
    request = requested(run, to_records(graph), figure=figure, output="-")
    if figure == "activations" and "@" not in name:
        with pytest.raises(InputError, match="nothing to draw"):
            render_figure.run(request, stdout=stdout)
        return
    render_figure.run(request, stdout=stdout)
    assert "circuit" in stdout.getvalue() and "</svg>" in stdout.getvalue()


def test_numbers_of_bars_stand_inside_their_panel():
    values = ([-0.0973, -1.52e-05, 0.000759], [1.0, 2.0, None], [0.0, 0.0, 0.0], [-3.81, 3.81, 1e-9])
    panels = [(f"panel {n}", column) for n, column in enumerate(values)]
    figure = draw_bars(Bars(["one", "two", "three"], panels, [("#ffffff", "")] * 3))
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        frame = axes.get_window_extent()
        for text in axes.texts:
            told = text.get_window_extent()
            assert frame.x0 <= told.x0 and told.x1 <= frame.x1, (axes.get_title(), text.get_text())
