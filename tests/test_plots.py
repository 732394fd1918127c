"""Plots: lines hold the numbers, axes are labelled and scaled to them, legends can be read, bytes are the same."""

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import hypothesis
import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcli.errors import InputError
from circuitcli.render.plots import NOT_FINITE, Axis, Panel, Plot, Series, draw, picture, svg, write_plot

SVG = "{http://www.w3.org/2000/svg}"
BEGINNINGS = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}


def example() -> Plot:
    x, y = Axis("active features per token", "log"), Axis("explained variance (share)")
    lines = [
        Series([8, 32, 128], [0.61, 0.78, 0.9], "topk", ["k=8", "k=32", "k=128"]),
        Series([9, 30, 120], [0.55, 0.74, 0.86], "relu_$x$ & <b>", ["k=8", "k=$3_2$ & <b>", ""]),
    ]
    learning = Series([1e6 * step for step in range(12)], [0.9**step for step in range(12)])
    tokens = Axis("tokens", from_zero=True, is_count=True)
    panels = [
        Panel(lines, x, y, "Frontier"),
        Panel([learning], tokens, Axis("loss (nats)", from_zero=True), "Learning"),
    ]
    return Plot([panels], title="A sweep of $k$")


def one(*series: Series, x: Axis | None = None, y: Axis | None = None) -> Plot:
    return Plot([[Panel(series, x or Axis(), y or Axis())]])


def only_axes(plot: Plot):
    (axes,) = draw(plot).axes
    return axes


def data(axes) -> list[list[tuple[float, float]]]:
    return [[tuple(point) for point in line.get_xydata()] for line in axes.lines if line.get_label() != NOT_FINITE]


def test_lines_hold_the_numbers_and_names_stand_at_their_points() -> None:
    frontier, learning = draw(example()).axes
    assert data(frontier)[0] == [(8, 0.61), (32, 0.78), (128, 0.9)]
    assert data(learning) == [[(1e6 * step, 0.9**step) for step in range(12)]]
    assert [(text.get_text(), text.xy) for text in frontier.texts][:2] == [("k=8", (8, 0.61)), ("k=32", (32, 0.78))]


def test_axes_say_what_they_show_and_titles_stand_above_them() -> None:
    frontier, learning = draw(example()).axes
    assert (frontier.get_xlabel(), frontier.get_ylabel()) == ("active features per token", "explained variance (share)")
    assert (learning.get_xlabel(), learning.get_ylabel()) == ("tokens", "loss (nats)")
    assert [axes.get_title(loc="left") for axes in (frontier, learning)] == ["Frontier", "Learning"]


def test_text_of_an_svg_is_text_and_people_s_signs_are_no_markup() -> None:
    written = {"".join(text.itertext()) for text in ElementTree.fromstring(svg(example())).iter(f"{SVG}text")}
    expected = {"A sweep of $k$", "Frontier", "tokens", "topk", "relu_$x$ & <b>", "k=32", "k=$3_2$ & <b>", "5M"}
    assert written >= expected


