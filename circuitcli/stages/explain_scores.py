"""What scores of labels come to, as fields of a label and as records."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuitcli.explaining import scoring
from circuitcli.explaining.examples import Subject
from circuitcli.explaining.tallies import Tally, mean_of, shares_of
from circuitcli.features.label_files import MODEL, Label
from circuitcli.records import LabelScoreRecord

Rules = Mapping[str, Tally]


def label_with_scores(
    subject: Subject,
    said: str,
    scored: scoring.Scored | None,
    rules: Rules,
    *,
    model: str,
) -> Label:
    """A label with how it scores, and what stands beside it."""
    tallies = {} if scored is None else scored.tallies
    own = tallies.get((scoring.DETECTION, scoring.OWN)) or tallies.get((scoring.FUZZING, scoring.OWN))
    found = None if own is None else own.balanced_accuracy
    scores: dict[str, dict[str, Any]] = {}
    for (name, labels), tally in tallies.items():
        if name != scoring.SIMULATION:
            scores.setdefault(name, {})[labels] = _told(tally)
    for name, tally in rules.items():
        scores.setdefault(name, {})[scoring.BY_RULE] = _told(tally)
    if scored is not None and scored.correlations:
        scores[scoring.SIMULATION] = {labels: {"value": value} for labels, value in scored.correlations.items()}
    return Label(
        id=subject.id,
        label=said,
        label_source=MODEL,
        label_score=None if found is None else found.value,
        sae=subject.sae,
        model=model,
        scores=scores,
        rule=None if subject.rule is None else subject.rule.text,
        n_shown=len(subject.shown),
    )


def _told(tally: Tally) -> dict[str, Any]:
    found = tally.balanced_accuracy
    bounds = {} if found is None else {"value": found.value, "low": found.low, "high": found.high}
    auc = {} if tally.auc is None else {"auc": tally.auc}
    return bounds | auc | {"n_examples": tally.n_examples, "n_invalid": tally.invalid}


def score_records(
    scored: Mapping[str, scoring.Scored],
    rules: Mapping[str, Mapping[str, Tally]],
    how: scoring.How,
    *,
    judge: str,
) -> list[LabelScoreRecord]:
    """One record for each score and each kind of label."""
    made = []
    for name in how.scores:
        for labels in (scoring.OWN, scoring.OTHER):
            tallies = {
                one: found.tallies[name, labels] for one, found in scored.items() if (name, labels) in found.tallies
            }
            if name == scoring.SIMULATION:
                values = [one.correlations[labels] for one in scored.values() if labels in one.correlations]
            else:
                values = _values(tallies.values())
            if tallies:
                made.append(_record(name, labels, values, list(tallies.values()), how=how, judge=judge))
        of_rules = [tallies[name] for feature, tallies in rules.items() if feature in scored and name in tallies]
        if of_rules:
            made.append(_record(name, scoring.BY_RULE, _values(of_rules), of_rules, how=how, judge=None))
    return made


def _values(tallies: Iterable[Tally]) -> list[float]:
    return [found.value for tally in tallies if (found := tally.balanced_accuracy) is not None]


def _record(
    name: str, labels: str, values: Sequence[float], tallies: Sequence[Tally], *, how: scoring.How, judge: str | None
) -> LabelScoreRecord:
    mean = mean_of(values, seed=how.seed)
    curves = [tally.auc for tally in tallies if tally.auc is not None]
    bounds = {} if mean is None else {"value": mean.value, "low": mean.low, "high": mean.high}
    return LabelScoreRecord(
        score=name,
        labels=labels,
        **bounds,
        unit="ratio",
        n_features=len(values),
        n_examples=sum(tally.n_examples for tally in tallies),
        n_invalid=sum(tally.invalid for tally in tallies),
        shares=shares_of(tallies) if name != scoring.SIMULATION else None,
        auc=sum(curves) / len(curves) if curves else None,
        judge=judge,
    )
