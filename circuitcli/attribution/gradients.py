"""Node effects from gradients: attribution patching and integrated gradients (Marks et al. 2024, arXiv:2403.19647).

The effect of a feature is ``(dm/df_i) * (f_i - f0_i)`` at each position, with ``dm/df_i`` the sum, over the hook points
that its coder writes, of ``scale * W_dec[i] . dm/dx`` of the unmodified model: gradients pass straight through the
coders. The effect of an error is ``dm/dx . (e - e0)``.

Integrated gradients average these over a path on which one group of nodes moves from the baseline to the clean run
while all else runs free (midpoint rule). A group is a coder's codes at all hook points that it writes, and the errors
of those that it is the last coder to write. Where an error is not in the group only what the coder adds is moved.

The effects of a group ought to add up to what the metric loses with the whole group at baseline; what is missing is its
gap. Steps are added until it is small: three times as many have all points of before among theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.baselines import Baseline, metric_at
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.moves import change_to
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

# Where steps are not fixed: how many are taken first, and three times as many again and again up to the last, until the
# effects of a group miss no more than this share of the behaviour.
FIRST_STEPS, MOST_STEPS, TOLERANCE = 5, 405, 0.05


@dataclass(frozen=True)
class Effects:
    """Effects of a group's nodes on the metric of each text: of features along the gradients, and of errors.

    gradients: by written hook point. gap: for each text what the effects of all nodes of the group miss of ``m(clean) -
    m(group at baseline)``; None where that was not measured. steps: of the path that the gradients are averages over,
    in the text that took most. sums: what all features add up to in each text; None where that was not needed.
    """

    parts: Contributions
    gradients: Gradients
    errors: Mapping[HookPoint, Float[Tensor, "text position"]]
    gap: Float[Tensor, " text"] | None
    steps: int = 1
    sums: Float[Tensor, " text"] | None = None

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
    steps: int = 1,
) -> Effects:
    """Effects of the group of the coder that reads a hook point, for gradients by what it writes."""
    own = {place: gradients[place] for place in subject.coders[hook].writes if place in gradients}
    errors = {
        place: (own[place] * (subject.errors[place] - baseline.errors[place])).sum(dim=-1)
        for place in subject.coders.errors_of(hook)
        if place in own
    }
    return Effects(Contributions.of(subject, hook, baseline, own), own, errors, gap, steps)


@dataclass(frozen=True)
class GroupPath:
    """The straight path on which one group moves from its clean values (share 0) to the baseline (share 1).

    steps: at each hook point that the group's coder writes, what is taken off at the end of the path; where the error
    is in the group the activation there is known, elsewhere the step comes off what arrives. changes: the part of the
    codes in it.
    """

    subject: Subject
    hook: HookPoint
    steps: Mapping[HookPoint, Float[Tensor, "text spliced d_out"]]
    changes: Mapping[HookPoint, Float[Tensor, "text spliced d_out"]]

    @classmethod
    def of(cls, subject: Subject, hook: HookPoint, baseline: Baseline) -> "GroupPath":
        """The path of the coder that reads a hook point."""
        coder, frame = subject.coders[hook], subject.coded.frames[hook]
        codes, absent = subject.codes[hook], baseline.codes[hook]
        changes = {place: change_to(coder, codes, absent, frame, hook=place) for place in coder.writes}
        errors = {place: subject.errors[place] - baseline.errors[place] for place in subject.coders.errors_of(hook)}
        return cls(subject, hook, changes | {place: changes[place] + part for place, part in errors.items()}, changes)

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
        shares = [0.0] if at_clean else midpoints(steps)
        texts = range(self.subject.n_texts)
        totals = self.summed(texts, shares, batch_size=batch_size, gradients=gradients)
        return {place: total / len(shares) for place, total in totals.items()}

    def summed(
        self,
        texts: Sequence[int],
        shares: Sequence[float],
        *,
        batch_size: int,
        gradients: PathGradients | None = None,
    ) -> dict[HookPoint, Float[Tensor, "some spliced d_out"]]:
        """For each of some texts its gradients at all of these shares of the path, added up."""
        like = next(iter(self.steps.values()))
        size = rows_at_once(self.subject, self.start, backward=True, at_most=max(batch_size, 1))
        totals: dict[HookPoint, Tensor] = {}

        def run(rows: Sequence[tuple[int, float]]) -> tuple[Tensor, Mapping[HookPoint, Tensor]]:
            numbers = torch.tensor([number for number, _ in rows], device=like.device)
            of_rows = torch.tensor(texts, device=like.device)[numbers]
            at = torch.tensor([share for _, share in rows], device=like.device, dtype=like.dtype)
            return numbers, (gradients or self.gradients)(at, of_rows)

        rows = [(number, share) for number in range(len(texts)) for share in shares]
        for numbers, found in in_batches(rows, run, size=size):
            for place, gradient in found.items():
                total = totals.setdefault(place, gradient.new_zeros(len(texts), *gradient.shape[1:]))
                total.index_add_(0, numbers, gradient)
        return totals

    def total(self, gradients: Gradients) -> Float[Tensor, " text"]:
        """What the effects of all nodes of the group add up to for mean gradients."""
        return _product(gradients, self.steps)

    def of_features(self, gradients: Gradients) -> Float[Tensor, " text"]:
        """What the effects of its features add up to."""
        return _product(gradients, self.changes)

    def change(self) -> Float[Tensor, " text"]:
        """``m(clean) - m(group at baseline)``, which the effects of the group ought to add up to."""
        subject, like = self.subject, next(iter(self.steps.values()))
        size = rows_at_once(subject, self.start, backward=False, at_most=subject.n_texts)

        def run(texts: Sequence[int]) -> Tensor:
            rows = torch.tensor(texts, device=like.device)
            ends, _ = self.taps(like.new_ones(len(rows)), rows)
            return subject.metric_of(ends, texts=rows, start=self.start)

        with torch.no_grad():
            return subject.metric_clean - torch.cat(list(in_batches(range(subject.n_texts), run, size=size)))


def _product(gradients: Gradients, moves: Gradients) -> Float[Tensor, " text"]:
    """Gradients times what is moved, over all hook points, positions and directions."""
    products = [(gradient * moves[place]).sum(dim=(1, 2)) for place, gradient in gradients.items()]
    return torch.stack(products).sum(dim=0)


def midpoints(steps: int) -> list[float]:
    """The middles of so many equal parts of a path."""
    return [(number + 0.5) / steps for number in range(steps)]


def between(steps: int) -> list[float]:
    """The middles that a third of each part adds: those of three times as many parts, without those known before."""
    return [share for number, share in enumerate(midpoints(3 * steps)) if number % 3 != 1]


def _placed(value: Tensor) -> Callback:
    return lambda x: value.to(x)


def _added(change: Tensor, first: int) -> Callback:
    return lambda x: shifted(x, change, first=first)


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

    steps: points on the path; None for as many in each text as bring its gap below the tolerance, at most `MOST_STEPS`.
    tolerance: in the metric's unit; unless given 5 % of what the mean metric loses with all nodes at baseline.
    """
    path = GroupPath.of(subject, hook, baseline)
    if steps is None and tolerance is None:
        tolerance = tolerated(subject, float((subject.metric_clean - metric_at(subject, baseline)).mean()))
    wanted, texts = path.change(), range(subject.n_texts)
    taken = FIRST_STEPS if steps is None else steps
    totals = path.summed(texts, midpoints(taken), batch_size=batch_size)
    counts = torch.full_like(wanted, taken)
    while True:
        mean = {place: total / counts[:, None, None].to(total) for place, total in totals.items()}
        gap = path.total(mean).to(wanted) - wanted
        if steps is not None or tolerance is None or 3 * taken > MOST_STEPS:
            break
        # A gap that is no number stays one.
        unsure = (gap.abs() > tolerance).nonzero()[:, 0]
        if not len(unsure):
            break
        for place, more in path.summed(unsure.tolist(), between(taken), batch_size=batch_size).items():
            totals[place][unsure] += more
        taken *= 3
        counts[unsure] = taken
    found = effects_of(subject, hook, baseline, mean, gap, steps=int(counts.max()))
    return replace(found, sums=path.of_features(mean))


def tolerated(subject: Subject, behaviour: float) -> float:
    """How large a gap may be: a share of the behaviour ``m(clean) - m(0)``, but more than rounding makes."""
    rounding = torch.finfo(subject.adapter.dtype).eps * (1 + float(subject.metric_clean.abs().mean()))
    return max(TOLERANCE * abs(behaviour), 4 * rounding)


def measured(subject: Subject, hook: HookPoint, effects: Effects, baseline: Baseline) -> Effects:
    """Effects of a group with their gap: what they miss of ``m(clean) - m(group at baseline)`` in each text."""
    path = GroupPath.of(subject, hook, baseline)
    wanted = path.change()
    gap = path.total(effects.gradients).to(wanted) - wanted
    return replace(effects, gap=gap, sums=path.of_features(effects.gradients))
