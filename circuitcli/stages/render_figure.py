"""``circuit render --figure NAME``: what a run measured as one figure by matplotlib. Needs no torch and no model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from circuitcli.errors import InputError
from circuitcli.features.lines import HINT
from circuitcli.graphs import CircuitGraph, content_digest, from_records
from circuitcli.reading import parse_object, text_lines
from circuitcli.records import CurveRecord, FeaturesRecord, FigureRecord, Record, ResponseRecord, SaeRecord, SweepRecord
from circuitcli.render import faithfulness, responses
from circuitcli.render.activation_maps import context_maps, prompt_map
from circuitcli.render.attributions import attribution_maps, effect_bars
from circuitcli.render.charts import Chart, chart_picture, write_chart
from circuitcli.render.densities import Densities, densities_plot
from circuitcli.render.details import read_details
from circuitcli.render.pareto import coders_plot, pareto
from circuitcli.render.write import STDOUT, Writer
from circuitcli.settings.render import FigureName
from circuitcli.stages.curves import FIGURES, checked_curves
from circuitcli.stages.render import chosen_graph, file_name, recorded
from circuitcli.stages.request import Request

Made = tuple[Chart | None, str]
R = TypeVar("R", CurveRecord, ResponseRecord)


def run(request: Request, *, stdout: Writer) -> list[Record]:
    """Draw the figure that the settings name.

    Files go where they say, by default to RUN/figures/NAME.svg; ``-`` is SVG on stdout. Raises InputError where the run
    holds nothing to draw, saying what makes it, and SettingsError for a file that is no .svg, .png or .pdf.
    """
    settings = request.settings.render
    assert settings.figure is not None
    outputs = checked_curves(settings.output)
    chart, hint = _MAKERS[settings.figure](request)
    if chart is None:
        raise InputError(f"there is nothing to draw as '{settings.figure}'", hint=hint)
    names = outputs or [_default(request, settings.figure)]
    for name in names:
        if name == STDOUT:
            stdout.write(chart_picture(chart, ".svg").decode())
        else:
            write_chart(chart, Path(name), dpi=settings.dpi)
    directory = request.run.path if request.run.path.is_dir() else None
    return [FigureRecord(path=recorded(Path(name), directory)) for name in names if name != STDOUT]


def _default(request: Request, figure: str) -> str:
    """Named by the graph where it is about one."""
    name = f"{file_name(_graph(request).head.name)}-{figure}" if figure in _OF_GRAPHS else figure
    folder = request.run.path / FIGURES if request.run.path.is_dir() else Path()
    return str(folder / f"{name}.svg")


def _graph(request: Request) -> CircuitGraph:
    return chosen_graph(request.records, request.settings.render.graph)


def _faithfulness(request: Request) -> Made:
    curves, name = _of_graph(request, CurveRecord)
    drawn = faithfulness.plot(curves, title=f"Circuits of {name}") if curves else None
    return drawn, "run `circuit validate --curve` before it"


def _responses(request: Request) -> Made:
    curves, name = _of_graph(request, ResponseRecord)
    drawn = responses.plot(curves, title=f"Response to coefficients of features in {name}") if curves else None
    return drawn, "run `circuit graph-naive --pin 6:8339 --sweep-coefficient 0:2:0.25` before it"


def _of_graph(request: Request, kind: type[R]) -> tuple[Sequence[R], str]:
    """The records about the graph that was named, or else about the graph of the last of them; and its name."""
    found = request.records.of(kind)
    name = request.settings.render.graph or (found[-1].graph if found else None) or ""
    digests = {graph.head.name: content_digest(graph) for graph in from_records(request.records)}
    return [one for one in found if one.graph == name and _digest(one) in (None, digests.get(name))], name


def _digest(record: CurveRecord | ResponseRecord) -> str | None:
    return record.graph_digest if isinstance(record, CurveRecord) else None


def _pareto(request: Request) -> Made:
    swept, title = request.records.of(SweepRecord), f"in {request.run.path.name}"
    hint = "run `circuit train` before it, which measures the SAEs, or `circuit train --sweep NAME=VALUE,VALUE`"
    if swept:
        return pareto(swept, title=f"Sweep {title}"), hint
    return coders_plot(request.records.of(SaeRecord), title=f"SAEs {title}"), hint


def _densities(request: Request) -> Made:
    run = request.run.path
    files = {one.hook: (run / one.path, one.n_live + one.n_dead) for one in request.records.of(FeaturesRecord)}
    for sae in request.records.of(SaeRecord):
        path = run / "features" / f"{sae.hook}.jsonl"
        if sae.hook not in files and path.is_file():
            files[sae.hook] = (path, sae.d_sae)
    coders = [_read(hook, path, n_features) for hook, (path, n_features) in files.items()]
    drawn = densities_plot(coders, title=f"Features in {run.name}") if coders else None
    return drawn, "run `circuit interp` before it"


def _read(hook: str, path: Path, n_features: int) -> Densities:
    """The densities in a file of features, which holds the live ones. Raises InputError for a damaged line."""
    values = []
    for place, line in text_lines(path, hint=HINT):
        density = parse_object(line, name=place, hint=HINT).get("density")
        if isinstance(density, int | float) and density > 0:
            values.append(float(density))
    return Densities(hook, values, max(0, n_features - len(values)))


def _attribution(request: Request) -> Made:
    return attribution_maps(_graph(request)), "the nodes of this graph have no effects: `circuit graph-grad` gives them"


def _effects(request: Request) -> Made:
    return effect_bars(_graph(request)), "the nodes of this graph have no effects: `circuit graph-grad` gives them"


def _activations(request: Request) -> Made:
    graph = _graph(request)
    drawn = prompt_map(graph, read_details(graph, request.records, _directory(request)))
    return drawn, "its features are active at no position of one prompt: --figure contexts shows texts of their own"


def _contexts(request: Request) -> Made:
    graph = _graph(request)
    drawn = context_maps(graph, read_details(graph, request.records, _directory(request)))
    return drawn, "run `circuit interp` before it"


def _directory(request: Request) -> Path | None:
    return request.run.path if request.run.path.is_dir() else None


_MAKERS: Mapping[FigureName, Callable[[Request], Made]] = {
    "faithfulness": _faithfulness,
    "pareto": _pareto,
    "densities": _densities,
    "responses": _responses,
    "attribution": _attribution,
    "effects": _effects,
    "activations": _activations,
    "contexts": _contexts,
}
_OF_GRAPHS = ("attribution", "effects", "activations", "contexts")
