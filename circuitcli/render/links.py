"""Where more is told of a drawing's features: pages beside it, and Neuronpedia."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from circuitcli.render.drawing import Drawing
from circuitcli.saes.exchange.neuronpedia import address, is_source

# Where `circuit interp --html` writes by itself, and the page that shows the feature behind its #.
FOLDER, PAGE = Path("features", "html"), "feature.html"


def pages_of_features(run: Path | None) -> Path | None:
    """The folder with a page about each feature of a run, if it was made."""
    folder = None if run is None else run / FOLDER
    return folder if folder is not None and (folder / PAGE).is_file() else None


def links(drawing: Drawing, path: Path | None) -> dict[str, Any]:
    """Links as addresses without the feature; ``path`` is the file that they stand in."""
    known = drawing.graph.head.neuronpedia or {}
    return {
        "features": _beside(drawing.feature_pages, path),
        # A graph may come from anywhere: what has another form is no link.
        "neuronpedia": {hook: address(source) for hook, source in known.items() if is_source(source)},
    }


def _beside(pages: Path | None, path: Path | None) -> str | None:
    """The page of a feature seen from the file's folder; None without a file, or on another drive."""
    if pages is None or path is None:
        return None
    try:
        relative = os.path.relpath((pages / PAGE).resolve(), path.parent.resolve())
    except ValueError:
        return None
    return quote(Path(relative).as_posix())
