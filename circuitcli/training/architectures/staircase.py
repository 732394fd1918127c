"""Staircase: the SAEs of one site share features from layer to layer (SCALAR: Fillingham et al., arXiv:2511.07572).

There is one encoder and one decoder. The SAE of the first layer uses their first ``d_sae`` features, that of the second
the first ``2 * d_sae``, and so on, each with biases of its own: a feature that persists need not be learned again under
another number. With ``staircase-detach`` only the features that a layer adds learn from it; those that it inherits are
taken as the layers before made them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.fast.sparse import Codes
from circuitcli.saes.topk import TopKSae
from circuitcli.training.architectures.student import (
    Attempt,
    Batch,
    JointStudent,
    Lesson,
    Moments,
    Outcome,
    along_rows_removed,
    rows_made_unit,
)
from circuitcli.training.architectures.topk import TopKStudent
from circuitcli.training.initial import generator_of, geometric_median, unit_rows


class StepStudent(TopKStudent):
    """A TopK SAE that borrows encoder and decoder for each batch; its biases are its own."""

    has_unit_decoder = False

    def __init__(self, sae: TopKSae, lesson: Lesson, moments: Mapping[HookPoint, Moments], *, step_width: int) -> None:
        super().__init__(sae, lesson, moments)
        self.step_width = step_width
        # What is no parameter of this module may be replaced by a part of another's.
        del sae.W_enc, sae.W_dec
        self.may_revive: Bool[Tensor, " d_sae"] | None = None

    def borrow(self, W_enc: Float[Tensor, "d_in d_sae"], W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        """Take these weights, which may be parts of larger ones, from now on."""
        self.sae.W_enc, self.sae.W_dec = cast(nn.Parameter, W_enc), cast(nn.Parameter, W_dec)

    def is_silent(self) -> Bool[Tensor, " d_sae"]:
        """Which features are dead in this layer."""
        return self.silent_tokens >= self.lesson.dead_tokens

    def dead(self) -> Int[Tensor, " n_dead"]:
        """Dead features that AuxK may revive here."""
        is_dead = self.is_silent()
        return (is_dead if self.may_revive is None else is_dead & self.may_revive).nonzero()[:, 0]

    def decoded(self, codes: Codes, y: Float[Tensor, "batch d_out"]) -> Attempt:
        """See `TopKStudent`. Measures how many active features each step of the staircase gave."""
        made = super().decoded(codes, y)
        counts = torch.bincount(made.active // self.step_width, minlength=self.sae.d_sae // self.step_width)
        measures = {f"l0_step_{number}": count for number, count in enumerate((counts / len(y)).unbind())}
        return replace(made, measures=measures)

    @torch.no_grad()
    def inference(self) -> SparseCoder:
        """See `SingleStudent`: an SAE whose weights are its own."""
        made = TopKSae(self.sae.config, k=self.lesson.sae.k).to(self.sae.b_enc.device)
        for name, parameter in made.named_parameters():
            parameter.copy_(getattr(self.sae, name))
        return made


class StaircaseStudent(JointStudent):
    """The SAEs of one site, the deepest last, each a `StepStudent` with the first rows of the shared weights."""

    def __init__(
        self, hooks: tuple[HookPoint, ...], d_in: int, lesson: Lesson, moments: Mapping[HookPoint, Moments]
    ) -> None:
        super().__init__()
        self.detaches = lesson.sae.architecture == "staircase-detach"
        self.step_width, self.widths = lesson.d_sae, [lesson.d_sae * (i + 1) for i in range(len(hooks))]
        self.steps = nn.ModuleList(
            StepStudent(TopKSae(SaeConfig(hook, d_in, width), k=lesson.sae.k), lesson, moments, step_width=lesson.d_sae)
            for hook, width in zip(hooks, self.widths, strict=True)
        )
        # Stored transposed, as the sparse kernels like it, and so that a prefix of the features is one piece.
        self.W_enc = nn.Parameter(torch.zeros(self.widths[-1], d_in).T)
        self.W_dec = nn.Parameter(torch.zeros(self.widths[-1], d_in))

    @property
    def students(self) -> list[StepStudent]:
        """See `JointStudent`: one for each layer. Inherited features that a layer has no use for count as dead too."""
        return [cast(StepStudent, step) for step in self.steps]

    def learn(self, batch: Batch, *, share: float) -> dict[HookPoint, Outcome]:
        """See `Student`."""
        self._lend()
        outcomes: dict[HookPoint, Outcome] = {}
        for step, may_revive in zip(self.students, self._revivable(), strict=True):
            step.ranks, step.may_revive = self.ranks, may_revive
            outcomes |= step.learn(batch, share=share)
        return outcomes

    def _lend(self) -> None:
        """Give each step its part of the weights."""
        for index, (step, width) in enumerate(zip(self.students, self.widths, strict=True)):
            first = self.step_width * index if self.detaches else 0
            step.borrow(_Rows.apply(self.W_enc.T, first, width).T, _Rows.apply(self.W_dec, first, width))

    @torch.no_grad()
    def _revivable(self) -> list[Tensor]:
        """For each layer the features that AuxK may revive there.

        A feature that lives in another layer is not to be turned to what this one misses: shared, it must be silent
        everywhere; detached, it must belong to this layer.
        """
        silent = torch.ones(self.widths[-1], dtype=torch.bool, device=self.W_dec.device)
        if self.detaches:
            own = torch.arange(self.widths[-1], device=self.W_dec.device) // self.step_width
            return [own[:width] == index for index, width in enumerate(self.widths)]
        for step, width in zip(self.students, self.widths, strict=True):
            silent[:width] &= step.is_silent()
        return [silent[:width] for width in self.widths]

    def turn_gradients(self) -> None:
        """See `Student`."""
        along_rows_removed(self.W_dec)

    def settle(self) -> None:
        """See `Student`."""
        rows_made_unit(self.W_dec)

    def finished(self) -> dict[HookPoint, SparseCoder]:
        """See `Student`: an ordinary TopK SAE for each layer."""
        self._lend()
        return super().finished()


@torch.no_grad()
def new_staircase(
    hooks: tuple[HookPoint, ...],
    first: Mapping[HookPoint, Float[Tensor, "batch _"]],
    lesson: Lesson,
    moments: Mapping[HookPoint, Moments],
) -> StaircaseStudent:
    """An untrained staircase; what each layer adds begins as a TopK SAE of that layer alone would."""
    student = StaircaseStudent(hooks, first[hooks[0]].shape[1], lesson, moments)
    for index, step in enumerate(student.students):
        hook = step.sae.hook
        added = slice(index * lesson.d_sae, (index + 1) * lesson.d_sae)
        rows = unit_rows(lesson.d_sae, step.sae.d_in, generator_of(lesson.seed, hook))
        student.W_dec[added] = rows
        student.W_enc[:, added] = rows.T
        step.sae.b_dec.copy_(geometric_median((first[hook].float() * step.scale).cpu().double()))
    return student.to(first[hooks[0]].device)


class _Rows(torch.autograd.Function):
    """Rows up to ``stop`` of a matrix; those before ``first`` get no gradient."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, first: int, stop: int) -> Tensor:
        ctx.shape, ctx.first, ctx.stop = matrix.shape, first, stop
        return matrix[:stop]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        whole = gradient.new_zeros(ctx.shape)
        whole[ctx.first : ctx.stop] = gradient[ctx.first :]
        return whole, None, None
