"""Circuits in the files of other programs."""

from collections.abc import Iterable

from circuitcli.api.arguments import Path, checked, wrong_type
from circuitcli.api.drawing import draw
from circuitcli.features.lines import Details
from circuitcli.features.lines import checked as checked_details
from circuitcli.graphs import CircuitGraph
from circuitcli.graphs.exchange import formats
from circuitcli.reading import as_path
from circuitcli.render.write import write
from circuitcli.settings.render import RenderSettings


def read_graph(path: Path) -> CircuitGraph:
    """The graph of a file: of records, as ``circuit`` commands keep them, or of another program.

        graph = circuit.read_graph("dallas.json")              # Neuronpedia's and circuit-tracer's format
        circuit.draw(graph, "dallas.html", cards=circuit.read_cards("dallas.json"))

    Read are also circuit-tracer's and feature-circuits' .pt files, of which nothing is run, EAP-IG's and MIB's graphs,
    and GraphML and GEXF that were written here. Which it is the content says. Raises InputError for another file.
    """
    return CircuitGraph.load(as_path(path))


def read_cards(path: Path) -> list[Details]:
    """What the file of another program tells of its features: labels, and contexts where they lie beside it.

        graph, cards = circuit.read_graph("their.json"), circuit.read_cards("their.json")

    Raises InputError as `read_graph` does; of a file of records there are none.
    """
    shared = formats.read(as_path(path))
    told = {} if shared is None else shared.features
    return [checked_details({**content, "id": name}, place=f"{path}: {name}") for name, content in told.items()]


def write_graph(
    graph: CircuitGraph,
    path: Path,
    *,
    as_: str | None = None,
    cards: Iterable[Details] = (),
    scan: str | None = None,
    source_set: str | None = None,
) -> None:
    """Write a graph for another program: by the file's suffix (.graphml .gexf .csv .mmd), or in a format.

        circuit.write_graph(graph, "circuit.graphml")
        circuit.write_graph(graph, "dallas/dallas.json", as_="neuronpedia", cards=cards, scan="gemma-2-2b")

    as_: ``neuronpedia`` (with graph-metadata.json and the features' files beside it), ``eap``, or what a suffix names.
    cards: what features mean. scan, source_set: Neuronpedia's names of the model and of the coders.

    Raises InputError where a graph does not fit a format, SettingsError for another suffix.
    """
    if not isinstance(graph, CircuitGraph):
        raise wrong_type("graph", graph, "a graph", hint="find_circuit() and read_graph() give graphs")
    settings = checked(RenderSettings, called={"form": "as_"}, form=as_, scan=scan, source_set=source_set)
    write(draw(graph, cards=cards).drawing, [str(as_path(path))], settings, stdout=_Nowhere())


class _Nowhere:
    """Where a path goes that says stdout: a function prints nothing."""

    def write(self, text: str, /) -> int:
        return len(text)
