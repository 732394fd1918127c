"""A drawing as one interactive HTML file that needs nothing else: no network, no fonts, no programs.

Its JavaScript lies in ``assets/explorer``, a file for each module; see `modules` for how the page has them.
"""

import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from circuitcli.render.document import document, to_json
from circuitcli.render.drawing import Drawing
from circuitcli.render.findings import findings
from circuitcli.render.heading import READING, conditions_of, facts, measured_metric
from circuitcli.render.layout import layout
from circuitcli.render.modules import carried, filled, import_map, parts, safe
from circuitcli.render.packing import packed, unpacked
from circuitcli.render.sites import FILL, INK, kinds_in
from circuitcli.render.text import visible


def page(drawing: Drawing, *, path: Path | None = None) -> str:
    """The HTML text; the document of `document()` is embedded in it, see `embedded`. path: where it is written."""
    content = {
        "title": escape(f"{visible(drawing.graph.head.name)} – {visible(drawing.graph.head.prompt)[:80]}"),
        "style": styles(),
        "modules": import_map("explorer"),
        "data": safe(to_json(_content(drawing, path))),
    }
    return filled("page.html", content)


def embedded(text: str) -> dict[str, Any]:
    """What a page carries: ``document``, ``layout``, and the lines of text that pictures have too.

    Raises ValueError for another text.
    """
    content = carried(text)
    if "packed" not in content:
        raise ValueError("this is not the page of a circuit")
    return {"document": unpacked(content.pop("packed")), **content}


def _content(drawing: Drawing, path: Path | None) -> dict[str, Any]:
    return {
        "packed": packed(document(drawing, path=path)),
        "state": None if drawing.state is None else drawing.state.model_dump(mode="json", exclude_unset=True),
        "layout": layout(drawing).to_json(),
        "facts": facts(drawing.graph.head),
        "kinds": {kind: [FILL[kind], INK[kind]] for kind in kinds_in(drawing.graph.nodes)},
        "noun": drawing.graph.head.noun,
        "metric": measured_metric(drawing.graph.head),
        "reading": READING,
        "conditions": [conditions_of(score) for score in drawing.scores],
        "outcome": findings(drawing.scores, drawing.verdict),
    }


@cache
def styles() -> str:
    """The styles of the page, one file after the other by name."""
    return "\n".join([_colours(), *parts("explorer", ".css").values()])


def _colours() -> str:
    """The colours of kinds of sites, as variables that light and dark are made of."""
    lines = [f"  --fill-{_slug(kind)}: {FILL[kind]};\n  --ink-{_slug(kind)}: {INK[kind]};" for kind in FILL]
    return "\n".join([":root {", *lines, "}"])


def _slug(kind: str) -> str:
    return re.sub(r"\W+", "-", kind)
