"""Split attention scores as records."""

from collections.abc import Iterator, Sequence

from circuitcli.attribution.attention.scores import Parts, ScoreSplit, split_score
from circuitcli.attribution.panel import Panel
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import AttentionScore
from circuitcli.records import AttentionRecord, PairRecord, Record


def score_records(panel: Panel, asked: Sequence[str], *, count: int, graph: str) -> list[Record]:
    """The scores that are asked for, each with its ``count`` strongest pairs and sources of each side.

    Raises SettingsError for several prompts, whose positions are not of the same words, and for scores that are not
    there; InputError if the model's heads are not known.
    """
    if not asked:
        return []
    if panel.n_prompts > 1:
        raise SettingsError(
            f"--qk splits a score between two positions of one prompt, and there are {panel.n_prompts}",
            hint="give one --prompt, or leave out --qk",
        )
    subject, _ = panel.subject(0)
    splits = [split_score(subject, AttentionScore.parse(text)) for text in asked]
    return [record for split in splits for record in _records(split, count=count, graph=graph)]


def _records(split: ScoreSplit, *, count: int, graph: str) -> Iterator[Record]:
    name, asked = str(split.asked), split.asked
    pairs = split.strongest(count)
    yield AttentionRecord(
        id=name,
        graph=graph,
        head=f"{asked.layer}.{asked.head}",
        query=asked.query,
        key=asked.key,
        score=split.score,
        pattern=split.pattern,
        n_pairs=split.n_pairs,
        rest=split.score - sum(weight for _, _, weight in pairs),
    )
    for query, key, weight in pairs:
        yield PairRecord(attention=name, query=query, key=key, weight=weight)
    for query, weight in _strongest(split.query, split.query_shares().tolist(), count):
        yield PairRecord(attention=name, query=query, weight=weight)
    for key, weight in _strongest(split.key, split.key_shares().tolist(), count):
        yield PairRecord(attention=name, key=key, weight=weight)


def _strongest(parts: Parts, shares: Sequence[float], count: int) -> list[tuple[str, float]]:
    return sorted(zip(parts.names, shares, strict=True), key=lambda pair: -abs(pair[1]))[:count]
