"""Node effects from gradients: attribution patching and integrated gradients (Marks et al. 2024, arXiv:2403.19647).

The effect of a feature is ``(dm/df_i) * (f_i - f0_i)`` at each position, with ``dm/df_i = scale * W_dec[i] . dm/dx`` of
the unmodified model: gradients pass straight through the SAEs. The effect of the error is ``dm/dx . (e - e0)``.
Integrated gradients average dm/dx over the path on which codes and error of one hook point move together from the
baseline to the clean run, while later hook points run free (midpoint rule).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Absent, Baseline
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.subject import Subject
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback, leaf
from circuitcli.progress import track
from circuitcli.saes.base import Coded, SparseCoder


@dataclass(frozen=True)
class Effects:
    """Effects of one hook point's nodes on the metric: of features as contributions along ``gradient``, and of errors.

    ``gap`` is what the effects of all features and the error miss of ``m(clean) - m(hook point at baseline)``;
    None for attribution patching, which makes no such promise.
    """

    parts: Contributions
    error: Float[Tensor, " position"]
    gap: float | None

    @property
    def gradient(self) -> Float[Tensor, "position d_in"]:
        """The gradient that the effects come from."""
        return self.parts.gradient

    @property
    def features(self) -> Float[Tensor, "position d_sae"]:
        """Effects of all features at once; for wide SAEs they are better taken in pieces."""
        return self.parts.dense()

    @property
    def is_zero(self) -> bool:
        """Whether no node has an effect."""
        return not bool(self.error.any()) and not any(bool(values.any()) for _, values in self.parts.pieces())


def node_effects(
    subject: Subject, baseline: Baseline, *, method: str, steps: int, batch_size: int
) -> dict[HookPoint, Effects]:
    """Effects at every spliced hook point. method: ``atp`` or ``ig``.

    Raises SettingsError for attribution patching of a metric whose gradient is zero at the clean run.
    """
    if method == "atp":
        return attribution_patching(subject, baseline)
    effects = {}
    for hook in track(subject.hooks, "node effects", unit="hook points"):
        effects[hook] = integrated_gradients(subject, hook, baseline[hook], steps=steps, batch_size=batch_size)
    return effects


def attribution_patching(subject: Subject, baseline: Baseline) -> dict[HookPoint, Effects]:
    """Effects from one gradient of the metric at the clean run."""
    if subject.metric.is_flat_at_clean:
        raise SettingsError(
            f"the metric {subject.metric.name} has no gradient at the clean run", hint="use --method ig with it"
        )
    seen: dict[HookPoint, Tensor] = {}
    with torch.enable_grad():
        callbacks = {hook: _opened(seen, hook) for hook in subject.hooks}
        value = subject.metric_of(callbacks).sum()
        gradients = torch.autograd.grad(value, [seen[hook] for hook in subject.hooks])
    return {
        hook: effects_of(subject.saes[hook], subject.coded[hook], baseline[hook], _spliced(subject, gradient[0]), None)
        for hook, gradient in zip(subject.hooks, gradients, strict=True)
    }


def _opened(seen: dict[HookPoint, Tensor], hook: HookPoint) -> Callback:
    """A tap that keeps an activation as a place to take the gradient at, and changes no number."""

    def callback(x: Tensor) -> Tensor:
        # A view is a node of its own in autograd's graph: a tap between modules then has its own gradient too.
        seen[hook] = x.view_as(x) if x.requires_grad else leaf(x)
        return seen[hook]

    return callback


def _spliced(subject: Subject, gradient: Float[Tensor, "position d_in"]) -> Float[Tensor, "spliced d_in"]:
    return gradient[subject.prompt.first :]


def effects_of(
    sae: SparseCoder, coded: Coded, absent: Absent, gradient: Float[Tensor, "position d_in"], gap: float | None
) -> Effects:
    """Effects of codes and error for a gradient by the activation."""
    gradient = gradient.to(sae.W_enc)
    error = (gradient * (coded.error - absent.error)[0]).sum(dim=-1)
    return Effects(Contributions(sae, coded, absent, gradient), error, gap)


def difference(sae: SparseCoder, coded: Coded, absent: Absent) -> Float[Tensor, "1 spliced d_in"]:
    """Activation of the clean run minus activation with all features and the error at baseline."""
    return sae.change(coded.codes - absent.codes, coded.frame) + coded.error - absent.error


def integrated_gradients(subject: Subject, hook: HookPoint, absent: Absent, *, steps: int, batch_size: int) -> Effects:
    """Effects along the straight path from the baseline of one hook point to its clean activation."""
    sae, coded = subject.saes[hook], subject.coded[hook]
    step = difference(sae, coded, absent)
    shares = (torch.arange(steps, dtype=step.dtype, device=step.device) + 0.5) / steps
    total = torch.zeros_like(step[0])
    for chunk in shares.split(batch_size):
        total += path_gradient(subject, hook, moved(subject, hook, step, 1 - chunk)).sum(dim=0)
    effects = effects_of(sae, coded, absent, total / steps, None)
    with torch.no_grad():
        ends = moved(subject, hook, step, torch.ones_like(shares[:1]))
        away = subject.metric_of({hook: lambda x: ends.to(x)})
    reached = subject.metric_clean - float(away[0])
    return replace(effects, gap=effects.parts.total() + float(effects.error.sum()) - reached)


def moved(
    subject: Subject, hook: HookPoint, step: Float[Tensor, "1 spliced d_model"], shares: Float[Tensor, " rows"]
) -> Float[Tensor, "rows position d_model"]:
    """The activation, moved by each share of the way towards the baseline at the spliced positions."""
    x = subject.activation(hook).expand(shares.shape[0], -1, -1).clone()
    x[:, subject.prompt.first :] -= shares[:, None, None] * step
    return x


def path_gradient(
    subject: Subject,
    hook: HookPoint,
    activations: Float[Tensor, "rows position d_model"],
    held: dict[HookPoint, Callback] | None = None,
) -> Float[Tensor, "rows spliced d_model"]:
    """Gradient of the metric by one hook point's activation, at each given value of it; ``held`` taps others.

    Zero where the held hook points leave no path to the metric.
    """
    with torch.enable_grad():
        place = leaf(activations)
        callbacks: dict[HookPoint, Callback] = {**(held or {}), hook: lambda x: place.to(x)}
        logits = subject.logits(callbacks, rows=activations.shape[0], start=first_block(hook))
        value = subject.metric.value(logits).sum()
        gradient = torch.autograd.grad(value, place, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        gradient = torch.zeros_like(activations)
    return gradient[:, subject.prompt.first :]
