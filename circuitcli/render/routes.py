"""How edges run on the page: from card to card, and beside those that lie between, so that long edges stay visible."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

from circuitcli.graphs import Edge
from circuitcli.render.drawing import Drawing

Point = tuple[float, float]
Interval = tuple[float, float]

# Room between an edge and a card that it passes, and between two edges in one gap.
MARGIN, SPACING = 5.0, 4.0
# Places that are tried on either side, and what a turn costs, as a way across.
MOST_SHIFTS, TURN = 40, 90.0
# Of a card's width, what its edges leave free on either side.
INSET = 0.12
# Arrow heads end below the card.
HEAD = 4.0
# A curve bends over this share of its height.
BEND, LEAST_BEND = 0.45, 30.0
# Points of a curve for each line of cards that it passes.
_SAMPLES = 8


@dataclass(frozen=True)
class Card:
    """The rectangle of a node."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Where it is across."""
        return self.x + self.width / 2


@dataclass(frozen=True)
class Band:
    """Cards side by side: from which y to which, what they take up across, and what is free beside them."""

    top: float
    bottom: float
    taken: tuple[Interval, ...]
    gaps: tuple[Interval, ...]

    def is_taken(self, left: float, right: float) -> bool:
        """Whether some of this stretch is."""
        return any(begin < right and left < end for begin, end in self.taken)

    def nearest(self, x: float) -> float:
        """The free place nearest to x."""
        index = bisect_right(self.gaps, (x, math.inf)) - 1
        if index >= 0 and x <= self.gaps[index][1]:
            return x
        ends = [right for _, right in self.gaps[max(index, 0) : index + 1]]
        ends += [left for left, _ in self.gaps[index + 1 : index + 2]]
        return min(ends, key=lambda end: abs(end - x), default=x)


def routes(drawing: Drawing, cards: Mapping[str, Card], *, between: Interval) -> list[list[Point]]:
    """For each edge of the graph, in its order, the points that it runs through, from its source to its target.

    An edge that would run under cards passes the lines of cards in their gaps, straight up, with few turns: it has two
    more points for each turn. Strong edges are placed first; of those in one gap each has its own place as long as
    there is room. between: how far to the left and right edges go.
    """
    leaves = _ports(drawing.graph.edges, cards, at_source=True)
    reaches = _ports(drawing.graph.edges, cards, at_source=False)
    bands = _bands(cards.values(), between)
    used: dict[Band, list[float]] = {}
    found: dict[Edge, list[Point]] = {}
    for edge in sorted(drawing.graph.edges, key=drawing.strength, reverse=True):
        source, target = cards[edge.source], cards[edge.target]
        start, end = (leaves[edge], source.y), (reaches[edge], target.y + target.height + HEAD)
        passed = [band for band in bands if band.bottom < start[1] and band.top > end[1]]
        hidden = _runs_under(start, end, passed)
        found[edge] = [start, *(_beside(passed, start, end, used) if hidden else ()), end]
    return [found[edge] for edge in drawing.graph.edges]


def curve(points: Sequence[Point], *, n_samples: int) -> list[Point]:
    """Points along an edge as the page draws it: from point to point by curves that begin and end straight up."""
    drawn = []
    for (x0, y0), (x1, y1) in pairwise(points):
        bend = bend_of(y0, y1, is_alone=len(points) == 2)
        for step in range(n_samples + 1):
            t, u = step / n_samples, 1 - step / n_samples
            a, b, c, d = u**3, 3 * u * u * t, 3 * u * t * t, t**3
            drawn.append(((a + b) * x0 + (c + d) * x1, a * y0 + b * (y0 - bend) + c * (y1 + bend) + d * y1))
    return drawn


def bend_of(y0: float, y1: float, *, is_alone: bool) -> float:
    """How far up a curve goes straight on before it turns."""
    size = abs(y0 - y1) * BEND
    return max(LEAST_BEND, size) if is_alone else size


def _runs_under(start: Point, end: Point, bands: Sequence[Band]) -> bool:
    """Whether the plain curve meets a card, or comes too near to one."""
    points = curve([start, end], n_samples=_SAMPLES * len(bands)) if bands else []
    return any(
        max(y0, y1) > band.top and min(y0, y1) < band.bottom and band.is_taken(min(x0, x1), max(x0, x1))
        for (x0, y0), (x1, y1) in pairwise(points)
        for band in bands
    )


