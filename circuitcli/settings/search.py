"""How the circuit of one prompt is searched for by resampling."""

from typing import Literal

from pydantic import Field

from circuitcli.settings.section import MOST_TOKENS, Section


class SearchSettings(Section):
    """How the circuit of one prompt is searched for by resampling."""

    by: Literal["nearest", "random", "zero", "mean"] | None = None
    """Search for the fewest features that keep the next token's probabilities, hook point by hook point, in place of
    ablating one after another. All other features take their values from tokens of the run's text that are alike in
    what is kept (nearest) or random ones, or are zero, or at their mean."""
    max_kl: float = Field(0.1, ge=0, le=1e6)
    """Search: add features at a hook point until KL(clean || circuit) of the next token is not above this, in nats."""
    errors: Literal["removed", "kept"] = "removed"
    """Error terms of a hook point that is searched: gone, as its SAE alone is to carry what the circuit needs, or kept
    as they are."""
    samples: int = Field(64, ge=1, le=2**16)
    """Rows drawn for each choice of features; their probabilities are averaged. Four times as many tell the KL in the
    end."""
    nearest: int = Field(256, ge=1, le=2**24)
    """How many of the rows that are alike are drawn from."""
    position_weight: float = Field(2.0, ge=0, le=1e6)
    """How much rows should be at the same position: the weight of that distance at the first hook point, down to 0 at
    the last. With random rows any number above 0 means the same position, and 0 any."""
    max_positions: int = Field(24, ge=1, le=2**20)
    """Positions at which features of the first hook point are searched for, at most; later ones follow them."""
    drop: float = Field(0.08, gt=0, le=1)
    """Share of the features left that is dropped in one step: more is faster, and ranks them less finely."""
    patience: int = Field(10, ge=0, le=2**20)
    """Stop adding features at a hook point where the KL is above the mean of so many before; 0 never does."""
    min_edge: float = Field(0.01, ge=0, le=1)
    """Leave edges out that matter less for their target than this share of what its most important edge does."""
    tokens: int = Field(262_144, ge=1, le=MOST_TOKENS)
    """Tokens of the run's text whose codes are kept to take values from: the first ones, none that are held out."""
