"""Which behaviour is explained, and how its circuit is found."""

from typing import Literal

from pydantic import Field

from circuitcli.settings.section import Factors, FilePath, Ids, Layers, Pins, Scores, Section, Sites

Metric = Literal["log-prob", "logit-diff", "cross-entropy", "kl"]
# Methods that take one gradient at the clean run, not several on a path.
OF_ONE_GRADIENT = frozenset({"atp", "relp", "gim"})
Baseline = Literal["zero", "mean", "mean-position", "resample", "counterfactual"]

# Settings that only frozen graphs read, and those of a behaviour that they read too.
OF_FROZEN = ("frozen", "max_nodes", "check_edges")
# What prunes graphs by influence, with its usual value: frozen ones always, other gradient graphs where one is given.
BY_INFLUENCE = {"node_threshold": 0.8, "edge_threshold": 0.98}
_OF_BEHAVIOURS = ("prompt", "prompt_ids", "prompts", "n_prompts", "skip_bad", "sequences", "chat", "target", "foil")
READ_BY_FROZEN = (
    *OF_FROZEN,
    *BY_INFLUENCE,
    *_OF_BEHAVIOURS,
    "metric",
    "layers",
    "sites",
    "name",
    "batch_size",
    "heads",
    "qk",
    "pairs",
)


