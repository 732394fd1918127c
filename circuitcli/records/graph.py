"""Records of a circuit graph: its head, its nodes, its edges."""

from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, field_validator

from circuitcli import pieces
from circuitcli.records.base import Record
from circuitcli.schema import (
    Alternatives,
    BaselineName,
    Count,
    Counts,
    DigestsByHook,
    FeatureName,
    Flag,
    HooksByHook,
    MethodName,
    MetricName,
    Name,
    NodeName,
    Number,
    Numbers,
    NumbersByHead,
    NumbersByHook,
    NumbersByName,
    PathInRun,
    PolicyName,
    PositionsName,
    Share,
    SpanNames,
    Text,
    Texts,
    TextsByNode,
    TokenShares,
    UnitName,
    Word,
)

# Of graphs between attention heads and MLPs, as EAP-IG and MIB make them.
EDGE_ATTRIBUTION = "eap"


class GraphRecord(Record):
    """Head of a circuit graph; its nodes and edges follow.

    Of several prompts, ``prompts`` names their file, ``columns`` holds alternative tokens for each position, and
    ``span_names`` the names that stand for positions, in the order of the text. ``saes`` gives the digest of the coder
    that reads each hook point, ``neuronpedia`` what Neuronpedia calls it where it has it, and ``writes`` what it
    writes, where that is not what it reads. Of one prompt, ``next_tokens`` are what the clean model finds most likely
    to follow, with probabilities. Of a frozen graph: how many features are active, into how many edges were taken, what
    pruning kept, the scores of circuit-tracer before pruning, what intervening on edges has shown, and the tokens of
    the logits. Of a search by resampling: its settings, the divergence from the clean model at each hook point, in
    nats, with what is kept there, with all features and with none, and what became of error terms. A graph
    that another program made names it as ``origin``, and what its file does not tell is ``unknown``, or null.
    """

    kind: str = "graph"
    name: Name
    method: MethodName
    metric: MetricName
    prompt: Text
    tokens: Texts
    ids: Counts | None = None
    chat: Flag | None = None
    origin: Word | None = None
    metric_clean: Number | None = Field(None, validate_default=True)
    metric_baseline: Number | None = Field(None, validate_default=True)
    dtype: Word
    unit: UnitName
    baseline: BaselineName
    positions: PositionsName
    model: Word
    revision: Word | None = None
    target: Text | None = None
    target_id: Count | None = None
    foil: Text | None = None
    next_tokens: TokenShares | None = None
    seed: Count | None = None
    bos: Flag | None = None
    n_prompts: Count = 1
    prompts: Text | None = None
    prompts_digest: Word | None = None
    n_positions: Count | None = None
    span_names: SpanNames | None = None
    columns: Alternatives | None = None
    baseline_tokens: Annotated[Count, Field(ge=1)] | None = None
    baseline_ids: Counts | None = None
    counterfactual: Text | None = None
    counterfactual_ids: Counts | None = None
    saes: DigestsByHook = Field(default_factory=dict)
    neuronpedia: DigestsByHook | None = None
    writes: HooksByHook | None = None
    path: PathInRun | None = None
    steps: Count | None = None
    refined: Count | None = None
    down: Count | None = None
    up: Count | None = None
    min_share: Number | None = None
    min_effect: Number | None = None
    strongest: Count | None = None
    edge_points: Count | None = None
    effects: NumbersByHook | None = None
    threshold: Number | None = None
    to: Word | None = None
    share_kept: Number | None = None
    n_active: Count | None = None
    n_expanded: Count | None = None
    node_threshold: Share | None = None
    edge_threshold: Share | None = None
    replacement: Number | None = None
    completeness: Number | None = None
    completeness_of_inputs: Number | None = None
    checks: NumbersByName | None = None
    logits: TextsByNode | None = None
    search: NumbersByName | None = None
    searched: NumbersByHook | None = None
    errors: PolicyName | None = None

    @field_validator("metric_clean", "metric_baseline")
    @classmethod
    def _is_measured(cls, value: float | None, info: Any) -> float | None:
        if value is None and info.data.get("origin") is None:
            raise ValueError("only a graph of another program, named as its origin, may lack it")
        return value

    def written(self, hook: str) -> tuple[str, ...]:
        """Names of the hook points that the coder writes that reads this one: of an SAE the same."""
        return (self.writes or {}).get(hook, (hook,))

    @property
    def noun(self) -> str:
        """What nodes are called that are no errors, tokens or output: of edge attribution they are heads and MLPs."""
        return "nodes" if self.method == EDGE_ATTRIBUTION else "features"

    @property
    def explained(self) -> str:
        """The prompt; of several how many, of which file, and the first."""
        if self.n_prompts == 1:
            return self.prompt
        where = "" if self.prompts is None else f" of {self.prompts}"
        return f"{self.n_prompts:,} prompts{where}, the first: {self.prompt}"

    @property
    def explained_target(self) -> str:
        """The target in words; of several prompts each may have its own."""
        return self.target or ("the output" if self.n_prompts == 1 else "their targets")

    def token_of(self, logit: str) -> str | None:
        """The token of an output logit, by the name of its node."""
        return (self.logits or {}).get(logit)

    def tokens_at(self, position: int | str | None) -> tuple[str, ...]:
        """What stands at a position: its token, or of several prompts some alternatives; nothing for a named span.

        A token that is a part of a character is told as the character, and which of its tokens this is.
        """
        columns = self.columns if self.columns is not None else _columns(self.tokens)
        return columns[position] if isinstance(position, int) and position < len(columns) else ()


