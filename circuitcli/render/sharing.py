"""The graph of a drawing, whole, in the files of other programs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from circuitcli import __version__
from circuitcli.graphs.exchange import csv_tables, eap, gexf, graphml, neuronpedia_files
from circuitcli.graphs.exchange.shared import Shared
from circuitcli.reading import whole_characters
from circuitcli.render.drawing import Drawing
from circuitcli.render.mermaid import mermaid
from circuitcli.settings.render import Form, RenderSettings

# Those that are one text, which can go to stdout.
_TEXTS: dict[Form, Callable[[Drawing], str]] = {
    "graphml": lambda drawing: graphml.text(shared(drawing)),
    "gexf": lambda drawing: gexf.text(shared(drawing)),
    "mermaid": mermaid,
    "eap": lambda drawing: json.dumps(eap.content(drawing.graph)) + "\n",
}


def shared(drawing: Drawing) -> Shared:
    """The drawing's graph with what is known of its features."""
    features = {name: known.model_dump(mode="json", exclude_defaults=True) for name, known in drawing.details.items()}
    groups, pinned = Shared.brought(drawing.graph.head)
    if drawing.state is not None:
        groups = tuple((group.name, group.members) for group in drawing.state.groups)
        pinned = tuple(dict.fromkeys(name for name in (drawing.state.pinned, *pinned) if name is not None))
    return Shared(drawing.graph, features, groups, pinned)


def text(drawing: Drawing, form: Form) -> str | None:
    """The text of a format that is one file; None for others. Raises InputError where the graph does not fit it."""
    write = _TEXTS.get(form)
    return None if write is None else whole_characters(write(drawing))


def files(drawing: Drawing, path: Path, *, form: Form, settings: RenderSettings) -> Iterator[tuple[Path, str]]:
    """Paths and texts of all files of a format. Raises InputError where the graph does not fit it."""
    if form == "neuronpedia":
        yield from neuronpedia_files.files(
            shared(drawing), path, scan=settings.scan, source_set=settings.source_set, version=__version__
        )
    elif form == "csv":
        yield from csv_tables.files(shared(drawing), path)
    else:
        yield path, text(drawing, form) or ""
