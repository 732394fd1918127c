"""How coders are tried on a benchmark whose features are known."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from circuitcli.settings.section import MOST_TOKENS, Section, Split
from circuitcli.settings.train import Baseline

Trained = Literal["relu", "gated", "topk", "batchtopk", "matryoshka", "jumprelu"]


def _divisor(value: int) -> int:
    if 128 % value:
        raise ValueError("Input should be 1, 2, 4, 8, 16, 32, 64 or 128")
    return value


class SyntheticSettings(Section):
    """How coders are tried on a benchmark whose features are known, after SynthSAEBench (arXiv:2602.14687)."""

    shrink: Annotated[int, Field(ge=1, le=128), AfterValidator(_divisor)] = 4
    """What counts features is divided by this: 1 are 16,384 features in 768 dimensions, about 34 active at once, for
    SAEs of 4,096 features; 4 are 4,096 in 192, about 9, for 1,024. What is said of one feature, or of a pair, stays."""
    architectures: Annotated[tuple[Trained, ...], Split] = (
        "relu",
        "gated",
        "topk",
        "batchtopk",
        "matryoshka",
        "jumprelu",
    )
    """Which SAEs are trained, one after the other, as settings of sae and train say but for their width and k."""
    baselines: Annotated[tuple[Baseline, ...], Split] = (
        "pca",
        "ica",
        "nmf",
        "identity",
        "frozen-decoder",
        "random-model",
    )
    """What stands beside them: principal and independent components, non-negative factors, the dimensions themselves,
    a topk SAE whose decoder stays random, and one that was trained on normal noise of the data's mean and
    covariance."""
    samples: int = Field(4_000_000, ge=1, le=MOST_TOKENS)
    """Rows that each SAE is trained on; none is seen twice."""
    d_sae: int | None = Field(None, ge=1, le=2**24)
    """Features of an SAE; by default a quarter of those that are planted."""
    k: int | None = Field(None, ge=1, le=2**20)
    """Features active per row; by default 25 over shrink: of the planted features that an SAE has room for, about so
    many are."""
    eval_samples: int = Field(131_072, ge=2, le=MOST_TOKENS)
    """Other rows on which all are measured."""
    probe_samples: int = Field(1_000_000, ge=0, le=MOST_TOKENS)
    """Rows from which logistic probes learn, as the ceiling of what any encoder finds; 0 for none."""
    name: str = Field("synthetic", min_length=1, max_length=64, pattern=r"[\w.-]+")
    """Name of the report, its figure and its folder."""
