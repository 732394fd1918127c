"""A picture larger than paper on several pages, at its own size, with what glues them together: overlaps, crop marks,
page numbers.

Text is never printed smaller than five sixths of its size: the smallest, 7 points, has 6. Within that the fewest pages
are taken, upright or across, and then the largest scale. Pages on which nothing is drawn are left out; where the
drawing's place on the paper decides how many these are, it is shifted.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from circuitcli.render.ink import Ink
from circuitcli.render.plots import saved_pages, styled
from circuitcli.settings.render import PaperName

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pypdf import PageObject, PdfWriter

# Points, upright.
PAPERS: dict[PaperName, tuple[float, float]] = {
    "a4": (595.28, 841.89),
    "a3": (841.89, 1190.55),
    "letter": (612.0, 792.0),
}
MARGIN, OVERLAP = 34.0, 22.0
SMALLEST_SCALE, _SCALES = 5 / 6, 20
# Shares of what is free by which a drawing is shifted, and how many sizes are tried with each.
_SHIFTS, _LOOKED_AT = (0.0, 0.25, 0.5, 0.75, 1.0), 12
_MARK = 12.0
_INK = "#444444"
_DRAWING = "/Drawing"


@dataclass(frozen=True)
class Tiling:
    """Pages of one size: so many columns and rows, each ``inner`` wide and high, and neighbours share an overlap.

    scale: of the drawing; width, height: of it then, in points. shift: how far it lies from the upper left corner of
    the first page. empty: rows and columns of pages that show nothing.
    """

    page: tuple[float, float]
    columns: int
    rows: int
    scale: float
    width: float
    height: float
    shift: tuple[float, float] = (0.0, 0.0)
    empty: frozenset[tuple[int, int]] = frozenset()

    @property
    def inner(self) -> tuple[float, float]:
        """What a page has room for between its margins."""
        return self.page[0] - 2 * MARGIN, self.page[1] - 2 * MARGIN

    @property
    def n_pages(self) -> int:
        """How many pages there are."""
        return self.columns * self.rows - len(self.empty)

    def tiles(self) -> "Iterator[Tile]":
        """From left to right, and from top to bottom."""
        for row, column in product(range(self.rows), range(self.columns)):
            if (row, column) not in self.empty:
                yield self.tile(row, column)

    def tile(self, row: int, column: int) -> "Tile":
        """What a page shows."""
        x = column * (self.inner[0] - OVERLAP) - self.shift[0]
        y = row * (self.inner[1] - OVERLAP) - self.shift[1]
        return Tile(row, column, x, y, min(self.inner[0], self.width - x), min(self.inner[1], self.height - y))

    def slack(self) -> tuple[float, float]:
        """How far the drawing can be shifted without another page."""
        room = [n * (inner - OVERLAP) + OVERLAP for n, inner in zip((self.columns, self.rows), self.inner, strict=True)]
        return max(room[0] - self.width, 0.0), max(room[1] - self.height, 0.0)

    def without_empty(self, ink: Ink) -> "Tiling":
        """The same without the pages that, cut in the middle of what they share, show nothing."""
        places = product(range(self.rows), range(self.columns))
        return replace(self, empty=frozenset(place for place in places if not ink.any_in(*self._own(*place))))

    def _own(self, row: int, column: int) -> tuple[float, float, float, float]:
        """What a page alone shows, in points of the drawing: left, upper, right and lower edge."""
        tile, half = self.tile(row, column), OVERLAP / 2
        left, top = tile.x + half * (column > 0), tile.y + half * (row > 0)
        right = tile.x + tile.width - half * (column < self.columns - 1)
        bottom = tile.y + tile.height - half * (row < self.rows - 1)
        return left / self.scale, top / self.scale, right / self.scale, bottom / self.scale


@dataclass(frozen=True)
class Tile:
    """A part of the scaled drawing; x, y: from its left and its upper edge, in points."""

    row: int
    column: int
    x: float
    y: float
    width: float
    height: float


def tiling(width: float, height: float, paper: PaperName, *, ink: Ink | None = None) -> Tiling:
    """How a drawing of this size, in points, is laid out: on the fewest pages, then as large as it can be.

    ink: where it has something; without it every page counts.
    """
    upright = PAPERS[paper]
    scales = [1 - (1 - SMALLEST_SCALE) * step / _SCALES for step in range(_SCALES + 1)]
    every = [_laid_out(width, height, page, scale) for scale in scales for page in (upright, upright[::-1])]
    if ink is not None and ink.sums[-1, -1]:
        every = [shifted.without_empty(ink) for one in _promising(every) for shifted in _shifted(one)]
    return min(every, key=lambda one: (one.n_pages, -one.scale, sum(one.shift)))


def _promising(every: Sequence[Tiling]) -> list[Tiling]:
    """Of those with as many columns and rows the largest, the one that is looked at closely."""
    best: dict[tuple[tuple[float, float], int, int], Tiling] = {}
    for one in every:
        key = one.page, one.columns, one.rows
        best[key] = max(best.get(key, one), one, key=lambda layout: layout.scale)
    return sorted(best.values(), key=lambda one: (one.n_pages, -one.scale))[:_LOOKED_AT]


def _shifted(one: Tiling) -> Iterator[Tiling]:
    slack = one.slack()
    for x, y in product(_SHIFTS, _SHIFTS):
        yield replace(one, shift=(x * slack[0], y * slack[1]))


def _laid_out(width: float, height: float, page: tuple[float, float], scale: float) -> Tiling:
    def needed(size: float, room: float) -> int:
        return max(1, math.ceil((size * scale - OVERLAP) / (room - 2 * MARGIN - OVERLAP) - 1e-9))

    return Tiling(page, needed(width, page[0]), needed(height, page[1]), scale, width * scale, height * scale)


def tiled(pdf: bytes, paper: PaperName, *, title: str, ink: Ink | None = None) -> bytes:
    """The PDF's first page on pages of a paper, but for those without ``ink``; of what fits one page, one."""
    from pypdf import PdfReader, PdfWriter

    drawing = PdfReader(io.BytesIO(pdf)).pages[0]
    laid_out = tiling(float(drawing.mediabox.width), float(drawing.mediabox.height), paper, ink=ink)
    writer = PdfWriter(clone_from=io.BytesIO(_marks(laid_out, title)))
    shared = _as_object(drawing, writer)
    for page, tile in zip(writer.pages, laid_out.tiles(), strict=True):
        _place(page, tile, laid_out, shared, writer)
    writer.add_metadata({"/Title": title, "/Creator": "circuit"})
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def _as_object(drawing: "PageObject", writer: "PdfWriter") -> object:
    """The drawing as something that pages show parts of; it is in the file once."""
    from pypdf.generic import DecodedStreamObject, NameObject

    content = drawing.get_contents()
    plain = DecodedStreamObject()
    plain.set_data(b"" if content is None else content.get_data())
    made = plain.flate_encode()
    made[NameObject("/Type")], made[NameObject("/Subtype")] = NameObject("/XObject"), NameObject("/Form")
    made[NameObject("/BBox")] = drawing.mediabox.clone(writer)
    for name in ("/Resources", "/Group"):
        if name in drawing:
            made[NameObject(name)] = drawing[name].clone(writer)
    return writer._add_object(made)


