"""The page of circuits through training: all checkpoints in it, places that stay, and text that is only text."""

import re
from html.parser import HTMLParser

import pytest

from circuitcli.records.through import Chart, CircuitRecord, Curve, Frame, FrameEdge, FrameNode, Line, TimelineReport
from circuitcli.render.multiples import _figure as multiples_figure
from circuitcli.render.plots import styled
from circuitcli.render.text import visible
from circuitcli.render.timeline import placed, spans
from circuitcli.render.timeline_page import embedded_report, timeline_page
from circuitcli.render.timeline_svg import NEGATIVE

HOSTILE = '</script><img src=x onerror="alert(1)"><svg onload=alert(2)>&amp;\u202e'
NAMES = ("step0", "step8", "step64", "step512")
LINES = (
    Line(hook="resid.0", first=0, last=3, indices=(4, 5, 6, 7)),
    Line(hook="resid.0", first=0, last=1, indices=(1, 2)),
    Line(hook="resid.0", first=2, last=3, indices=(8, 9)),
    Line(hook="resid.1", first=1, last=3, indices=(3, 3, 3)),
    Line(hook="resid.1", first=0, last=3),
)
# Which lifelines are in the circuit of each checkpoint.
THERE = ((0, 1), (0, 1, 3), (2, 3, 4), (0, 2, 3))


def frame(number: int, *, label: str = "") -> Frame:
    known = number > 0
    circuit = CircuitRecord(
        checkpoint=NAMES[number],
        step=8**number if number else 0,
        **{"graph": "behaviour", "path": "checkpoints/x/graphs/behaviour.jsonl", "unit": "nats"},
        **{"metric_clean": -3.0 + number, "metric_chance": -2.5, "gain_low": -0.6 + number, "gain_high": 0.5 + number},
        **{"there": known, "n_prompts": 9, "n_nodes": 4, "n_edges": 3, "n_features": 3, "error_share": 0.1},
        **({"faithfulness": 0.7, "low": 0.6, "high": 0.8} if known else {}),
        **({"before": {"jaccard": 0.4, "weighted": 0.5, "shuffled_weighted": 0.01}} if known else {}),
    )
    nodes = [FrameNode(id="output")]
    for line in THERE[number]:
        own = LINES[line]
        index = own.indices[number - own.first] if own.indices else "error"
        nodes.append(FrameNode(id=f"{own.hook}/{index}", line=line, effect=0.5 - 0.3 * line, label=label))
    edges = [FrameEdge(source=node.id, target="output", weight=0.1 * (n - 1.5)) for n, node in enumerate(nodes[1:])]
    return Frame(circuit=circuit, nodes=tuple(nodes), edges=tuple(edges))


def report(*, text: str = "") -> TimelineReport:
    charts = (
        Chart(
            title=f"faithfulness{text}",
            is_share=True,
            curves=(Curve(label=f"nodes{text}", values=(None, 0.5, 0.7, 0.7)),),
        ),
        Chart(
            title="metric",
            unit="nats",
            curves=(Curve(label="metric", values=(-3, -2, -1, 0), low=(-4, -3, -2, -1), high=(-2, -1, 0, 1)),),
        ),
    )
    frames = tuple(frame(number, label=text) for number in range(4))
    return TimelineReport(
        title=f"after ROMEO{text}",
        facts=(f"a fact{text}",),
        metric="log-prob",
        unit="nats",
        frames=frames,
        lines=LINES,
        charts=charts,
    )


class Elements(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_every_checkpoint_is_drawn_and_the_slider_has_a_state_for_each():
    text = timeline_page(report())
    elements = Elements(text).found
    frames = [about for tag, about in elements if tag == "figure" and about.get("class") == "frame"]
    assert [about["data-index"] for about in frames] == ["0", "1", "2", "3"]
    (slider,) = [about for tag, about in elements if tag == "input"]
    assert (slider["min"], slider["max"], slider["step"]) == ("0", "3", "1")
    assert sum(about.get("class") == "circuit" for tag, about in elements if tag == "svg") == 4
    assert sum(about.get("class") == "chart" for tag, about in elements if tag == "svg") == 2
    for number in range(4):
        nodes = re.findall(r'<g class="node[^"]*"(?: data-line="(\d)")?', text.split('class="frame"')[number + 1])
        assert sorted(filter(None, nodes)) == sorted(map(str, THERE[number]))
    # What has no behaviour says so in place of a ratio of noise.
    assert text.count("no better than chance") == 1 and "no behaviour" in text
    assert [one["name"] for one in embedded_report(text)["frames"]] == list(NAMES)
    with pytest.raises(ValueError, match="not the page"):
        embedded_report("<html>")


def test_the_page_loads_nothing_and_texts_from_outside_stay_text():
    plain, hostile = timeline_page(report()), timeline_page(report(text=HOSTILE))
    assert "default-src 'none'" in plain
    assert not re.search(
        r"(?:https?:)?//[a-z]|url\(|@import|src=|href=", plain.replace("http://www.w3.org/2000/svg", "")
    )
    tags = lambda text: [(tag, sorted(about)) for tag, about in Elements(text).found]  # noqa: E731
    assert tags(plain) == tags(hostile)
    assert "\u202e" not in hostile and hostile.count("<script") == 2
    assert embedded_report(hostile)["frames"][0]["nodes"][1]["label"] == visible(HOSTILE)


def test_a_lifeline_keeps_its_place_and_two_share_one_only_at_different_times():
    made = report()
    places, there = placed(made), spans(made)
    assert there == [(0, 3), (0, 1), (2, 3), (1, 3), (2, 2)]
    for one, place in enumerate(places.cards):
        for other in range(one + 1, len(places.cards)):
            if place == places.cards[other]:
                assert LINES[one].hook == LINES[other].hook
                a, b = there[one], there[other]
                assert a and b and (a[1] < b[0] or b[1] < a[0])
    # The two that are never there together share a place; the one that is there at all times stands alone and first.
    assert places.cards[1] == places.cards[2] and places.cards[0][0] < places.cards[1][0]
    below = {band.hook: band.y for band in places.bands}
    assert below["output"] < below["resid.1"] < below["resid.0"]


def test_signs_of_edges_differ_by_dashes_in_the_page_and_in_small_multiples():
    drawn = re.findall(r'<path class="edge"[^>]*>', timeline_page(report()))
    dashed = [element for element in drawn if "stroke-dasharray" in element]
    negative = [edge for number in range(4) for edge in frame(number).edges if edge.weight < 0]
    assert len(dashed) == len(negative) > 0 and len(drawn) == sum(len(frame(number).edges) for number in range(4))
    assert all(NEGATIVE in element for element in dashed)
    with styled():
        looks = [line.get_linestyle() for axes in multiples_figure(report()).axes for line in axes.lines]
    assert looks.count("--") == len(negative)
