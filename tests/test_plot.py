"""Plots: axes that cover their points, round ticks, labels beside their points, the same text each time."""

import math
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcli.render.axes import Axis, Span, tick_text, tick_texts
from circuitcli.render.placing import Box, label_places
from circuitcli.render.plot import Figure, Panel, Point, Series, svg

GOLDEN = Path(__file__).parent / "golden" / "plot.svg"
SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-12)


def example() -> Figure:
    frontier = [Point(8, 0.61, "k=8"), Point(32, 0.78, "k=32"), Point(128, 0.9, "k=128")]
    other = [Point(9, 0.55, "k=8"), Point(30, 0.74, "k=32 & <b>"), Point(120, 0.86)]
    l0, variance = Axis("active features per token", "log"), Axis("explained variance", holds=(1.0,))
    learning = [Point(1e6 * step, 0.9**step) for step in range(12)]
    return Figure(
        [
            Panel(
                [Series(frontier, "topk", is_marked=True), Series(other, "relu", is_marked=True)],
                l0,
                variance,
                "Frontier",
            ),
            Panel([Series(learning)], Axis("tokens"), Axis("loss", holds=(0.0,)), "Learning"),
        ],
        n_columns=2,
        title="A sweep",
        width=300,
        height=180,
    )


def tree(figure: Figure) -> ElementTree.Element:
    return ElementTree.fromstring(svg(figure))


def texts(figure: Figure) -> list[str]:
    return ["".join(element.itertext()) for element in tree(figure).iter(f"{SVG}text")]


def panel(points: list[tuple[float, float]], **axes: Axis) -> Panel:
    return Panel([Series([Point(*point) for point in points])], axes.get("x", Axis()), axes.get("y", Axis()))


def test_plot_is_the_golden_file() -> None:
    assert svg(example()) == GOLDEN.read_text(encoding="utf-8")


def test_title_axes_legend_and_labels_are_written() -> None:
    shown = texts(example())
    for text in (
        "A sweep",
        "Frontier",
        "active features per token",
        "explained variance",
        "topk",
        "relu",
        "k=32 & <b>",
    ):
        assert text in shown


def test_series_differ_without_colour() -> None:
    many = [Series([Point(0, index), Point(1, index)], f"s{index}", is_marked=True) for index in range(5)]
    figure = Figure([Panel(many, Axis(), Axis())])
    lines = [line.get("stroke-dasharray", "") for line in tree(figure).iter(f"{SVG}polyline")]
    # One line in the panel and one in the legend for each.
    assert len(lines) == 10 and len(set(lines)) == 5


def test_a_label_has_one_look_in_all_panels() -> None:
    a, b = Series([Point(0, 0), Point(1, 1)], "a"), Series([Point(0, 1), Point(1, 0)], "b")
    figure = Figure([Panel([a, b], Axis(), Axis()), Panel([b], Axis(), Axis())])
    strokes = [line.get("stroke") for line in tree(figure).iter(f"{SVG}polyline")]
    legend_a, legend_b, first_a, first_b, second_b = strokes
    assert legend_a == first_a != first_b == legend_b == second_b


def test_points_stand_where_their_numbers_say() -> None:
    span = Span(0.0, 10.0, is_log=False)
    drawn = Panel([Series([Point(2.5, 7.5)], is_joined=False)], Axis(), Axis(), x_span=span, y_span=span)
    picture = tree(Figure([drawn], width=200, height=100))
    mark = next(picture.iter(f"{SVG}circle"))
    frame = next(box for box in picture.iter(f"{SVG}rect") if box.get("stroke"))
    assert float(mark.get("cx")) - float(frame.get("x")) == pytest.approx(50, abs=0.1)
    assert float(mark.get("cy")) - float(frame.get("y")) == pytest.approx(25, abs=0.1)


def test_what_is_not_finite_breaks_the_line() -> None:
    points = [(0, 1), (1, 2), (2, math.nan), (3, 1), (4, math.inf), (5, 1), (6, 2)]
    lines = list(tree(Figure([panel(points)])).iter(f"{SVG}polyline"))
    assert [len(line.get("points").split()) for line in lines] == [2, 1, 2]
    assert "nan" not in svg(Figure([panel(points)])) and "inf" not in svg(Figure([panel(points)]))


