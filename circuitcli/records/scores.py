"""Records of what was measured of a circuit, or of a model without some features."""

from typing import Annotated

from pydantic import Field

from circuitcli.records.base import Record
from circuitcli.schema import (
    LONGEST_TABLE,
    BaselineName,
    Count,
    Counts,
    FeatureName,
    Flag,
    HookName,
    LevelName,
    Name,
    NodeName,
    Number,
    Numbers,
    NumbersByName,
    PathInRun,
    PolicyName,
    Text,
    Texts,
    UnitName,
    Word,
)


class ScoreRecord(Record):
    """A measured property of a circuit; ``low`` and ``high`` bound it where several prompts were run.

    ``difference`` is by how much the circuit is better than a control, prompt by prompt; ``held_out`` tells whether it
    was tested on other prompts than it was found on.
    """

    kind: str = "score"
    name: Word
    value: Number
    low: Number | None = None
    high: Number | None = None
    standard_error: Number | None = None
    errors: PolicyName | None = None
    unit: UnitName | None = None
    graph: Name | None = None
    graph_digest: Word | None = None
    judged: Flag | None = None
    ablation: BaselineName | None = None
    n_nodes: Count | None = None
    n_prompts: Count | None = None
    n_blocks: Count | None = None
    n_active_blocks: Count | None = None
    n_tokens: Count | None = None
    metric_clean: Number | None = None
    metric_circuit: Number | None = None
    metric_empty: Number | None = None
    samples: Count | None = None
    rank: Count | None = None
    overlap: Number | None = None
    node: NodeName | None = None
    excluded: Count | None = None
    n_edges: Count | None = None
    difference: Number | None = None
    difference_low: Number | None = None
    difference_high: Number | None = None
    held_out: Flag | None = None


class CurveRecord(Record):
    """Faithfulness against the number of ``nodes`` or ``edges``, ranked within the ``graph`` or among ``all``.

    counts: of ``total``, those of each circuit; values, low, high: its faithfulness and the bounds of its interval.
    cmd, cpr: the areas between the curve and 1 (0 is best) and below it over the share of the total, with ``_log`` over
    its logarithm; best_cpr: that of a curve that is 1. largest: the largest faithfulness, of ``largest_count``.
    """

    kind: str = "curve"
    of: Word
    ranked: Word
    counts: Counts
    total: Count
    values: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    cmd: Number
    cmd_low: Number | None = None
    cmd_high: Number | None = None
    cmd_log: Number
    cmd_log_low: Number | None = None
    cmd_log_high: Number | None = None
    cpr: Number
    cpr_low: Number | None = None
    cpr_high: Number | None = None
    cpr_log: Number
    cpr_log_low: Number | None = None
    cpr_log_high: Number | None = None
    best_cpr: Number
    best_cpr_log: Number
    largest: Number
    largest_count: Count
    graph: Name | None = None
    graph_digest: Word | None = None
    ablation: BaselineName | None = None
    errors: PolicyName | None = None
    n_prompts: Count | None = None
    held_out: Flag | None = None


class VerdictRecord(Record):
    """What a test of a circuit comes to: refuted, proposed, supported or validated, and why."""

    kind: str = "verdict"
    verdict: LevelName
    why: Texts
    graph: Name | None = None
    graph_digest: Word | None = None
    ablation: BaselineName | None = None
    errors: PolicyName | None = None


class ShiftRecord(Record):
    """A number before and after features were ablated: of a next token, a token in a text, or a later feature."""

    kind: str = "shift"
    of: Word
    name: Text
    clean: Number
    ablated: Number
    unit: UnitName
    graph: Name | None = None


class StabilityRecord(Record):
    """How much circuits have in common that were found in the same way from something else.

    of: ``bootstrap`` samples of the prompts (all pairs), ``halves`` of them, the coders of another ``seed``, or the
    ``graph`` itself found again on all its prompts. what: nodes or edges. value: the mean Jaccard index of the pairs,
    of which ``values`` are all; low, median and high: quantiles. rank: the mean rank correlation of effects or weights
    over all that either has. bar: the value that is proposed as the least. matched, cosine: of another seed's coders
    the share of the circuit's features that are matched, and their mean cosine.
    """

    kind: str = "stability"
    of: Word
    what: Word
    value: Number
    low: Number
    median: Number
    high: Number
    rank: Number | None = None
    values: Numbers
    bar: Number
    graph: Name
    graph_digest: Word | None = None
    n_prompts: Count | None = None
    coders: Word | None = None
    matched: Number | None = None
    cosine: Number | None = None


class SteeringRecord(Record):
    """What a model goes on to write behind a prompt, as it is and with features scaled.

    factors: by the name of the feature. kl_clean, kl_steered: KL(clean || steered) before each token of the clean and
    of the steered continuation, in nats. active: at how many positions of the steered text each feature was active.
    """

    kind: str = "steering"
    name: Name
    prompt: Text
    factors: Annotated[dict[FeatureName, Number], Field(max_length=LONGEST_TABLE)]
    clean: Text
    steered: Text
    tokens_clean: Texts
    tokens_steered: Texts
    kl_clean: Numbers
    kl_steered: Numbers
    unit: UnitName
    temperature: Number
    active: Annotated[dict[FeatureName, Count], Field(max_length=LONGEST_TABLE)] | None = None
    path: PathInRun | None = None


