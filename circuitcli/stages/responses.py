"""``circuit graph-naive --sweep-coefficient``: response curves of the pinned features, in numbers and as a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from circuitcli.errors import SettingsError
from circuitcli.records import FigureRecord, Record, ReportRecord, ResponseRecord
from circuitcli.runs import atomic
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.section import factors
from circuitcli.stages.graph_task import Task

if TYPE_CHECKING:
    from circuitcli.attribution.naive import NaiveSearch
    from circuitcli.attribution.responses import Curve, Response


def check_sweep(settings: GraphSettings) -> None:
    """Raise SettingsError for a sweep that no feature is named for."""
    if settings.sweep_coefficient is not None and not settings.pin:
        raise SettingsError("--sweep-coefficient needs the feature to multiply", hint="name it with --pin 6:8339")


def swept(task: Task, search: "NaiveSearch") -> list[Record]:
    """The curves that are asked for, the report that holds them, and their plot; nothing where none are."""
    from circuitcli.attribution.responses import responses
    from circuitcli.render.plots import write_plot
    from circuitcli.render.responses import plot

    settings = task.settings
    if settings.sweep_coefficient is None:
        return []
    coefficients = factors(settings.sweep_coefficient)
    found = responses(search, coefficients, n_readers=settings.sweep_readers)
    made = [
        _record(curve, response.source, coefficients, graph=task.name)
        for response in found
        for curve in (response.metric, *response.readers)
    ]
    run, prompts = task.request.run.path, [prompt.text for prompt in search.panel.prompts]
    report, figure = f"reports/{task.name}-responses.json", f"figures/{task.name}-responses.svg"
    with atomic(run / report) as stream:
        json.dump(_report(found, coefficients, graph=task.name, prompts=prompts), stream, indent=1, ensure_ascii=False)
        stream.write("\n")
    write_plot(plot(made, title=f"Response to coefficients of features in {task.name}"), run / figure)
    return [*made, ReportRecord(path=report), FigureRecord(path=figure)]


def _report(
    found: "Sequence[Response]", coefficients: Sequence[float], *, graph: str, prompts: Sequence[str]
) -> dict[str, object]:
    return {
        "graph": graph,
        "prompts": prompts,
        "coefficients": list(coefficients),
        "responses": [asdict(response) for response in found],
    }


def _record(curve: "Curve", source: str, coefficients: Sequence[float], *, graph: str) -> ResponseRecord:
    errors = [value.standard_error for value in curve.values]
    told = tuple(error for error in errors if error is not None)
    return ResponseRecord(
        source=source,
        of=curve.of,
        coefficients=tuple(coefficients),
        values=tuple(value.value for value in curve.values),
        standard_errors=told if len(told) == len(errors) else None,
        unit=curve.unit,
        graph=graph,
    )
