"""Labels that are not the rules' own, and how they score, in tables of people."""

from collections.abc import Sequence

from circuitcli.cli.console import Rows
from circuitcli.records import LabelScoreRecord, LabelsRecord, Record

_NAMES = {"model": "the model's", "random": "of other features", "rules": "the rules'"}


def kept_labels(made: Sequence[Record]) -> Rows:
    """How many features have a label from where."""
    found = [record for record in made if isinstance(record, LabelsRecord)]
    rows = [
        (record.hook, _source(record), f"{record.n_new:,}", f"{record.n_labels:,}", record.path) for record in found
    ]
    return Rows(("hook point", "labels by", "new", "in all", "kept in"), rows)


def label_scores(made: Sequence[Record]) -> Rows:
    """Scores of labels beside those that any label would have."""
    found = [record for record in made if isinstance(record, LabelScoreRecord)]
    rows = [
        (
            *(record.score, _NAMES.get(record.labels, record.labels), _interval(record)),
            *(f"{record.n_features:,}", f"{record.n_examples:,}", f"{record.n_invalid:,}"),
        )
        for record in found
    ]
    return Rows(("score", "labels", "value", "features", "examples", "without an answer"), rows)


def _source(record: LabelsRecord) -> str:
    return record.source if record.model is None else record.model


def _interval(record: LabelScoreRecord) -> str:
    if record.value is None:
        return "–"
    told = f"{record.value:.2f}"
    return told if record.low is None else f"{told} [{record.low:.2f}, {record.high:.2f}]"
