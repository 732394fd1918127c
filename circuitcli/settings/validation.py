"""How a circuit is put to the test."""

from typing import Literal

from pydantic import Field

from circuitcli.settings.graph import Baseline
from circuitcli.settings.section import FilePath, Pins, Section


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
