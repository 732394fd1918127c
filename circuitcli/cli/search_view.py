"""What a search by resampling came to, as tables."""

from collections.abc import Sequence

from circuitcli.cli.console import Rows
from circuitcli.records import GraphRecord, Record, SearchRecord


def search_sizes(made: Sequence[Record]) -> Rows:
    """Sizes and divergences of the circuits of one search."""
    found = [record for record in made if isinstance(record, SearchRecord)]
    rows = [
        (
            record.by,
            f"{record.n_prompts:,}",
            *(f"{value:g}" for value in (record.median_nodes, round(record.mean_nodes, 2), round(record.n_edges, 1))),
            *(f"{value:.3g}" for value in (record.median_kl, record.mean_kl)),
            f"{record.reached:.0%}",
        )
        for record in found
    ]
    columns = ("by", "prompts", "nodes, median", "mean", "edges, mean", "KL, median", "mean", "within")
    limits = " ".join(f"{record.max_kl:g}" for record in found)
    return Rows(columns, rows, f"KL: nats, mean over hook points; within: all of them at most {limits}")


def searched_hooks(made: Sequence[Record]) -> Rows:
    """Of one prompt what each hook point came to."""
    heads = [record for record in made if isinstance(record, GraphRecord) and record.searched]
    table = (heads[0].searched or {}) if len(heads) == 1 else {}
    names = ("n_nodes", "n_active", "kl", "kl_all", "kl_none")
    rows = [
        (hook, *("" if told.get(name) is None else f"{told[name]:.3g}" for name in names))
        for hook, told in table.items()
    ]
    return Rows(("hook point", "kept", "of", "KL", "with all", "with none"), rows)
