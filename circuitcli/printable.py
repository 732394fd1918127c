"""Text of models, people and files made fit for a terminal: nothing steers it, nothing hides in a line.

Each function gives what it is given where nothing needs to be written out, as in most texts.
"""

import json
import re
from collections.abc import Callable

_NAMED = {"\n": "↵", "\t": "→"}
# Controls past ASCII, and what changes the direction of the text around it.
_STEERING = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """The text with characters that cannot be printed as Python writes them."""
    return _with(text, lambda character: character.encode("unicode_escape").decode())


def printable(text: str) -> str:
    """The text with signs for line breaks and tabs, and other characters that cannot be printed as in `escaped`."""
    return _with(text, lambda character: _NAMED.get(character) or escaped(character))


def toml_printable(text: str) -> str:
    """The inside of a text in TOML's notation."""
    return _with(text.replace("\\", "\\\\").replace('"', '\\"'), lambda character: f"\\U{ord(character):08X}")


def json_printable(line: str) -> str:
    """A line of JSON that means the same, in which what cannot be printed is escaped."""
    # Outside its texts JSON is ASCII, and controls in them are escaped already.
    return _with(line, _in_json)


def json_steady(line: str) -> str:
    """A line of JSON that means the same, in which what could steer a terminal is escaped; all else stays as it is."""
    return line if line.isprintable() else _STEERING.sub(lambda found: _in_json(found[0]), line)


def _with(text: str, written: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else written(character) for character in text)


def _in_json(character: str) -> str:
    return json.dumps(character)[1:-1]
