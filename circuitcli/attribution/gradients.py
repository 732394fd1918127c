"""Node effects from gradients: attribution patching and integrated gradients (Marks et al. 2024, arXiv:2403.19647).

The effect of a feature is ``(dm/df_i) * (f_i - f0_i)`` at each position, with ``dm/df_i`` the sum, over the hook points
that its coder writes, of ``scale * W_dec[i] . dm/dx`` of the unmodified model: gradients pass straight through the
coders. The effect of an error is ``dm/dx . (e - e0)``.

Integrated gradients average these over a path on which one group of nodes moves from the baseline to the clean run
while all else runs free (midpoint rule). A group is a coder's codes at all hook points that it writes, and the errors
of those that it is the last coder to write. Where an error is not in the group only what the coder adds is moved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.subject import Subject
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.rules import applied
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.splice import shifted
from circuitcli.settings.graph import OF_ONE_GRADIENT

Gradients = Mapping[HookPoint, Float[Tensor, "text position d_out"]]
# Of rows at shares of a path, each a copy of a text.
PathGradients = Callable[[Tensor, Tensor], Mapping[HookPoint, Tensor]]


@dataclass(frozen=True)
class Effects:
    """Effects of a group's nodes on the metric of each text: of features along the gradients, and of errors.

    gradients: by written hook point. gap: for each text what the effects of all nodes of the group miss of ``m(clean) -
    m(group at baseline)``; None for attribution patching, which makes no such promise.
    """

    parts: Contributions
    gradients: Gradients
    errors: Mapping[HookPoint, Float[Tensor, "text position"]]
    gap: Float[Tensor, " text"] | None

    @property
    def features(self) -> Float[Tensor, "text position d_sae"]:
        """Effects of all features at once; of wide coders they are better taken in pieces."""
        return self.parts.dense()


def node_effects(
    subject: Subject, baseline: Baseline, *, method: str, steps: int, batch_size: int
) -> dict[HookPoint, Effects]:
    """Effects of every group, by what its coder reads. method: ``atp``, ``relp``, ``gim`` or ``ig``.

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
    seen: dict[HookPoint, Tensor] = {}
    written = subject.coders.written
    with torch.enable_grad(), applied(subject.adapter, rule):
        value = subject.metric_of({hook: _opened(seen, hook) for hook in written}).sum()
        gradients = torch.autograd.grad(value, [seen[hook] for hook in written])
    spliced = {hook: _spliced(subject, hook, gradient) for hook, gradient in zip(written, gradients, strict=True)}
    return {hook: effects_of(subject, hook, baseline, spliced, None) for hook in subject.coders}


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
    subject: Subject, hook: HookPoint, baseline: Baseline, gradients: Gradients, gap: Tensor | None
) -> Effects:
    """Effects of the group of the coder that reads a hook point, for gradients by what it writes."""
    own = {place: gradients[place] for place in subject.coders[hook].writes if place in gradients}
    errors = {
        place: (own[place] * (subject.errors[place] - baseline.errors[place])).sum(dim=-1)
        for place in subject.coders.errors_of(hook)
        if place in own
    }
    return Effects(Contributions.of(subject, hook, baseline, own), own, errors, gap)


