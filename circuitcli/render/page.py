"""A drawing as one interactive HTML file that needs nothing else: no network, no fonts, no programs.

Its JavaScript lies in ``assets/explorer``, a file for each module. The page carries them as ``data:`` URLs in an import
map, by which ``import { html } from "#dom"`` finds ``dom.js``; so nothing is built, and names clash nowhere.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from circuitcli.render.document import document, to_json
from circuitcli.render.drawing import Drawing
from circuitcli.render.findings import findings
from circuitcli.render.heading import READING, conditions_of, facts, measured_metric
from circuitcli.render.layout import layout
from circuitcli.render.packing import packed, unpacked
from circuitcli.render.sites import FILL, INK, kinds_in
from circuitcli.render.text import visible

# In JSON these stand inside strings only; written so, nothing ends the script element or a line of it early.
_UNSAFE = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
# What a URL may not hold as it is; other characters stay readable.
_READABLE = "".join(map(chr, range(33, 127))).replace("%", "").replace("#", "") + " "


def page(drawing: Drawing, *, path: Path | None = None) -> str:
    """The HTML text; the document of `document()` is embedded in it, see `embedded`. path: where it is written."""
    parts = {
        "title": escape(f"{visible(drawing.graph.head.name)} – {visible(drawing.graph.head.prompt)[:80]}"),
        "style": styles(),
        "modules": safe(json.dumps({"imports": dict(modules())})),
        "data": safe(to_json(_content(drawing, path))),
    }
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], asset("page.html"))


def embedded(text: str) -> dict[str, Any]:
    """What a page carries: ``document``, ``layout``, and the lines of text that pictures have too.

    Raises ValueError for another text.
    """
    match = _DATA.search(text)
    if match is None:
        raise ValueError("this is not the page of a circuit")
    content = dict(json.loads(match[1]))
    return {"document": unpacked(content.pop("packed")), **content}


def _content(drawing: Drawing, path: Path | None) -> dict[str, Any]:
    return {
        "packed": packed(document(drawing, path=path)),
        "state": None if drawing.state is None else drawing.state.model_dump(mode="json", exclude_unset=True),
        "layout": layout(drawing).to_json(),
        "facts": facts(drawing.graph.head),
        "kinds": {kind: [FILL[kind], INK[kind]] for kind in kinds_in(drawing.graph.nodes)},
        "metric": measured_metric(drawing.graph.head),
        "reading": READING,
        "conditions": [conditions_of(score) for score in drawing.scores],
        "outcome": findings(drawing.scores, drawing.verdict),
    }


def safe(text: str) -> str:
    """JSON text for the inside of a script element."""
    return text.translate(_UNSAFE)


@cache
def modules() -> Mapping[str, str]:
    """The modules of the page by the names under which they import each other, as URLs that hold their text."""
    return {f"#{name.removesuffix('.js')}": _url(text) for name, text in _parts(".js").items()}


@cache
def styles() -> str:
    """The styles of the page, one file after the other by name."""
    return "\n".join([_colours(), *_parts(".css").values()])


def _colours() -> str:
    """The colours of kinds of sites, as variables that light and dark are made of."""
    lines = [f"  --fill-{_slug(kind)}: {FILL[kind]};\n  --ink-{_slug(kind)}: {INK[kind]};" for kind in FILL]
    return "\n".join([":root {", *lines, "}"])


def _slug(kind: str) -> str:
    return re.sub(r"\W+", "-", kind)


def _parts(suffix: str) -> dict[str, str]:
    files = sorted(_folder("explorer").iterdir(), key=lambda file: file.name)
    return {file.name: file.read_text("utf-8") for file in files if file.name.endswith(suffix)}


def _url(text: str) -> str:
    return "data:text/javascript;charset=utf-8," + quote(text, _READABLE)


def asset(name: str) -> str:
    """The text of a file that pages are made of."""
    return _folder(name).read_text(encoding="utf-8")


def _folder(name: str) -> Traversable:
    return resources.files("circuitcli.render").joinpath("assets", name)
