"""Where labels of points go: beside their points, inside the frame, and as little as possible over anything else."""

from collections.abc import Sequence
from dataclasses import dataclass

from circuitcli.render.axes import Number

GAP = 6.0
# Side of the square that a point or a piece of a line takes.
_DOT = 7.0
# Shifts of a label's middle from its point, in units of its half size plus the gap, best first.
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
_OUTSIDE, _OVER_LABEL, _OVER_POINT = 1000.0, 10.0, 1.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, from its upper left corner."""

    x: Number
    y: Number
    width: Number
    height: Number

    def grown(self, by: Number) -> "Box":
        """The rectangle with so much more on every side."""
        return Box(self.x - by, self.y - by, self.width + 2 * by, self.height + 2 * by)

    def overlap(self, other: "Box") -> float:
        """Area that both cover."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(0.0, across) * max(0.0, down)


def label_places(
    points: Sequence[tuple[Number, Number, str]],
    sizes: Sequence[tuple[Number, Number]],
    occupied: Sequence[tuple[Number, Number]],
    frame: Box,
) -> list[Box]:
    """A box for each point's label, chosen one after the other: of the places around the point, the least covered.

    sizes: width and height of the labels. occupied: what they should not cover.
    """
    dots = [Box(x - _DOT / 2, y - _DOT / 2, _DOT, _DOT) for x, y in occupied]
    placed: list[Box] = []
    for (x, y, _), (width, height) in zip(points, sizes, strict=True):
        around = [_beside(x, y, width, height, side) for side in _SIDES]
        costs = [_cost(box, dots, placed, frame) for box in around]
        placed.append(around[costs.index(min(costs))])
    return placed


def _beside(x: Number, y: Number, width: Number, height: Number, side: tuple[int, int]) -> Box:
    across, down = side
    # Off to a corner, a label may begin right above or below its point.
    gap = GAP if not (across and down) else GAP / 2
    middle_x = x + across * (width / 2 + gap)
    middle_y = y + down * (height / 2 + gap)
    return Box(middle_x - width / 2, middle_y - height / 2, width, height)


def _cost(box: Box, dots: Sequence[Box], placed: Sequence[Box], frame: Box) -> float:
    outside = box.width * box.height - box.overlap(frame)
    over_labels = sum(box.overlap(other) for other in placed)
    return _OUTSIDE * outside + _OVER_LABEL * over_labels + _OVER_POINT * sum(box.overlap(dot) for dot in dots)