def _ports(edges: Iterable[Edge], cards: Mapping[str, Card], *, at_source: bool) -> dict[Edge, float]:
    """Where each edge leaves its source or reaches its target: side by side, in the order of their other ends."""
    groups: dict[str, list[Edge]] = {}
    for edge in edges:
        groups.setdefault(edge.source if at_source else edge.target, []).append(edge)
    places: dict[Edge, float] = {}
    for name, group in groups.items():
        card = cards[name]
        group.sort(key=lambda edge: cards[edge.target if at_source else edge.source].middle)
        for number, edge in enumerate(group):
            places[edge] = card.x + card.width * (INSET + (1 - 2 * INSET) * (number + 1) / (len(group) + 1))
    return places


def _bands(cards: Iterable[Card], between: Interval) -> list[Band]:
    """Cards that lie beside one another, from the lowest to the highest."""
    groups: list[list[Card]] = []
    for card in sorted(cards, key=lambda card: -card.y):
        if groups and card.y + card.height > min(other.y for other in groups[-1]):
            groups[-1].append(card)
        else:
            groups.append([card])
    return [_band(group, between) for group in groups]


def _band(cards: Sequence[Card], between: Interval) -> Band:
    taken = _merged((card.x, card.x + card.width) for card in cards)
    edges = [between[0], *(end for interval in taken for end in interval), between[1]]
    gaps = ((left, right) for left, right in zip(edges[::2], edges[1::2], strict=True) if right >= left)
    return Band(min(card.y for card in cards), max(card.y + card.height for card in cards), taken, tuple(gaps))


def _merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Intervals with their margins, those that touch made one."""
    merged: list[Interval] = []
    for left, right in sorted((left - MARGIN, right + MARGIN) for left, right in intervals):
        if merged and left <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(right, merged[-1][1]))
        else:
            merged.append((left, right))
    return tuple(merged)


def _beside(bands: Sequence[Band], start: Point, end: Point, used: dict[Band, list[float]]) -> list[Point]:
    """Two points for each run of bands that the edge passes straight up: below the first and above the last of them."""
    points: list[Point] = []
    passed = zip(_places(bands, start[0], end[0]), bands, strict=True)
    for wanted, run in groupby(passed, key=lambda pair: pair[0]):
        together = [band for _, band in run]
        x = _free(wanted, together, used)
        points += [(x, together[0].bottom), (x, together[-1].top)]
    return points


def _places(bands: Sequence[Band], start: float, end: float) -> list[float]:
    """Where each band is passed, so that turns and ways across cost least; all places are in gaps.

    Looked at in each band are the free places nearest to both ends, and nearest to those of the other bands.
    """
    wanted = sorted({start, end, *(band.nearest(x) for band in bands for x in (start, end))})
    best: dict[float, tuple[float, list[float]]] = {start: (0.0, [])}
    for band in bands:
        found = {band.nearest(x) for x in wanted}
        best = {
            x: min(((cost + _turn(before, x), [*way, x]) for before, (cost, way) in best.items()), key=itemgetter(0))
            for x in sorted(found)
        }
    return min(best.items(), key=lambda item: item[1][0] + _turn(item[0], end))[1][1]


def _turn(before: float, after: float) -> float:
    return 0.0 if before == after else TURN + abs(after - before)


def _free(wanted: float, bands: Sequence[Band], used: dict[Band, list[float]]) -> float:
    """The place nearest to what is wanted that is free in all bands and that no edge has yet; else what is wanted."""
    for step in range(MOST_SHIFTS):
        for x in (wanted + SPACING * step, wanted - SPACING * step):
            if all(band.nearest(x) == x and _has_room(used.get(band, ()), x) for band in bands):
                for band in bands:
                    used.setdefault(band, []).append(x)
                return x
    return wanted


def _has_room(used: Sequence[float], x: float) -> bool:
    return all(abs(x - other) >= SPACING - 1e-9 for other in used)
