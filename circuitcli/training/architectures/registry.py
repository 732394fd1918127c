"""What trains an architecture, by its name."""

from collections.abc import Mapping
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.mlp import Mlp
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.gated import GatedSae
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.relu import ReluSae
from circuitcli.saes.topk import TopKSae
from circuitcli.training.architectures.batchtopk import TrainableBatchTopK
from circuitcli.training.architectures.gated import TrainableGated
from circuitcli.training.architectures.jacobian import JacobianEnd, TrainableJacobianPair
from circuitcli.training.architectures.jumprelu import TrainableJumpRelu
from circuitcli.training.architectures.matryoshka import TrainableMatryoshka
from circuitcli.training.architectures.relu import TrainableRelu
from circuitcli.training.architectures.staircase import new_staircase
from circuitcli.training.architectures.topk import TrainableTopK
from circuitcli.training.architectures.trainable import ActivationMoments, Trainable, TrainableCoder, TrainingConfig
from circuitcli.training.initial import generator_of, start_autoencoder, start_transcoder
from circuitcli.training.plan import JACOBIANS, STAIRCASES

# How an architecture is trained, and the coder that is trained.
SINGLE: dict[str, tuple[type[TrainableCoder], type[SparseCoder]]] = {
    "relu": (TrainableRelu, ReluSae),
    "gated": (TrainableGated, GatedSae),
    "topk": (TrainableTopK, TopKSae),
    "batchtopk": (TrainableBatchTopK, ReluSae),
    "matryoshka": (TrainableMatryoshka, ReluSae),
    "jumprelu": (TrainableJumpRelu, JumpReluSae),
    "transcoder": (TrainableTopK, TopKSae),
    "skip-transcoder": (TrainableTopK, TopKSae),
}
AnyCoder = TypeVar("AnyCoder", bound=TrainableCoder)
# Decoder rows begin short where all positive pre-activations are codes: they would add up to many times the activation.
SHORT_ROWS = 0.1


def new_trainable(
    hooks: tuple[HookPoint, ...],
    first: Mapping[HookPoint, Float[Tensor, "batch _"]],
    config: TrainingConfig,
    moments: Mapping[HookPoint, ActivationMoments],
    *,
    mlp: Mlp | None = None,
) -> Trainable:
    """Untrained coders of these hook points, on the device of ``first``, raw activations from which biases start.

    hooks: one, or what a transcoder reads and what it predicts, or the layers of a staircase, or both ends of a pair.
    mlp: what lies between the ends of a pair.
    """
    if config.sae.architecture in STAIRCASES:
        return new_staircase(hooks, first, config, moments)
    if config.sae.architecture in JACOBIANS:
        assert mlp is not None
        one, other = (_single(JacobianEnd, TopKSae, (hook,), first, config, moments) for hook in hooks)
        return TrainableJacobianPair(one, other, mlp)
    trainable, coder = SINGLE[config.sae.architecture]
    return _single(trainable, coder, hooks, first, config, moments)


def _single(
    trainable_type: type[AnyCoder],
    coder_type: type[SparseCoder],
    hooks: tuple[HookPoint, ...],
    first: Mapping[HookPoint, Float[Tensor, "batch _"]],
    config: TrainingConfig,
    moments: Mapping[HookPoint, ActivationMoments],
) -> AnyCoder:
    hook, target = hooks[0], hooks[-1]
    sae = coder_type(_sae_config(hook, target, first, config), **_options(coder_type, config))
    trainable = trainable_type(sae, config, moments)
    x, generator = first[hook].float() * trainable.scale, generator_of(config.seed, hook)
    if sae.is_transcoder:
        start_transcoder(sae, x, first[target].float() * trainable.target_scale, generator=generator)
    else:
        norm = 1.0 if trainable.has_unit_decoder else SHORT_ROWS
        start_autoencoder(sae, x, norm=norm, generator=generator)
    trainable.to(x.device)
    if isinstance(trainable, TrainableJumpRelu):
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
        skip=config.sae.architecture == "skip-transcoder",
    )


def _options(coder_type: type[SparseCoder], config: TrainingConfig) -> dict[str, Any]:
    assert ARCHITECTURES[coder_type.architecture] is coder_type
    return {name: getattr(config.sae, name) for name in coder_type.option_names}
