"""Which checkpoints of a training are looked at, and how their features are matched."""

from typing import Literal

from pydantic import Field

from circuitcli.settings.section import MOST_TOKENS, Section, Words


class DevelopSettings(Section):
    """Which checkpoints of a training are looked at, and how their features are matched."""

    revisions: Words = ("*",)
    """Checkpoints by name or pattern, several with commas: of --model DIR the models in DIR/checkpoints, of a hub model
    its branches and tags. They are taken by the number in their name."""
    start: Literal["other-seed", "same-seed", "before"] = "other-seed"
    """How the SAEs of each checkpoint begin: with a seed of their own, so that no match comes from common first
    weights; all with the same seed; or from those of the checkpoint before (SAE-Track, arXiv:2412.17626)."""
    seeds: int = Field(2, ge=1, le=100)
    """SAEs trained at each checkpoint: the first are matched through training; the others tell how many features match
    between two seeds of the same checkpoint, without which no share of matches means anything."""
    seeds_at: Words = ("*",)
    """Checkpoints, by name or pattern, that get more than one seed."""
    tokens: int = Field(262_144, ge=2, le=MOST_TOKENS)
    """Cached tokens over which activations are compared; the first ones, the same at each checkpoint."""
    by: Literal["activation", "correlation", "decoder"] = "activation"
    """What makes two features one in lives and plots: the cosine of their activations over the same tokens, their
    correlation, or the cosine of what they write. Shares are told by activation and by decoder in any case."""
    assignment: Literal["hungarian", "greedy", "best"] = "hungarian"
    """Which features are paired: those with the largest sum of cosines; the best pair first, then the next best of what
    is left; or each with the one most like it, which several may share."""
    least: float = Field(0.7, ge=-1, le=1)
    """Cosine from which on a pair counts as the same feature, in lives, births and deaths."""
    interp: bool = False
    """Describe the features of each checkpoint, as `circuit interp` does, and label the lives with that."""
    crosscoder: bool = False
    """Also train one set of features that reads and writes each hook point of all checkpoints at once, and tell when
    each feature is born, dies and has an effect on the prompts (arXiv:2509.05291)."""
