"""Pages of features that need no network and no server: an index, a page for each coder, one that shows any feature.

Opened from a folder, pages may not fetch, but they may load scripts: the data lie in files that hand a value over,
``circuitData("resid.9/6", {...})``, features in chunks of CHUNK by their number. So a page loads what it shows.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from circuitcli.render.document import to_json
from circuitcli.render.modules import asset, filled, import_map, safe
from circuitcli.render.text import visible
from circuitcli.runs import atomic

# Features in one file, by number: what a page loads for one of them.
CHUNK = 50
DATA = "data"
INDEX, FEATURE = "index.html", "feature.html"


def chunk_of(feature: int) -> int:
    """The number of the file that a feature is in."""
    return feature // CHUNK


def coder_page(hook: str) -> str:
    """The file name of a coder's page."""
    return f"{hook}.html"


def html(kind: str, title: str, data: Mapping[str, Any] | None = None) -> str:
    """A page of this kind: index, coder, feature or text. data: what it carries; else it loads what it needs."""
    parts = {
        "kind": escape(kind),
        "title": escape(visible(title)),
        "style": asset("features.css"),
        "modules": import_map("features", "explorer/dom.js", "explorer/text.js"),
        "data": safe(to_json(dict(data or {}))),
    }
    return filled("features.html", parts)


def feature_page(documents: list[dict[str, Any]], *, run: str) -> str:
    """One page, whole in itself, of the documents of one or more features."""
    title = " ".join(str(document["id"]) for document in documents[:3])
    return html("feature", f"{title} – {run}", {"run": run, "features": documents})


def text_page(content: Mapping[str, Any]) -> str:
    """One page, whole in itself, of a text with the features that are active in it."""
    return html("text", f"{content['title']} – features", content)


def write_page(folder: Path, name: str, text: str) -> None:
    """Write a page into a folder."""
    with atomic(folder / name) as stream:
        stream.write(text)


def write_data(folder: Path, key: str, value: Any) -> None:
    """Write the file that hands over a value; ``key`` is its name, ``/`` parts folders."""
    with atomic(data_path(folder, key)) as stream:
        stream.write(f"circuitData({json.dumps(key)}, {to_json(value)});\n")


def data_path(folder: Path, key: str) -> Path:
    """Where the file of a key is."""
    return folder / DATA / f"{key}.js"
