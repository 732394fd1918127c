"""What a sweep over planted features came to, as a table: rows are sizes of dictionaries, columns penalties."""

from collections.abc import Sequence

from circuitcli.cli.console import Rows
from circuitcli.records import Record, SyntheticRecord, ToyRecord

# A terminal has no place for more.
_MOST_COLUMNS = 17


def toy_grid(made: Sequence[Record]) -> Rows:
    """MMCS of each autoencoder; those that collapsed are marked."""
    found = [record for record in made if isinstance(record, ToyRecord)]
    weights = sorted({record.l1_weight for record in found})[:_MOST_COLUMNS]
    ratios = sorted({record.ratio for record in found}, reverse=True)
    by_place = {(record.ratio, record.l1_weight): record for record in found}
    rows = [(f"{ratio:g}", *(_told(by_place[ratio, weight]) for weight in weights)) for ratio in ratios]
    mark = "; x: collapsed" if any(record.collapsed for record in found) else ""
    title = f"MMCS, truth to learned, by ratio and L1 weight{mark}"
    return Rows(("ratio", *(f"{weight:g}" for weight in weights)), rows, title)


def _told(record: ToyRecord) -> str:
    return f"{record.mmcs:.3f}{' x' if record.collapsed else ''}"


def synthetic_rows(made: Sequence[Record]) -> Rows:
    """What each coder found of planted features."""
    found = [record for record in made if isinstance(record, SyntheticRecord)]
    scores = ("f1", "precision", "recall", "mcc", "uniqueness", "explained_variance", "l0", "silent")
    rows = [(record.coder, *(_score(getattr(record, name)) for name in scores)) for record in found]
    return Rows(("coder", *(name.replace("_", " ") for name in scores)), rows)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
