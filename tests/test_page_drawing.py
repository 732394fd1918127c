"""What the page of a circuit draws in a real browser: where boxes and edges stand, and what sliders leave of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Tab
from test_render import head, small_drawing, wide_graph
from test_render_coders import IDS, SPANS, many_prompts, random_graph
from test_traces import traced

from circuitcli.graphs import CircuitGraph, Edge, Node
from circuitcli.graphs.cumulative import pruned_by_influence
from circuitcli.render.drawing import Drawing, draw
from circuitcli.render.page import page

WIDTH, HEIGHT = 190.0, 56.0
# Corners of boxes, points along edges, and the middles of written weights, all in the pixels of the drawing.
_SEEN = """(edges) => {
    const number = (text) => Number(text);
    const corner = (group) => group.getAttribute("transform").match(/-?[0-9.]+/g).map(number);
    const along = (path) => {
        const length = path.getTotalLength();
        return Array.from({ length: 161 }, (_, step) => {
            const { x, y } = path.getPointAtLength(length * step / 160);
            return [x, y];
        });
    };
    const all = (selector, entry) => Object.fromEntries([...document.querySelectorAll(selector)].map(entry));
    return {
        boxes: all("[data-node]", (group) => [group.dataset.node, corner(group)]),
        edges: all(edges, (path) => [path.dataset.edge, along(path)]),
        weights: [...document.querySelectorAll(".weight")].map((text) => {
            const { x, y, width, height } = text.getBBox();
            return [x, y, width, height];
        }),
    };
}"""


@dataclass(frozen=True)
class Seen:
    """Boxes by node id, points of edges by ``SOURCE→TARGET``, and rectangles of weights."""

    boxes: dict[str, tuple[float, float]]
    edges: dict[str, list[tuple[float, float]]]
    weights: list[tuple[float, float, float, float]]


@pytest.fixture
def tab(shared: Tab) -> Iterator[Tab]:
    yield shared
    assert shared.faults == []


def opened(tab: Tab, drawing: Drawing, tmp_path: Path) -> Seen:
    path = tmp_path / "circuit.html"
    path.write_text(page(drawing), encoding="utf-8")
    tab.open(path)
    return seen(tab)


def seen(tab: Tab, edges: str = "[data-edge]") -> Seen:
    return Seen(**tab.page.evaluate(_SEEN, edges))


def slide(tab: Tab, name: str, step: int) -> Seen:
    tab.page.eval_on_selector(name, "(one, step) => { one.value = step; one.dispatchEvent(new Event('input')); }", step)
    return seen(tab)


@pytest.mark.parametrize(("n_sources", "positions"), [(1, False), (40, True), (300, False), (300, True)])
def test_boxes_stand_apart(tab: Tab, tmp_path: Path, n_sources: int, positions: bool):
    boxes = opened(tab, draw(wide_graph(n_sources, positions=positions)), tmp_path).boxes
    corners = np.array(sorted(boxes.values()))
    assert len(corners) == n_sources + 1 and corners.min() >= 0
    gaps = np.abs(corners[:, None] - corners)  # (boxes, boxes, 2)
    meets = (gaps < (WIDTH, HEIGHT)).all(-1)
    assert not (meets & ~np.eye(len(corners), dtype=bool)).any()


def test_boxes_stand_by_position_from_left_to_right_and_by_layer_from_bottom_to_top(tab: Tab, tmp_path: Path):
    boxes = opened(tab, small_drawing(), tmp_path).boxes
    assert boxes["resid.0/7@2"][0] < boxes["resid.0/7@4"][0] < boxes["mlp.1/error@6"][0]
    assert boxes["resid.0/7@4"][1] > boxes["mlp.1/12@4"][1] > boxes["output"][1]
    tab.page.check("#one-column")
    alone = seen(tab).boxes
    assert alone["resid.0/7@2"][1] == alone["resid.0/7@4"][1] > alone["mlp.1/error@6"][1]
    assert max(x for x, _ in alone.values()) < max(x for x, _ in boxes.values())


@pytest.mark.parametrize(("position", "text"), [(0, "<s>"), (1, "a"), (2, "文"), (3, "文"), (4, "文"), (5, " <b>")])
def test_the_prompt_is_marked_where_the_node_is_although_characters_are_cut(
    tab: Tab, tmp_path: Path, position: int, text: str
):
    name = f"resid.0/1@{position}"
    nodes, edge = (Node(name, 1.0, 0.5, "nats"), Node("output")), Edge(name, "output", 1.0, "nats")
    opened(tab, draw(replace(traced(), nodes=nodes, edges=(edge,))), tmp_path)
    tab.page.eval_on_selector(
        f'[data-node="{name}"]', "(one) => one.dispatchEvent(new MouseEvent('click', { bubbles: true }))"
    )
    assert tab.texts(".trace .peak") == [text]


def test_named_spans_stand_in_the_order_of_the_head(tab: Tab, tmp_path: Path):
    boxes = opened(tab, draw(many_prompts(*IDS)), tmp_path).boxes
    columns = [[boxes[name][0] for name in IDS if name.endswith(span)] for span in SPANS]
    assert max(columns[0]) < min(columns[1]) and max(columns[1]) < min(columns[2])
    assert tab.page.locator("#names .place").all_text_contents() == list(SPANS)


@pytest.mark.parametrize(("n_nodes", "positions"), [(6, "sum"), (30, "all"), (30, "sum"), (45, "spans")])
def test_no_edge_runs_under_a_box_and_each_goes_from_its_source_to_its_target(
    tab: Tab, tmp_path: Path, n_nodes: int, positions: str
):
    graph = random_graph(n_nodes, positions=positions, seed=n_nodes)
    shown = opened(tab, draw(graph), tmp_path)
    assert set(shown.edges) == {f"{edge.source}→{edge.target}" for edge in graph.edges}
    for name, points in shown.edges.items():
        source, target = name.split("→")
        (left, top), (right, bottom) = shown.boxes[source], shown.boxes[target]
        (x0, y0), (x1, y1) = points[0], points[-1]
        assert left < x0 < left + WIDTH and y0 == pytest.approx(top, abs=0.1)
        assert right < x1 < right + WIDTH and bottom + HEIGHT < y1 < y0
        along = np.array(points)[:, None]
        cards = np.array([place for other, place in shown.boxes.items() if other not in (source, target)])
        inside = (along > cards) & (along < cards + np.array((WIDTH, HEIGHT)))
        assert not inside.all(axis=-1).any(), name


def test_edges_in_one_gap_have_places_of_their_own_while_there_is_room(tab: Tab, tmp_path: Path):
    names = [f"mlp_in.0/{index}@2" for index in range(5)]
    block = [f"resid.1/{index}@2" for index in range(6)]
    edges = tuple(Edge(name, "output", 1.0 + index, "nats") for index, name in enumerate(names))
    # An edge of its own keeps each of the block's boxes.
    edges += tuple(Edge(name, "output", 0.1, "nats") for name in block)
    shown = opened(tab, draw(CircuitGraph(head(), tuple(map(Node, (*names, *block, "output"))), edges)), tmp_path)
    level = max(shown.boxes[name][1] for name in block) + HEIGHT / 2
    passing = [
        np.interp(-level, [-y for _, y in shown.edges[f"{name}→output"]], [x for x, _ in shown.edges[f"{name}→output"]])
        for name in names
    ]
    assert min(np.diff(sorted(passing))) > 2


def test_weights_are_written_beside_boxes_and_beside_one_another(tab: Tab, tmp_path: Path):
    boxes = opened(tab, draw(random_graph(30, positions="all", seed=3)), tmp_path).boxes
    for _ in ("letters for afar", "letters for near"):
        for name in list(boxes)[::10]:
            tab.page.dispatch_event(f'[data-node="{name}"]', "pointerover")
            weights = seen(tab, ".none").weights
            assert weights
            others = [(*corner, WIDTH, HEIGHT) for corner in boxes.values()]
            for number, one in enumerate(weights):
                assert not any(overlap(one, other) for other in others + weights[:number])
        for _ in range(5):
            tab.page.eval_on_selector("#closer", "one => one.click()")


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two rectangles have more in common than the white around letters."""
    return all(min(one[n] + one[n + 2], other[n] + other[n + 2]) - max(one[n], other[n]) > 4 for n in range(2))


