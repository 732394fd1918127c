"""Untrained coders by the name of their architecture."""

from collections.abc import Mapping
from importlib import import_module

from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.mlp import Mlp
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.architectures.trainable import ActivationMoments, BuildInputs, Trainable, TrainingConfig


def new_trainable(
    hooks: tuple[HookPoint, ...],
    first: Mapping[HookPoint, Float[Tensor, "batch _"]],
    config: TrainingConfig,
    moments: Mapping[HookPoint, ActivationMoments],
    *,
    mlp: Mlp | None = None,
) -> Trainable:
    """Untrained coders of these hook points, on the device of ``first``, raw activations from which biases start.

    hooks: a group of the architecture's layout. mlp: what lies between the ends of a pair.
    """
    module = import_module(f"{__package__}.{DESCRIPTIONS[config.sae.architecture].module}")
    trainable: Trainable = module.build(BuildInputs(hooks, first, config, moments, mlp))
    return trainable
