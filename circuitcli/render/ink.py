"""Where a drawing of Graphviz has something, in cells of some points: by this the pages that show nothing are known."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Points: the side of a cell, and what a line or a letter reaches around its place.
CELL, _REACH = 6.0, 2.0
_SAMPLES = 24
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Ink:
    """Cells with something in them, rows from the top; ``sums`` are cumulative, so that any part is counted at once."""

    sums: NDArray[np.int64]

    @classmethod
    def of(cls, cells: NDArray[np.bool_]) -> "Ink":
        """Of the cells themselves."""
        sums = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), dtype=np.int64)
        sums[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
        return cls(sums)

    def any_in(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether something is in a part of the drawing, in its points from the upper left corner."""
        height, width = self.sums.shape
        rows = [min(max(int(edge), 0), height - 1) for edge in (top // CELL, -(-bottom // CELL))]
        columns = [min(max(int(edge), 0), width - 1) for edge in (left // CELL, -(-right // CELL))]
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            return False
        whole, above = self.sums[rows[1]], self.sums[rows[0]]
        return bool(whole[columns[1]] - whole[columns[0]] - above[columns[1]] + above[columns[0]])


def ink_of(layout: str) -> Ink | None:
    """The ink in what ``dot -Tjson`` says of a drawing; None where that does not say how large it is."""
    content = json.loads(layout)
    page = [op["points"] for op in content.get("_draw_", ()) if op["op"] == "P"]
    if not page:
        return None
    corners = np.array(page[0])
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    cells = np.zeros((int((top - bottom) // CELL) + 1, int((right - left) // CELL) + 1), dtype=np.bool_)
    for x0, y0, x1, y1 in _boxes(content):
        rows = slice(max(int((top - y1 - _REACH) // CELL), 0), int((top - y0 + _REACH) // CELL) + 1)
        columns = slice(max(int((x0 - left - _REACH) // CELL), 0), int((x1 - left + _REACH) // CELL) + 1)
        cells[rows, columns] = True
    return Ink.of(cells)


def _boxes(content: Mapping[str, Any]) -> Iterator[Box]:
    """What is drawn, but the page itself: left, lower, right and upper edge."""
    yield from _of_operations(content.get("_ldraw_", ()))
    for one in (*content.get("objects", ()), *content.get("edges", ())):
        for name in ("_draw_", "_ldraw_", "_hdraw_", "_tdraw_", "_hldraw_", "_tldraw_"):
            yield from _of_operations(one.get(name, ()))


def _of_operations(operations: Any) -> Iterator[Box]:
    size = 14.0
    for op in operations:
        kind = op["op"]
        if kind == "F":
            size = float(op["size"])
        elif kind in "eE":
            x, y, rx, ry = op["rect"]
            yield x - rx, y - ry, x + rx, y + ry
        elif kind == "T":
            (x, y), width = op["pt"], float(op["width"])
            start = x - {"l": 0.0, "c": width / 2, "r": width}[op["align"]]
            yield start, y - 0.3 * size, start + width, y + size
        elif kind in "bBL":
            yield from _of_line(np.array(op["points"]), is_curve=kind != "L")
        elif kind in "pP":
            points = np.array(op["points"])
            yield (*points.min(axis=0), *points.max(axis=0))


def _of_line(points: NDArray[np.float64], *, is_curve: bool) -> Iterator[Box]:
    """Short pieces of a line or of cubic curves, one after the other."""
    step, share = (3 if is_curve else 1), np.linspace(0, 1, _SAMPLES + 1)[:, None]
    for start in range(0, len(points) - step, step):
        a, *middle, d = points[start : start + step + 1]
        b, c = middle or (a + (d - a) / 3, a + 2 * (d - a) / 3)
        n = (1 - share) ** 3 * a + 3 * (1 - share) ** 2 * share * b + 3 * (1 - share) * share**2 * c + share**3 * d
        for low, high in zip(np.minimum(n[:-1], n[1:]), np.maximum(n[:-1], n[1:]), strict=True):
            yield (*low, *high)