def test_boxes_go_with_their_edges_and_come_back(tab: Tab, tmp_path: Path):
    graph = wide_graph(40)
    everything = opened(tab, draw(graph), tmp_path)
    assert len(everything.edges) == 40
    few = slide(tab, "#edge-share", 500)
    kept = sorted(graph.edges, key=lambda edge: -abs(edge.weight))[: len(few.edges)]
    assert len(few.edges) == round(41**0.5) - 1
    assert set(few.edges) == {f"{edge.source}→{edge.target}" for edge in kept}
    assert set(few.boxes) == {"output", *(edge.source for edge in kept)}
    share = 100 * sum(abs(edge.weight) for edge in kept) / sum(abs(edge.weight) for edge in graph.edges)
    told = tab.page.inner_text("#counts")
    assert f"{len(kept)} of 40 edges" in told and f"{share:.1f} % of their total" in told
    assert f"{len(few.boxes)} of 41 boxes" in told
    assert slide(tab, "#edge-share", 1000) == everything
    assert set(slide(tab, "#edge-share", 0).boxes) == {"output"}


@pytest.mark.parametrize("by", ["effect", "influence"])
def test_the_slider_of_boxes_keeps_the_first_by_effect_or_influence_with_the_edges_between_them(
    tab: Tab, tmp_path: Path, by: str
):
    graph = with_effects(random_graph(30, positions="sum", seed=5))
    sizes = {node.id: node.effect or 0.0 for node in graph.nodes}
    if by == "influence":
        whole = pruned_by_influence(graph, node_threshold=1.0, edge_threshold=1.0)
        sizes = {node.id: node.influence or 0.0 for node in whole.nodes}
    opened(tab, draw(graph), tmp_path)
    tab.page.select_option("#rank-by", by)
    shown = slide(tab, "#min-effect", 700)
    count = round((len(graph.nodes) + 1) ** 0.7) - 1
    ranked = sorted(graph.nodes, key=lambda node: (node.is_output, sizes.get(node.id, 0.0)), reverse=True)[:count]
    allowed = {node.id for node in ranked}
    between = {f"{edge.source}→{edge.target}" for edge in graph.edges if {edge.source, edge.target} <= allowed}
    assert between and set(shown.edges) == between
    assert set(shown.boxes) == {"output", *(end for name in between for end in name.split("→"))}


