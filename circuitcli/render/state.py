"""What a reader has done to the page of a circuit: what is pinned, hidden, grouped and renamed, as JSON.

The page writes it (``state.json``, and short in its own URL), and `circuit render --state` reads it, for the page and
for pictures:

    {"format": 1, "graph": "circuit", "pinned": "resid.9/331@4", "by": "effect", "nodes": 40, "edges": 120,
     "groups": [{"name": "past tense", "members": ["resid.9/331@4", "resid.9/17@4"], "open": false}],
     "labels": {"resid.9/331": "verbs in the past tense"}, "hidden": ["error"], "in_one_column": false,
     "theme": "dark", "zoom": [12, 40, 0.8]}

``nodes`` and ``edges``: so many of the first of each are drawn, ranked by effect or by influence (`graphs.ranking`).
``labels`` are of features at all positions, or of nodes that are no features; ``zoom`` is the page's own: where its
drawing stands, and how large. What is not told is as it was.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from circuitcli.errors import InputError
from circuitcli.faults import first_fault
from circuitcli.graphs import CircuitGraph
from circuitcli.graphs.ranking import By
from circuitcli.reading import parse_object, read_text
from circuitcli.schema import LONGEST_TABLE, LONGEST_TEXT, LONGEST_WORD, Count

FORMAT = 1
HINT = "download it again from the page, or leave out --state"

Id = Annotated[str, Field(min_length=1, max_length=LONGEST_WORD)]
Words = Annotated[str, Field(max_length=LONGEST_TEXT)]
Kind = Literal["feature", "error", "token", "logit"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class NamedGroup(_Frozen):
    """Nodes that stand for one, in one box unless ``open``."""

    name: Words = ""
    members: Annotated[tuple[Id, ...], Field(max_length=LONGEST_TABLE)]
    open: bool = False


class State(_Frozen):
    """What a reader has done to the page of a circuit; see the module."""

    format: int = FORMAT
    graph: Words | None = None
    pinned: Id | None = None
    by: By = "effect"
    nodes: Count | None = None
    edges: Count | None = None
    groups: Annotated[tuple[NamedGroup, ...], Field(max_length=LONGEST_TABLE)] = ()
    labels: Annotated[dict[Id, Words], Field(max_length=LONGEST_TABLE)] = Field(default_factory=dict)
    hidden: Annotated[tuple[Kind, ...], Field(max_length=LONGEST_TABLE)] = ()
    in_one_column: bool = False
    theme: Literal["light", "dark"] | None = None
    zoom: tuple[FiniteFloat, FiniteFloat, Annotated[FiniteFloat, Field(gt=0)]] | None = None


def read_state(path: Path) -> State:
    """The state of a file. Raises InputError, naming the field, for what is none."""
    text = read_text(path, hint=HINT)
    parse_object(text, name=str(path), hint=HINT)
    try:
        # Of JSON: a list is a tuple there, and nothing else is taken for what it is not.
        found = State.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path} is not the state of a page: {first_fault(error)}", hint=HINT) from None
    if found.format != FORMAT:
        raise InputError(
            f"{path} is of format {found.format}, and this version reads format {FORMAT}",
            hint="upgrade circuit, or leave out --state",
        )
    return found


def fitted(state: State, graph: CircuitGraph) -> tuple[State, tuple[str, ...]]:
    """The state without what this graph lacks, and the names of that.

    A node is in one group, the first that has it, and a group of fewer than two nodes is none.
    """
    known = {node.id for node in graph.nodes}
    nameable = known | {place.feature for node in graph.nodes if (place := node.place) is not None}
    groups, free = [], set(known)
    for group in state.groups:
        members = tuple(name for name in dict.fromkeys(group.members) if name in free)
        if len(members) > 1:
            groups.append(group.model_copy(update={"members": members}))
            free -= set(members)
    named = [*([state.pinned] if state.pinned is not None else []), *_members(state), *state.labels]
    missing = tuple(dict.fromkeys(name for name in named if name not in nameable))
    changes = {
        "pinned": state.pinned if state.pinned in known else None,
        "groups": tuple(groups),
        "labels": {name: text for name, text in state.labels.items() if name in nameable},
    }
    return state.model_copy(update=changes), missing


def _members(state: State) -> Iterable[str]:
    return (name for group in state.groups for name in group.members)
