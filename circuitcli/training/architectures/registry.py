"""Students by the name of their architecture."""

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
from circuitcli.training.architectures.batchtopk import BatchTopKStudent
from circuitcli.training.architectures.gated import GatedStudent
from circuitcli.training.architectures.jacobian import EndStudent, JacobianStudent
from circuitcli.training.architectures.jumprelu import JumpReluStudent
from circuitcli.training.architectures.matryoshka import MatryoshkaStudent
from circuitcli.training.architectures.relu import ReluStudent
from circuitcli.training.architectures.staircase import new_staircase
from circuitcli.training.architectures.student import Lesson, Moments, SingleStudent, Student
from circuitcli.training.architectures.topk import TopKStudent
from circuitcli.training.initial import generator_of, start_autoencoder, start_transcoder
from circuitcli.training.plan import JACOBIANS, STAIRCASES

# The student of an architecture, and the SAE that it trains.
SINGLE: dict[str, tuple[type[SingleStudent], type[SparseCoder]]] = {
    "relu": (ReluStudent, ReluSae),
    "gated": (GatedStudent, GatedSae),
    "topk": (TopKStudent, TopKSae),
    "batchtopk": (BatchTopKStudent, ReluSae),
    "matryoshka": (MatryoshkaStudent, ReluSae),
    "jumprelu": (JumpReluStudent, JumpReluSae),
    "transcoder": (TopKStudent, TopKSae),
    "skip-transcoder": (TopKStudent, TopKSae),
}
OneStudent = TypeVar("OneStudent", bound=SingleStudent)
# Decoder rows begin short where all positive pre-activations are codes: they would add up to many times the activation.
SHORT_ROWS = 0.1


def new_student(
    hooks: tuple[HookPoint, ...],
    first: Mapping[HookPoint, Float[Tensor, "batch _"]],
    lesson: Lesson,
    moments: Mapping[HookPoint, Moments],
    *,
    mlp: Mlp | None = None,
) -> Student:
    """An untrained student of these hook points, on the device of ``first``, raw activations from which biases start.

    hooks: one, or what a transcoder reads and what it predicts, or the layers of a staircase, or both ends of a pair.
    mlp: what lies between the ends of a pair.
    """
    if lesson.sae.architecture in STAIRCASES:
        return new_staircase(hooks, first, lesson, moments)
    if lesson.sae.architecture in JACOBIANS:
        assert mlp is not None
        one, other = (_single(EndStudent, TopKSae, (hook,), first, lesson, moments) for hook in hooks)
        return JacobianStudent(one, other, mlp)
    made, kind = SINGLE[lesson.sae.architecture]
    return _single(made, kind, hooks, first, lesson, moments)


def _single(
    made: type[OneStudent],
    kind: type[SparseCoder],
    hooks: tuple[HookPoint, ...],
    first: Mapping[HookPoint, Float[Tensor, "batch _"]],
    lesson: Lesson,
    moments: Mapping[HookPoint, Moments],
) -> OneStudent:
    hook, target = hooks[0], hooks[-1]
    config = _config(hook, target, first, lesson)
    sae = kind(config, **_options(kind, lesson))
    student = made(sae, lesson, moments)
    x, generator = first[hook].float() * student.scale, generator_of(lesson.seed, hook)
    if config.target is not None:
        start_transcoder(sae, x, first[target].float() * student.target_scale, generator=generator)
    else:
        norm = 1.0 if made.has_unit_decoder else SHORT_ROWS
        start_autoencoder(sae, x, norm=norm, generator=generator)
    student.to(x.device)
    if isinstance(student, JumpReluStudent):
        student.start(first)
    return student


def _config(hook: HookPoint, target: HookPoint, first: Mapping[HookPoint, Tensor], lesson: Lesson) -> SaeConfig:
    d_in = first[hook].shape[1]
    if target == hook:
        return SaeConfig(hook, d_in, lesson.d_sae)
    return SaeConfig(
        hook,
        d_in,
        lesson.d_sae,
        subtract_decoder_bias=False,
        target=target,
        d_out=first[target].shape[1],
        skip=lesson.sae.architecture == "skip-transcoder",
    )


def _options(kind: type[SparseCoder], lesson: Lesson) -> dict[str, Any]:
    assert ARCHITECTURES[kind.architecture] is kind
    return {name: getattr(lesson.sae, name) for name in kind.option_names}