def _place(page: "PageObject", tile: Tile, laid_out: Tiling, shared: object, writer: "PdfWriter") -> None:
    """Put the part of the drawing below the marks of its page."""
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    top = laid_out.page[1] - MARGIN
    clip = f"{MARGIN:.3f} {top - tile.height:.3f} {tile.width:.3f} {tile.height:.3f} re W n"
    x, y = MARGIN - tile.x, top - laid_out.height + tile.y
    moved = f"{laid_out.scale:.6f} 0 0 {laid_out.scale:.6f} {x:.3f} {y:.3f} cm"
    marks = page.get_contents()
    stream = DecodedStreamObject()
    drawn = f"q {clip} {moved} {_DRAWING} Do Q\n".encode()
    stream.set_data(drawn + (b"" if marks is None else b"q " + marks.get_data() + b" Q"))
    page[NameObject("/Contents")] = writer._add_object(stream.flate_encode())
    resources = page["/Resources"]
    assert isinstance(resources, DictionaryObject)
    known = resources.get("/XObject", DictionaryObject()).get_object()
    resources[NameObject("/XObject")] = DictionaryObject({**known, NameObject(_DRAWING): shared})


def _marks(laid_out: Tiling, title: str) -> bytes:
    """Pages with marks alone."""
    with styled():
        return saved_pages(
            _mark_page(tile, laid_out, title, number) for number, tile in enumerate(laid_out.tiles(), start=1)
        )


def _mark_page(tile: Tile, laid_out: Tiling, title: str, number: int) -> "Figure":
    from matplotlib.figure import Figure

    width, height = laid_out.page
    figure = Figure(figsize=(width / 72, height / 72))
    figure.patch.set_alpha(0)
    scale = "" if laid_out.scale == 1 else f", {100 * laid_out.scale:.0f} % of its size"
    where = f" (row {tile.row + 1}, column {tile.column + 1})" if laid_out.n_pages > 1 else ""
    text = f"{title}: page {number} of {laid_out.n_pages}{where}{scale}"
    figure.text(MARGIN / width, 14 / height, text, fontsize=7, color=_INK)
    if laid_out.n_pages > 1:
        for x, y in _corners(tile, laid_out):
            _cross(figure, x, y, laid_out)
    return figure


def _corners(tile: Tile, laid_out: Tiling) -> Iterator[tuple[float, float]]:
    """Where the page is to be cut: in the middle of what it shares with a neighbour, else at the drawing's edge."""
    left = MARGIN + (OVERLAP / 2 if tile.column else 0)
    right = MARGIN + tile.width - (OVERLAP / 2 if tile.column < laid_out.columns - 1 else 0)
    top = laid_out.page[1] - MARGIN - (OVERLAP / 2 if tile.row else 0)
    bottom = laid_out.page[1] - MARGIN - tile.height + (OVERLAP / 2 if tile.row < laid_out.rows - 1 else 0)
    for x in (left, right):
        for y in (top, bottom):
            yield x, y


def _cross(figure: "Figure", x: float, y: float, laid_out: Tiling) -> None:
    from matplotlib.lines import Line2D

    width, height = laid_out.page
    for (x0, x1), (y0, y1) in (((x - _MARK, x + _MARK), (y, y)), ((x, x), (y - _MARK, y + _MARK))):
        ends = ([x0 / width, x1 / width], [y0 / height, y1 / height])
        figure.add_artist(Line2D(*ends, color=_INK, linewidth=0.5))
