"""The page and Python mean the same by a state, by groups and by the first nodes and edges; text stays text."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Chromium, Tab
from test_groups import drawn
from test_render import head

from circuitcli.features.lines import Context, Details
from circuitcli.graphs import CircuitGraph, to_records
from circuitcli.graphs.groups import similar_groups
from circuitcli.records import Stream
from circuitcli.render.drawing import draw
from circuitcli.render.page import page
from circuitcli.render.seen import seen
from circuitcli.render.state import NamedGroup, State, fitted, read_state
from circuitcli.runs import Run
from circuitcli.settings.render import RenderSettings
from circuitcli.settings.settings import Settings
from circuitcli.stages import render
from circuitcli.stages.request import Request

HOSTILE = "<script>alert(1)</script>\"'&amp; \u202e😀 \\ud800"
FEATURE = "resid.1/2"


def graph() -> CircuitGraph:
    """A graph with numbers from a seed, of features in two layers."""
    return replace(drawn(4), head=head(name="parity", positions="sum"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "parity.html"
    context = Context(tokens=(" the", " bank", " of"), activations=(0.0, 2.0, 0.5), peak=1)
    known = {FEATURE: Details(id=FEATURE, label="rivers", contexts=(context,), max=2.0)}
    drawing = draw(graph(), details=known)
    path.write_text(page(replace(drawing, groups=similar_groups(graph(), least=0.3))), encoding="utf-8")
    return path


@pytest.fixture
def tab(chromium: Chromium, written: Path) -> Iterator[Tab]:
    with chromium.tab() as opened:
        opened.open(written)
        yield opened
        assert opened.faults == []


def state_of(tab: Tab) -> State:
    """What the page would download."""
    return State.model_validate_json(tab.page.evaluate("import('#state').then((m) => JSON.stringify(m.snapshot()))"))


def drawn_in(tab: Tab) -> tuple[set[str], dict[tuple[str, str, str], float]]:
    """The boxes, and the weights of the edges between them; a group is named by its members."""
    found = tab.page.evaluate(
        """import("#store").then(({ current }) => {
          const { boxes, shown } = current();
          const name = (id) => boxes.find((node) => node.id === id).members?.join(" ") ?? id;
          const ends = ({ source, target }) => [name(source), name(target)];
          return [boxes.map(({ id }) => name(id)), shown.map((edge) => [...ends(edge), edge.unit, edge.weight])];
        })"""
    )
    return set(found[0]), {(source, target, unit): weight for source, target, unit, weight in found[1]}


STATES = (
    State(),
    State(nodes=12, edges=30),
    State(by="influence", nodes=14, edges=25),
    State(hidden=("error",), edges=40),
    State(edges=60, pinned="mlp.1/3", groups=(NamedGroup(name="a", members=("resid.1/2", "resid.1/3", "resid.1/4")),)),
    State(
        by="influence",
        edges=50,
        groups=(
            NamedGroup(members=("mlp.1/0", "mlp.1/1")),
            NamedGroup(members=("resid.2/0", "resid.2/1"), open=True),
        ),
    ),
)


def test_the_page_draws_of_a_state_what_pictures_draw(tab: Tab):
    for state in STATES:
        fits, missing = fitted(state, graph())
        assert not missing
        tab.page.evaluate("(state) => import('#state').then((m) => m.apply(state))", state.model_dump(mode="json"))
        found = seen(graph(), fits)
        name = {node.id: node.id for node in found.graph.nodes}
        name |= {stands: " ".join(group.members) for stands, group in found.boxes.items()}
        weights = {(name[e.source], name[e.target], e.unit): e.weight for e in found.graph.edges}
        boxes, edges = drawn_in(tab)
        assert boxes == set(name.values())
        assert edges == pytest.approx(weights)
        back = state_of(tab)
        assert (back.nodes, back.edges, back.by, back.pinned) == (*(state.nodes, state.edges, state.by, state.pinned),)
        assert [group.members for group in back.groups] == [group.members for group in fits.groups]


def test_a_link_and_a_downloaded_state_open_the_same_view(tab: Tab, written: Path, tmp_path: Path):
    tab.page.click(f'[data-node="{FEATURE}"]')
    tab.page.keyboard.press("e")
    tab.page.keyboard.type(HOSTILE.replace("\\ud800", ""))
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.press("Escape")
    for name in ("mlp.1/1", "mlp.1/2"):
        tab.page.click(f'[data-node="{name}"]', modifiers=["Shift"])
    tab.page.keyboard.press("g")
    assert tab.count(".node.group") == 1
    tab.page.keyboard.press("Escape")
    tab.page.click("#theme")
    with tab.page.expect_download() as caught:
        tab.page.click("#download-state")
    path = tmp_path / "a.state.json"
    caught.value.save_as(path)
    state = read_state(path)
    assert state.labels == {FEATURE: HOSTILE.replace("\\ud800", "").strip()} and state.theme == "light"
    assert [group.members for group in state.groups] == [("mlp.1/1", "mlp.1/2")]
    tab.page.wait_for_timeout(400)
    link = tab.page.url
    assert "#s=" in link and len(link) < 2000
    settings = Settings(render=RenderSettings(output=(str(tmp_path / "b.html"),), state=str(path)))
    render.run(Request(settings, Stream(to_records(graph())), Run(tmp_path / "no")), stdout=io.StringIO())
    for opened in (link, (tmp_path / "b.html").as_uri()):
        tab.page.goto("about:blank")
        tab.page.goto(opened)
        tab.page.wait_for_selector('html[data-ready="1"]', state="attached")
        assert state_of(tab).model_copy(update={"graph": state.graph}) == state
        assert tab.count(".node.group") == 1


def test_labels_are_edited_in_place_and_escape_leaves_them(tab: Tab):
    tab.page.click(f'[data-node="{FEATURE}"]')
    tab.page.click("#label")
    tab.page.keyboard.type("banks")
    tab.page.keyboard.press("Escape")
    assert tab.texts("#label") == ["rivers"]
    tab.page.click("#label")
    tab.page.keyboard.type(HOSTILE)
    tab.page.keyboard.press("Enter")
    assert "<script>alert(1)</script>" in tab.texts("#label")[0]
    assert tab.count("#panel script") == 0
    tab.page.click("#label")
    tab.page.keyboard.press("Delete")
    tab.page.keyboard.press("Enter")
    assert tab.texts("#label") == ["rivers"], "an empty label gives back the one before"


def test_search_finds_ids_labels_and_words_of_contexts_and_keys_lead_on(tab: Tab):
    for wanted in ("resid.1/2", "RIVERS", "the bank"):
        tab.page.keyboard.press("/")
        tab.page.keyboard.type(wanted)
        assert tab.texts("#results .hit b") == [FEATURE]
        tab.page.keyboard.press("Enter")
        assert json.loads(state_of(tab).model_dump_json())["pinned"] == FEATURE
        tab.page.keyboard.press("Escape")
        tab.page.keyboard.press("Escape")
        assert state_of(tab).pinned is None
    tab.page.focus('[data-node="output"]')
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Enter")
    assert state_of(tab).pinned not in (None, "output")
    assert tab.count('.node[tabindex="0"]') == 1, "one box is in the order of Tab"
    tab.page.keyboard.press("?")
    assert tab.page.is_visible("#keys")
