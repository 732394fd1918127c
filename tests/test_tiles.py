"""A picture on several pages: nothing is lost between them, and they are as few as can be read."""

import io
import re
import shutil
import subprocess
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pypdf import PdfReader
from pypdf.generic import DictionaryObject
from test_render import requested, small_drawing, small_graph, wide_graph

from circuitcli.errors import SettingsError
from circuitcli.graphs import to_records
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import draw
from circuitcli.render.ink import CELL, Ink, ink_of
from circuitcli.render.picture import picture
from circuitcli.render.tiles import MARGIN, OVERLAP, PAPERS, SMALLEST_SCALE, tiled, tiling
from circuitcli.settings.render import RenderSettings
from circuitcli.stages import render

SIZES = st.floats(1, 20_000)
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="the program 'dot' is missing: install graphviz")


@settings(deadline=None, max_examples=30)
@given(SIZES, SIZES, st.sampled_from(sorted(PAPERS)))
@example(595.28, 841.89, "a4")
@example(1.0, 1.0, "letter")
def test_pages_hold_all_of_the_drawing_and_neighbours_share_a_strip(width: float, height: float, paper: str) -> None:
    laid_out = tiling(width, height, paper)
    tiles = [*laid_out.tiles()]
    assert len(tiles) == laid_out.n_pages == laid_out.rows * laid_out.columns
    assert laid_out.page in (PAPERS[paper], PAPERS[paper][::-1])
    assert SMALLEST_SCALE - 1e-9 <= laid_out.scale <= 1
    for axis, room, size in (("x", laid_out.inner[0], laid_out.width), ("y", laid_out.inner[1], laid_out.height)):
        extent = "width" if axis == "x" else "height"
        spans = sorted({(getattr(tile, axis), getattr(tile, axis) + getattr(tile, extent)) for tile in tiles})
        assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(size)
        assert all(end - start <= room + 1e-6 for start, end in spans)
        assert all(end - start == pytest.approx(OVERLAP) for (_, end), (start, _) in pairwise(spans))


@settings(deadline=None, max_examples=15)
@given(st.floats(1, 4000), st.floats(1, 4000), st.sampled_from(sorted(PAPERS)))
def test_no_other_scale_or_way_to_lay_the_paper_takes_fewer_pages(width: float, height: float, paper: str) -> None:
    def covered(size: float, room: float) -> int:
        n, reached = 1, room
        while reached < size - 1e-6:
            n, reached = n + 1, reached + room - OVERLAP
        return n

    laid_out = tiling(width, height, paper)
    pages = PAPERS[paper], PAPERS[paper][::-1]
    for page, step in product(pages, range(21)):
        scale = 1 - (1 - SMALLEST_SCALE) * step / 20
        inner = [side - 2 * MARGIN for side in page]
        assert laid_out.n_pages <= covered(width * scale, inner[0]) * covered(height * scale, inner[1])


@settings(deadline=None, max_examples=8)
@given(st.integers(2, 50), st.integers(2, 50), st.lists(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)), max_size=6))
@example(50, 50, [(0.0, 0.0), (0.99, 0.99)])
@example(60, 4, [(0.5, 0.0)])
def test_pages_without_ink_are_left_out_and_nothing_is_lost(rows: int, columns: int, places: list) -> None:
    """Each inked cell lies whole on a page, apart from what the page shares with one that is left out."""
    cells = np.zeros((10 * rows, 10 * columns), dtype=bool)
    for y, x in places:
        cells[int(y * len(cells)), int(x * cells.shape[1])] = True
    ink, size = Ink.of(cells), (cells.shape[1] * CELL, cells.shape[0] * CELL)
    laid_out, every = tiling(*size, "a4", ink=ink), tiling(*size, "a4")
    assert laid_out.n_pages == len([*laid_out.tiles()]) <= min(every.n_pages, 4 * len(places) or every.n_pages)
    for y, x in np.argwhere(cells):
        left, top = x * CELL * laid_out.scale, y * CELL * laid_out.scale
        side = CELL * laid_out.scale
        assert any(
            tile.x - 1e-6 <= left and left + side <= tile.x + tile.width + 1e-6
            and tile.y - 1e-6 <= top and top + side <= tile.y + tile.height + 1e-6
            for tile in laid_out.tiles()
        )  # fmt: skip
    for tile in laid_out.tiles():
        box = [value / laid_out.scale for value in (tile.x, tile.y, tile.x + tile.width, tile.y + tile.height)]
        assert ink.any_in(*box) or not places


