"""Tables of circuits and of crosscoders through training, for people."""

from collections.abc import Sequence

from circuitcli.cli.console import Rows
from circuitcli.records import CircuitRecord, CrosscoderRecord, Record


def circuits(made: Sequence[Record]) -> Rows:
    """The circuit of each checkpoint: is there a behaviour, what the circuit keeps of it, what it shares."""
    found = [record for record in made if isinstance(record, CircuitRecord)]
    rows = [
        (
            one.checkpoint,
            f"{one.metric_clean:.3g}",
            f"{one.metric_chance:.3g}",
            _faithfulness(one),
            f"{one.n_nodes}",
            f"{one.n_edges}",
            _shared(one.before),
            _shared(one.last),
            _shared(one.seed),
        )
        for one in found
    ]
    title = "circuits through training; in common: weighted Jaccard of matched features, in brackets by chance"
    head = ("checkpoint", "metric", "chance", "faithfulness", "nodes", "edges", "with before", "with last", "with seed")
    return Rows(head, rows, title)


def _faithfulness(one: CircuitRecord) -> str:
    if not one.there:
        return "no behaviour"
    if one.faithfulness is None:
        return "not tested"
    bounds = f" ({one.low:.2f} to {one.high:.2f})" if one.low is not None and one.high is not None else ""
    return f"{one.faithfulness:.2f}{bounds}"


def _shared(found: dict[str, float | None] | None) -> str:
    if found is None or found.get("weighted") is None:
        return ""
    return f"{found['weighted']:.2f} ({found.get('shuffled_weighted') or 0.0:.2f})"


def crosscoders(made: Sequence[Record]) -> Rows:
    """When the features of each crosscoder are there, and what it misses at the first and the last checkpoint."""
    rows = [
        (
            one.hook,
            f"{one.n_live}",
            *(f"{one.kinds.get(name) or 0:.0f}" for name in ("throughout", "early", "late", "passing")),
            f"{one.turned} of {one.staying}",
            "" if one.ce_increase is None else f"{one.ce_increase[0]:.3g} to {one.ce_increase[-1]:.3g}",
        )
        for one in made
        if isinstance(one, CrosscoderRecord)
    ]
    head = ("crosscoder", "live", "throughout", "early", "late", "passing", "turned", "loss +")
    return Rows(head, rows, "features over checkpoints: there at the first and last, the first, the last, neither")
