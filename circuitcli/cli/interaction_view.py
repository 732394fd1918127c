"""Tables of how few edges between two hook points carry what a model does, for people."""

from collections.abc import Mapping, Sequence

from circuitcli.cli.console import Rows
from circuitcli.records import InteractionComparisonRecord, InteractionRecord, Record


def interactions(made: Sequence[Record]) -> Rows:
    """The curve of one pair of hook points, or the areas of several."""
    found = [record for record in made if isinstance(record, InteractionRecord)]
    if len(found) > 1:
        rows = [
            (
                f"{r.source} -> {r.target}",
                f"{r.n_live:,} of {r.n_possible:,}",
                *(f"{area.get('value') or 0:.4g}" for area in (r.absolute, r.relative, r.relative_above)),
                f"{r.floor:.4g}",
            )
            for r in found
        ]
        columns = ("edges", "live", "absolute", "relative", "above all edges", "all edges")
        return Rows(columns, rows, "areas under KL(model || edges), absolute in nats x edges; with all edges in nats")
    points = []
    for record in found:
        lows, highs = record.kl_low or (None,) * len(record.kl), record.kl_high or (None,) * len(record.kl)
        for n, kl, low, high in zip(record.n_edges, record.kl, lows, highs, strict=True):
            points.append((f"{n:,}", f"{kl:.4g}", f"{low:.4g} to {high:.4g}" if low is not None else ""))
    return Rows(("edges kept", "KL", "interval"), points, "KL(model || edges) of the next token in nats")


def sets(made: Sequence[Record]) -> Rows:
    """Sets of SAEs against the first one, in percent."""
    found = [record for record in made if isinstance(record, InteractionComparisonRecord)]
    rows = [
        (
            record.name,
            "all pairs" if record.source is None else f"{record.source} -> {record.target}",
            *map(_change, _scores(record)),
        )
        for record in found
    ]
    against = found[0].against if found else ""
    columns = ("SAEs", "edges", "absolute", "relative", "above all edges", "first 262,144", "the same, relative")
    return Rows(columns, rows, f"change of the area under KL(model || edges) against {against}, in percent")


def _scores(record: InteractionComparisonRecord) -> Sequence[Mapping[str, float | None]]:
    return record.absolute, record.relative, record.relative_above, record.capped, record.relative_capped or {}


def _change(score: Mapping[str, float | None]) -> str:
    value, error = score.get("improvement"), score.get("error")
    if value is None:
        return ""
    return f"{-value:+.1f}" if error is None else f"{-value:+.1f} \u00b1 {error:.1f}"
