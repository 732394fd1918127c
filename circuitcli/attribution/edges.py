"""Edges: what a node contributes to a later node along the direct path (Marks et al. 2024, arXiv:2403.19647).

Edge u -> d is the derivative of ``g_d * f_d`` (with ``g_d = dm/df_d`` held constant) by ``f_u`` along the paths that
avoid all other spliced hook points, times ``f_u - f0_u``. To cut those paths, every spliced hook point before the
target is replaced by its clean value as a leaf; one backward pass from many targets, a row for each, then gives the
direct derivatives by all sources at once. Into an error node, ``g_x . e`` with ``e = x - decode(f)`` and ``f``
following ``x``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.gradients import Effects, difference, effects_of, moved, path_gradient
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block, rerun
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.base import SparseCoder

# Everything that comes later in the model goes through these.
FULL_STREAM = frozenset({"embed", "resid_pre", "resid_mid", "resid"})


@dataclass(frozen=True)
class Target:
    """A node that edges lead to: feature ``index`` (None: the error) at a spliced position (None: at all, summed)."""

    index: int | None
    position: int | None


@dataclass(frozen=True)
class Incoming:
    """Weights of the edges from one hook point's features and error into each target."""

    parts: Contributions
    error: Float[Tensor, "target position"]

    @property
    def features(self) -> Float[Tensor, "target position d_sae"]:
        """Edges from all features at once; for wide SAEs they are better taken in pieces."""
        return self.parts.dense()


def sources_of(hooks: Sequence[HookPoint], target: HookPoint | None) -> list[HookPoint]:
    """Spliced hook points that may have a direct path to the target (None: the output), in model order.

    The last one that the whole stream passes through shields all before it.
    """
    before = sorted(hook for hook in hooks if target is None or hook < target)
    walls = [number for number, hook in enumerate(before) if hook.site in FULL_STREAM]
    return before[walls[-1] :] if walls else before


def incoming(
    subject: Subject,
    hook: HookPoint,
    targets: Sequence[Target],
    effects: Effects,
    baseline: Baseline,
    *,
    batch_size: int,
) -> Iterator[tuple[Sequence[Target], dict[HookPoint, Incoming]]]:
    """Edges into targets at one hook point, in batches of targets; hook points without a path to it are left out."""
    sources = sources_of(subject.hooks, hook)
    for begin in range(0, len(targets) if sources else 0, batch_size):
        rows = targets[begin : begin + batch_size]
        gradients = _direct_gradients(subject, hook, rows, effects, sources)
        yield rows, {source: _weights(subject, source, gradient, baseline) for source, gradient in gradients.items()}


def _direct_gradients(
    subject: Subject, hook: HookPoint, targets: Sequence[Target], effects: Effects, sources: Sequence[HookPoint]
) -> dict[HookPoint, Tensor]:
    """Derivative of each target's ``g * f`` by the activation at each source, (target, position, d_model)."""
    seen: list[Tensor] = []
    rows = len(targets)
    with torch.enable_grad():
        leaves = {source: leaf(subject.activation(source).expand(rows, -1, -1)) for source in sources}
        callbacks: dict[HookPoint, Callback] = {source: _held(place) for source, place in leaves.items()}
        callbacks[hook] = seen.append
        start = min(first_block(source) for source in sources)
        stop = hook.layer + 1 if start >= 0 else None
        rerun(subject.adapter, subject.clean, callbacks, rows=rows, start=start, stop=stop)
        if not seen[0].requires_grad:
            return {}
        x = seen[0][:, subject.prompt.first :].to(effects.gradient)
        value = _weighted_values(subject.saes[hook], x, targets, effects).sum()
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    found = zip(leaves, gradients, strict=True)
    return {source: gradient[:, subject.prompt.first :] for source, gradient in found if gradient is not None}


def _held(place: Tensor) -> Callback:
    return lambda x: place.to(x)


def _weighted_values(
    sae: SparseCoder, x: Float[Tensor, "target position d_in"], targets: Sequence[Target], effects: Effects
) -> Float[Tensor, " target"]:
    """``g_d f_d`` of each feature target and ``g_x . e`` of each error target, in its own row of ``x``."""
    gradient = effects.gradient.expand(len(targets), -1, -1)
    if needs_one_position(sae, targets):
        # The codes of other positions are not needed, and of a wide SAE they would be most of the memory.
        at = torch.tensor([target.position for target in targets], device=x.device)
        rows = torch.arange(len(targets), device=x.device)
        x, gradient = x[rows, at][:, None], gradient[rows, at][:, None]  # (target, 1, d_in)
        targets = [replace(target, position=0) for target in targets]
    coded = sae.code(x)
    values = []
    for row, target in enumerate(targets):
        if target.index is None:
            terms = (gradient[row] * coded.error[row]).sum(dim=-1)
        else:
            slope = gradient[row] @ sae.W_dec[target.index]
            slope = slope if coded.frame is None else slope * coded.frame.scale[row, :, 0]
            terms = slope * coded.codes[row, :, target.index]
        values.append(terms.sum() if target.position is None else terms[target.position])
    return torch.stack(values)


def needs_one_position(sae: SparseCoder, targets: Sequence[Target]) -> bool:
    """Whether what a target is comes from the activation at its own position alone."""
    return not sae.reads_context and all(target.position is not None for target in targets)


def _weights(
    subject: Subject, source: HookPoint, gradient: Float[Tensor, "target position d_in"], baseline: Baseline
) -> Incoming:
    sae, coded, absent = subject.saes[source], subject.coded[source], baseline[source]
    error = (gradient * (coded.error - absent.error)).sum(dim=-1)
    return Incoming(Contributions(sae, coded, absent, gradient), error)


def to_output(
    subject: Subject, effects: dict[HookPoint, Effects], baseline: Baseline, *, method: str, steps: int, batch_size: int
) -> dict[HookPoint, Effects]:
    """Edges to the output from every hook point with a direct path to it, as effects along that path.

    For integrated gradients the derivative is averaged over the path of the source's own hook point. Where no other
    spliced hook point follows, all paths are direct and the edges are the node effects.
    """
    sources = sources_of(subject.hooks, None)
    edges = {sources[-1]: effects[sources[-1]]}
    for hook in sources[:-1]:
        gradient = _output_gradient(subject, hook, sources, baseline, method=method, steps=steps, batch_size=batch_size)
        if gradient is not None:
            edges[hook] = effects_of(subject.saes[hook], subject.coded[hook], baseline[hook], gradient, None)
    return edges


def _output_gradient(
    subject: Subject,
    hook: HookPoint,
    sources: Sequence[HookPoint],
    baseline: Baseline,
    *,
    method: str,
    steps: int,
    batch_size: int,
) -> Tensor | None:
    step = difference(subject.saes[hook], subject.coded[hook], baseline[hook])
    shares = step.new_zeros(1) if method == "atp" else (torch.arange(steps).to(step) + 0.5) / steps
    others = [other for other in sources if other != hook]
    total = None
    for chunk in shares.split(batch_size):
        held = {
            other: _held(subject.activation(other).expand(len(chunk), -1, -1).contiguous())
            for other in others
            if hook < other
        }
        gradient = path_gradient(subject, hook, moved(subject, hook, step, chunk), held).sum(dim=0)
        total = gradient if total is None else total + gradient
    return total / len(shares) if total is not None and total.any() else None
