"""JavaScript modules inside a page: an import map of ``data:`` URLs, by which ``#name`` finds ``name.js``.

So nothing is built, and a page that was opened from a folder, where modules cannot be loaded from files, has them.
"""

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from urllib.parse import quote

# What a URL may not hold as it is; other characters stay readable.
_READABLE = "".join(map(chr, range(33, 127))).replace("%", "").replace("#", "") + " "
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def import_map(folder: str, *, also: Mapping[str, Iterable[str]] | None = None) -> dict[str, str]:
    """The modules of a folder of assets by the names under which they import each other, as URLs that hold their text.

    also: modules of other folders.
    """
    files = [file for file in assets(folder).iterdir() if file.name.endswith(".js")]
    files += [assets(other) / f"{name}.js" for other, names in (also or {}).items() for name in names]
    return {f"#{file.name.removesuffix('.js')}": _url(file.read_text("utf-8")) for file in sorted(files, key=_name)}


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with ``{{name}}`` replaced by parts; what stands in these is not looked at again."""
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], template)


def assets(name: str) -> Traversable:
    """A file or folder that pages are made of."""
    return resources.files("circuitcli.render").joinpath("assets", name)


def _name(file: Traversable) -> str:
    return file.name


def _url(text: str) -> str:
    return "data:text/javascript;charset=utf-8," + quote(text, _READABLE)
