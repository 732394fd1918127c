"""Tables of split attention scores."""

from collections.abc import Sequence
from pathlib import Path

from circuitcli.cli.console import Rows
from circuitcli.cli.labels import SHOWN, labels
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import NodeId
from circuitcli.records import AttentionRecord, FeatureRecord, GraphRecord, NodeRecord, PairRecord, Record


def score_tables(made: Sequence[Record], run: Path) -> list[Rows]:
    """For each split score the strongest pairs of sources, then the strongest sources of each side."""
    scores = [record for record in made if isinstance(record, AttentionRecord)]
    pairs = [record for record in made if isinstance(record, PairRecord)]
    names = _Names(made, pairs, run) if scores else None
    return [
        rows
        for score in scores
        if names
        for rows in _of_score(score, [p for p in pairs if p.attention == score.id], names)
    ]


def _of_score(score: AttentionRecord, pairs: Sequence[PairRecord], names: "_Names") -> list[Rows]:
    title = f"head {score.head} at {names.at(score.query)} looks at {names.at(score.key)}: "
    title += (
        f"score {score.score:.4g}, {100 * score.pattern:.0f} % of its attention; strongest of {score.n_pairs:,} pairs"
    )
    both = [pair for pair in pairs if pair.query and pair.key][:SHOWN]
    rows = [(f"{pair.weight:+.4g}", names.of(pair.query), names.of(pair.key)) for pair in both]
    rest = score.score - sum(pair.weight for pair in both)
    tables = [Rows(("part", "query", "key"), [*rows, (f"{rest:+.4g}", "all others", "")], title)]
    for side in ("query", "key"):
        alone = [pair for pair in pairs if (pair.key if side == "query" else pair.query) is None][:SHOWN]
        sources = [(f"{pair.weight:+.4g}", names.of(getattr(pair, side))) for pair in alone]
        other = "key" if side == "query" else "query"
        tables.append(Rows(("part", side), sources, f"what the {side} is made of, each with the whole {other}"))
    return tables


class _Names:
    """Sources as people read them: with the token where they are, and the label."""

    def __init__(self, made: Sequence[Record], pairs: Sequence[PairRecord], run: Path) -> None:
        heads = [record for record in made if isinstance(record, GraphRecord)]
        self._head = heads[-1] if heads else None
        sources = dict.fromkeys(name for pair in pairs for name in (pair.query, pair.key) if name is not None)
        features = [NodeRecord(id=name) for name in sources if (place := _place(name)) and place.index is not None]
        told = [record for record in made if isinstance(record, FeatureRecord)]
        # Most sources are no nodes of the graph.
        self._labels = labels([*told, *heads[-1:], *features], run)

    def at(self, position: int) -> str:
        """A position and its token."""
        tokens = () if self._head is None else self._head.tokens_at(position)
        return f"{position} {tokens[0]!r}" if tokens else str(position)

    def of(self, source: str | None) -> str:
        """A source."""
        name = source or ""
        if (place := _place(name)) is None:
            return name
        token = self.at(place.position).partition(" ")[2] if isinstance(place.position, int) else ""
        return " ".join(part for part in (name, token, self._labels.get(place.feature, "")) if part)


def _place(source: str) -> NodeId | None:
    """The node that a source is; None for a constant."""
    try:
        return NodeId.parse(source)
    except SettingsError:
        return None