class GraphSettings(Section):
    """Which behaviour is explained, and how its circuit is found."""

    prompt: str | None = None
    """The text whose next token is explained; by default a piece of the run's own text, that whose next token the model
    predicts best beyond the token's frequency."""
    prompt_ids: Ids | None = None
    """The prompt as token ids instead of a text, for example 464,3139,286."""
    prompts: FilePath | None = None
    """File of prompts whose effects are averaged: JSON lines with prompt (or ids, or messages) and, if wanted, target,
    foil, counterfactual and spans; or the pairs of feature-circuits, or the CSV of EAP-IG and MIB, as they are."""
    n_prompts: int | None = Field(None, ge=1, le=10_000_000)
    """Use the first so many prompts of the file that can be used; by default all."""
    skip_bad: bool = False
    """Leave prompts of the file out that cannot be used, and count them; by default the first one is an error."""
    sequences: int = Field(1, ge=1, le=100_000)
    """Without a prompt: explain so many predictions of the run's own text, the best ones."""
    clusters: int | None = Field(None, ge=1, le=100_000)
    """Without a prompt: put the predictions of --sequences into so many groups, by the activations at the last
    collected hook point where they are made, and explain those of one group; stderr lists all groups."""
    cluster: int = Field(0, ge=0, le=100_000)
    """Which group is explained; 0 is the largest."""
    chat: bool = False
    """Have the model's chat template write the prompt, as what a user says, and begin the answer that is explained."""
    target: str | None = None
    """The token whose probability is explained; by default the model's most likely one."""
    foil: str | None = None
    """The token that the target is compared with in logit-diff."""
    metric: Metric = "log-prob"
    """log-prob of the target, logit-diff (target minus foil), cross-entropy (minus the mean over the prompt), or kl
    (minus the divergence from the clean run)."""
    layers: Layers | None = None
    """Blocks of the circuit as a Python slice; by default all that have SAEs. Of a CLT only the decoders that write
    them are read."""
    sites: Sites | None = None
    """Sites of the circuit; by default all that have SAEs."""
    name: str | None = None
    """Name of the graph; by default circuit (graph-grad) or naive (graph-naive), with -2 and so on behind it where
    that is taken by other settings."""
    positions: Literal["all", "last", "sum", "spans"] | None = None
    """Nodes at each position, at the last one only, summed over positions, or for each named span of the prompts; by
    default all (graph-grad) or sum (graph-naive); of several prompts all if they are equally long, else sum."""
    baseline: Baseline | None = None
    """What a feature is set to when it is taken away: zero, its mean over cached text (mean) or, where all prompts have
    one length, over the prompts at each position (mean-position), or its value in another text (resample: drawn;
    counterfactual: the prompt's own); by default mean (graph-grad) or zero (graph-naive)."""
    baseline_tokens: int = Field(16_384, ge=1, le=2**40)
    """Cached tokens over which the mean baseline is taken."""
    counterfactual: str | None = None
    """The other prompt, with as many tokens, for the counterfactual baseline."""
    counterfactual_ids: Ids | None = None
    """The other prompt as token ids instead of a text."""
    method: Literal["ig", "atp", "relp", "gim", "exact"] = "ig"
    """Integrated gradients; or one gradient at the clean run, which does not see that something is saturated: the
    model's own (atp: attribution patching), or that of a rule (relp: attention patterns and norms held, activation
    functions as factors; gim: norms held, softmax at temperature 2); or exact, ablating each node by itself (edges then
    come from integrated gradients), which does not see that two nodes can each do the work alone, nor what silent
    backups would do. None is the effect of a node."""
    ig_steps: int | None = Field(None, ge=1, le=10_000)
    """Points on the path of integrated gradients (midpoint rule); by default 5 and, for each group of nodes whose
    effects miss 5 % of what the metric loses with all nodes away, as many more as it takes, up to 405, where the path
    turns; what is still missed, the gap, is told."""
    refine: int = Field(0, ge=0, le=100_000)
    """Ablate so many of the strongest nodes of each hook point too, before nodes are selected, and put these exact
    effects in the place of the method's."""
    down: int = Field(10, ge=1, le=100_000)
    """Nodes of each sign kept at a hook point."""
    up: int = Field(5, ge=1, le=100_000)
    """Edges of each sign followed upwards from a kept node."""
    min_share: float = Field(0.001, ge=0, le=1)
    """Leave nodes and edges out that are below this share of what is to be explained, m(clean) - m(all at baseline)."""
    min_effect: float = Field(0.0, ge=0, le=1e9)
    """Leave nodes and edges out that are below this, in the metric's unit, too."""
    strongest: int | None = Field(None, ge=1, le=10_000_000)
    """Keep so many nodes, the strongest of all hook points together, in place of --down at each; and nodes whose
    effects cancel, if their edges are as strong."""
    edges_exact: int = Field(0, ge=0, le=2**20)
    """Take so many of the strongest edges away, one at a time (path patching), and tell how far edges can be
    believed."""
    edge_points: int = Field(4, ge=1, le=1000)
    """Points of the path between the two runs over which edges of integrated gradients are averaged."""
    threshold_exp: float = Field(-5.0, ge=-1000, le=1000)
    """Naive graph: edges whose size is at most 2 to this power are dropped."""
    thin: float = Field(1.0, gt=0, le=1)
    """Naive graph: share of the live features of the first hook points that are ablated (drawn with the seed)."""
    pin: Pins = ()
    """Naive graph: ablate only these features of the named hook points, for example 6:8339,14104."""
    sweep_coefficient: Factors | None = None
    """Naive graph: multiply each pinned feature by these numbers, FIRST:LAST:STEP, and tell how the metric and the
    features that read it respond."""
    sweep_readers: int = Field(10, ge=0, le=10_000)
    """Naive graph: of how many readers, those that respond most to the feature, the curves are kept."""
    to: Literal["next", "all"] = "next"
    """Naive graph: measure the features of the next layer of the slice, or of all later ones."""
    extend: FilePath | None = None
    """Graph file to add to; model, SAEs and layers, prompt, metric, method, baseline and positions must agree."""
    batch_size: int = Field(64, ge=1, le=2**20)
    """Rows in one forward pass; changes speed and memory only."""
    frozen: bool = False
    """Attribution graph of one prompt, as circuit-tracer makes it: direct effects with attention patterns and norm
    denominators held constant, MLPs replaced by transcoders or held constant; logits are nodes."""
    node_threshold: float | None = Field(None, gt=0, le=1)
    """Keep the nodes that have this share of the influence on the output by way of all paths: of a frozen graph, by
    default 0.8; of another gradient graph only where this or the next is given."""
    edge_threshold: float | None = Field(None, gt=0, le=1)
    """Keep the edges that have this share of the influence between the nodes kept, by default 0.98, likewise."""
    max_nodes: int = Field(7500, ge=1, le=2**24)
    """Frozen graph: edges are taken into so many active features, the most influential ones."""
    check_edges: int = Field(0, ge=0, le=2**20)
    """Frozen graph: draw so many of its edges and intervene on their sources, in the frozen model and in the unchanged
    one."""
    heads: bool = False
    """Split each edge into parts by the attention head that first reads its source, and what passes no head."""
    qk: Scores = ()
    """Split attention scores into pairs of what the query and the key are made of, LAYER.HEAD:QUERY,KEY, for example
    5.3:12,4: how much head 3 of block 5 at position 12 looks at position 4."""
    pairs: int = Field(20, ge=1, le=100_000)
    """How many of the strongest pairs of a split attention score are kept; the rest is summed up."""

    @property
    def prunes_by_influence(self) -> bool:
        """Whether a share of the influence is given."""
        return any(getattr(self, name) is not None for name in BY_INFLUENCE)

    @property
    def shares_of_influence(self) -> dict[str, float]:
        """The shares of the influence that nodes and edges keep, by the names of these settings."""
        given = {name: getattr(self, name) for name in BY_INFLUENCE}
        return {name: usual if given[name] is None else given[name] for name, usual in BY_INFLUENCE.items()}
