"""A behaviour's circuits through training as one HTML file with a time slider, which needs no network.

All checkpoints are drawn in it, one below the other: so it is small multiples without JavaScript and in print; with it,
one is shown at a time, and the slider says which.
"""

from html import escape
from typing import Any

from circuitcli.records.through import CircuitRecord, TimelineReport
from circuitcli.render.document import to_json
from circuitcli.render.modules import asset, carried, filled, safe
from circuitcli.render.text import number, percent, signed, visible
from circuitcli.render.timeline import placed
from circuitcli.render.timeline_charts import COLOURS, DASHES, LEFT, RIGHT, chart_svg
from circuitcli.render.timeline_svg import circuit_svg, lifelines_svg, step_name

_HEAD = (
    "step",
    "metric",
    "chance",
    "faithfulness",
    "nodes",
    "edges",
    "errors",
    "as before",
    "as the last",
    "other seed",
)


def timeline_page(report: TimelineReport) -> str:
    """The HTML text; the report is embedded in it, see `embedded_report`."""
    places, names = placed(report), [step_name(frame) for frame in report.frames]
    lines, left_out = lifelines_svg(report)
    parts = {
        "title": escape(visible(report.title)),
        "facts": "".join(f"<p>{escape(visible(fact))}</p>" for fact in report.facts),
        "style": asset("timeline.css"),
        "script": asset("timeline.js"),
        "last": str(len(report.frames) - 1),
        "frames": "\n".join(_figure(report, index, circuit_svg(report, index, places)) for index in range(len(names))),
        "charts": "\n".join(_chart(report, index, names) for index in range(len(report.charts))),
        "lines": lines,
        "left_out": f"<p>{left_out} weaker ones are left out.</p>" if left_out else "",
        "table": _table(report),
        "data": safe(to_json(_content(report))),
    }
    return filled("timeline.html", parts)


def embedded_report(text: str) -> dict[str, Any]:
    """What a page carries. Raises ValueError for another text."""
    content = carried(text)
    if "frames" not in content:
        raise ValueError("this is not the page of circuits through training")
    return content


def _content(report: TimelineReport) -> dict[str, Any]:
    """What the script needs: for each lifeline its place at each checkpoint."""
    frames = [
        {
            "name": visible(frame.circuit.checkpoint),
            "step": step_name(frame),
            "nodes": [{**node.model_dump(mode="json"), "label": visible(node.label)} for node in frame.nodes],
            "edges": [edge.model_dump(mode="json") for edge in frame.edges],
            "circuit": frame.circuit.model_dump(mode="json", exclude_none=True),
        }
        for frame in report.frames
    ]
    lines = [line.model_dump(mode="json") for line in report.lines]
    return {"unit": report.unit, "frames": frames, "lines": lines, "margins": [LEFT, RIGHT]}


def _figure(report: TimelineReport, index: int, svg: str) -> str:
    circuit = report.frames[index].circuit
    name = escape(visible(circuit.checkpoint))
    return (
        f'<figure class="frame" data-index="{index}"><figcaption><b>{name}</b> {escape(told(circuit))}</figcaption>'
        f"{svg}</figure>"
    )


def told(circuit: CircuitRecord) -> str:
    """One line on the circuit of a checkpoint."""
    metric = f"metric {signed(circuit.metric_clean, circuit.unit)} (chance {signed(circuit.metric_chance)})"
    size = f"{circuit.n_nodes} nodes, {circuit.n_edges} edges"
    if not circuit.there:
        return f"{metric}; no better than chance: there is no behaviour yet that a circuit could explain; {size}"
    if circuit.faithfulness is None:
        return f"{metric}; {visible(circuit.note or 'no faithfulness was measured')}; {size}"
    return f"{metric}; keeps {percent(circuit.faithfulness)} of it{_between(circuit)}; {size}"


def _between(circuit: CircuitRecord) -> str:
    if circuit.low is None or circuit.high is None:
        return ""
    return f" ({percent(circuit.low)} to {percent(circuit.high)})"


def _chart(report: TimelineReport, index: int, names: list[str]) -> str:
    chart = report.charts[index]
    keys = "".join(_key(curve.label, number) for number, curve in enumerate(chart.curves))
    unit = f" <small>{escape(visible(chart.unit))}</small>" if chart.unit else ""
    caption = f"<figcaption><b>{escape(visible(chart.title))}</b>{unit}<br>{keys}</figcaption>"
    return f'<figure class="chart">{caption}{chart_svg(chart, names)}</figure>'


def _key(label: str, index: int) -> str:
    dash = DASHES[index % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    sample = f'<line x1="0" x2="22" y1="5" y2="5" stroke="{COLOURS[index % len(COLOURS)]}" stroke-width="2"{dashed}/>'
    return f'<span class="key"><svg width="22" height="10">{sample}</svg> {escape(visible(label))}</span>'


def _table(report: TimelineReport) -> str:
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    rows = []
    for index, frame in enumerate(report.frames):
        cells = "".join(f"<td>{escape(text)}</td>" for text in _row(frame.circuit, step_name(frame)))
        rows.append(f'<tr data-index="{index}">{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(circuit: CircuitRecord, step: str) -> list[str]:
    faithful = "no behaviour" if not circuit.there else "–"
    if circuit.there and circuit.faithfulness is not None:
        faithful = f"{percent(circuit.faithfulness)}{_between(circuit)}"
    overlaps = (circuit.before, circuit.last, circuit.seed)
    return [
        step,
        signed(circuit.metric_clean),
        signed(circuit.metric_chance),
        faithful,
        str(circuit.n_nodes),
        str(circuit.n_edges),
        percent(circuit.error_share),
        *(_shared(one) for one in overlaps),
    ]


def _shared(found: dict[str, float | None] | None) -> str:
    """What two circuits have in common, and what they would have by chance."""
    if found is None or found.get("weighted") is None:
        return "–"
    chance = found.get("shuffled_weighted")
    return number(found["weighted"] or 0.0) + (f" (chance {number(chance)})" if chance is not None else "")
