"""Records about sparse coders and their features."""

from typing import Annotated

from pydantic import Field

from circuitcli.records.base import Record
from circuitcli.schema import (
    LONGEST_TABLE,
    ActiveFeatures,
    AnyPath,
    Count,
    FeatureName,
    HookName,
    HookNames,
    Number,
    NumbersByName,
    PathInRun,
    Text,
    Texts,
    UnitName,
    Word,
)


class TrainedRecord(Record):
    """What is told of any sparse coder of a run.

    ``target`` and ``further`` are what it writes, if not what it reads; ``hooks`` all that a crosscoder does both with.
    """

    hook: HookName
    target: HookName | None = None
    further: HookNames | None = None
    hooks: HookNames | None = None
    architecture: Word
    d_in: Count
    d_sae: Count
    path: PathInRun
    digest: Word
    explained_variance: Number | None = None
    l0: Number | None = None
    loss_recovered: Number | None = None
    dead: Number | None = None
    problems: Texts | None = None
    # Of each step of a staircase, whose features come in chunks: they add up to l0.
    l0_per_chunk: tuple[Number, ...] | None = None

    @property
    def places(self) -> str:
        """Where it reads, and where it writes if that is elsewhere: ``mlp_in.1 → mlp.1 mlp.2``."""
        if self.hooks:
            return " ".join(self.hooks)
        written = (self.target or self.hook, *(self.further or ()))
        return self.hook if written == (self.hook,) else f"{self.hook} → {' '.join(written)}"


class SaeRecord(TrainedRecord):
    """One sparse autoencoder."""

    kind: str = "sae"


class SweepRecord(TrainedRecord):
    """One sparse autoencoder of a sweep; stages do not take it unless it is named with ``--sae``."""

    kind: str = "sweep"
    variant: Word


class EvaluationRecord(Record):
    """An SAE that was measured on tokens it was not trained on: further fields are numbers by name, ``report`` has all.

    ``path`` is the SAE's own, relative to the run if it lies there.
    """

    kind: str = "evaluation"
    hook: HookName
    architecture: Word
    path: AnyPath
    digest: Word
    report: PathInRun
    n_eval_tokens: Count
    explained_variance: Number | None = None
    l0: Number
    loss_recovered: Number | None = None
    cosine: Number | None = None
    ce_increase: Number | None = None
    kl_spliced: Number | None = None
    silent: Number | None = None


class BaselineRecord(Record):
    """What stands beside an SAE with ``k`` codes per token, as many as that has on average, measured on the same
    tokens: further fields are numbers by name, ``report`` has all. That of a random model is measured on this model's
    own activations, and has no losses.
    """

    kind: str = "baseline"
    hook: HookName
    name: Word
    k: Count
    d_sae: Count
    report: PathInRun
    n_eval_tokens: Count
    explained_variance: Number | None = None
    l0: Number
    loss_recovered: Number | None = None
    cosine: Number | None = None
    ce_increase: Number | None = None
    kl_spliced: Number | None = None
    silent: Number | None = None


class ReplacementRecord(Record):
    """The model on held-out text with all that some coders explain replaced at once by what they write together, in
    nats per prediction; further fields as in `ModelLoss`. ``hooks``: what they read; ``variant`` of a sweep.
    ``ce_increases``: what each costs alone, where that is known.
    """

    kind: str = "replacement"
    hooks: HookNames
    replaced: HookNames
    n_predictions: Count
    ce_clean: Number
    ce_spliced: Number
    ce_mean: Number
    ce_zero: Number
    kl_spliced: Number
    loss_recovered: Number | None = None
    ce_increase: Number | None = None
    ce_increases: Annotated[dict[HookName, Number], Field(max_length=LONGEST_TABLE)] | None = None
    variant: Word | None = None


class InspectionRecord(Record):
    """What an SAE is and expects, and what looks wrong; ``path`` is whole, in the format that is named.

    Of a layer of a cross-layer transcoder beside others, whose weights are not read, there is no ``digest``.
    """

    kind: str = "inspection"
    hook: HookName
    architecture: Word
    d_in: Count
    d_sae: Count
    format: Word
    path: AnyPath
    digest: Word | None = None
    problems: Texts


class ReleaseRecord(Record):
    """One SAE of a release of the catalogue: ``NAME/ID`` names it. Some tell their hook point by their files alone."""

    kind: str = "release"
    name: Word
    id: Word
    hook: HookName | None = None
    format: Word
    repository: Word
    path: AnyPath


class ExportRecord(Record):
    """An SAE that was written in the format of another library; ``path`` is whole."""

    kind: str = "export"
    hook: HookName
    format: Word
    path: AnyPath


class FeaturesRecord(Record):
    """What is known about the features of one hook point: one line a live feature in the file; ``sae`` is whose.

    label_score: mean balanced accuracy of the labels on held-out text, with the bounds of its 95 % interval over the
    ``n_scored`` features that are active there; label_score_exchanged: of labels that belong to other features.
    """

    kind: str = "features"
    hook: HookName
    n_live: Count
    n_dead: Count
    path: PathInRun
    digest: Word
    sae: Word | None = None
    label_score: Number | None = None
    label_score_low: Number | None = None
    label_score_high: Number | None = None
    label_score_exchanged: Number | None = None
    n_scored: Count | None = None


class LabelsRecord(Record):
    """Labels of one ``source`` (hand, model, neuronpedia) that a run keeps at ``path``, of features at one hook point:
    ``n_labels`` in all, of which ``n_new`` were made now; of a language model by its name."""

    kind: str = "labels"
    hook: HookName
    source: Word
    n_labels: Count
    n_new: Count
    path: PathInRun
    model: Word | None = None


class LabelScoreRecord(Record):
    """How well labels tell where their features are active, on text that they were not made from, as the language
    model ``judge`` judges; the mean over ``n_features``, with its bounds.

    score: detection, fuzzing (balanced accuracy, 0.5 by chance), simulation (correlation, 0 by chance). labels: those
    of the model, of ``random`` other features, or of the ``rules``, which no model judges. n_invalid: of ``n_examples``
    those without a usable answer, which count neither way; shares: right answers by kind of example. auc: area under
    the curve where answers have probabilities.
    """

    kind: str = "label-score"
    score: Word
    labels: Word
    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    unit: UnitName
    n_features: Count
    n_examples: Count
    n_invalid: Count
    shares: NumbersByName | None = None
    auc: Number | None = None
    judge: Word | None = None


class FeatureRecord(Record):
    """What one feature means; details are in the file. Written by versions before ``features``, and of graphs that
    other programs made, whose labels have no file.

    ``label_source``: hand, model, neuronpedia or rules; ``label_score``: balanced accuracy of the label.
    """

    kind: str = "feature"
    id: FeatureName
    label: Text
    label_source: Word | None = None
    label_score: Number | None = None
    density: Number | None = None
    path: PathInRun | None = None
    sae: Word | None = None


class TokenRecord(Record):
    """A token of a text and the features that are active there: (id, activation, label), of each coder the strongest
    first. ``number`` counts the tokens of the text, ``position`` is where the model read it, behind a BOS token."""

    kind: str = "token"
    number: Count
    position: Count
    token: Text
    features: ActiveFeatures