def test_zero_has_no_place_on_a_log_axis() -> None:
    lines = list(tree(Figure([panel([(1, 0), (2, 1), (3, 1000)], y=Axis("", "log"))])).iter(f"{SVG}polyline"))
    assert [len(line.get("points").split()) for line in lines] == [2]


def test_empty_panel_and_single_point_can_be_drawn() -> None:
    assert tree(Figure([panel([])])) is not None
    for point in ((0.0, 0.0), (5.0, -3.0), (1e-9, 1e9)):
        assert len(list(tree(Figure([panel([point])])).iter(f"{SVG}polyline"))) == 1


@given(st.lists(numbers, min_size=1, max_size=20), st.sampled_from(["linear", "log", "auto"]))
def test_axis_covers_its_numbers_with_round_ticks(values: list[float], scale: str) -> None:
    span = Axis("", scale).span(values)  # type: ignore[arg-type]
    places = [span.place(value) for value in values]
    assert all(place is None or -1e-9 <= place <= 1 + 1e-9 for place in places)
    assert scale == "log" or None not in places
    ticks = span.ticks(most=6)
    slack = 1e-9 * (span.high - span.low)
    assert 1 <= len(ticks) <= 7 and all(span.low - slack <= tick <= span.high + slack for tick in ticks)
    assert all(low < high for low, high in pairwise(ticks))


def test_ticks_are_round() -> None:
    assert Span(0, 1, is_log=False).ticks(most=6) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert Span(-3, 17, is_log=False).ticks(most=5) == [0, 5, 10, 15]
    assert Span(0.9, 110, is_log=True).ticks(most=7) == [1, 2, 5, 10, 20, 50, 100]
    assert Span(0.05, 12, is_log=True).ticks(most=5) == pytest.approx([0.1, 0.3, 1, 3, 10])
    assert Span(1e-6, 1e6, is_log=True).ticks(most=7) == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (40, "40"), (1500, "1.5k"), (2e6, "2M"), (3e-5, "3e-5"), (-0.5, "-0.5"), (5e9, "5G")],
)
def test_tick_text_is_short(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_ticks_of_one_axis_have_the_same_number_of_digits() -> None:
    assert tick_texts([0.0, 0.5, 0.75, 1.0]) == ["0", "0.50", "0.75", "1.00"]
    assert tick_texts([0.1, 1.0, 10.0], is_log=True) == ["0.1", "1", "10"]
    assert tick_texts([500, 1000.0, 1500.0]) == ["500", "1k", "1.5k"]


def test_an_axis_is_logarithmic_by_itself_only_if_that_helps() -> None:
    auto = Axis("", "auto")
    assert auto.span([0.1, 1000.0]).is_log
    assert not auto.span([1.0, 10.0]).is_log and not auto.span([0.0, 1000.0]).is_log and not auto.span([]).is_log


def test_an_axis_ends_at_what_it_was_to_hold() -> None:
    span = Axis("", holds=(0.0, 1.0)).span([0.2, 0.4])
    assert (span.low, span.high) == (0.0, 1.0)


def test_labels_stay_in_the_frame_and_do_not_cover_each_other_where_there_is_room() -> None:
    frame = Box(0, 0, 300, 200)
    points = [(float(x), 100.0, "k=16") for x in (5, 60, 70, 150, 160, 295)]
    boxes = label_places(points, [(30.0, 11.0)] * len(points), [(x, y) for x, y, _ in points], frame)
    assert all(box.overlap(frame) == pytest.approx(box.width * box.height) for box in boxes)
    assert all(first.overlap(second) == 0 for first, second in combinations(boxes, 2))
    dots = [Box(x - 3.5, y - 3.5, 7, 7) for x, y, _ in points]
    assert all(box.overlap(dot) == 0 for box in boxes for dot in dots)


def test_plotting_needs_no_torch_and_no_numpy() -> None:
    code = "import sys; import circuitcli.render.plot; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
