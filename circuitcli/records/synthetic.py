"""Records about benchmarks whose features are known."""

from circuitcli.records.base import Record
from circuitcli.schema import Count, Number, PathInRun, Word


class SyntheticRecord(Record):
    """What one coder found of planted features, over rows that no coder was trained on.

    ``coder`` is an architecture, a baseline, or ``probe``: logistic probes that were told the truth, one for each of
    the most frequent features, whose scores are a ceiling. Precision, recall and F1 are means over features. ``path``
    is where the coder is kept, ``csv`` the table of all.
    """

    kind: str = "synthetic"
    coder: Word
    group: Word
    n_features: Count
    d_model: Count
    true_l0: Number
    f1: Number
    precision: Number
    recall: Number
    mcc: Number | None = None
    uniqueness: Number | None = None
    explained_variance: Number | None = None
    l0: Number | None = None
    silent: Number | None = None
    shrinkage: Number | None = None
    d_sae: Count
    samples: Count
    n_eval: Count
    seconds: Number
    path: PathInRun | None = None
    csv: PathInRun | None = None
