"""Records about a training as its checkpoints tell of it: circuits of one behaviour, features of a crosscoder; and the
report from which the page with a time slider is drawn."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from circuitcli.records.base import Record
from circuitcli.schema import (
    LONGEST_LIST,
    LONGEST_TABLE,
    Count,
    Counts,
    Flag,
    HookName,
    Name,
    NodeName,
    Number,
    Numbers,
    NumbersByName,
    PathInRun,
    Text,
    Texts,
    UnitName,
    Word,
)

_Steps = Annotated[tuple[Count | None, ...], Field(max_length=LONGEST_TABLE)]
_Gaps = Annotated[tuple[Number | None, ...], Field(max_length=LONGEST_TABLE)]


class CircuitRecord(Record):
    """The circuit of a behaviour at one checkpoint; ``path`` is the graph's file below the run.

    there: whether the model does the behaviour better than chance there, by the bootstrapped interval of
    ``metric_clean - metric_chance``; where it does not, faithfulness would be a ratio of noise and there is none.
    error_share: of |effect| over all nodes that of error terms. before, last, seed: what the circuit's features have in
    common with those of the checkpoint before, of the last one, and of the same checkpoint through SAEs of another
    seed: ``jaccard``, ``weighted`` by shares of |effect|, and both ``shuffled``, with the same pairs of features dealt
    out at random.
    """

    kind: str = "circuit"
    checkpoint: Word
    step: Count | None = None
    graph: Name
    path: PathInRun
    unit: UnitName
    metric_clean: Number
    metric_chance: Number
    gain_low: Number
    gain_high: Number
    there: Flag
    n_prompts: Count
    n_nodes: Count
    n_edges: Count
    n_features: Count
    error_share: Number
    faithfulness: Number | None = None
    low: Number | None = None
    high: Number | None = None
    completeness: Number | None = None
    before: NumbersByName | None = None
    last: NumbersByName | None = None
    seed: NumbersByName | None = None
    note: Text | None = None


class CrosscoderRecord(Record):
    """A crosscoder over checkpoints at one hook point, and what it tells of features through training.

    Of each checkpoint: explained variance, cross-entropy in nats a token of the model itself, with the reconstruction
    and with the mean in its place; reldec: the mean share of a live feature's length there, after scaling activations
    to one mean norm; born, died: how many features are there from then on, and no longer; relie: the mean share of the
    indirect effect on the metric, and agreement: the correlation of effects with ablations at that checkpoint alone.
    histograms: of each checkpoint the number of live features in equal bins of RelDec from 0 to 1; two_ended: of RelDec
    of the last checkpoint against the first alone. turned: of the ``staying`` features, there at several checkpoints,
    those whose direction has another one at the end. table: a CSV with a line for each live feature.
    """

    kind: str = "crosscoder"
    hook: HookName
    checkpoints: Texts
    steps: _Steps
    d_in: Count
    d_sae: Count
    path: PathInRun
    digest: Word
    l0: Number
    dead: Number
    n_live: Count
    explained_variance: _Gaps
    ce_clean: Numbers | None = None
    ce_spliced: Numbers | None = None
    ce_mean: Numbers | None = None
    ce_increase: Numbers | None = None
    loss_recovered: _Gaps | None = None
    unit: UnitName | None = None
    kinds: NumbersByName
    born: Counts
    died: Counts
    turned: Count
    staying: Count
    reldec: Numbers
    histograms: Annotated[tuple[Counts, ...], Field(max_length=LONGEST_TABLE)]
    two_ended: Counts
    metric: Word | None = None
    n_prompts: Count | None = None
    relie: Numbers | None = None
    agreement: _Gaps | None = None
    table: PathInRun


class _Part(BaseModel):
    """A part of a report, checked as records are."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FrameNode(_Part):
    """A node of a circuit; ``line`` is the number of the lifeline that it belongs to, None for the output."""

    id: NodeName
    line: Count | None = None
    effect: Number | None = None
    activation: Number | None = None
    label: Text = ""


class FrameEdge(_Part):
    """An edge between nodes by their ids."""

    source: NodeName
    target: NodeName
    weight: Number


class Line(_Part):
    """A feature (or an error term, without indices) of a hook point through training: its index at each checkpoint from
    ``first`` on; ``last`` is the last one at which it is matched."""

    hook: HookName
    first: Count
    last: Count
    indices: Counts = ()


class Frame(_Part):
    """A checkpoint: what was measured of its circuit, and the circuit."""

    circuit: CircuitRecord
    nodes: Annotated[tuple[FrameNode, ...], Field(max_length=LONGEST_LIST)]
    edges: Annotated[tuple[FrameEdge, ...], Field(max_length=LONGEST_LIST)]


class Curve(_Part):
    """Numbers over checkpoints by one name; the bounds of their intervals where there are some."""

    label: Text
    values: _Gaps
    low: _Gaps | None = None
    high: _Gaps | None = None


class Chart(_Part):
    """Curves with one axis, which begins at zero and ends at one if ``is_share``."""

    title: Text
    unit: Text = ""
    is_share: bool = False
    curves: Annotated[tuple[Curve, ...], Field(max_length=100)]


class TimelineReport(_Part):
    """All that the page with a time slider shows. ``facts`` are lines for people."""

    format: Count = 1
    title: Text
    facts: Texts = ()
    metric: Word
    unit: UnitName
    frames: Annotated[tuple[Frame, ...], Field(max_length=LONGEST_TABLE)]
    lines: Annotated[tuple[Line, ...], Field(max_length=LONGEST_LIST)]
    charts: Annotated[tuple[Chart, ...], Field(max_length=100)] = ()
