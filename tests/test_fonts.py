"""Pictures look the same where their font is absent: an SVG carries what it shows, and `dot` measures by the same."""

import base64
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from fontTools.ttLib import TTFont
from test_render import small_drawing

from circuitcli.render import fonts
from circuitcli.render.dot import dot_source
from circuitcli.render.fonts import FAMILIES, environment, with_fonts
from circuitcli.render.picture import picture
from circuitcli.render.plots import Axis, Panel, Plot, Series, svg
from circuitcli.settings.render import RenderSettings

FACE = re.compile(r"font-weight:(\w+);font-style:(\w+);src:url\(data:font/woff;base64,([\w+/=]+)\)")
FILES = {
    ("normal", "normal"): "DejaVuSans",
    ("bold", "normal"): "DejaVuSans-Bold",
    ("normal", "italic"): "DejaVuSans-Oblique",
}


def carried(text: str) -> dict[tuple[str, str], TTFont]:
    """The fonts inside an SVG, by weight and style."""
    return {(weight, style): TTFont(io.BytesIO(base64.b64decode(data))) for weight, style, data in FACE.findall(text)}


def whole(face: tuple[str, str]) -> TTFont:
    directory = fonts._directory()
    assert directory is not None
    return TTFont(directory / f"{FILES[face]}.ttf", lazy=True)


def svg_of(*texts: str) -> str:
    return "<svg>" + "".join(f'<text font-weight="bold">{escape(text)}</text>' for text in texts) + "</svg>"


@pytest.mark.parametrize("text", ["", "AVA fi <&> …▶┫ ↵", "Ünï Ελ Жи עב لا ქა", "a\u0301 东 😀 \ufffd"])
def test_every_character_that_the_font_has_is_carried_as_wide_as_it_is(text: str) -> None:
    found = carried(with_fonts(svg_of(text)))
    assert len(found) == 2
    for face, font in found.items():
        known, original = font.getBestCmap(), whole(face)
        names = original.getBestCmap()
        for character in set(text) & set(map(chr, names)):
            width = original["hmtx"][names[ord(character)]][0]
            assert font["hmtx"][known[ord(character)]][0] == width


def test_faces_are_carried_that_are_used_with_the_notice_of_their_licence() -> None:
    plain = "<svg><text>a</text></svg>"
    assert set(carried(with_fonts(plain))) == {("normal", "normal")}
    bold = carried(with_fonts(svg_of("a")))
    assert set(bold) == {("normal", "normal"), ("bold", "normal")}
    assert all("Bitstream" in font["name"].getDebugName(0) for font in bold.values())
    assert with_fonts("<svg><path/></svg>") == "<svg><path/></svg>"


def test_the_same_text_gives_the_same_bytes() -> None:
    fonts._subset.cache_clear()
    first = with_fonts(svg_of("abc"))
    fonts._subset.cache_clear()
    assert first == with_fonts(svg_of("abc"))


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program 'dot' is missing: install graphviz")
def test_a_drawing_carries_its_fonts_and_names_others_as_wide_behind_it() -> None:
    text = picture(dot_source(small_drawing(), RenderSettings()), form="svg").decode()
    root = ElementTree.fromstring(text)
    written = [element for element in root.iter() if element.tag.endswith("}text")]
    assert {element.get("font-family") for element in written} == {FAMILIES}
    found = carried(text)
    assert set(found) == set(FILES)
    for element in written:
        face = element.get("font-weight", "normal"), element.get("font-style", "normal")
        assert set("".join(element.itertext())) <= set(map(chr, found[face].getBestCmap()))


def test_a_plot_carries_its_fonts() -> None:
    text = svg(Plot([[Panel([Series((0, 1), (0, 1), "α")], Axis("x"), Axis("y"), "title")]], title="whole"))
    found = carried(text)
    assert set(found) == {("normal", "normal"), ("bold", "normal")}
    assert {ord(character) for character in "αtitlewhole"} <= set(found["normal", "normal"].getBestCmap())


@pytest.mark.skipif(shutil.which("fc-match") is None, reason="the program 'fc-match' is missing: install fontconfig")
def test_programs_that_draw_know_the_font_without_any_on_the_machine(tmp_path: Path, monkeypatch) -> None:
    empty = tmp_path / "none.conf"
    empty.write_text("<fontconfig></fontconfig>", encoding="utf-8")
    monkeypatch.setenv("FONTCONFIG_FILE", str(empty))
    with environment() as variables:
        done = subprocess.run(
            ["fc-match", "-f", "%{file}", FAMILIES.split(",")[0]], env=variables, capture_output=True, text=True
        )
    assert done.stdout == str(fonts._directory() / "DejaVuSans.ttf")


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program 'dot' is missing: install graphviz")
def test_a_picture_that_png_has_no_room_for_is_said_to_be_smaller(caplog) -> None:
    wide = "digraph { rankdir=LR; a [shape=box width=400 height=0.1 fixedsize=true] }"
    assert picture(wide, form="png").startswith(b"\x89PNG")
    assert re.search("has 8[0-9] % of its size", caplog.text)
    caplog.clear()
    assert picture("digraph { a }", form="png") and not caplog.text


def test_where_nothing_can_be_written_the_fonts_of_the_machine_are_taken(monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(fonts.tempfile, "TemporaryDirectory", full)
    monkeypatch.delenv("FONTCONFIG_FILE", raising=False)
    with environment() as variables:
        assert "FONTCONFIG_FILE" not in variables
