"""What travels in a file: a graph, what is known of its features, and what its reader has put together."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from circuitcli.errors import InputError
from circuitcli.graphs.conversion import to_records
from circuitcli.graphs.graph import CircuitGraph
from circuitcli.records import FeatureRecord, Record

R = TypeVar("R", bound=Record)

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
        told = ({**dict(content), "kind": "feature", "id": name} for name, content in self.features.items())
        made = [checked(FeatureRecord, {"label": "", **content}, place=f"feature {content['id']}") for content in told]
        return [*to_records(self.graph), *made]


def checked(kind: type[R], content: Mapping[str, Any], *, place: str, hint: str = AGAIN) -> R:
    """The record that has this content. Raises InputError, naming the place and the field, for what cannot be one."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{place}: {where}: {said[:1].lower() + said[1:]}", hint=hint) from None


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
