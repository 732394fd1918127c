"""One font for all pictures, wherever they are drawn and looked at: DejaVu Sans, which comes with matplotlib.

`dot` finds it by fontconfig, so that boxes are as wide as their text even on a machine without fonts. An SVG carries
the characters that it shows: where the font is absent its text is neither wider nor another one. In a PDF `dot` and
matplotlib embed what they use. The licence of DejaVu and Bitstream Vera allows all of that; the notice stays inside.
Characters that the font has not, as those of East Asia, come from the fonts of whoever draws and looks.
"""

import base64
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from html import unescape
from importlib.util import find_spec
from pathlib import Path

# Verdana is as wide, for programs that take no font from a file; Helvetica and Arial are narrower.
FAMILIES = "DejaVu Sans,Verdana,Helvetica,Arial,sans-serif"
_FACES = {
    "DejaVuSans": ("normal", "normal"),
    "DejaVuSans-Bold": ("bold", "normal"),
    "DejaVuSans-Oblique": ("normal", "italic"),
}
_BOLD = re.compile(r'font-weight[=:]\s*"?(?:bold|[6-9]00)|font:[^;"]*\b(?:bold|[6-9]00)\b')
_ITALIC = re.compile(r'font-style[=:]\s*"?(?:italic|oblique)|font:[^;"]*\b(?:italic|oblique)\b')
# Fonts beside it that show every character as a sign of its script, or mathematics only.
_OTHERS = ("LastResort*", "STIX*", "cm*")
_SYSTEM = ("/etc/fonts/fonts.conf", "/usr/local/etc/fonts/fonts.conf", "/opt/homebrew/etc/fonts/fonts.conf")
_SVG_BEGIN = re.compile(r"<svg\b[^>]*>")


@contextmanager
def environment() -> Iterator[Mapping[str, str]]:
    """The environment for programs that draw, in which fontconfig knows the font before those of the machine."""
    with ExitStack() as stack:
        path = _written(stack)
        yield dict(os.environ) if path is None else {**os.environ, "FONTCONFIG_FILE": str(path)}


def _written(stack: ExitStack) -> Path | None:
    """A configuration that goes with the stack; none where nothing can be written: the machine's fonts will do then."""
    directory = _directory()
    if sys.platform == "win32" or directory is None:
        return None
    try:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "fonts.conf"
        path.write_text(_configuration(directory), encoding="utf-8")
    except OSError:
        return None
    return path


def _configuration(directory: Path) -> str:
    users = (os.environ.get("FONTCONFIG_FILE", ""), str(Path(sys.prefix) / "etc/fonts/fonts.conf"))
    # The first that is there: the others would name the same folders again.
    others = next((path for path in (*users, *_SYSTEM) if path and Path(path).is_file()), _SYSTEM[0])
    rejected = "".join(f"<glob>{_escaped(str(directory / name))}</glob>" for name in _OTHERS)
    return (
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n'
        f"<fontconfig><dir>{_escaped(str(directory))}</dir>"
        f"<selectfont><rejectfont>{rejected}</rejectfont></selectfont>"
        f'<include ignore_missing="yes">{_escaped(others)}</include></fontconfig>\n'
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


@cache
def _directory() -> Path | None:
    """Where matplotlib keeps its fonts, without importing it."""
    found = find_spec("matplotlib")
    path = Path(found.origin or "").parent / "mpl-data" / "fonts" / "ttf" if found is not None else None
    return path if path is not None and (path / "DejaVuSans.ttf").is_file() else None


def with_fonts(svg: str) -> str:
    """The SVG with the characters that it shows, in the faces that it shows them in."""
    directory, begin = _directory(), _SVG_BEGIN.search(svg)
    if directory is None or begin is None or "<text" not in svg:
        return svg
    shown = "".join(sorted(set(unescape(re.sub(r"<[^>]*>", "", svg[begin.end() :])))))
    used = {"DejaVuSans": True, "DejaVuSans-Bold": _BOLD.search(svg), "DejaVuSans-Oblique": _ITALIC.search(svg)}
    rules = "".join(_rule(directory / f"{name}.ttf", shown) for name, is_used in used.items() if is_used)
    return f"{svg[: begin.end()]}\n<style>{rules}</style>{svg[begin.end() :]}"


def _rule(path: Path, shown: str) -> str:
    weight, style = _FACES[path.stem]
    data = base64.b64encode(_subset(path, shown)).decode()
    source = f"url(data:font/woff;base64,{data}) format('woff')"
    return f"@font-face{{font-family:'DejaVu Sans';font-weight:{weight};font-style:{style};src:{source}}}\n"


@lru_cache(maxsize=16)
def _subset(path: Path, shown: str) -> bytes:
    """The font with these characters alone, with the notice of its licence, as WOFF."""
    from fontTools import subset
    from fontTools.ttLib import TTFont

    # It tells of tables that it drops.
    logging.getLogger("fontTools.subset").setLevel(logging.ERROR)
    options = subset.Options(hinting=False, name_IDs=[0, 14], drop_tables=[*subset.Options().drop_tables, "FFTM"])
    stream = io.BytesIO()
    with TTFont(path, lazy=True, recalcTimestamp=False) as font:
        made = subset.Subsetter(options)
        made.populate(text=shown)
        made.subset(font)
        font.flavor = "woff"
        font.save(stream)
    return stream.getvalue()
