"""Pictures can be read in grey, by who does not see red or green, and at the contrast that the WCAG asks of text."""

import re
from itertools import combinations

import numpy as np
import pytest
from test_render import details, small_drawing, small_graph

from circuitcli.render.boxes import box
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import draw
from circuitcli.render.labels import GREY, token_cell
from circuitcli.render.plots import COLOURS, DASHES, MARKS
from circuitcli.render.scales import NEGATIVE, POSITIVE, shade
from circuitcli.render.sites import FILL, INK
from circuitcli.settings.render import RenderSettings

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
BLIND = {
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of ``#rrggbb``."""
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """WCAG 2: from 1, the same, to 21, black on white."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(0, 1)
    x, y, z = np.where((part := xyz / [0.9505, 1.0, 1.089]) > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def difference(one: str, other: str, matrix: object) -> float:
    """How different two colours look to who sees with this matrix."""
    return float(np.linalg.norm(lab(np.array(matrix) @ linear(one)) - lab(np.array(matrix) @ linear(other))))


def test_contrast_is_that_of_the_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def drawn_pairs() -> set[tuple[str, str]]:
    """Every colour of text in a real drawing with the background on which it stands."""
    shown = details(negative={"contexts": [{"tokens": ["x"], "activations": [-4.0], "peak": 0}]})
    drawing = draw(small_graph(), details=shown)
    source = dot_source(drawing, RenderSettings())
    texts = {*re.findall(r'<FONT COLOR="(#\w{6})', source), "#000000"}
    fills = {*re.findall(r'fillcolor="(#\w{6})"', source), "#ffffff", *FILL.values()}
    cells = {*re.findall(r'BGCOLOR="(#\w{6})"', source), *(shade(value, 1.0) for value in (9.0, -9.0, 0.5, -0.5))}
    return {(text, fill) for text in texts for fill in fills} | {("#000000", one) for one in cells}


def test_text_has_the_contrast_of_the_wcag_on_whatever_it_stands() -> None:
    pairs = drawn_pairs() | {(ink, "#ffffff") for ink in INK.values()} | {(GREY, "#f1f1f1")}
    assert len(pairs) > 20 and {text for text, _ in pairs} >= {POSITIVE, NEGATIVE, GREY, "#000000"}
    assert {pair: round(contrast(*pair), 2) for pair in pairs if contrast(*pair) < 4.5} == {}


@pytest.mark.parametrize("kind", BLIND)
def test_signs_sites_and_lines_differ_for_who_sees_fewer_colours(kind: str) -> None:
    matrix = BLIND[kind]
    assert difference(POSITIVE, NEGATIVE, matrix) > 40
    assert difference(shade(1.0, 1.0), shade(-1.0, 1.0), matrix) > 20
    for one, other in combinations(INK.values(), 2):
        # Rows say their names; colours only help.
        assert difference(one, other, matrix) > 10
    for first, second in combinations(range(len(COLOURS)), 2):
        alike = first % len(DASHES) == second % len(DASHES) and first % len(MARKS) == second % len(MARKS)
        assert difference(COLOURS[first], COLOURS[second], matrix) > (20 if alike else 5)


def test_without_any_colour_signs_differ_by_dashes_and_heads_of_edges_in_the_legend_too() -> None:
    source = re.sub(r"#[0-9a-f]{6,8}", "#", dot_source(small_drawing(), RenderSettings()))
    edges = {weight: look for weight, look in re.findall(r'-> \S+ \[label="?([-+][\d.]+)"? (.*)\]', source)}
    assert "arrowhead=tee" in edges["-0.125"] and "style=dashed" in edges["-0.125"]
    assert not any("tee" in look or "dashed" in look for weight, look in edges.items() if weight.startswith("+"))
    assert len(edges) == 5
    legend = source.split("edges&#160;in&#160;nats")[1].split("edges&#160;in&#160;activation")[0]
    assert (legend.count("▶"), legend.count("┫"), legend.count('WIDTH="36"'), legend.count('WIDTH="9"')) == (3, 3, 3, 9)


def test_without_any_colour_activations_below_zero_are_underlined() -> None:
    assert re.search(r"<U>.*x.*</U>", token_cell("x", -1.0, 2.0))
    assert "<U>" not in token_cell("x", 1.0, 2.0) + token_cell("x", 0.0, 2.0)


def test_lines_of_one_dash_differ_in_lightness() -> None:
    for first, second in combinations(range(len(COLOURS)), 2):
        if first % len(DASHES) == second % len(DASHES):
            assert contrast(COLOURS[first], COLOURS[second]) > 1.8


def test_boxes_say_what_they_are_without_their_colours() -> None:
    drawing = small_drawing()
    assert all(
        node.id.partition("@")[0] in re.sub(r"<[^>]*>", "", box(node, drawing, RenderSettings()))
        for node in drawing.nodes
    )