def with_effects(graph: CircuitGraph) -> CircuitGraph:
    changed = (replace(node, effect=None if node.is_output else 0.1 * n) for n, node in enumerate(graph.nodes))
    return replace(graph, nodes=tuple(changed))


def test_the_output_tells_its_metric_in_full_near_and_far(tab: Tab, tmp_path: Path):
    opened(tab, draw(many_prompts(*IDS, metric="logit-diff", target=None)), tmp_path)
    texts: list[Any] = tab.page.eval_on_selector_all(
        '[data-node="output"] text.label', "all => all.map(one => one.textContent)"
    )
    assert " ".join(texts) == "logit-diff of each prompt's target against its foil"


def test_a_feature_that_is_silent_and_has_an_effect_is_explained(tab: Tab, tmp_path: Path):
    nodes = (Node("resid.0/1", 0.0, -0.5, "nats"), Node("resid.0/2", 0.0, 0.0, "nats"), Node("output"))
    edges = tuple(Edge(node.id, "output", -0.5, "nats") for node in nodes[:2])
    opened(tab, draw(CircuitGraph(head(positions="sum"), nodes, edges)), tmp_path)
    assert "silent here" in tab.page.text_content('[data-node="resid.0/1"]')
    assert "silent" not in tab.page.text_content('[data-node="resid.0/2"]')
    tab.page.hover('[data-node="resid.0/1"]')
    assert "not active here, but on average it is" in tab.page.inner_text("#tip")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_until_chosen_and_paper_is_light(tab: Tab, tmp_path: Path, scheme: str):
    tab.page.emulate_media(color_scheme=scheme)
    opened(tab, small_drawing(), tmp_path)
    assert is_dark(tab) == (scheme == "dark")
    tab.page.click("#theme")
    assert not is_dark(tab)
    tab.page.click("#theme")
    assert is_dark(tab)
    tab.page.emulate_media(media="print")
    assert not is_dark(tab)
    tab.page.emulate_media(media="screen", color_scheme="light")


def is_dark(tab: Tab) -> bool:
    """Whether paper is darker than ink, on the page and in its boxes."""
    colours = "one => { const told = getComputedStyle(one); return [told.backgroundColor, told.color, told.fill]; }"
    paper, ink, _ = tab.page.eval_on_selector("body", colours)
    *_, box = tab.page.eval_on_selector(".node.feature .card", colours)
    *_, letters = tab.page.eval_on_selector(".node.feature .id", colours)
    found = {brightness(back) < brightness(front) for back, front in ((paper, ink), (box, letters))}
    assert len(found) == 1
    return found.pop()


def brightness(colour: str) -> int:
    return sum(int(part) for part in colour.strip("rgba()").split(",")[:3])
