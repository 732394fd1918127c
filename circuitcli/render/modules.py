"""What pages are made of: templates, and JavaScript modules as an import map of ``data:`` URLs, by which
``import { html } from "#dom"`` finds ``dom.js``.

So nothing is built, and a page that was opened from a folder, where modules cannot be loaded from files, has them.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any
from urllib.parse import quote

# In JSON these stand inside strings only; written so, nothing ends the script element or a line of it early.
_UNSAFE = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
# What a URL may not hold as it is; other characters stay readable.
_READABLE = "".join(map(chr, range(33, 127))).replace("%", "").replace("#", "") + " "
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def filled(name: str, parts: Mapping[str, str]) -> str:
    """The template of this name with ``{{part}}`` replaced by parts; what stands in these is not looked at again."""
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], asset(name))


def safe(text: str) -> str:
    """JSON text for the inside of a script element."""
    return text.translate(_UNSAFE)


def carried(text: str) -> dict[str, Any]:
    """The object that a page carries, as `safe` JSON. Raises ValueError for a text that is no page of ours."""
    match = _DATA.search(text)
    found = None if match is None else json.loads(match[1])
    if not isinstance(found, dict):
        raise ValueError("this is not the page of a command: it carries no data")
    return found


@cache
def import_map(folder: str, *more: str) -> str:
    """The modules of a folder of assets, and more by their paths, by the names under which they import each other."""
    texts = parts(folder, ".js") | {path.rpartition("/")[2]: asset(path) for path in more}
    urls = {f"#{name.removesuffix('.js')}": _url(text) for name, text in sorted(texts.items())}
    return safe(json.dumps({"imports": urls}))


def parts(folder: str, suffix: str) -> dict[str, str]:
    """The texts of a folder's files of one kind, by name."""
    files = sorted(_place(folder).iterdir(), key=lambda file: file.name)
    return {file.name: file.read_text("utf-8") for file in files if file.name.endswith(suffix)}


def asset(name: str) -> str:
    """The text of a file that pages are made of."""
    return _place(name).read_text(encoding="utf-8")


def _place(name: str) -> Traversable:
    return resources.files("circuitcli.render").joinpath("assets", name)


def _url(text: str) -> str:
    return "data:text/javascript;charset=utf-8," + quote(text, _READABLE)
