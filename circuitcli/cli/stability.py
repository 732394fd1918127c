"""Stability in words: how much of a circuit is found again, and whether there is another one."""

from collections.abc import Iterable, Iterator

from circuitcli.records import Record, ScoreRecord, StabilityRecord
from circuitcli.validation.verdict import RIVAL, share

_FROM = {
    "bootstrap": "on bootstrap samples of the prompts",
    "halves": "on halves of the prompts",
    "seed": "with the SAEs of {coders}",
}


def told_stability(records: Iterable[Record]) -> Iterator[str]:
    """A sentence for each way in which the circuit was found again, and one for its rival."""
    made = list(records)
    found = [record for record in made if isinstance(record, StabilityRecord)]
    edges = {(record.of, record.coders): record for record in found if record.what == "edges"}
    for nodes in found:
        if nodes.what == "nodes" and nodes.of in _FROM:
            yield _again(nodes, edges.get((nodes.of, nodes.coders)))
    for record in made:
        if isinstance(record, ScoreRecord) and record.name == RIVAL:
            yield _rival(record)


def _again(nodes: StabilityRecord, edges: StabilityRecord | None) -> str:
    where = _FROM[nodes.of].format(coders=nodes.coders)
    way = "two searches share" if nodes.of != "seed" else "a search shares"
    parts = [f"found again {where}, {way} {share(nodes.value)} of their nodes{_range(nodes)}"]
    if edges is not None:
        parts.append(f"{share(edges.value)} of their edges{_range(edges)}")
    if nodes.matched is not None:
        parts.append(f"{share(nodes.matched)} of its features have a match")
    reached = "reached" if nodes.value >= nodes.bar else "not reached"
    return f"{', '.join(parts)}; the proposed bar of {share(nodes.bar)} is {reached}"


def _range(record: StabilityRecord) -> str:
    return "" if len(record.values) < 2 else f" [{share(record.low)}, {share(record.high)}]"


def _rival(record: ScoreRecord) -> str:
    behind = record.difference if record.difference_low is None else record.difference_low
    is_as_good = behind is not None and behind <= 0
    ending = "so it is not the only one" if is_as_good else "so it is worse"
    return (
        f"without its {record.excluded} strongest nodes another circuit of {record.n_nodes} nodes, "
        f"{share(record.overlap or 0.0)} of which both have, keeps {share(record.value)}{_interval(record)}: "
        f"the circuit keeps {share(record.difference or 0.0)}{_behind(record)} more, {ending}"
    )


def _interval(record: ScoreRecord) -> str:
    return "" if record.low is None or record.high is None else f" [{share(record.low)}, {share(record.high)}]"


def _behind(record: ScoreRecord) -> str:
    low, high = record.difference_low, record.difference_high
    return "" if low is None or high is None else f" [{share(low)}, {share(high)}]"
