"""What travels in a file: a graph, what is known of its features, and what its reader has put together."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from circuitcli import faults
from circuitcli.graphs.conversion import to_records
from circuitcli.graphs.graph import CircuitGraph
from circuitcli.records import FeatureRecord, GraphRecord, Record

R = TypeVar("R", bound=Record)

_BROUGHT = ("groups", "pinned")
AGAIN = "write the file again with the program that made it"
# Longer ones are no names of files.
_LONGEST_NAME = 80
_OTHERS = re.compile("[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class Shared:
    """A graph with what travels beside it.

    features: what is known of features, by id without a position, as a line of RUN/features/HOOK.jsonl has it, or only
    a ``label``. groups: nodes that were put together, under a name. pinned: nodes that were picked out.
    """

    graph: CircuitGraph
    features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    pinned: tuple[str, ...] = ()

    def label(self, feature: str) -> str:
        """The label of a feature; empty where there is none."""
        return str(self.features.get(feature, {}).get("label") or "")

    def records(self) -> list[Record]:
        """The graph, then its features, as a command would have passed them on."""
        contents = {name: {"label": "", **content, "id": name} for name, content in self.features.items()}
        made = [checked(FeatureRecord, content, place=f"feature {name}") for name, content in contents.items()]
        told = {"groups": [[label, *names] for label, names in self.groups], "pinned": list(self.pinned)}
        head = self.graph.head.model_copy(update={name: value for name, value in told.items() if value})
        return [*to_records(replace(self.graph, head=head)), *made]

    @staticmethod
    def brought(head: GraphRecord) -> tuple[tuple[tuple[str, tuple[str, ...]], ...], tuple[str, ...]]:
        """Groups and pinned nodes that `records` put into a head."""
        groups, pinned = (_texts((head.model_extra or {}).get(name)) for name in _BROUGHT)
        lists = [texts for one in groups if (texts := _texts(one)) and all(isinstance(text, str) for text in texts)]
        return (
            tuple((str(first), tuple(map(str, names))) for first, *names in lists),
            tuple(name for name in pinned if isinstance(name, str)),
        )


def _texts(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


def checked(kind: type[R], content: Mapping[str, Any], *, place: str, hint: str = AGAIN) -> R:
    """The record that has this content. Raises InputError, naming the place and the field, for what cannot be one."""
    return faults.checked(kind, content, place=place, hint=hint)


def bare(head: GraphRecord) -> dict[str, Any]:
    """The head as JSON, without groups and pinned nodes: these have a place of their own."""
    return head.model_dump(mode="json", exclude_none=True, exclude={*_BROUGHT})


def file_name(text: str, *, otherwise: str) -> str:
    """The text as a name of letters, digits, ``_``, ``.`` and ``-``, as file systems and addresses take it."""
    kept = _OTHERS.sub("-", text)
    return kept.strip("-.")[:_LONGEST_NAME].strip("-.") or otherwise


def plural(n: int, name: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{n:,} {name}" if n == 1 else f"{n:,} {name}s"


def shown(names: Iterable[object]) -> str:
    """A few names of many."""
    texts = [str(name)[:60] for name in names]
    return ", ".join(texts[:5]) + (", ..." if len(texts) > 5 else "")