class ChoicesRecord(Record):
    """Multiple-choice questions answered by a model as it is, and with features scaled where ``factors`` names some.

    accuracy: share of right answers, with the bounds of its interval over questions; chance: that of guesses;
    probability: mean probability of the right choice among all. The same ``_scaled``, and the difference of accuracies
    question by question. n_gained, n_lost: questions that are answered rightly only with, only without the scaling.
    """

    kind: str = "choices"
    name: Name
    n_questions: Count
    by: Word
    shots: Count
    chance: Number
    accuracy: Number
    accuracy_low: Number | None = None
    accuracy_high: Number | None = None
    probability: Number
    factors: Annotated[dict[FeatureName, Number], Field(max_length=LONGEST_TABLE)] | None = None
    accuracy_scaled: Number | None = None
    accuracy_scaled_low: Number | None = None
    accuracy_scaled_high: Number | None = None
    probability_scaled: Number | None = None
    difference: Number | None = None
    difference_low: Number | None = None
    difference_high: Number | None = None
    n_gained: Count | None = None
    n_lost: Count | None = None
    path: PathInRun | None = None


class ComparisonRecord(Record):
    """Two graphs side by side: shares that both have of all that either has (Jaccard) of nodes and edges, with and
    without their positions, rank correlations, and their scores on the same prompts.

    faithfulness, completeness: ``value`` of the graph, that of the one ``against`` it, and the ``difference``, with the
    bounds of their 95 % intervals.
    """

    kind: str = "comparison"
    graph: Name
    graph_digest: Word | None = None
    against: Name
    against_digest: Word | None = None
    n_nodes: Count
    n_edges: Count
    n_nodes_against: Count
    n_edges_against: Count
    nodes: Number
    edges: Number
    node_ranks: Number | None = None
    edge_ranks: Number | None = None
    nodes_anywhere: Number
    edges_anywhere: Number
    n_added: Count
    n_removed: Count
    faithfulness: NumbersByName
    completeness: NumbersByName
    errors: PolicyName
    ablation: BaselineName
    path: PathInRun | None = None


class ChangeRecord(Record):
    """A node (``id``) or an edge that is to be added to a graph, or removed, to make another one of it; ``strength`` is
    its effect or weight in the graph that has it."""

    kind: str = "change"
    action: Word
    id: NodeName | None = None
    source: NodeName | None = None
    target: NodeName | None = None
    strength: Number
    graph: Name
    against: Name


class InteractionRecord(Record):
    """How few edges between the SAEs of two hook points carry what a model does (SCALAR, arXiv:2511.07572).

    n_edges, kl: the curve, KL(model || edges) in nats with so many edges, a mean over tokens and prompts, with its
    bounds; kl_circuit: KL(all edges || edges). floor: with all edges. absolute: the area under the curve, in nats times
    edges; relative: that over the possible edges, in nats; the same above the floor, also over the live edges; capped:
    as absolute, of the first 262,144 edges; each with its bounds. n_live: edges between features that are active in the
    prompts. order, method, rule: how edges were ranked, and codes made of them, as the settings say.
    """

    kind: str = "interaction"
    name: Name
    source: HookName
    target: HookName
    n_edges: Counts
    kl: Numbers
    kl_low: Numbers | None = None
    kl_high: Numbers | None = None
    floor: Number
    unit: UnitName
    n_live: Count
    n_possible: Count
    absolute: NumbersByName
    relative: NumbersByName
    absolute_above: NumbersByName
    relative_above: NumbersByName
    live_above: NumbersByName | None = None
    capped: NumbersByName | None = None
    kl_circuit: Numbers | None = None
    order: Word | None = None
    method: Word | None = None
    rule: Word | None = None
    n_prompts: Count
    n_tokens: Count
    path: PathInRun | None = None


class AttributionsRecord(Record):
    """How much each feature of one hook point gives to each feature of a later one.

    At ``path``, in safetensors: ``attributions`` (d_source, d_target), or of many edges the largest ``n_kept`` as
    ``source``, ``target`` and ``attribution``, the largest first. n_nonzero: edges with an attribution. method,
    measure: as the settings say.
    """

    kind: str = "attributions"
    name: Name
    source: HookName
    target: HookName
    method: Word
    measure: Word
    n_sources: Count
    n_targets: Count
    n_nonzero: Count
    n_kept: Count
    n_prompts: Count
    n_tokens: Count
    path: PathInRun


class InteractionComparisonRecord(Record):
    """Two sets of SAEs side by side by how few edges between them carry what a model does (SCALAR).

    source, target: of a pair that both have, none for all their pairs together. absolute, relative, relative_above,
    capped, relative_capped (that over the possible edges, as published curves, which end there, can be read):
    ``value`` of the set, that of the one ``against`` it, and by how much less the set has, in percent:
    ``improvement``, ``low`` and ``high`` of it (over prompts, paired), and half their distance, ``error``.
    """

    kind: str = "interactions"
    name: Word
    against: Word
    source: HookName | None = None
    target: HookName | None = None
    absolute: NumbersByName
    relative: NumbersByName
    absolute_above: NumbersByName
    relative_above: NumbersByName
    capped: NumbersByName
    relative_capped: NumbersByName | None = None
    n_pairs: Count
    n_prompts: Count
    unit: UnitName
