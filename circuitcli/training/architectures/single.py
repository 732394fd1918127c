"""Untrained coders that learn alone: an SAE or a transcoder."""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.architectures.trainable import BuildInputs, TrainableCoder, TrainingConfig
from circuitcli.training.initial import generator_of, start_autoencoder, start_transcoder

AnyCoder = TypeVar("AnyCoder", bound=TrainableCoder)
# Decoder rows begin short where all positive pre-activations are codes: they would add up to many times the activation.
SHORT_ROWS = 0.1


def build_single(trainable_type: type[AnyCoder], coder_type: type[SparseCoder], inputs: BuildInputs) -> AnyCoder:
    """An untrained coder of the first hook point, which predicts the last one if that is another."""
    hook, target, first, config = inputs.hooks[0], inputs.hooks[-1], inputs.first, inputs.config
    sae = coder_type(_sae_config(hook, target, first, config), **options(coder_type, config))
    trainable = trainable_type(sae, config, inputs.moments)
    x, generator = first[hook].float() * trainable.scale, generator_of(config.seed, hook)
    if sae.is_transcoder:
        start_transcoder(sae, x, first[target].float() * trainable.target_scale, generator=generator)
    else:
        norm = 1.0 if trainable.has_unit_decoder else SHORT_ROWS
        start_autoencoder(sae, x, norm=norm, generator=generator)
    trainable.to(x.device)
    trainable.start(first)
    return trainable


def _sae_config(
    hook: HookPoint, target: HookPoint, first: Mapping[HookPoint, Tensor], config: TrainingConfig
) -> SaeConfig:
    d_in = first[hook].shape[1]
    if target == hook:
        return SaeConfig(hook, d_in, config.d_sae)
    return SaeConfig(
        hook,
        d_in,
        config.d_sae,
        subtract_decoder_bias=False,
        target=target,
        d_out=first[target].shape[1],
        skip=DESCRIPTIONS[config.sae.architecture].has_skip,
    )


def options(coder_type: type[SparseCoder], config: TrainingConfig) -> dict[str, Any]:
    """What the settings say of what a kind of coder takes beside its config."""
    return {name: getattr(config.sae, name) for name in coder_type.option_names}