@pytest.mark.parametrize("suffix", BEGINNINGS)
def test_the_same_numbers_give_the_same_file_whatever_style_the_user_has(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = picture(example(), suffix)
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", None)
    path = tmp_path / f"plot{suffix.upper()}"
    write_plot(example(), path)
    assert path.read_bytes() == first and first.startswith(BEGINNINGS[suffix])
    assert matplotlib.rcParams["lines.linewidth"] == 9.0


def test_resolution_is_that_which_was_asked_for() -> None:
    widths = [int.from_bytes(picture(example(), ".png", dpi=dpi)[16:20]) for dpi in (50, 150)]
    assert widths[1] == pytest.approx(3 * widths[0], abs=3)


def test_a_folder_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    with pytest.raises((InputError, OSError), match="folder"):
        write_plot(example(), tmp_path / "folder" / "x.svg")


def test_an_axis_is_logarithmic_where_its_numbers_span_decades_and_are_positive() -> None:
    def scale(values: list[float], kind: str) -> str:
        return only_axes(one(Series([1] * len(values), values), y=Axis("", kind))).get_yscale()  # type: ignore[arg-type]

    assert [scale([0.1, 1000.0], kind) for kind in ("linear", "log", "auto")] == ["linear", "log", "log"]
    assert [scale([1.0, 10.0], kind) for kind in ("linear", "log", "auto")] == ["linear", "log", "linear"]
    for values in ([0.0, 1000.0], [-1.0, 1000.0], [], [math.nan, math.inf]):
        assert [scale(values, kind) for kind in ("linear", "log", "auto")] == ["linear"] * 3


def test_an_axis_begins_at_zero_where_it_should_unless_it_is_logarithmic_or_has_negative_numbers() -> None:
    def low(values: list[float], **axis) -> float:
        return only_axes(one(Series(range(len(values)), values), y=Axis("", from_zero=True, **axis))).get_ylim()[0]

    assert low([0.2, 0.4]) == low([0.0, 0.0]) == low([]) == 0
    assert low([-1.0, 1.0]) < -1
    assert 0 < low([0.01, 100.0], scale="auto") <= 0.01


def test_panels_below_each_other_share_axes_that_hold_all_their_lines() -> None:
    y = Axis("share", "auto", from_zero=True)
    rows = [[Panel([Series([0, top], [0.1, top])], Axis("x", from_zero=True), y)] for top in (1, 300, 20)]
    limits = [(axes.get_xlim(), axes.get_ylim(), axes.get_yscale()) for axes in draw(Plot(rows, shares=True)).axes]
    assert len(set(limits)) == 1 and limits[0][0][1] > 300 and limits[0][1][1] > 300 and limits[0][2] == "log"
    alone = [axes.get_ylim() for axes in draw(Plot(rows)).axes]
    assert len(set(alone)) == 3


def test_what_is_not_finite_breaks_the_line_and_is_marked_above_its_place() -> None:
    y = [1, 2, math.nan, 1, math.inf, 1, 2, -math.inf, 10**400]
    axes = only_axes(one(Series(range(9), y)))
    line, lost = axes.lines
    assert [math.isfinite(value) for value in line.get_ydata()] == [
        True,
        True,
        False,
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    assert list(lost.get_xdata()) == [2, 4, 7, 8] and lost.get_label() == NOT_FINITE
    # The point between two gaps has no line to either side.
    assert line.get_markevery() == [3] and line.get_marker() != "none"
    assert all(math.isfinite(limit) for limit in (*axes.get_xlim(), *axes.get_ylim()))
    assert NOT_FINITE in svg(one(Series(range(9), y)))


def test_a_label_has_one_look_in_all_panels_and_one_entry_in_the_legend() -> None:
    a, b = Series([0, 1], [0, 1], "a"), Series([0, 1], [1, 0], "b")
    figure = draw(Plot([[Panel([a, b], Axis(), Axis()), Panel([b], Axis(), Axis())]]))
    looks = [(line.get_label(), line.get_color(), line.get_linestyle()) for axes in figure.axes for line in axes.lines]
    assert looks[1] == looks[2] != looks[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_many_variants_have_looks_of_their_own_and_a_legend_inside_the_picture_above_the_panels() -> None:
    names = [f"sae.architecture=architecture_{index},sae.k={2**index}" for index in range(30)]
    series = [Series([0, 1], [index, index + 1], name) for index, name in enumerate(names)]
    figure = draw(Plot([[Panel(series, Axis("tokens"), Axis("loss"))] * 3], title="Many"))
    lines = figure.axes[0].lines
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == len(names)
    figure.draw_without_rendering()
    whole, box = figure.bbox, figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
    texts = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert not any(one.overlaps(other) for one, other in pairwise(texts))
    assert all(axes.get_tightbbox().y1 <= box.y0 and axes.bbox.height > 60 for axes in figure.axes)


@pytest.mark.parametrize(
    ("axis", "values", "texts"),
    [
        (Axis(is_count=True, from_zero=True), [0, 2_000_000], ["0", "500k", "1M", "1.5M", "2M"]),
        (Axis(from_zero=True), [0, 3e-4], ["0", "0.0001", "0.0002", "0.0003"]),
        (Axis(from_zero=True), [0.1, 0.95], ["0", "0.2", "0.4", "0.6", "0.8"]),
        (Axis(scale="log"), [9, 110], ["10", "20", "50", "100"]),
        (Axis(scale="auto"), [1e-3, 1e3], ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]),
    ],
)
def test_ticks_are_round_and_short(axis: Axis, values: list[float], texts: list[str]) -> None:
    axes = only_axes(Plot([[Panel([Series(values, values)], axis, axis)]], height=4.0, width=4.0))
    low, high = axes.get_ylim()
    inside = [
        label.get_text()
        for label, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
        if low <= at <= high
    ]
    assert inside == texts


numbers = st.floats() | st.integers(-(2**63), 2**64) | st.sampled_from([0.0, 1e308, -1e308, 5e-324, math.inf, math.nan])


@given(st.lists(st.tuples(numbers, numbers), max_size=4), st.sampled_from(["linear", "log", "auto"]), st.booleans())
@hypothesis.example([(1.0, math.inf), (math.inf, 1.0)], "log", False)
@settings(max_examples=15, deadline=None)
def test_any_numbers_can_be_drawn(points: list[tuple], scale: str, from_zero: bool) -> None:
    axis = Axis("x", scale, from_zero=from_zero)  # type: ignore[arg-type]
    text = svg(one(Series([x for x, _ in points], [y for _, y in points], names=["a"] * len(points)), x=axis, y=axis))
    paths = [path.get("d", "") for path in ElementTree.fromstring(text).iter(f"{SVG}path")]
    assert not re.search(r"nan|inf", " ".join(paths)) and len(text) < 100_000
