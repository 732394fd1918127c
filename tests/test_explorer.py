"""The page of a circuit as a reader uses it, in a real browser: pointing, pinning, finding, keys, hostile text."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bench.bench_page import measured as timed
from bench.page_graphs import random_circuit, random_details
from browser import Tab
from test_groups import drawn
from test_render import NASTY, details, head, small_drawing
from test_render_coders import IDS, many_prompts, random_graph

from circuitcli.features.lines import Context, Details
from circuitcli.graphs import CircuitGraph, Edge, Node
from circuitcli.graphs.groups import similar_groups
from circuitcli.render.drawing import Drawing, draw
from circuitcli.render.heading import notes
from circuitcli.render.page import page
from circuitcli.render.text import measured

HOSTILE = (
    "</script><script>window.hit=1</script>",
    '"><img src=x onerror="window.hit=1">',
    "<svg onload=window.hit=1>",
    "javascript:window.hit=1",
    "{{data}} ${window.hit=1}",
    "\u202eevil\u2066",
    "e" + "\u0301" * 300,
    "x" * 10_000,
    "👩‍👩‍👧" * 50,
    "שלום",
    "",
)


# Places at which the pointer meets an edge and nothing else, by the edge's name.
POINTS_OF_EDGES = """() => Object.fromEntries([...document.querySelectorAll("[data-edge]")].flatMap(path => {
    const matrix = path.getScreenCTM(), length = path.getTotalLength();
    for (let step = 1; step < 40; step++) {
        const at = path.getPointAtLength(length * step / 40).matrixTransform(matrix);
        const hit = document.elementFromPoint(at.x, at.y);
        if (hit && hit.classList.contains("reach") && hit.getAttribute("d") === path.getAttribute("d"))
            return [[path.dataset.edge, [at.x, at.y]]];
    }
    return [];
}))"""
BESIDE_ITS_BOX = """all => all.map(group => {
    const whole = group.getBBox(), card = group.querySelector(".card").getBBox();
    return whole.width - card.width;
})"""
WIDER_THAN_ITS_PLACE = """() => [document.documentElement, ...document.querySelectorAll("#panel, #heading")]
    .filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.id || one.tagName)"""
TIP_INSIDE = """() => {
    const tip = document.getElementById("tip").getBoundingClientRect();
    return tip.top >= 0 && tip.bottom <= innerHeight && tip.left >= 0 && tip.right <= innerWidth;
}"""
CLICK = "(one) => one.dispatchEvent(new MouseEvent('click', { bubbles: true }))"


@pytest.fixture
def tab(shared: Tab) -> Iterator[Tab]:
    """A page that others used before, and that must have nothing to complain of in the end."""
    del shared.requests[:], shared.faults[:]
    yield shared
    assert shared.faults == []
    shared.page.mouse.move(0, 0)


@pytest.fixture(scope="module")
def random_drawing() -> Drawing:
    """Thirty features of a cross-layer transcoder with effects, labels and contexts."""
    graph = random_graph(30, positions="all", seed=8)
    nodes = tuple(
        replace(node, activation=0.5 + n, effect=(-1) ** n * 0.0123456 * n, unit="nats") if node.place else node
        for n, node in enumerate(graph.nodes)
    )
    known = details(label="names & places")["resid.0/7"]
    names = {node.place.feature for node in nodes if node.place and not node.place.is_error}
    labels = {name: known.model_copy(update={"id": name, "label": f"word {name[-1]}"}) for name in names}
    return draw(replace(graph, nodes=nodes), details=labels)


def show(tab: Tab, drawing: Drawing, folder: Path, *, fragment: str = "") -> Path:
    path = folder / "circuit.html"
    path.write_text(page(drawing), encoding="utf-8")
    tab.open(path, fragment=fragment)
    return path


def node(name: str) -> str:
    """The selector of a node's box."""
    return f'[data-node="{name}"]'


def lit(tab: Tab, kind: str) -> set[str]:
    """The nodes or edges that stand out while others are dimmed."""
    found = f"all => all.filter(one => one.classList.contains('on')).map(one => one.dataset.{kind})"
    return set(tab.page.eval_on_selector_all(f"[data-{kind}]", found))


def chosen(tab: Tab) -> list[str]:
    """The nodes that are pinned."""
    return tab.page.eval_on_selector_all("[data-node].chosen", "all => all.map(one => one.dataset.node)")