@lru_cache(maxsize=4)
def _columns(tokens: tuple[str, ...]) -> tuple[tuple[str], ...]:
    return tuple((token,) for token in pieces.each(tokens))


class ResponseRecord(Record):
    """How a number responds to a feature that is multiplied by each coefficient: the metric (``of`` is ``output``), or
    the activation of a later feature, added up over the positions that its name stands for.

    Of several prompts ``values`` are means, with ``standard_errors``.
    """

    kind: str = "response"
    source: NodeName
    of: NodeName
    coefficients: Numbers
    values: Numbers
    standard_errors: Numbers | None = None
    unit: UnitName
    graph: Name


class NodeRecord(Record):
    """A feature, an error term or the output."""

    kind: str = "node"
    id: NodeName
    activation: Number | None = None
    effect: Number | None = None
    unit: UnitName | None = None
    standard_error: Number | None = None
    active: Share | None = None
    influence: Number | None = None
    probability: Share | None = None


class TraceRecord(Record):
    """How active a feature of the graph is at each token of the prompt, whether it is a node there or not; 0 at a BOS
    token, which carries no nodes.

    Of several prompts it is the one in which the feature is furthest from zero: ``prompt`` is its number, from 1, and
    ``tokens`` are its own.
    """

    kind: str = "trace"
    feature: FeatureName
    activations: Numbers
    prompt: Count | None = None
    tokens: Texts | None = None


class EdgeRecord(Record):
    """What the source contributes to the target; ``heads`` are its parts by the head that first reads the source."""

    kind: str = "edge"
    source: NodeName
    target: NodeName
    weight: Number
    unit: UnitName
    standard_error: Number | None = None
    active: Share | None = None
    heads: NumbersByHead | None = None
    exact: Number | None = None


class AttentionRecord(Record):
    """An attention score that was split into pairs, of which the strongest follow; ``rest`` is the sum of the others.

    ``head`` is 5.3 for head 3 of block 5, ``pattern`` the share of the query's attention that the key gets.
    """

    kind: str = "attention"
    id: Word
    graph: Name | None = None
    head: Word
    query: Count
    key: Count
    score: Number
    pattern: Share
    n_pairs: Count
    rest: Number


class PairRecord(Record):
    """What a source of the query and a source of the key bring to an attention score together; without one of them,
    with all of that side."""

    kind: str = "pair"
    attention: Word
    query: Word | None = None
    key: Word | None = None
    weight: Number
