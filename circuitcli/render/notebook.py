"""What a notebook shows of a graph: the page in a frame of its own, and a picture where no page can be shown."""

from html import escape

from circuitcli.errors import CircuitError
from circuitcli.graphs import CircuitGraph
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import draw
from circuitcli.render.page import page
from circuitcli.render.picture import picture
from circuitcli.settings.render import RenderSettings

HEIGHT = 720
# Notebooks ask for all forms of a value at once; `dot` takes long for more.
MAX_EDGES = 100


def drawn(value: object, form: str) -> str | None:
    """A graph as ``svg`` or ``html``; None for anything else, and where it cannot be drawn."""
    if not isinstance(value, CircuitGraph):
        return None
    try:
        if form == "svg":
            return picture(dot_source(draw(value, max_edges=MAX_EDGES), RenderSettings()), form="svg").decode()
        return frame(page(draw(value)))
    except CircuitError:
        # A notebook shows the text in its place.
        return None


def frame(html: str) -> str:
    """A whole page as a piece of another, from which it is shut off."""
    style = f"width: 100%; height: {HEIGHT}px; border: 1px solid #ddd"
    return f'<iframe srcdoc="{escape(html, quote=True)}" style="{style}"></iframe>'