def test_a_page_is_one_file_that_asks_for_nothing(tab: Tab, random_drawing: Drawing, tmp_path: Path):
    path = show(tab, random_drawing, tmp_path)
    assert [url for url in tab.requests if not url.startswith("data:text/javascript")] == [path.as_uri()]
    names = tab.page.eval_on_selector_all("[data-node]", "all => all.map(one => one.dataset.node)")
    assert sorted(names) == sorted(one.id for one in random_drawing.graph.nodes)


def test_pointing_at_a_box_or_an_edge_tells_its_exact_numbers(tab: Tab, random_drawing: Drawing, tmp_path: Path):
    show(tab, random_drawing, tmp_path)
    for one in [one for one in random_drawing.graph.nodes if one.effect][::6]:
        tab.page.hover(node(one.id))
        told = tab.page.inner_text("#tip")
        assert told.startswith(one.id) and measured(one.effect, one.unit) in told
        assert tab.page.locator("#tip").is_visible()
    tab.page.mouse.move(0, 0)
    points = tab.page.evaluate(POINTS_OF_EDGES)
    assert len(points) > 5
    for edge in [edge for edge in random_drawing.edges if f"{edge.source}→{edge.target}" in points][-3:]:
        tab.page.mouse.move(*points[f"{edge.source}→{edge.target}"])
        told = tab.page.inner_text("#tip")
        assert f"{edge.source} → {edge.target}" in told and measured(edge.weight, edge.unit) in told


def test_of_many_prompts_errors_and_shares_are_told(tab: Tab, tmp_path: Path):
    show(tab, draw(many_prompts(*IDS)), tmp_path)
    tab.page.hover(node(IDS[0]))
    assert re.search(r"-0\.5 ± 0\.06\d nats, in 75 % of prompts", tab.page.inner_text("#tip"))
    tab.page.click(node(IDS[0]))
    told = tab.page.inner_text("#panel")
    assert re.search(r"-0\.5 ± 0\.06\d nats", told) and "in 75.0 % of the prompts" in told
    assert "±" in tab.page.text_content(node(IDS[0]))


def test_a_click_pins_a_node_with_what_it_depends_on_and_what_depends_on_it(
    tab: Tab, random_drawing: Drawing, tmp_path: Path
):
    show(tab, random_drawing, tmp_path)
    graph = random_drawing.graph
    for one in graph.nodes[3:20:8]:
        tab.page.click(node(one.id))
        touching = [edge for edge in random_drawing.edges if one.id in (edge.source, edge.target)]
        assert chosen(tab) == [one.id]
        assert lit(tab, "edge") == {f"{edge.source}→{edge.target}" for edge in touching}
        assert lit(tab, "node") == {one.id, *(end for edge in touching for end in (edge.source, edge.target))}
        panel = tab.page.inner_text("#panel")
        assert one.id in panel and all(other.source in panel and other.target in panel for other in touching)
        # What is pinned stays while the pointer is elsewhere.
        tab.page.hover(node("output"))
        assert chosen(tab) == [one.id] and one.id in lit(tab, "node")
    tab.page.keyboard.press("Escape")
    assert chosen(tab) == [] and lit(tab, "node") == set()


def test_a_line_of_the_panel_leads_to_the_other_end(tab: Tab, random_drawing: Drawing, tmp_path: Path):
    show(tab, random_drawing, tmp_path)
    edge = max((edge for edge in random_drawing.edges if edge.target != "output"), key=lambda edge: abs(edge.weight))
    tab.page.click(node(edge.source))
    tab.page.locator("#panel tr.link", has_text=edge.target).first.click()
    assert chosen(tab) == [edge.target]


@pytest.mark.parametrize("text", ["word 3", "MLP_IN.4", "zzz", '  "mary" '])
def test_searching_marks_and_counts_what_has_the_text_in_its_id_label_token_or_contexts(
    tab: Tab, random_drawing: Drawing, tmp_path: Path, text: str
):
    show(tab, random_drawing, tmp_path)
    tab.page.fill("#search", text)
    features = [one for one in random_drawing.graph.nodes if one.place and not one.place.is_error]
    found = {one.id for one in features if text.strip().lower() in words_of(one, random_drawing)}
    marked = tab.page.eval_on_selector_all("[data-node].found", "all => all.map(one => one.dataset.node)")
    assert set(marked) & {one.id for one in features} == found
    assert tab.page.inner_text("#found") == f"{len(marked)} found"
    tab.page.press("#search", "Enter")
    assert set(chosen(tab)) <= set(marked) and bool(chosen(tab)) == bool(marked)


def words_of(one: Node, drawing: Drawing) -> str:
    """All by which a search finds a feature, in lower case."""
    known = drawing.known(one)
    assert known is not None
    tokens = [token for token, _ in (*known.promoted, *known.suppressed)]
    contexts = ["".join(context.tokens) for context in known.contexts]
    return "\n".join([one.id, known.label, drawing.token(one) or "", *tokens, *contexts]).lower()


