"""What kind of sparse autoencoders, and their shape."""

from typing import Literal

from pydantic import Field

from circuitcli.settings.section import Section, Shares

Architecture = Literal[
    "relu",
    "gated",
    "topk",
    "batchtopk",
    "matryoshka",
    "jumprelu",
    "transcoder",
    "skip-transcoder",
    "clt",
    "crosscoder",
    "staircase",
    "staircase-detach",
    "staircase-untied",
    "staircase-block",
    "topk-tied",
    "jacobian",
    "jacobian-block",
]


class SaeSettings(Section):
    """What kind of sparse autoencoders, and their shape."""

    architecture: Architecture = "topk"
    """relu, gated, topk, batchtopk, matryoshka, jumprelu; transcoder and skip-transcoder predict mlp from mlp_in;
    clt (cross-layer transcoder) predicts mlp of all collected layers at once, each from mlp_in there and below;
    crosscoder has one set of features for all layers of a site, and stands in no circuit;
    staircase and staircase-detach share features between the layers of a site, each layer adding some to those before;
    staircase-untied has the same widths and shares nothing, topk-tied shares all features in all layers, and
    staircase-block is a staircase from resid_mid to resid in each layer; jacobian trains topk pairs at mlp_in and mlp
    whose features depend on each other sparsely, jacobian-block at resid_mid and resid. Finished ones of batchtopk,
    matryoshka and clt are stored as jumprelu, with a threshold for each feature."""
    k: int = Field(32, ge=1, le=2**20)
    """Features active per token: on average (batchtopk, matryoshka, crosscoder, each layer of a clt), as the goal of
    the penalty (jumprelu), or exactly (all others but relu and gated)."""
    expansion: float = Field(8.0, gt=0, le=4096)
    """Features per model dimension, where d_sae is not given."""
    d_sae: int | None = Field(None, ge=1, le=2**24)
    """Number of features: of a clt in each layer, of a staircase those that each layer adds to the ones before."""
    l1_weight: float | None = Field(None, ge=0, le=1e6)
    """Weight of the sparsity penalty of relu and gated, for inputs whose mean squared norm is their width; by default 5
    in models that are 4,096 wide or wider, and less by the root of the width in others."""
    l0_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of jumprelu's penalty (L0 / k - 1)^2."""
    bandwidth: float = Field(0.3, ge=1e-6, le=1e3)
    """How near its threshold a pre-activation must be to move it, for jumprelu; inputs have a mean square of one."""
    jacobian_weight: float = Field(0.1, ge=0, le=1e6)
    """Weight of jacobian's penalty: the mean over tokens of 1/k^2 times the sum of the sizes of all derivatives of
    active features at the second hook point by active ones at the first, in units of scaled activations. Where a paper
    sums over tokens, its weight times the tokens of its batch is meant."""
    prefixes: Shares = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Shares of the features that reconstruct on their own, for matryoshka; all together always do."""
