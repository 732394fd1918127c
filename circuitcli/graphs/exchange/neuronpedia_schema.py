"""The rules of Neuronpedia's schema of attribution graphs, version 1, and those that its site adds."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from circuitcli.faults import checked
from circuitcli.graphs.exchange.shared import plural, shown

SMALLEST_BYTES, LARGEST_BYTES = 2**10, 100 * 2**20
# A graph's slug and its model's name become addresses.
_NAME = re.compile("[A-Za-z0-9_.-]+")

_Strict = ConfigDict(extra="allow", strict=True, frozen=True)
_Number = float | int


class _Part(BaseModel):
    """Fields that are not named here are let through, as the schema lets them."""

    model_config = _Strict


class Details(_Part):
    """Where a page finds features."""

    feature_json_base_url: str | None = None
    neuronpedia_source_set: str | None = None
    neuronpedia_lorsa_source_set: str | None = None


class Metadata(_Part):
    """What a graph is about."""

    slug: str
    scan: str
    prompt_tokens: tuple[str, ...] = Field(strict=False)
    prompt: str
    feature_details: Details | None = None
    node_threshold: _Number | None = None
    schema_version: int | None = None


class State(_Part):
    """What a page shows first."""

    pinnedIds: Annotated[tuple[str, ...], Field(strict=False)] = ()
    supernodes: Annotated[tuple[Any, ...], Field(strict=False)] = ()
    linkType: str | None = None
    clickedId: str | None = None
    sg_pos: str | None = None


class FileNode(_Part):
    """A node of the file."""

    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: str
    jsNodeId: str
    clerp: str
    influence: _Number | None = None
    activation: _Number | None = None
    token_prob: _Number | None = None

    @property
    def own(self) -> dict[str, Any] | None:
        """What a graph that was written here says of the node."""
        return _own(self)


class Link(_Part):
    """An edge of the file."""

    source: str
    target: str
    weight: _Number

    @property
    def own(self) -> dict[str, Any] | None:
        """What a graph that was written here says of the edge."""
        return _own(self)


class GraphFile(_Part):
    """A whole file."""

    metadata: Metadata
    qParams: State
    nodes: tuple[FileNode, ...] = Field(strict=False)
    links: tuple[Link, ...] = Field(strict=False)


def _own(part: _Part) -> dict[str, Any] | None:
    found = (part.model_extra or {}).get("circuit")
    return found if isinstance(found, dict) else None


def parsed(content: Any, *, name: str) -> GraphFile:
    """The file that a tree of JSON values is. Raises InputError, naming the first field that the schema refuses."""
    return checked(
        GraphFile,
        content,
        place=f"{name} is not a graph of Neuronpedia's schema",
        hint="see https://www.neuronpedia.org/graph/validator",
    )


def problems(graph: GraphFile, *, n_bytes: int | None = None) -> Iterator[str]:
    """What Neuronpedia's site, or circuit-tracer's page, would refuse or fail on beyond the schema."""
    for field in ("slug", "scan"):
        if not _NAME.fullmatch(value := getattr(graph.metadata, field)):
            yield f"metadata.{field} {value[:60]!r} has other characters than letters, digits, '_', '.' and '-'"
    if n_bytes is not None and not SMALLEST_BYTES <= n_bytes <= LARGEST_BYTES:
        yield f"the file has {n_bytes:,} bytes, and only {SMALLEST_BYTES:,} to {LARGEST_BYTES:,} can be uploaded"
    counts = Counter(node.node_id for node in graph.nodes)
    if twice := [name for name, count in counts.items() if count > 1]:
        yield f"{plural(len(twice), 'id')} of several nodes each: {shown(twice)}"
    if lost := {end for link in graph.links for end in (link.source, link.target)} - counts.keys():
        yield f"{plural(len(lost), 'end')} of links that no node has: {shown(sorted(lost))}"
    if beyond := [node.node_id for node in graph.nodes if not 0 <= node.ctx_idx < len(graph.metadata.prompt_tokens)]:
        yield f"{plural(len(beyond), 'node')} at positions past the prompt: {shown(beyond)}"
    layers = [_layer(node) for node in graph.nodes if node.feature_type != "logit"]
    if not any(layers):
        yield "no node but logits lies above layer 0, and the page finds no layer then"
    if unread := [node.node_id for node in graph.nodes if node.feature_type == "logit" and "(p=" not in node.clerp]:
        yield f"{plural(len(unread), 'logit')} without '(p=...)' in its label, where the page reads it: {shown(unread)}"


def _layer(node: FileNode) -> int:
    try:
        return int(node.layer)
    except ValueError:
        return 0