@dataclass(frozen=True)
class GroupPath:
    """The straight path on which one group moves from its clean values (share 0) to the baseline (share 1).

    steps: at each hook point that the group's coder writes, what is taken off at the end of the path; where the error
    is in the group the activation there is known, elsewhere the step comes off what arrives.
    """

    subject: Subject
    hook: HookPoint
    steps: Mapping[HookPoint, Float[Tensor, "text spliced d_out"]]

    @classmethod
    def of(cls, subject: Subject, hook: HookPoint, baseline: Baseline) -> "GroupPath":
        """The path of the coder that reads a hook point."""
        coder, frame = subject.coders[hook], subject.coded.frames[hook]
        difference = subject.codes[hook] - baseline.codes[hook]
        steps = {place: coder.change(difference, frame, hook=place) for place in coder.writes}
        for place in subject.coders.errors_of(hook):
            steps[place] = steps[place] + subject.errors[place] - baseline.errors[place]
        return cls(subject, hook, steps)

    @property
    def start(self) -> int:
        """The block at which runs along the path may start."""
        return min(first_block(place) for place in self.steps)

    def taps(
        self, shares: Float[Tensor, " row"], texts: Int[Tensor, " row"] | None
    ) -> tuple[dict[HookPoint, Callback], dict[HookPoint, Tensor]]:
        """Taps that put each row at its share of the path, and by written hook point the leaf whose gradient is dm/dx
        there."""
        known = self.subject.coders.errors_of(self.hook)
        callbacks: dict[HookPoint, Callback] = {}
        leaves: dict[HookPoint, Tensor] = {}
        for place, step in self.steps.items():
            amount = shares[:, None, None] * (step if texts is None else step[texts])
            if place in known:
                clean = self.subject.activation(place)
                value = (clean if texts is None else clean[texts]).clone()
                value[:, self.subject.first :] -= amount
                leaves[place] = leaf(value)
                callbacks[place] = _placed(leaves[place])
            else:
                leaves[place] = leaf(-amount)
                callbacks[place] = _added(leaves[place], self.subject.first)
        return callbacks, leaves

    def gradients(
        self, shares: Float[Tensor, " row"], texts: Int[Tensor, " row"]
    ) -> dict[HookPoint, Float[Tensor, "row spliced d_out"]]:
        """Gradient of the metric by each written activation at each share of the path, all else running free."""
        with torch.enable_grad():
            callbacks, leaves = self.taps(shares, texts)
            value = self.subject.metric_of(callbacks, texts=texts, start=self.start).sum()
            gradients = torch.autograd.grad(value, list(leaves.values()))
        known = self.subject.coders.errors_of(self.hook)
        return {
            place: gradient[:, self.subject.first :] if place in known else gradient
            for place, gradient in zip(leaves, gradients, strict=True)
        }

    def mean_gradients(
        self, *, steps: int, batch_size: int, at_clean: bool = False, gradients: PathGradients | None = None
    ) -> dict[HookPoint, Float[Tensor, "text spliced d_out"]]:
        """Mean gradient over the path by the midpoint rule, or (at_clean) the gradient where it begins.

        gradients: those of runs at shares of the path; `gradients` unless given.
        """
        n_texts, like = self.subject.n_texts, next(iter(self.steps.values()))
        shares = like.new_zeros(1) if at_clean else (torch.arange(steps).to(like) + 0.5) / steps
        totals: dict[HookPoint, Tensor] = {}
        for chunk in shares.split(max(1, batch_size // n_texts)):
            texts = self.subject.copies(len(chunk))
            for place, gradient in (gradients or self.gradients)(chunk.repeat(n_texts), texts).items():
                part = gradient.unflatten(0, (n_texts, -1)).sum(dim=1)
                totals[place] = totals[place] + part if place in totals else part
        return {place: total / len(shares) for place, total in totals.items()}


def _placed(value: Tensor) -> Callback:
    return lambda x: value.to(x)


def _added(change: Tensor, first: int) -> Callback:
    return lambda x: shifted(x, change, first=first)


def integrated_gradients(
    subject: Subject, hook: HookPoint, baseline: Baseline, *, steps: int, batch_size: int
) -> Effects:
    """Effects along the path of the group of the coder that reads a hook point."""
    path = GroupPath.of(subject, hook, baseline)
    effects = effects_of(subject, hook, baseline, path.mean_gradients(steps=steps, batch_size=batch_size), None)
    with torch.no_grad():
        ends, _ = path.taps(torch.ones(subject.n_texts).to(subject.errors[subject.coders[hook].writes[0]]), None)
        reached = subject.metric_clean - subject.metric_of(ends, start=path.start)
    total = sum((value.sum(dim=-1) for value in effects.errors.values()), torch.zeros_like(reached))
    for _, values in effects.parts.pieces():
        total = total + values.sum(dim=(1, 2))
    return Effects(effects.parts, effects.gradients, effects.errors, total - reached)
