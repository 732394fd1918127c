"""XML: text that it can hold, and documents of others, read without what could make them grow."""

import re
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from circuitcli.errors import InputError
from circuitcli.graphs.exchange.shared import AGAIN
from circuitcli.printable import escaped
from circuitcli.reading import whole_number

# What no XML document may contain, not even escaped.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# The types of columns, in the words of GraphML and GEXF.
TYPES = {"string": "string", "Int64": "long", "boolean": "boolean", "float64": "double"}


def legal(text: str) -> str:
    """The text with characters that XML cannot hold as Python writes them, ``\\x00``."""
    return _ILLEGAL.sub(lambda found: escaped(found[0]), text)


def text_of(value: Any) -> str:
    """A value between two tags."""
    if isinstance(value, bool):
        return "true" if value else "false"
    shown = repr(value) if isinstance(value, float) else str(value)
    # What a reader makes of a carriage return is a line feed.
    return legal(shown).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")


def attribute(value: Any) -> str:
    """A value of an attribute, with its quotation marks."""
    return quoteattr(legal(text_of(value) if isinstance(value, bool | float) else str(value)))


def value_of(text: str, kind: str, *, name: str) -> Any:
    """The value of this type that a text is. Raises InputError for another."""
    if kind in ("long", "int", "integer"):
        number = whole_number(text.strip())
        if number is None:
            raise InputError(f"{name}: {text[:60]!r} is not a whole number", hint=AGAIN)
        return number
    if kind in ("double", "float"):
        try:
            return float(text)
        except ValueError:
            raise InputError(f"{name}: {text[:60]!r} is not a number", hint=AGAIN) from None
    if kind == "boolean":
        return text.strip() == "true"
    return text


def root(content: bytes, *, name: str) -> ElementTree.Element:
    """The outermost element, names without their namespace. Raises InputError for what is no XML, or declares
    entities, which can stand for any amount of text."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content or b"\0" in content[:64]:
        raise InputError(f"{name} declares a document type, which graphs have no use for", hint=AGAIN)
    try:
        found = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise InputError(f"{name} is not XML: {error}", hint=AGAIN) from None
    for element in found.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return found
