"""A drawing as its reader left it: with the state of a file, and with what is proposed to the next reader."""

import logging
from dataclasses import replace

from circuitcli.graphs import CircuitGraph
from circuitcli.graphs.exchange.shared import Shared
from circuitcli.graphs.groups import similar_groups
from circuitcli.reading import as_path
from circuitcli.render.drawing import Drawing, draw
from circuitcli.render.seen import labelled, seen
from circuitcli.render.state import HINT, NamedGroup, State, fitted, read_state
from circuitcli.settings.render import RenderSettings

logger = logging.getLogger(__name__)


def opened(drawing: Drawing, settings: RenderSettings) -> tuple[Drawing, Drawing]:
    """The drawing as a page has it, which is all of it in a state, with proposed groups; and as pictures show it.

    Raises InputError for a file that holds no state; what in it is about another graph is told.
    """
    groups = similar_groups(drawing.graph, least=settings.groups, span=settings.group_span) if settings.groups else ()
    drawing = replace(drawing, groups=groups)
    state = _brought(drawing.graph) if settings.state is None else _state(drawing.graph, settings.state)
    if state is None:
        return drawing, drawing
    drawing = replace(drawing, state=state, details=labelled(drawing.details, state))
    return drawing, _pictured(drawing, state, settings)


def _state(graph: CircuitGraph, path: str) -> State:
    state, missing = fitted(read_state(as_path(path, hint=HINT)), graph)
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        logger.warning(
            "%s names %s that graph '%s' lacks, which change nothing: %s",
            *(path, "a node" if len(missing) == 1 else f"{len(missing)} nodes", graph.head.name, few),
        )
    return state


def _brought(graph: CircuitGraph) -> State | None:
    """The groups and the pinned node that came with the graph of another program."""
    groups, pinned = Shared.brought(graph.head)
    if not groups and not pinned:
        return None
    named = tuple(NamedGroup(name=name, members=members) for name, members in groups)
    return fitted(State(groups=named, pinned=pinned[0] if pinned else None), graph)[0]


def _pictured(drawing: Drawing, state: State, settings: RenderSettings) -> Drawing:
    """What the reader of the page sees: all edges that it shows, unless a limit is given."""
    what = seen(drawing.graph, state)
    limits = {"max_edges": settings.max_edges, "max_nodes": settings.max_nodes}
    if settings.max_edges is None and "edges" in state.model_fields_set:
        limits["max_edges"] = max(1, len(what.graph.edges))
    drawn = draw(what.graph, details=drawing.details, scores=drawing.scores, verdict=drawing.verdict, **limits)
    return replace(drawn, boxes=what.boxes, whole=drawing.graph)
