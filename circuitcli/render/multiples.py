"""Circuits through training as a picture of small multiples, by matplotlib: SVG, PNG or PDF."""

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.records.through import Chart, Curve, Frame, FrameNode, TimelineReport
from circuitcli.render.plots import COLOURS, DASHES, saved, styled
from circuitcli.render.text import percent, shortened, signed, visible
from circuitcli.render.timeline import CARD_HEIGHT, CARD_WIDTH, Places, largest_effect, largest_weight, placed
from circuitcli.render.timeline_svg import MOST_EDGES, step_name
from circuitcli.runs import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POSITIVE, _NEGATIVE = "#1f4fd8", "#d3222a"
_COLUMNS, _CHART_COLUMNS = 4, 4
# Inches of a circuit and of a chart.
_WIDTH, _CHART_HEIGHT = 3.2, 1.75
# As many charts as fit below the circuits of a page.
MOST_CHARTS = 8


def write_multiples(report: TimelineReport, path: Path, *, dpi: int = 110) -> None:
    """Write the picture in the form that the suffix names."""
    with atomic(path, "wb") as stream:
        stream.write(multiples(report, path.suffix.lower(), dpi=dpi))


def multiples(report: TimelineReport, suffix: str, *, dpi: int = 110) -> bytes:
    """The bytes of a file with this suffix."""
    with styled():
        return saved(_figure(report), suffix, dpi=dpi)


def _figure(report: TimelineReport) -> "Figure":
    from matplotlib.figure import Figure

    places, n = placed(report), len(report.frames)
    columns = min(_COLUMNS, n)
    rows, charts = -(-n // columns), report.charts[:MOST_CHARTS]
    chart_rows = -(-len(charts) // _CHART_COLUMNS)
    height = _WIDTH * min(max(places.height / places.width, 0.35), 1.4) + 0.42
    whole = rows * height + chart_rows * _CHART_HEIGHT + 0.5
    figure = Figure(figsize=(_COLUMNS * _WIDTH, whole), layout="constrained")
    figure.suptitle(shortened(report.title, 110))
    heights = [rows * height, chart_rows * _CHART_HEIGHT] if charts else [rows * height]
    upper, *lower = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for one, frame in zip_longest(upper.subplots(rows, columns, squeeze=False).flat, report.frames):
        if frame is None:
            one.axis("off")
        else:
            _draw_circuit(one, report, frame, places)
    names = [step_name(frame) for frame in report.frames]
    for part in lower:
        for one, chart in zip_longest(part.subplots(chart_rows, _CHART_COLUMNS, squeeze=False).flat, charts):
            if chart is None:
                one.axis("off")
            else:
                _draw_chart(one, chart, names)
    return figure


def _draw_circuit(axes: "Axes", report: TimelineReport, frame: Frame, places: Places) -> None:
    axes.set_xlim(0, places.width)
    axes.set_ylim(places.height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.set_title(_caption(frame), fontsize=6.5)
    for index, band in enumerate(places.bands):
        axes.axhspan(band.y, band.y + band.height, color="#f4f5f8" if index % 2 else "#ffffff", lw=0, zorder=0)
        axes.text(4, band.y + band.height / 2, band.hook, fontsize=4.5, va="center", zorder=3)
    _draw_edges(axes, frame, places)
    largest = largest_effect(report.frames)
    for node in frame.nodes:
        _draw_card(axes, node, places, largest)


def _caption(frame: Frame) -> str:
    circuit = frame.circuit
    told = f"step {step_name(frame)}   metric {signed(circuit.metric_clean)}"
    if not circuit.there:
        return f"{told}   no better than chance"
    return told if circuit.faithfulness is None else f"{told}   keeps {percent(circuit.faithfulness)}"


def _draw_edges(axes: "Axes", frame: Frame, places: Places) -> None:
    by_id, largest = {node.id: node for node in frame.nodes}, largest_weight(frame)
    for edge in sorted(frame.edges, key=lambda edge: -abs(edge.weight))[:MOST_EDGES]:
        if edge.source in by_id and edge.target in by_id:
            (x, y), (to_x, to_y) = places.of(by_id[edge.source]), places.of(by_id[edge.target])
            share = abs(edge.weight) / largest
            axes.plot(
                [x + CARD_WIDTH / 2, to_x + CARD_WIDTH / 2],
                [y, to_y + CARD_HEIGHT],
                color=_POSITIVE if edge.weight >= 0 else _NEGATIVE,
                # As in all pictures: signs differ without colours.
                ls="-" if edge.weight >= 0 else (0, (4, 2)),
                lw=0.3 + 1.5 * share,
                alpha=0.12 + 0.6 * share,
                zorder=1,
            )


def _draw_card(axes: "Axes", node: FrameNode, places: Places, largest: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), is_output = places.of(node), node.line is None
    share = min(abs(node.effect or 0.0) / largest, 1.0)
    colour = "#2c7a2c" if is_output else _POSITIVE if (node.effect or 0.0) >= 0 else _NEGATIVE
    dashed = (0, (2, 1)) if node.id.endswith("/error") else "-"
    fill = (*_rgb(colour), 0.06 + 0.6 * share**0.5 if not is_output else 0.08)

    def box(**look: Any) -> None:
        round_ = "round,pad=0,rounding_size=4"
        axes.add_patch(FancyBboxPatch((x, y), CARD_WIDTH, CARD_HEIGHT, boxstyle=round_, zorder=2, **look))

    box(fc="#ffffff", ec="none")
    box(fc=fill, ec="#9aa0ab", lw=0.4, ls=dashed)
    name = node.id.partition("@")[0].rpartition("/")[2]
    axes.text(x + CARD_WIDTH / 2, y + CARD_HEIGHT / 2, name, fontsize=4.2, ha="center", va="center", zorder=4)


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def _draw_chart(axes: "Axes", chart: Chart, names: list[str]) -> None:
    axes.set_title(visible(chart.title), fontsize=7)
    axes.tick_params(labelsize=5.5)
    for index, curve in enumerate(chart.curves):
        _draw_curve(axes, curve, index)
    each = max(1, len(names) // 7)
    axes.set_xticks(range(0, len(names), each), names[::each], rotation=35)
    axes.set_xlim(-0.3, len(names) - 0.7)
    if chart.is_share:
        axes.set_ylim(*_share_limits(chart))
    if len(chart.curves) > 1:
        axes.legend(fontsize=5, handlelength=2)


def _share_limits(chart: Chart) -> tuple[float, float]:
    """As the page has them: 0 to 1, and a little more where numbers lie beyond."""
    known = [value for curve in chart.curves for value in curve.values if value is not None]
    return max(min([0.0, *known]), -0.25) - 0.03, min(max([1.0, *known]), 1.25) + 0.03


def _draw_curve(axes: "Axes", curve: Curve, index: int) -> None:
    colour, numbers = COLOURS[index % len(COLOURS)], range(len(curve.values))
    values = [float("nan") if value is None else value for value in curve.values]
    axes.plot(
        numbers,
        values,
        color=colour,
        ls=DASHES[index % len(DASHES)],
        lw=1,
        marker="o",
        ms=2,
        label=visible(curve.label),
    )
    if curve.low is not None and curve.high is not None:
        bounds = [[float("nan") if value is None else value for value in one] for one in (curve.low, curve.high)]
        axes.fill_between(numbers, bounds[0], bounds[1], color=colour, alpha=0.12, lw=0)
