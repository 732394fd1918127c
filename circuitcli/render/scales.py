"""From numbers to ink: colour, opacity and width of edges, shades of tokens."""

import math
from dataclasses import dataclass

POSITIVE = "#1f4fd8"
NEGATIVE = "#d3222a"
FAINTEST = 0.12
THINNEST, THICKEST = 0.6, 4.0
_SHADE, _NEGATIVE_SHADE = (0x7D, 0x9B, 0xFF), (0xFF, 0xB0, 0x7D)


@dataclass(frozen=True)
class Scale:
    """How strong the edges of one unit are drawn, up to the largest one in the whole graph.

    Opacity and width grow with the square root of |weight|: beside one strong edge the others can still be seen.
    """

    unit: str
    largest: float

    def strength(self, weight: float) -> float:
        """|weight| as a share of the largest, 0 to 1."""
        return min(abs(weight) / self.largest, 1.0) if self.largest > 0 else 0.0

    def ink(self, weight: float) -> float:
        """How much of the range of opacities and widths an edge gets, 0 to 1."""
        return math.sqrt(self.strength(weight))

    def opacity(self, weight: float) -> float:
        """Opacity of the edge, 0.12 to 1."""
        return FAINTEST + (1 - FAINTEST) * self.ink(weight)

    def width(self, weight: float) -> float:
        """Width of the edge in points."""
        return THINNEST + (THICKEST - THINNEST) * self.ink(weight)

    def colour(self, weight: float) -> str:
        """``#rrggbbaa``: blue for positive and red for negative weights."""
        return f"{sign_colour(weight)}{round(255 * self.opacity(weight)):02x}"

    def samples(self) -> tuple[float, ...]:
        """Weights that the legend shows: the largest, half and a tenth of it, of both signs, falling."""
        sizes = (self.largest, self.largest / 2, self.largest / 10)
        return (*sizes, *(-size for size in reversed(sizes)))


def sign_colour(value: float) -> str:
    """Blue for positive and red for negative numbers."""
    return NEGATIVE if value < 0 else POSITIVE


def shade(activation: float, largest: float) -> str:
    """``#rrggbb`` behind a token: white for no activation, blue for the feature's largest, orange as far below zero."""
    share = min(abs(activation) / largest, 1.0) if largest > 0 else 0.0
    full = _NEGATIVE_SHADE if activation < 0 else _SHADE
    return "#" + "".join(f"{round(255 + (channel - 255) * share):02x}" for channel in full)