def test_all_is_done_by_keys_alone(tab: Tab, random_drawing: Drawing, tmp_path: Path):
    show(tab, random_drawing, tmp_path)
    page_ = tab.page
    page_.keyboard.press("/")
    assert page_.evaluate("document.activeElement.id") == "search"
    page_.keyboard.type("resid")
    page_.keyboard.press("Enter")
    (first,) = chosen(tab)
    page_.keyboard.press("Escape")
    page_.keyboard.press("Escape")
    assert chosen(tab) == []
    at = "(document.activeElement.closest('[data-node]') || {dataset: {}}).dataset.node || null"
    for _ in range(60):
        page_.keyboard.press("Tab")
        if page_.evaluate(at):
            break
    reached = page_.evaluate(at)
    assert reached is not None and reached in lit(tab, "node")
    outline = page_.evaluate("getComputedStyle(document.activeElement.querySelector('.card')).strokeWidth")
    page_.keyboard.press("Enter")
    assert chosen(tab) == [reached] and float(outline.rstrip("px")) >= 1
    before = page_.get_attribute("#canvas > g", "transform")
    page_.keyboard.press("+")
    assert page_.get_attribute("#canvas > g", "transform") != before
    page_.keyboard.press("0")
    assert first


def test_a_proposed_group_is_one_box_once_it_is_accepted_until_it_is_dissolved(tab: Tab, tmp_path: Path):
    graph = replace(drawn(4), head=head(positions="sum"))
    offers = similar_groups(graph, least=0.3)
    show(tab, replace(draw(graph), groups=offers), tmp_path)
    before = tab.count("[data-node]")
    tab.page.get_by_role("button", name="accept", exact=True).first.click()
    members = offers[0].members
    assert tab.count(".node.group") == 1 and tab.count("[data-node]") == before - len(members) + 1
    assert not any(tab.count(node(name)) for name in members)
    tab.page.eval_on_selector(".node.group", CLICK)
    assert all(name in tab.page.inner_text("#panel") for name in members)
    tab.page.get_by_role("button", name="dissolve").click()
    assert tab.count(".node.group") == 0 and tab.count("[data-node]") == before


def test_a_group_stands_where_its_boxes_stood_and_no_tip_is_left_behind(
    tab: Tab, random_drawing: Drawing, tmp_path: Path
):
    show(tab, random_drawing, tmp_path)
    zoom = "() => document.querySelector('#canvas > g').getAttribute('transform').split('scale')[1]"
    before = tab.page.evaluate(zoom)
    assert 0.2 < float(before[1:-1]) < 0.4
    for name in [one.id for one in random_drawing.graph.nodes if one.kind == "feature"][:2]:
        tab.page.click(node(name), modifiers=["Shift"])
        assert tab.page.locator("#tip").is_visible()
    tab.page.keyboard.press("g")
    assert tab.count(".node.group.chosen") == 1 and tab.page.locator("#tip").is_hidden()
    assert tab.page.evaluate(zoom) == before


def test_the_page_opens_at_the_node_of_its_address(tab: Tab, tmp_path: Path):
    drawing = small_drawing()
    show(tab, drawing, tmp_path, fragment="#resid.0/7@2")
    assert chosen(tab) == ["resid.0/7@2"]
    show(tab, drawing, tmp_path, fragment="#%E0%A4%A not there <b>")
    assert chosen(tab) == []


def test_what_the_file_of_another_program_does_not_tell_is_left_out(tab: Tab, tmp_path: Path):
    untold = dict.fromkeys(("model", "dtype", "baseline"), "unknown")
    graph = CircuitGraph(head(metric_clean=None, metric_baseline=None, **untold), (Node("output"),), ())
    show(tab, draw(graph), tmp_path)
    told = tab.page.inner_text("#panel")
    assert "1 node, 0 edges" in told and "unknown" not in told
    # An edge that is not there says nothing.
    assert notes(draw(graph)) == ["1 node, 0 edges."]


def test_paper_gets_the_drawing_the_legend_and_the_panel(tab: Tab, random_drawing: Drawing, tmp_path: Path):
    show(tab, random_drawing, tmp_path)
    tab.page.click(node("output"))
    printed = tab.page.pdf(print_background=True)
    assert printed.startswith(b"%PDF") and len(printed) > 15_000
    n_pages = max(int(count) for count in re.findall(rb"/Count (\d+)", printed))
    assert 1 <= n_pages <= 4
    tab.page.emulate_media(media="print")
    assert all(tab.page.locator(one).is_visible() for one in ("#canvas", "#legend", "#panel", "#heading"))
    assert not any(tab.page.locator(one).is_visible() for one in ("#search", "#edge-share", "#fit"))
    tab.page.emulate_media(media="screen")


