"""What the run's files know about features, for the tables of people."""

from collections.abc import Sequence
from pathlib import Path

from circuitcli.cli.console import Rows
from circuitcli.errors import CircuitError
from circuitcli.features.label_files import LabelBook
from circuitcli.features.lines import first_lines
from circuitcli.graphs import from_records
from circuitcli.records import FeatureRecord, FeaturesRecord, Record, Stream

SHOWN = 10


def described(records: Sequence[Record]) -> Rows:
    """How many features of each hook point are known, and where."""
    features = [record for record in records if isinstance(record, FeaturesRecord)]
    rows = [(record.hook, f"{record.n_live:,}", f"{record.n_dead:,}", record.path) for record in features]
    if not any(record.n_scored for record in features):
        return Rows(("hook point", "live features", "dead", "described in"), rows)
    scored = [(*row[:3], *_scores(record), row[3]) for row, record in zip(rows, features, strict=True)]
    names = ("hook point", "live features", "dead", "label score", "exchanged labels", "described in")
    return Rows(names, scored)


def _scores(record: FeaturesRecord) -> tuple[str, str]:
    """Mean balanced accuracy of labels with its interval, and of exchanged ones."""
    if record.label_score is None:
        return "–", "–"
    told = f"{record.label_score:.2f}"
    if record.label_score_low is not None:
        told += f" [{record.label_score_low:.2f}, {record.label_score_high:.2f}]"
    return told, "–" if record.label_score_exchanged is None else f"{record.label_score_exchanged:.2f}"


def examples(records: Sequence[Record], run: Path) -> Rows:
    """Some features with their labels: the first of each hook point, or of those that a pipe named one by one."""
    files = [record for record in records if isinstance(record, FeaturesRecord) and record.n_live]
    told = [record for record in records if isinstance(record, FeatureRecord)]
    rows = [(record.id, f"{record.density:.4g}", record.label) for record in told[:SHOWN]]
    book = LabelBook.of(run)
    n_each, total = max(1, SHOWN // max(1, len(files))), len(told) + sum(record.n_live for record in files)
    for record in files[:SHOWN]:
        try:
            lines = [book.details(line) for line in first_lines(run / record.path, n_each)]
        except CircuitError:
            # The command has done its work; what reads the file says what is wrong with it.
            continue
        rows += [(line.id, f"{line.density or 0:.4g}", line.label) for line in lines]
    title = f"{'some' if files else 'first'} {len(rows)} of {total:,} features" if len(rows) < total else ""
    return Rows(("feature", "density", "label"), rows, title)


def labels(records: Sequence[Record], run: Path) -> dict[str, str]:
    """Labels of the features in the graphs that were made, by id without a position."""
    from circuitcli.render.details import read_details

    names = {record.id: record.label for record in records if isinstance(record, FeatureRecord)}
    try:
        for graph in from_records(Stream(records)):
            names |= {name: details.label for name, details in read_details(graph, Stream(records), run).items()}
    except CircuitError:
        return names
    return names