@needs_dot
def test_no_page_of_a_picture_is_blank() -> None:
    """Two boxes far apart, and a line between them that leaves two corners of the paper alone."""
    source = 'digraph { graph [bgcolor="white"] a [pos="0,0!" shape=box] b [pos="1500,2000!" shape=box] a -> b }'
    laid_out = subprocess.run(["neato", "-n2", "-Tjson"], input=source, capture_output=True, text=True).stdout
    ink = ink_of(laid_out)
    assert ink is not None
    height, width = ((side - 1) * CELL for side in ink.sums.shape)
    assert ink.any_in(0.0, height - 60, 60.0, height) and ink.any_in(width - 60, 0.0, width, 60.0)
    assert not ink.any_in(0.0, 0.0, 600.0, 600.0) and not ink.any_in(width - 600, height - 600, width, height)
    for step in np.linspace(0.1, 0.9, 30):
        x, y = width * step, height * (1 - step)
        assert ink.any_in(x - CELL, y - CELL, x + CELL, y + CELL)
    kept = tiling(width, height, "a4", ink=ink)
    assert kept.n_pages < tiling(width, height, "a4").n_pages


def fonts(resources: DictionaryObject) -> list[DictionaryObject]:
    """All fonts of a page and of what it shows."""
    found = [font.get_object() for font in resources.get("/Font", DictionaryObject()).get_object().values()]
    for shown in resources.get("/XObject", DictionaryObject()).get_object().values():
        found += fonts(shown.get_object().get("/Resources", DictionaryObject()).get_object())
    return found


def is_embedded(font: DictionaryObject) -> bool:
    below = font.get("/DescendantFonts")
    described = font if below is None else below.get_object()[0].get_object()
    return any(name.startswith("/FontFile") for name in described["/FontDescriptor"].get_object())


@pytest.fixture(scope="module")
def large() -> bytes:
    if shutil.which("dot") is None:
        pytest.skip("the program 'dot' is missing: install graphviz")
    return picture(dot_source(draw(wide_graph(60, positions=False)), RenderSettings()), form="pdf")


def test_every_page_is_numbered_shows_its_part_and_has_its_fonts_in_the_file(large: bytes) -> None:
    made = PdfReader(io.BytesIO(tiled(large, "a4", title="a (b) ä")))
    whole = PdfReader(io.BytesIO(large)).pages[0].mediabox
    laid_out = tiling(float(whole.width), float(whole.height), "a4")
    assert len(made.pages) == laid_out.n_pages > 2
    assert made.metadata is not None and made.metadata.title == "a (b) ä"
    for number, (page, tile) in enumerate(zip(made.pages, laid_out.tiles(), strict=True), start=1):
        assert (float(page.mediabox.width), float(page.mediabox.height)) == pytest.approx(laid_out.page, abs=0.01)
        assert f"a (b) ä: page {number} of {laid_out.n_pages} (row" in page.extract_text()
        found = fonts(page["/Resources"].get_object())
        assert len(found) > 2 and all(map(is_embedded, found))
        # The tile's upper left corner of the drawing is moved to the corner of what the page shows.
        x, y, width, height, a, _, _, d, e, f = map(
            float, re.findall(rb"-?[\d.]+", page.get_contents().get_data())[:10]
        )
        assert (a * tile.x / laid_out.scale + e, d * (float(whole.height) - tile.y / laid_out.scale) + f) == (
            pytest.approx((x, y + height), abs=0.01)
        )
        assert (width, height) == pytest.approx((tile.width, tile.height), abs=0.01)


def test_the_drawing_is_in_the_file_once(large: bytes) -> None:
    assert len(tiled(large, "letter", title="x")) < 3 * len(large) + 20_000


@needs_dot
def test_what_fits_one_page_is_on_one_page_without_crop_marks() -> None:
    source = dot_source(small_drawing(), RenderSettings(contexts=0, logits=0))
    made = PdfReader(io.BytesIO(tiled(picture(source, form="pdf"), "a3", title="small")))
    assert len(made.pages) == 1 and "small: page 1 of 1" in made.pages[0].extract_text()


def test_paper_without_a_file_of_pages_is_refused(inside) -> None:
    for output in ((), "x.svg"):
        with pytest.raises(SettingsError, match="--tile a4") as raised:
            render.run(requested(inside, to_records(small_graph()), output=output, tile="a4"), stdout=io.StringIO())
        assert "-o circuit.pdf" in raised.value.hint
    assert list(inside.iterdir()) == []
