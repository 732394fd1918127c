"""Pictures of circuit graphs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from circuitcli.api.arguments import Path, checked, wrong_type
from circuitcli.errors import SettingsError
from circuitcli.features.lines import Details
from circuitcli.graphs import CircuitGraph
from circuitcli.reading import as_path
from circuitcli.records import ScoreRecord
from circuitcli.render import drawing as drawings
from circuitcli.render.document import document, to_json
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import Drawing
from circuitcli.render.notebook import frame
from circuitcli.render.opened import opened
from circuitcli.render.page import page
from circuitcli.render.picture import picture
from circuitcli.render.write import SUFFIXES, write
from circuitcli.settings.render import RenderSettings


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """A graph ready to be drawn, in any form; in a notebook it shows itself."""

    drawing: Drawing
    settings: RenderSettings
    pictured: Drawing

    @property
    def dot(self) -> str:
        """The text that Graphviz draws."""
        return dot_source(self.pictured, self.settings)

    @property
    def svg(self) -> str:
        """The picture. Raises ToolError if the program ``dot`` is missing."""
        return picture(self.dot, form="svg").decode()

    @property
    def html(self) -> str:
        """A page in which nodes can be looked at one by one; it needs nothing else."""
        return page(self.drawing)

    @property
    def json(self) -> str:
        """Every number that a picture shows."""
        return to_json(document(self.drawing), indent=1)

    def save(self, path: Path) -> None:
        """Write a file: .svg, .png, .pdf, .dot, .html or .json by its suffix. Raises SettingsError for another one."""
        place = as_path(path)
        if place.suffix.lower() not in SUFFIXES:
            raise SettingsError(f"cannot draw '{place}'", hint=f"files end in {' '.join(SUFFIXES)}")
        write(self.drawing, [os.fspath(place)], self.settings, stdout=_Nowhere(), pictured=self.pictured)

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return frame(self.html)

    def __repr__(self) -> str:
        drawn = f"{len(self.drawing.nodes)} nodes, {len(self.drawing.edges)} edges"
        return f"Picture({self.drawing.graph.head.name!r}: {drawn})"


class _Nowhere:
    """Where no picture is written."""

    def write(self, text: str, /) -> int:
        return len(text)


def draw(
    graph: CircuitGraph,
    path: Path | None = None,
    *,
    cards: Iterable[Details] = (),
    scores: Iterable[ScoreRecord] = (),
    max_edges: int | None = None,
    max_nodes: int | None = None,
    contexts: int = 3,
    logits: int = 5,
    dpi: int = 96,
    state: Path | None = None,
) -> Picture:
    """The picture of a graph, written to a file if one is named: .svg, .png, .pdf, .dot, .html or .json by its suffix.

        circuit.draw(graph)                                    # in a notebook
        circuit.draw(graph, "circuit.svg", cards=[circuit.describe(model, coders, node.id) for node in best])
        circuit.draw(graph, "circuit.html", scores=scores)     # a page in which nodes can be looked at

    cards: what features mean, as `describe` gives it, shown in their boxes with so many contexts and logits each.
    scores: what `validate` measured. max_edges: only the strongest, by default 300.
    max_nodes: only the strongest, and those on their ways to the output. state: a file that the page's button
    downloads, with labels, groups and thresholds.

    Raises ToolError for .svg, .png and .pdf if the program ``dot`` is missing, SettingsError for another suffix,
    InputError for a file that holds no state.
    """
    if not isinstance(graph, CircuitGraph):
        raise wrong_type("graph", graph, "a graph", hint="find_circuit() and CircuitGraph.load() give graphs")
    settings = checked(
        RenderSettings,
        max_edges=max_edges,
        max_nodes=max_nodes,
        contexts=contexts,
        logits=logits,
        dpi=dpi,
        state=None if state is None else os.fspath(state),
    )
    drawing = drawings.draw(
        graph,
        details={card.id: card for card in cards},
        scores=scores,
        max_edges=settings.max_edges,
        max_nodes=settings.max_nodes,
    )
    page_of, pictured = opened(drawing, settings)
    made = Picture(page_of, settings, pictured)
    if path is not None:
        made.save(path)
    return made
