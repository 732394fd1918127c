"""Pictures of circuit graphs: what is drawn, that every number is kept, and that nasty text survives."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from circuitcli.errors import InputError, SettingsError, ToolError
from circuitcli.features.lines import Context, Details
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph, to_records
from circuitcli.records import FeatureRecord, FeaturesRecord, GraphRecord, Record, ScoreRecord, Stream
from circuitcli.render.boxes import _window, summary
from circuitcli.render.details import read_details
from circuitcli.render.document import document, to_json
from circuitcli.render.dot import BACKSLASH, dot_source
from circuitcli.render.drawing import Drawing, draw
from circuitcli.render.heading import heading
from circuitcli.render.page import embedded, page
from circuitcli.render.picture import picture
from circuitcli.render.scales import Scale, shade
from circuitcli.render.text import shortened, signed, visible, width, wrapped
from circuitcli.render.write import write
from circuitcli.runs import Run
from circuitcli.settings.render import RenderSettings
from circuitcli.settings.settings import Settings
from circuitcli.stages import render
from circuitcli.stages.request import Request

GOLDEN = Path(__file__).parent / "golden" / "circuit.dot"
NASTY = (
    '"',
    "<pad>",
    "a&b",
    "&amp;",
    "\n",
    "\\",
    "\\N",
    "x\\",
    "</script>",
    "<!--",
    "]]>",
    "]",
    ":]",
    "\u2028",
    "😀",
    "é",
    "\t",
    " ",
    "",
)
NASTY += (
    "'",
    "{x|y}",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\ufffe",
    "👩‍👩‍👧",
    "东京",
    "</TD>",
    "<B>",
    "%s",
    "{{data}}",
    "\r\n",
    "\x85",
)

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="the program 'dot' is missing: install graphviz")


def head(**changes: object) -> GraphRecord:
    fields = {
        "name": "circuit",
        "method": "grad-ig",
        "metric": "log-prob",
        "prompt": 'When "Mary" & <pad>\\',
        "tokens": ("<s>", "When", ' "Mary"', " &", "<pad>", "\n", "\\"),
        "metric_clean": -0.612,
        "metric_baseline": -9.4,
        "dtype": "float32",
        "unit": "nats",
        "baseline": "mean",
        "positions": "all",
        "model": "gpt2",
        "target": " Mary",
        "saes": {"resid.0": "sha256:a", "mlp.1": "sha256:b"},
    }
    # Drawing must take any text, names that no reader lets through among them.
    return GraphRecord.model_validate(fields).model_copy(update=changes)


def small_graph(**changes: object) -> CircuitGraph:
    nodes = (
        Node("output"),
        Node("resid.0/7@2", 3.25, 0.5, "nats"),
        Node("resid.0/7@4", 1.5, -0.25, "nats"),
        Node("mlp.1/12@4", 2.0, 0.75, "nats"),
        Node("mlp.1/error@6", None, 0.0625, "nats"),
    )
    edges = (
        Edge("resid.0/7@2", "mlp.1/12@4", 0.25, "nats"),
        Edge("resid.0/7@4", "mlp.1/12@4", -0.125, "nats"),
        Edge("resid.0/7@4", "mlp.1/error@6", 2.0, "activation"),
        Edge("mlp.1/12@4", "output", 0.75, "nats"),
        Edge("mlp.1/error@6", "output", 0.0625, "nats"),
    )
    return CircuitGraph(head(**changes), nodes, edges)


def feature(name: str = "resid.0/7", **changes: object) -> dict[str, object]:
    context = {"tokens": [" a", "<pad>", "\n", ' "q"'], "activations": [0.0, 1.0, 0.0, 4.0], "peak": 3, "block": 5}
    fields = {"kind": "feature", "id": name, "label": 'names & "quotes" <x>', "density": 0.0021, "sae": "sha256:a"}
    rest = {"path": "features/resid.0.jsonl", "n_active": 21, "max": 4.0, "mean": 1.5, "quantiles": {"0.5": 1.25}}
    logits = {"promoted": [[" Mary", 1.5], ["<b>", 0.5]], "suppressed": [["\\", -1.25]]}
    return {**fields, **rest, **logits, "contexts": [context], **changes}


def details(**changes: object) -> dict[str, Details]:
    return {"resid.0/7": Details.model_validate(feature(**changes))}


def scores() -> list[ScoreRecord]:
    values = {"name": "faithfulness", "value": 0.83, "low": 0.79, "high": 0.86, "errors": "nodes", "n_nodes": 41}
    return [ScoreRecord.model_validate(values)]


def small_drawing(**changes: object) -> Drawing:
    return draw(small_graph(**changes), details=details(), scores=scores())


def wide_graph(n_sources: int = 12, *, positions: bool = True) -> CircuitGraph:
    """Sources of falling strength into the output."""
    sources = [
        Node(f"resid.0/{index}" + (f"@{index % 3}" if positions else ""), 1.0, 0.1, "nats")
        for index in range(n_sources)
    ]
    edges = [Edge(node.id, "output", (-1) ** index * 2.0**-index, "nats") for index, node in enumerate(sources)]
    return CircuitGraph(head(), (*sources, Node("output")), tuple(edges))


def numbers_of(svg: bytes) -> str:
    """All text of an SVG, blanks as in the labels."""
    return "".join(ElementTree.fromstring(svg).itertext())


def test_dot_source_is_the_golden_file() -> None:
    source = dot_source(small_drawing(), RenderSettings())
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(source, encoding="utf-8")
    assert source == GOLDEN.read_text(encoding="utf-8")


def test_drawing_does_not_depend_on_the_order_of_the_input() -> None:
    graph = small_graph()
    turned = CircuitGraph(graph.head, graph.nodes[::-1], graph.edges[::-1])
    assert dot_source(draw(turned), RenderSettings()) == dot_source(draw(graph), RenderSettings())


def nasty_drawing(texts: tuple[str, ...]) -> Drawing:
    contexts = [{"tokens": list(texts), "activations": [float(index) for index in range(len(texts))], "peak": 1}]
    pairs = [[text, 1.0] for text in texts]
    known = details(label="".join(texts), contexts=contexts, promoted=pairs, suppressed=pairs)
    graph = small_graph(tokens=texts, prompt="".join(texts), target=texts[0], foil=texts[-1], name=f"n{texts[0]}")
    score = ScoreRecord.model_validate({"name": texts[0], "value": 1.0, "what": texts[-1]})
    return draw(graph, details=known, scores=[score])


@needs_dot
def test_tooltips_say_what_the_boxes_say() -> None:
    nodes = tuple(Node(f"resid.0/{index}@{index}", 1.0, 0.5, "nats") for index in range(len(NASTY)))
    labels = {f"resid.0/{index}": Details(id=f"resid.0/{index}", label=text) for index, text in enumerate(NASTY)}
    heads = {"0.1": 0.125, "0.2/qk": -0.5, "stream": 0.625}
    edge = Edge("resid.0/0@0", "output", 0.25, "nats", heads=heads)
    drawing = draw(CircuitGraph(head(tokens=NASTY), (*nodes, Node("output")), (edge,)), details=labels)
    assert document(drawing)["edges"][0]["heads"] == heads
    svg = ElementTree.fromstring(picture(dot_source(drawing, RenderSettings()), form="svg"))
    # dot writes runs of blanks as no-break spaces.
    titles = {element.get("{http://www.w3.org/1999/xlink}title", "").replace("\xa0", " ") for element in svg.iter()}
    assert {summary(node, drawing).replace("\\", BACKSLASH) for node in drawing.nodes} <= titles
    assert "resid.0/0@0 → output: +0.25 nats; by head: stream +0.625, 0.2/qk -0.5, 0.1 +0.125" in titles


@needs_dot
def test_nasty_text_survives_the_real_dot() -> None:
    svg = numbers_of(picture(dot_source(nasty_drawing(NASTY), RenderSettings(logits=99)), form="svg"))
    for text in NASTY:
        assert visible(text).replace(" ", "\xa0") in svg, repr(text)


@needs_dot
@pytest.mark.parametrize("text", ["x", "&", "\u0301", "😀", "\x00"])
def test_text_without_end_is_cut_to_what_dot_takes(text: str) -> None:
    drawing = nasty_drawing((text,) * 3)
    # The schema of records is shorter, but a drawing must not rely on it.
    long = {name: text * 20_000 for name in ("name", "method", "metric", "prompt", "model", "target", "foil")}
    long_head = drawing.graph.head.model_copy(update={**long, "tokens": (text * 20_000,) * 9})
    scores = [score.model_copy(update={"name": text * 20_000}) for score in drawing.scores]
    pairs = ((text * 20_000, 1.0),)
    context = Context(tokens=(text * 20_000,) * 9, activations=(1.0,) * 9, peak=3)
    known = Details(id="resid.0/7", label=text * 20_000, contexts=(context,), promoted=pairs, suppressed=pairs)
    units = tuple(replace(edge, unit=text * 20_000) for edge in drawing.graph.edges)
    nodes = tuple(replace(node, unit=text * 20_000) for node in drawing.graph.nodes)
    graph = replace(drawing.graph, head=long_head, nodes=nodes, edges=units)
    drawing = draw(graph, details={"resid.0/7": known}, scores=scores)
    source = dot_source(drawing, RenderSettings(logits=99))
    svg = numbers_of(picture(source, form="svg"))
    assert visible(text[:1]).replace(" ", "\xa0") in svg and "…" in svg
    assert len(source) < 100_000


@needs_dot
def test_of_a_long_prompt_the_beginning_and_the_end_are_drawn() -> None:
    tokens = tuple(f"word{index}" for index in range(5000))
    svg = numbers_of(picture(dot_source(draw(small_graph(tokens=tokens)), RenderSettings()), form="svg"))
    hidden = int(re.search(r"…\xa0([\d,]+)\xa0tokens", svg)[1].replace(",", ""))
    assert "word0" in svg and "word4999" in svg and "word2500" not in svg
    assert hidden + heading(draw(small_graph(tokens=tokens))).count(">word") == 5000


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@needs_dot
@settings(max_examples=12, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6).map(tuple))
@example(("\\N\\G\\\\",))
@example(("\\\x80",))
def test_any_text_can_be_drawn(texts: tuple[str, ...]) -> None:
    svg = numbers_of(picture(dot_source(nasty_drawing(texts), RenderSettings()), form="svg"))
    assert visible(texts[0]).replace(" ", "\xa0") in svg


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6).map(tuple))
def test_any_text_survives_json_and_html(texts: tuple[str, ...]) -> None:
    drawing = nasty_drawing(texts)
    text = page(drawing)
    assert embedded(text)["document"] == document(drawing) == json.loads(to_json(document(drawing)))
    assert document(drawing)["graph"]["tokens"] == list(texts)


def test_nothing_in_a_page_ends_its_script_early() -> None:
    text = page(nasty_drawing(NASTY))
    data = text.split('id="data">')[1].split("</script>")[0]
    assert not re.search("[<>&\u2028\u2029]", data)
    assert text.count("</script>") == 3
    assert embedded(text)["document"]["graph"]["tokens"] == list(NASTY)


def test_a_page_needs_nothing_from_elsewhere() -> None:
    text = page(small_drawing())
    assert not re.search(r"(src|href)\s*=|@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


def test_document_holds_every_number() -> None:
    graph, content = small_graph(), document(small_drawing())
    assert {(edge["source"], edge["target"]): (edge["weight"], edge["unit"]) for edge in content["edges"]} == {
        (edge.source, edge.target): (edge.weight, edge.unit) for edge in graph.edges
    }
    assert {node["id"]: (node["activation"], node["effect"], node["unit"]) for node in content["nodes"]} == {
        node.id: (node.activation, node.effect, node.unit) for node in graph.nodes
    }
    assert content["graph"]["metric_clean"] == -0.612
    assert content["scores"] == [scores()[0].model_dump(exclude={"kind"}, exclude_none=True)]
    known = next(node for node in content["nodes"] if node["id"] == "resid.0/7@2")
    assert known["token"] == ' "Mary"'
    assert known["details"]["contexts"][0]["activations"] == [0.0, 1.0, 0.0, 4.0]


def test_legend_shows_the_weights_for_which_it_stands() -> None:
    drawing = small_drawing()
    for scale in drawing.scales.values():
        sizes = [abs(edge.weight) for edge in drawing.graph.edges if edge.unit == scale.unit]
        assert scale.samples()[0] == -scale.samples()[-1] == max(sizes)
        for weight in scale.samples():
            assert signed(weight) in heading(drawing)
            assert scale.colour(weight) in heading(drawing)


def test_units_have_scales_of_their_own() -> None:
    drawing = small_drawing()
    assert {unit: scale.largest for unit, scale in drawing.scales.items()} == {"nats": 0.75, "activation": 2.0}
    strongest = [edge for edge in drawing.edges if drawing.strength(edge) == 1]
    assert {edge.unit for edge in strongest} == {"nats", "activation"}


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_opacity_and_width_grow_with_the_size_of_the_weight(weights: list[float]) -> None:
    scale = Scale("nats", max(abs(weight) for weight in weights))
    ranked = sorted(weights, key=abs)
    for look in (scale.opacity, scale.width, lambda weight: int(scale.colour(weight)[-2:], 16)):
        inks = [look(weight) for weight in ranked]
        assert inks == sorted(inks)
    assert all(0 < scale.opacity(weight) <= 1 for weight in weights)


def test_positive_edges_are_blue_and_negative_red() -> None:
    scale = Scale("nats", 1.0)
    blue, red = scale.colour(1.0), scale.colour(-1.0)
    assert (blue, red) == ("#1f4fd8ff", "#d3222aff")


def test_shade_is_bluer_for_larger_activations() -> None:
    shades = [int(shade(value, 4.0)[1:3], 16) for value in (-1.0, 0.0, 1.0, 2.0, 4.0, 9.0)]
    assert shades[0] == shades[1] == 255
    assert shades == sorted(shades, reverse=True)
    assert shades[4] == shades[5]


def test_max_edges_keeps_the_strongest_and_says_what_is_left_out() -> None:
    drawing = draw(wide_graph(), max_edges=3)
    total = sum(2.0**-index for index in range(12))
    assert [edge.weight for edge in drawing.edges] == [0.25, -0.5, 1.0]
    assert drawing.left_out[0].n_left_out == 9
    assert drawing.left_out[0].share == pytest.approx(1 - 1.75 / total)
    assert drawing.n_hidden_nodes == 9
    source = dot_source(drawing, RenderSettings())
    assert "9&#160;of&#160;12&#160;edges" in source
    assert f"{100 * (1 - 1.75 / total):.1f}&#160;%" in source
    assert "resid.0/5@" not in source
    assert len(document(drawing)["edges"]) == 12


def test_all_edges_are_drawn_when_there_are_few() -> None:
    drawing = draw(wide_graph())
    assert len(drawing.edges) == 12
    assert drawing.left_out[0].n_left_out == 0
    assert "Left&#160;out" not in dot_source(drawing, RenderSettings())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    graph = CircuitGraph(head(), (Node("resid.0/1"), Node("output")), (Edge("resid.0/1", "output", value, "nats"),))
    with pytest.raises(InputError, match=r"resid\.0/1 -> output"):
        draw(graph)


def test_a_graph_without_edges_and_details_can_be_drawn() -> None:
    drawing = draw(CircuitGraph(head(tokens=(), target=None), (Node("resid.0/1"),)))
    assert "resid.0/1" in dot_source(drawing, RenderSettings())
    assert embedded(page(drawing))["document"]["edges"] == []


def test_an_empty_graph_can_be_drawn() -> None:
    drawing = draw(CircuitGraph(head()))
    assert dot_source(drawing, RenderSettings()).startswith("digraph")
    assert embedded(page(drawing))["layout"] == {"rows": [], "columns": []}


@given(st.lists(st.sampled_from(["a", "token", "东京", "x" * 40]), min_size=1, max_size=20), st.data())
def test_a_context_in_a_box_shows_its_peak(tokens: list[str], data: st.DataObject) -> None:
    peak = data.draw(st.integers(0, len(tokens) - 1))
    first, last = _window(Context(tokens=tuple(tokens), activations=(1.0,) * len(tokens), peak=peak))
    assert 0 <= first <= peak < last <= len(tokens)


@given(TEXT, st.integers(1, 12))
def test_shortened_text_fits(text: str, columns: int) -> None:
    assert width(shortened(text, columns)) <= columns
    assert all(width(line) <= columns for line in wrapped(text, columns, lines=3))


def write_features(run: Path, *lines: dict[str, object]) -> None:
    path = run / "features" / "resid.0.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_details_come_from_the_file_and_labels_from_the_stream(tmp_path: Path) -> None:
    write_features(tmp_path, feature("resid.0/3"), feature())
    told = FeatureRecord.model_validate({**feature(label="new"), "contexts": None})
    assert read_details(small_graph(), Stream(), tmp_path)["resid.0/7"].label == 'names & "quotes" <x>'
    found = read_details(small_graph(), Stream([told]), tmp_path)
    assert list(found) == ["resid.0/7"]
    assert found["resid.0/7"].label == "new"
    assert found["resid.0/7"].contexts[0].tokens == (" a", "<pad>", "\n", ' "q"')


def test_features_records_say_where_the_file_is(tmp_path: Path) -> None:
    write_features(tmp_path, feature())
    (tmp_path / "features" / "resid.0.jsonl").rename(tmp_path / "elsewhere.jsonl")
    record = FeaturesRecord(hook="resid.0", n_live=1, n_dead=0, path="elsewhere.jsonl", digest="sha256:x")
    assert read_details(small_graph(), Stream(), tmp_path) == {}
    assert read_details(small_graph(), Stream([record]), tmp_path)["resid.0/7"].contexts[0].peak == 3


def test_details_of_another_sae_are_left_out(tmp_path: Path) -> None:
    write_features(tmp_path, feature(sae="sha256:other"))
    record = FeatureRecord.model_validate(
        {"id": "resid.0/7", "label": "x", "density": 0.1, "path": "p", "sae": "sha256:other"}
    )
    assert read_details(small_graph(), Stream([record]), tmp_path) == {}


def test_details_may_be_missing(tmp_path: Path) -> None:
    record = FeatureRecord(id="resid.0/7", label="only told", density=0.1, path="features/gone.jsonl")
    assert read_details(small_graph(), Stream(), None) == {}
    assert read_details(small_graph(), Stream([record]), tmp_path)["resid.0/7"].label == "only told"


def test_a_damaged_line_is_refused_by_place(tmp_path: Path) -> None:
    write_features(tmp_path, feature(contexts="none"))
    with pytest.raises(InputError, match=r"resid\.0\.jsonl line 1: .*contexts"):
        read_details(small_graph(), Stream(), tmp_path)


def test_a_missing_dot_still_leaves_the_other_files(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(inside))
    stdout = io.StringIO()
    with pytest.raises(ToolError, match="'dot' is missing") as caught:
        write(small_drawing(), ["a.svg", "a.dot", "a.html", "a.json", "-"], RenderSettings(), stdout=stdout)
    assert caught.value.exit_status == 4
    assert "apt-get install graphviz" in caught.value.hint
    assert {path.name for path in inside.iterdir()} == {"a.dot", "a.html", "a.json"}
    assert stdout.getvalue() == (inside / "a.dot").read_text(encoding="utf-8")


def test_an_unknown_suffix_is_refused_before_anything_is_written(inside: Path) -> None:
    with pytest.raises(SettingsError, match=r"a\.gif"):
        write(small_drawing(), ["a.dot", "a.gif"], RenderSettings(), stdout=io.StringIO())
    assert list(inside.iterdir()) == []


@needs_dot
def test_all_forms_are_written(inside: Path) -> None:
    outputs = ["a.dot", "deep/a.svg", "a.PNG", "a.json", "a.html"]
    assert write(small_drawing(), outputs, RenderSettings(dpi=40), stdout=io.StringIO()) == [
        Path(name) for name in outputs
    ]
    assert numbers_of(Path("deep/a.svg").read_bytes()).count("resid.0/7@2") >= 1
    assert Path("a.PNG").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("a.json").read_text(encoding="utf-8")) == document(small_drawing())


def requested(directory: Path, records: list[Record], **fields: object) -> Request:
    chosen = Settings(render=RenderSettings.model_validate(fields))
    return Request(settings=chosen, records=Stream(records), run=Run(directory))


def test_the_stage_draws_the_last_graph_or_the_named_one(inside: Path) -> None:
    stream = [*to_records(small_graph(name="first")), *scores(), *to_records(small_graph(name="second"))]
    assert render.run(requested(inside, stream, output="x.json"), stdout=io.StringIO())[0].kind == "figure"
    content = json.loads(Path("x.json").read_text(encoding="utf-8"))
    assert (content["graph"]["name"], content["scores"]) == ("second", [])
    render.run(requested(inside, stream, output="x.json", graph="first"), stdout=io.StringIO())
    content = json.loads(Path("x.json").read_text(encoding="utf-8"))
    assert (content["graph"]["name"], len(content["scores"])) == ("first", 1)


@needs_dot
def test_the_stage_draws_into_the_run_by_default(inside: Path) -> None:
    run = inside / "run"
    run.mkdir()
    write_features(run, feature())
    made = render.run(requested(run, to_records(small_graph(name="a/b c"))), stdout=io.StringIO())
    assert [getattr(record, "path", "") for record in made] == ["figures/a-b-c.html", "figures/a-b-c.svg"]
    assert all((run / getattr(record, "path", "")).is_file() for record in made)
    assert 'names & \\"quotes\\"' in to_json(embedded((run / "figures/a-b-c.html").read_text(encoding="utf-8")))


def test_the_stage_writes_relative_to_the_working_directory_without_a_run(inside: Path) -> None:
    stdout = io.StringIO()
    request = requested(inside / "none", to_records(small_graph()), output=("out/x.html", "-"))
    assert render.run(request, stdout=stdout) == [render.FigureRecord(path="out/x.html")]
    assert stdout.getvalue().startswith("digraph")
    assert Path("out/x.html").is_file()


def test_the_stage_refuses_a_stream_without_the_graph(inside: Path) -> None:
    with pytest.raises(InputError, match="no 'graph' record"):
        render.run(requested(inside, []), stdout=io.StringIO())
    with pytest.raises(InputError, match="there is no graph 'b'") as caught:
        render.run(requested(inside, to_records(small_graph(name="a")), graph="b"), stdout=io.StringIO())
    assert "a" in caught.value.hint


def test_drawing_never_imports_torch() -> None:
    code = "import sys, circuitcli.stages.render; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sorted_graph_is_what_a_drawing_holds() -> None:
    assert small_drawing().graph == sorted_graph(small_graph())
