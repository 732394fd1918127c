"""Where the nodes of circuits through training stand: each lifeline has one place at all checkpoints.

A row for each hook point, inputs at the bottom. Within a row two lifelines share a place only if no checkpoint lies
between the first and the last circuit of one that lies so in the other too; those that are in most circuits come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from circuitcli.hookpoints import OUTPUT, HookPoint
from circuitcli.records.through import Frame, FrameNode, TimelineReport

CARD_WIDTH, CARD_HEIGHT = 82.0, 30.0
GAP, LINE_GAP, ROW_GAP = 8.0, 8.0, 26.0
LABEL_WIDTH = 74.0
# A row with more places is broken into several lines.
PER_LINE = 14


@dataclass(frozen=True)
class Band:
    """The band of one hook point."""

    hook: str
    y: float
    height: float


@dataclass(frozen=True)
class Places:
    """Top left corners of the cards by lifeline, that of the output, and the bands from above."""

    cards: tuple[tuple[float, float], ...]
    output: tuple[float, float]
    bands: tuple[Band, ...]
    width: float
    height: float

    def of(self, node: FrameNode) -> tuple[float, float]:
        """Where a node stands."""
        return self.output if node.line is None else self.cards[node.line]


def spans(report: TimelineReport) -> list[tuple[int, int] | None]:
    """Of each lifeline the first and the last checkpoint at which it is in the circuit; None for one that never is."""
    found: list[tuple[int, int] | None] = [None] * len(report.lines)
    for number, frame in enumerate(report.frames):
        for node in frame.nodes:
            if node.line is not None:
                before = found[node.line]
                found[node.line] = (before[0] if before else number, number)
    return found


def counts(report: TimelineReport) -> list[int]:
    """In how many circuits each lifeline is."""
    found = [0] * len(report.lines)
    for frame in report.frames:
        for line in {node.line for node in frame.nodes if node.line is not None}:
            found[line] += 1
    return found


def placed(report: TimelineReport) -> Places:
    """The places of all lifelines of a report."""
    hooks = sorted({line.hook for line in report.lines}, key=lambda name: HookPoint.parse(name).order)
    slots = _slots(report)
    widest = max([min(PER_LINE, 1 + max(slots.values(), default=0)), 1])
    width = LABEL_WIDTH + widest * (CARD_WIDTH + GAP)
    cards: list[tuple[float, float]] = [(0.0, 0.0)] * len(report.lines)
    bands, y = [Band(OUTPUT, 0.0, CARD_HEIGHT + ROW_GAP)], CARD_HEIGHT + ROW_GAP
    for hook in reversed(hooks):
        own = {number: slots[number] for number, line in enumerate(report.lines) if line.hook == hook}
        n_lines = 1 + max(own.values(), default=0) // PER_LINE
        height = n_lines * (CARD_HEIGHT + LINE_GAP) - LINE_GAP + ROW_GAP
        for number, slot in own.items():
            line, column = divmod(slot, PER_LINE)
            top = y + ROW_GAP / 2 + line * (CARD_HEIGHT + LINE_GAP)
            cards[number] = LABEL_WIDTH + column * (CARD_WIDTH + GAP), top
        bands.append(Band(hook, y, height))
        y += height
    output = LABEL_WIDTH + (width - LABEL_WIDTH - CARD_WIDTH) / 2, ROW_GAP / 2
    return Places(tuple(cards), output, tuple(bands), width, y)


def _slots(report: TimelineReport) -> dict[int, int]:
    """The number of each lifeline's place in its row."""
    taken: dict[str, list[list[tuple[int, int]]]] = {}
    found = {}
    there, often = spans(report), counts(report)
    order = sorted(range(len(report.lines)), key=lambda number: (-often[number], there[number] or (0, 0), number))
    for number in order:
        span = there[number] or (0, 0)
        row = taken.setdefault(report.lines[number].hook, [])
        slot = next(
            (slot for slot, others in enumerate(row) if not any(_meet(span, other) for other in others)), len(row)
        )
        if slot == len(row):
            row.append([])
        row[slot].append(span)
        found[number] = slot
    return found


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two spans have a checkpoint in common."""
    return other[0] <= one[1] and one[0] <= other[1]


def largest_effect(frames: Sequence[Frame]) -> float:
    """Of all nodes of all circuits, without the output; 1 where there is none."""
    sizes = (abs(node.effect or 0.0) for frame in frames for node in frame.nodes if node.line is not None)
    return max(sizes, default=0.0) or 1.0


def largest_weight(frame: Frame) -> float:
    """Of the edges of one circuit; 1 where there is none."""
    return max((abs(edge.weight) for edge in frame.edges), default=0.0) or 1.0
