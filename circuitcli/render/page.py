"""A drawing as one interactive HTML file that needs nothing else: no network, no fonts, no programs."""

import json
import re
from html import escape
from importlib import resources
from typing import Any

from circuitcli.render.document import document, to_json
from circuitcli.render.drawing import Drawing
from circuitcli.render.heading import READING, conditions_of, facts, measured_metric
from circuitcli.render.layout import layout
from circuitcli.render.sites import FILL, INK, kinds_in
from circuitcli.render.text import visible

# In JSON these stand inside strings only; written so, nothing ends the script element or a line of it early.
_UNSAFE = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def page(drawing: Drawing) -> str:
    """The HTML text; the document of `document()` is embedded in it, see `embedded`."""
    parts = {
        "title": escape(f"{visible(drawing.graph.head.name)} – {visible(drawing.graph.head.prompt)[:80]}"),
        "style": asset("page.css"),
        "script": asset("page.js"),
        "data": safe(to_json(_content(drawing))),
    }
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], asset("page.html"))


def embedded(text: str) -> dict[str, Any]:
    """What a page carries: ``document``, ``layout``, and the lines of text that pictures have too.

    Raises ValueError for another text.
    """
    match = _DATA.search(text)
    if match is None:
        raise ValueError("this is not the page of a circuit")
    return dict(json.loads(match[1]))


def _content(drawing: Drawing) -> dict[str, Any]:
    return {
        "document": document(drawing),
        "layout": layout(drawing).to_json(),
        "facts": facts(drawing.graph.head),
        "kinds": {kind: [FILL[kind], INK[kind]] for kind in kinds_in(drawing.graph.nodes)},
        "metric": measured_metric(drawing.graph.head),
        "reading": READING,
        "conditions": [conditions_of(score) for score in drawing.scores],
    }


def safe(text: str) -> str:
    """JSON text for the inside of a script element."""
    return "".join(_UNSAFE.get(character, character) for character in text)


def asset(name: str) -> str:
    """The text of a file that pages are made of."""
    return resources.files("circuitcli.render").joinpath("assets", name).read_text(encoding="utf-8")
