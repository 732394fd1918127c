"""Node effects from gradients: attribution patching and integrated gradients (Marks et al. 2024, arXiv:2403.19647).

The effect of a feature is ``(dm/df_i) * (f_i - f0_i)`` at each position, with ``dm/df_i`` the sum, over the hook points
that its coder writes, of ``scale * W_dec[i] . dm/dx`` of the unmodified model: gradients pass straight through the
coders. The effect of an error is ``dm/dx . (e - e0)``.

Integrated gradients average these over a path on which one group of nodes moves from the baseline to the clean run
while all else runs free (midpoint rule). A group is a coder's codes at all hook points that it writes, and the errors
of those that it is the last coder to write. Where an error is not in the group only what the coder adds is moved.

The effects of a group ought to add up to what the metric loses with the whole group at baseline; what is missing is its
gap. Steps are added until it is small, where it comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline, metric_at
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.paths import Gradients, GroupPath
from circuitcli.attribution.refining import FIRST_STEPS, integrated
from circuitcli.attribution.subject import Subject
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.rules import applied
from circuitcli.models.taps import Callback, leaf
from circuitcli.settings.graph import OF_ONE_GRADIENT

# Where steps are not fixed they are added until the effects of a group miss no more than this share of the behaviour.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Effects:
    """Effects of a group's nodes on the metric of each text: of features along the gradients, and of errors.

    gradients: by written hook point. gap: for each text what the effects of all nodes of the group miss of ``m(clean) -
    m(group at baseline)``; None where that was not measured. counts: of each text the steps of the path that the
    gradients are averages over; none for one step. sums: what all features add up to in each text; None where that was
    not needed.
    """

    parts: Contributions
    gradients: Gradients
    errors: Mapping[HookPoint, Float[Tensor, "text position"]]
    gap: Float[Tensor, " text"] | None
    counts: tuple[int, ...] = ()
    sums: Float[Tensor, " text"] | None = None

    @property
    def steps(self) -> int:
        """The steps of the text that took most."""
        return max(self.counts, default=1)

    @property
    def features(self) -> Float[Tensor, "text position d_sae"]:
        """Effects of all features at once; of wide coders they are better taken in pieces."""
        return self.parts.dense()


def node_effects(
    subject: Subject, baseline: Baseline, *, method: str, steps: int | None, batch_size: int
) -> dict[HookPoint, Effects]:
    """Effects of every group, by what its coder reads. method: ``atp``, ``relp``, ``gim`` or ``ig``, in so many steps
    or as many as each group needs.

    Raises SettingsError for attribution patching of a metric whose gradient is zero at the clean run.
    """
    if method in OF_ONE_GRADIENT:
        return attribution_patching(subject, baseline, rule=method)
    return {
        hook: integrated_gradients(subject, hook, baseline, steps=steps, batch_size=batch_size)
        for hook in subject.coders
    }


def attribution_patching(subject: Subject, baseline: Baseline, *, rule: str = "atp") -> dict[HookPoint, Effects]:
    """Effects from one gradient of the metric at the clean run: the model's own (``atp``) or that of a rule."""
    if subject.metric.is_flat_at_clean:
        raise SettingsError(
            f"the metric {subject.metric.name} has no gradient at the clean run",
            hint="use --method ig with this metric",
        )
    size = rows_at_once(subject, 0, backward=True, at_most=subject.n_texts, method=rule)
    parts = list(in_batches(range(subject.n_texts), partial(_clean_gradients, subject, rule), size=size))
    gradients = {hook: torch.cat([part[hook] for part in parts]) for hook in subject.coders.written}
    return {hook: effects_of(subject, hook, baseline, gradients, None) for hook in subject.coders}


def _clean_gradients(
    subject: Subject, rule: str, texts: Sequence[int]
) -> dict[HookPoint, Float[Tensor, "row spliced d_out"]]:
    """Gradient of the metric of some texts by each written activation."""
    seen: dict[HookPoint, Tensor] = {}
    written = subject.coders.written
    with torch.enable_grad(), applied(subject.adapter, rule):
        callbacks = {hook: _opened(seen, hook) for hook in written}
        value = subject.metric_of(callbacks, texts=torch.tensor(texts, device=subject.adapter.device)).sum()
        gradients = torch.autograd.grad(value, [seen[hook] for hook in written])
    return {hook: _spliced(subject, hook, gradient) for hook, gradient in zip(written, gradients, strict=True)}


def _opened(seen: dict[HookPoint, Tensor], hook: HookPoint) -> Callback:
    """A tap that keeps an activation as a place to take the gradient at, and changes no number."""

    def callback(x: Tensor) -> Tensor:
        # A view is a node of its own in autograd's graph: a tap between modules then has its own gradient too.
        seen[hook] = x.view_as(x) if x.requires_grad else leaf(x)
        return seen[hook]

    return callback


def _spliced(subject: Subject, hook: HookPoint, gradient: Tensor) -> Float[Tensor, "row spliced d_out"]:
    return gradient[:, subject.first :].to(subject.errors[hook])


def effects_of(
    subject: Subject,
    hook: HookPoint,
    baseline: Baseline,
    gradients: Gradients,
    gap: Tensor | None,
    *,
    counts: tuple[int, ...] = (),
) -> Effects:
    """Effects of the group of the coder that reads a hook point, for gradients by what it writes."""
    own = {place: gradients[place] for place in subject.coders[hook].writes if place in gradients}
    errors = {
        place: (own[place] * (subject.errors[place] - baseline.errors[place])).sum(dim=-1)
        for place in subject.coders.errors_of(hook)
        if place in own
    }
    return Effects(Contributions.of(subject, hook, baseline, own), own, errors, gap, counts)


def integrated_gradients(
    subject: Subject,
    hook: HookPoint,
    baseline: Baseline,
    *,
    steps: int | None,
    batch_size: int,
    tolerance: float | None = None,
) -> Effects:
    """Effects along the path of the group of the coder that reads a hook point.

    steps: points on the path; None for as many in each text as bring its gap below the tolerance, see `refining`.
    tolerance: in the metric's unit; unless given 5 % of what the mean metric loses with all nodes at baseline.
    """
    path = GroupPath.of(subject, hook, baseline)
    if steps is not None:
        tolerance = None
    elif tolerance is None:
        tolerance = tolerated(subject, float((subject.metric_clean - metric_at(subject, baseline)).mean()))
    integral = integrated(path, steps=steps or FIRST_STEPS, tolerance=tolerance, batch_size=batch_size)
    found = effects_of(subject, hook, baseline, integral.gradients, integral.gap, counts=tuple(integral.steps))
    return replace(found, sums=path.of_features(integral.gradients))


def tolerated(subject: Subject, behaviour: float, *, level: float | None = None) -> float:
    """How large a gap may be: a share of the behaviour ``m(clean) - m(0)``, but more than rounding makes.

    level: the mean size of the metric, of the subject's texts unless given.
    """
    size = float(subject.metric_clean.abs().mean()) if level is None else level
    rounding = torch.finfo(subject.adapter.dtype).eps * (1 + size)
    return max(TOLERANCE * abs(behaviour), 4 * rounding)


def measured(subject: Subject, hook: HookPoint, effects: Effects, baseline: Baseline) -> Effects:
    """Effects of a group with their gap: what they miss of ``m(clean) - m(group at baseline)`` in each text."""
    path = GroupPath.of(subject, hook, baseline)
    wanted = path.change()
    gap = path.total(effects.gradients).to(wanted) - wanted
    return replace(effects, gap=gap, sums=path.of_features(effects.gradients))