def hostile_drawing(texts: tuple[str, ...]) -> Drawing:
    """A circuit in which every text from outside is hostile: tokens, labels, contexts, names, units of edges."""
    nodes = [Node(f"resid.0/{n}@{n}", 1.0, 0.1 * n + 0.1, "nats") for n in range(len(texts))]
    edges = tuple(Edge(one.id, "output", 0.5, "nats", heads={"0.1": 0.25}) for one in nodes)
    known = {}
    for n, text in enumerate(texts):
        context = Context(tokens=(text, "a", text), activations=(1.0, 0.0, 4.0), peak=2)
        pairs = ((text, 1.5),)
        known[f"resid.0/{n}"] = Details(
            id=f"resid.0/{n}", label=text, contexts=(context,), promoted=pairs, suppressed=pairs
        )
    all_texts = "".join(text[:200] for text in texts)
    about = head(tokens=texts, prompt=all_texts, name=texts[0], target=texts[0], foil=texts[1], model=texts[2])
    return draw(CircuitGraph(about, (*nodes, Node("output")), edges), details=known)


@pytest.mark.parametrize("texts", [HOSTILE, NASTY], ids=["hostile", "nasty"])
def test_hostile_text_stays_text_and_the_page_keeps_its_shape(tab: Tab, tmp_path: Path, texts: tuple[str, ...]):
    show(tab, hostile_drawing(texts), tmp_path)
    for n, text in list(enumerate(texts))[::2]:
        tab.page.dispatch_event(node(f"resid.0/{n}@{n}"), "pointerover")
        tab.page.eval_on_selector(node(f"resid.0/{n}@{n}"), CLICK)
        assert chosen(tab) == [f"resid.0/{n}@{n}"]
        assert tab.page.evaluate(WIDER_THAN_ITS_PLACE) == [], repr(text[:40])
        tab.page.fill("#search", re.sub(r"\s", " ", text[:50]))
    assert tab.count("script") == 3
    assert tab.count("img, iframe, object, embed, [onload], [onerror], [href^=javascript]") == 0
    assert tab.page.evaluate("window.hit") is None
    assert tab.page.evaluate("document.getElementById('drawing').clientHeight") > 200
    # Letters may be wider than the column or two that they are taken for.
    assert max(tab.page.eval_on_selector_all("[data-node]", BESIDE_ITS_BOX)) < 30


def test_half_a_surrogate_pair_is_shown_by_its_number(tab: Tab, tmp_path: Path):
    show(tab, hostile_drawing(("a\ud800b", "c", "d")), tmp_path)
    assert "a\\ud800b" in tab.page.text_content(node("resid.0/0@0"))
    assert embedded_labels(tab)[0] == "a\ud800b"


def embedded_labels(tab: Tab) -> list[str]:
    return [
        one["label"]
        for one in tab.page.evaluate(
            "import('#data').then(({ circuit }) => circuit.nodes.map(n => n.details || {label: ''}))"
        )
    ]


def test_a_thousand_nodes_are_drawn_at_once_and_a_step_of_the_slider_is_not_felt(tab: Tab, tmp_path: Path):
    graph = random_circuit(1000, 5000)
    path = tmp_path / "circuit.html"
    path.write_text(page(draw(graph, details=random_details(graph))), encoding="utf-8")
    times = timed(tab, path, name="", size=(1000, 5000))
    places = set()
    for share in (0, 300, 900, 1000):
        tab.page.fill("#edge-share", str(share))
        places.add(tab.page.evaluate("document.getElementById('drawing').getBoundingClientRect().top"))
    assert len(places) == 1
    # Of the page's own thread: what a reader waits for on a machine that does nothing else.
    assert times.paint.worked < 2000 and times.step.worked < 100


def test_of_fifty_thousand_edges_the_page_tells_how_many_it_hides_and_stays_usable(tab: Tab, tmp_path: Path):
    show(tab, draw(random_circuit(400, 50_000)), tmp_path)
    told = tab.page.inner_text("#counts")
    assert "300 of 50,000 edges" in told and re.search(r"\d\d\.\d % of their total", told)
    assert "of 400 boxes; the others have no edge among these" in told
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("output")
    tab.page.keyboard.press("Enter")
    assert chosen(tab) == ["output"]
    assert "399" in tab.page.inner_text("#panel")
