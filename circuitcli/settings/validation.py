"""How a circuit is put to the test."""

from typing import Annotated, Literal

from pydantic import Field

from circuitcli.settings.graph import Baseline
from circuitcli.settings.section import FilePath, FilePaths, Pairs, Pins, Scales, Section, Split

# "zero,mean" from a flag.
Baselines = Annotated[tuple[Baseline, ...], Split]


class ValidationSettings(Section):
    """How a circuit is put to the test."""

    graph: FilePath | None = None
    """Name or file of the graph to test; by default the one made last."""
    name: str | None = None
    """Name of the report; by default that of the graph, or pins."""
    pin: Pins = ()
    """Ablate these features together instead of testing a graph, for example 6:8339,14104: on --prompt or --prompts,
    else on the run's own text."""
    sequences: int = Field(64, ge=1, le=1_000_000)
    """Pins without a prompt: blocks of the run's text, held-out ones first, in which a pinned feature is active and is
    ablated; the blocks looked at, of 65,536 tokens at most, all count in the mean."""
    prompts: FilePath | None = None
    """File of prompts to test on, of any kind that graph-grad --prompts takes; by default the graph's own prompts."""
    baseline: Baseline | None = None
    """What ablated nodes are set to; by default the graph's own baseline, zero for pins."""
    errors: Literal["nodes", "kept", "removed"] = "nodes"
    """Whether error terms are nodes like others, all kept, or all removed; the score that --at-least judges."""
    at_least: float | None = Field(None, ge=-1e6, le=1e6)
    """Exit with 5 if faithfulness is below this."""
    samples: int = Field(100, ge=0, le=10_000)
    """Random circuits to compare with, of as many nodes at the same hook points and positions."""
    bootstrap: int = Field(1000, ge=0, le=100_000)
    """Resamples of the prompts for the confidence interval."""
    top: int = Field(10, ge=1, le=10_000)
    """Tokens and features listed with the largest changes."""
    minimality: bool = True
    """Also measure the circuit without each of its nodes."""
    stability: int = Field(0, ge=0, le=10_000)
    """Find the circuit again on so many bootstrap samples of its prompts, and on half as many pairs of halves, and tell
    how much they have in common. Node effects are taken once and edges for each, so this takes about one and a half
    times so many times as long as the graph's edges; 0 for none."""
    rival: int | None = Field(None, ge=0, le=100_000)
    """With --stability: search for another circuit without so many of the strongest nodes, and tell whether it is as
    good; by default a quarter of them, 0 for no search."""
    sae_seeds: FilePaths = ()
    """SAEs of other seeds, each as --sae takes them: the circuit is found again through these, and their features are
    matched with its own by the cosine of their decoders; may be repeated."""
    edges: bool = True
    """Also measure what the circuit's edges keep alone: each node then has an input of its own, in which only its own
    edges are not ablated. One pass for each hook point, with a row for each node."""
    ablations: Baselines = ()
    """Score the circuit under these baselines too, for example zero,mean,resample; what --baseline names is judged."""
    scale: Scales = ()
    """Steer instead of testing a graph: multiply these features, at every position, and go on to write behind --prompt,
    for example 6:8339=3 or attn.6:12,40=0; may be repeated."""
    choices: FilePath | None = None
    """Ask the multiple-choice questions of this file instead of testing a graph, with the features of --scale ablated
    or amplified and without: JSON lines with question, choices and answer, or TruthfulQA's own file."""
    choices_by: Literal["text", "number"] = "text"
    """How a choice is scored: by the log-probability of its text behind the question (text), or of its number behind
    all numbered choices, in an order that --seed draws (number)."""
    shots: int = Field(0, ge=0, le=1000)
    """Questions of the file that stand with their answers before each question."""
    generate: int = Field(40, ge=1, le=100_000)
    """Steering: tokens that are written behind the prompt, with the features scaled and without."""
    temperature: float = Field(0.0, ge=0, le=1000)
    """Steering: 0 writes the most likely token each time; above, tokens are drawn at this temperature, with --seed."""
    against: FilePath | None = None
    """Compare the graph with this one, a name or a file, instead of testing it: what they share, what is to be added
    and removed, and how much more of the behaviour it keeps on the same prompts."""
    curve: Literal["none", "graph", "all"] = "graph"
    """Score circuits of ten sizes too, from a thousandth to all: the graph's own strongest nodes and edges, and with
    all those of all nodes there are, by effects that are taken again."""
    control_graph: FilePath | None = None
    """Name or file of another behaviour's graph at the same hook points: its circuit is tested on these prompts, and
    should do worse."""
    basis: Literal["neurons"] | None = None
    """Compare the circuit with as many neurons, the strongest by the same kind of effects: those of MLPs where a hook
    point is an MLP's output, else the dimensions of the activation."""
    shuffled: bool = True
    """Compare the circuit's features with themselves where the rows of each decoder are exchanged, without errors."""
    interaction: Pairs = ()
    """Draw how few edges between the SAEs of two hook points carry what the model does, for example resid.2,resid.3, on
    --prompt or --prompts, else on --sequences pieces (by default 4) of 64 tokens of the run's own text (SCALAR); may be
    repeated. blocks (from residual to residual), mlp-blocks (resid_mid.l,resid.l), mlp-layers (mlp_in.l,mlp.l) and all
    name all such pairs that have SAEs. Each later feature takes a run of what lies between, for each point of the curve
    and each prompt."""
