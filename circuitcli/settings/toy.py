"""How autoencoders are tried on planted features."""

import math
from typing import Annotated, Literal

from pydantic import Field

from circuitcli.errors import SettingsError
from circuitcli.settings.section import Section, Split

# Numbers above zero, "0.01,0.1,1" from a flag.
Positives = Annotated[tuple[Annotated[float, Field(gt=0, le=1e6)], ...], Split, Field(min_length=1, max_length=1000)]


class ToySettings(Section):
    """How autoencoders are tried on planted features, after Sharkey, Braun and Millidge, December 2022."""

    d_model: int = Field(64, ge=2, le=2**16)
    """Dimensions of the activations that planted features add up to."""
    n_features: int = Field(128, ge=2, le=2**20)
    """Planted features: random unit directions."""
    n_active: float = Field(3.0, gt=0, le=2**20)
    """Planted features that are active in an example, on average."""
    decay: float = Field(0.99, gt=0, le=1)
    """How much rarer each planted feature is than the one before it."""
    correlation: Literal["examples", "batches", "none"] = "examples"
    """Which features come together: those of an example by a Gaussian copula whose correlations are random (examples),
    none, or whole batches switch features on and off (batches), as the authors' code does, which gives examples without
    any feature one at full strength."""
    strength: Literal["uniform", "product"] = "uniform"
    """How strong an active feature is: uniform between 0 and 1, or the product of two such numbers, as in the authors'
    first code."""
    noise: float = Field(0.0, ge=0, le=1e3)
    """Standard deviation of the Gaussian noise that is added to every activation."""
    l1_weights: Positives = (0.01, 0.0316, 0.1, 0.178, 0.316, 0.562, 1.0, 3.16, 10.0)
    """Weights of the L1 penalty: for each, and each ratio, an autoencoder is trained."""
    ratios: Positives = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Features of a dictionary over planted features."""
    divide_penalty: bool = True
    """Divide the sum of an example's codes by the size of the dictionary, as the published figures do, so that a good
    weight of the penalty grows with the ratio; false: the sum as it is."""
    batch_size: int = Field(256, ge=1, le=2**20)
    """Examples in one step; each is seen once."""
    steps: int = Field(5000, ge=1, le=2**31)
    """Steps of Adam."""
    learning_rate: float = Field(1e-3, gt=0, le=10)
    """Adam's step size."""
    eval_batches: int = Field(20, ge=1, le=2**20)
    """Fresh batches on which finished autoencoders are measured."""
    checkpoint_steps: int = Field(2000, ge=1, le=2**31)
    """Steps between two checkpoints; a killed command goes on from the last one."""


def check(settings: ToySettings) -> None:
    """Raise SettingsError if more features are to be active than can be: the first one would be more than certain."""
    total = math.fsum(settings.decay**index for index in range(settings.n_features))
    if (first := settings.n_active / total) > 1:
        raise SettingsError(
            f"toy.n_active={settings.n_active:g} needs a first feature of probability {first:.3g}",
            hint="lower toy.n_active, raise toy.n_features, or raise toy.decay",
        )
