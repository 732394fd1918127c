"""Which format a file has, told by what is in it, and the graph that it holds."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuitcli.errors import CircuitError, InputError
from circuitcli.graphs.exchange import (
    circuit_tracer,
    eap,
    eap_arrays,
    feature_circuits,
    gexf,
    graphml,
    neuronpedia_files,
    torch_files,
)
from circuitcli.graphs.exchange.shared import Shared, shown
from circuitcli.reading import parse_object, read_bytes

# More than circuit-tracer's largest graphs have as JSON.
MOST_BYTES = 2**30
# The beginning of a line of records, which is no other program's.
_RECORD = re.compile(rb'\s*\{\s*"kind"\s*:')
_XML = {b"<graphml": "graphml", b"<gexf": "gexf"}
HINT = (
    "files that are read: records (RUN/graphs/NAME.jsonl), graphs of Neuronpedia, circuit-tracer, feature-circuits, "
    "EAP-IG and MIB, and GraphML and GEXF that were written here"
)
_ZIP = b"PK\x03\x04"
# Each graph has one of these at its top.
_KEYS = frozenset(("metadata", "nodes", "links", "cfg", "edges", "graphs"))
# Of what the beginning of a file tells.
_BEGINNING = 2**16


def format_of(path: Path) -> str | None:
    """``json``, ``graphml``, ``gexf`` or ``torch``; None for records, and for what is nothing that is known."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            beginning = stream.read(_BEGINNING)
            first = (beginning + (b"" if b"\n" in beginning else stream.readline(MOST_BYTES))).split(b"\n", 1)[0]
    except OSError:
        return None
    if beginning.startswith(_ZIP):
        return "torch"
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return next((kind for start, kind in _XML.items() if start in beginning), None)
    if not text.startswith(b"{") or _RECORD.match(first):
        return None
    return "json" if _is_graph(first) else None


def _is_graph(first: bytes) -> bool:
    """Whether a file's first line is all of a graph, or the beginning of one, rather than a record."""
    try:
        return bool(_KEYS & parse_object(first, name="", finite=False).keys())
    except CircuitError:
        return True


def read(path: Path) -> Shared | None:
    """The graph of another program's file; None for a file of records, which other readers read.

    Raises InputError for a file that is damaged, or of none of the formats that are known.
    """
    kind = format_of(path)
    if kind is None:
        return None
    # Numbers of a file may be any: what is wrong with them is told in words.
    with np.errstate(all="ignore"):
        return _read(path, kind)


def _read(path: Path, kind: str) -> Shared | None:
    if kind == "torch":
        return _of_torch(path)
    content = read_bytes(path, limit_bytes=MOST_BYTES, hint=HINT)
    if kind == "graphml":
        return graphml.read(content, name=str(path))
    if kind == "gexf":
        return gexf.read(content, name=str(path))
    try:
        found = parse_object(content, name=str(path), finite=False, hint=HINT)
    except CircuitError:
        # What says nothing of a graph is a broken record to those who read these.
        if not any(key.encode() in content[:_BEGINNING] for key in map('"{}"'.format, _KEYS)):
            return None
        raise
    return _of_json(found, path)


def _of_torch(path: Path) -> Shared:
    content = torch_files.read(path)
    keys = content.keys() if isinstance(content, dict) else frozenset()
    for reader in (circuit_tracer, feature_circuits, eap_arrays):
        if keys >= reader.KEYS:
            return _told(reader.read, content, path)
    raise InputError(f"{path} holds tensors, but no graph that is known: {shown(keys)}", hint=HINT)


def _told(reader: Callable[..., Shared], content: Mapping[str, Any], path: Path) -> Shared:
    try:
        return reader(content, path=path)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Each part of a pickle may be a value of any kind, which fails in as many ways.
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
        raise InputError(f"{path}: parts of the graph are of another kind: {said}", hint=HINT) from None


def _of_json(content: Mapping[str, Any], path: Path) -> Shared:
    keys = content.keys()
    if {"metadata", "nodes", "links"} <= keys:
        return neuronpedia_files.read(content, path)
    if {"cfg", "nodes", "edges"} <= keys:
        return eap.read(content, name=str(path))
    if keys == {"graphs"}:
        raise InputError(f"{path} lists graphs and holds none", hint="name one of the files beside it")
    if {"pinned", "groups", "labels"} <= keys:
        raise InputError(f"{path} is what a reader did to a page, and no graph", hint=f"add it with --state {path}")
    raise InputError(f"{path} is JSON, but no graph that is known: it holds {shown(keys)}", hint=HINT)
