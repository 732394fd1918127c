"""Graphviz HTML-like labels from small parts; whatever comes from outside passes through `span`."""

from circuitcli.render.scales import shade, sign_colour
from circuitcli.render.text import markup, shortened, signed

GREY = "#666666"
# `dot` fails on 16,384 bytes in a row; a character takes up to six.
LONGEST = 400


def span(
    text: str, *, colour: str | None = None, size: int | None = None, bold: bool = False, underlined: bool = False
) -> str:
    """Escaped text in a colour, size and weight, cut where it is longer than any line."""
    written = markup(shortened(text, LONGEST))
    inside = f"<B>{written}</B>" if bold else written
    attributes = (f' COLOR="{colour}"' if colour else "") + (f' POINT-SIZE="{size}"' if size else "")
    shown = f"<FONT{attributes}>{inside}</FONT>" if attributes else inside
    return f"<U>{shown}</U>" if underlined else shown


def cell(content: str, **attributes: object) -> str:
    """A table cell; attributes by their lower-case names, ``align="left"`` unless given."""
    return f"<TD{_written({'align': 'left', **attributes})}>{content}</TD>"


def row(*cells: str) -> str:
    """A table row."""
    return f"<TR>{''.join(cells)}</TR>"


def table(*rows: str, **attributes: object) -> str:
    """A table without lines or space unless given."""
    plain = {"border": 0, "cellborder": 0, "cellspacing": 0, "cellpadding": 1}
    return f"<TABLE{_written({**plain, **attributes})}>{''.join(rows)}</TABLE>"


def _written(attributes: dict[str, object]) -> str:
    return "".join(f' {name.upper()}="{value}"' for name, value in attributes.items())


def token_cell(token: str, activation: float, largest: float, *, size: int = 9) -> str:
    """A token on a background as blue as its activation is large; below zero it is underlined, on orange."""
    colour = {"bgcolor": shade(activation, largest)} if activation else {}
    return cell(span(token, size=size, underlined=activation < 0), **colour)


def signed_span(value: float, unit: str | None = None, *, size: int | None = None) -> str:
    """A number in the colour of its sign."""
    return span(signed(value, unit), colour=sign_colour(value), size=size)
