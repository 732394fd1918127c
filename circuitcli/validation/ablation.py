"""Taking all nodes of a circuit away at once: what happens to the metric, to the next token, to later features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.saes.base import Coded, strongest
from circuitcli.saes.splice import Change, splice
from circuitcli.validation.circuits import kept_nodes


@dataclass(frozen=True)
class Shift:
    """One number before and after the ablation."""

    name: str
    clean: float
    ablated: float

    @property
    def change(self) -> float:
        """Ablated minus clean."""
        return self.ablated - self.clean


@dataclass(frozen=True)
class JointAblation:
    """What ablating all nodes together did; ``effect`` is m(clean) - m(ablated).

    tokens: next-token probabilities; features: activations of later hook points, where each is furthest from zero.
    """

    effect: float
    metric_ablated: float
    tokens: tuple[Shift, ...]
    features: tuple[Shift, ...]


def ablate_together(
    subject: Subject, nodes: Sequence[NodeId], baseline: Baseline, *, tokenizer: Tokenizer, top: int
) -> JointAblation:
    """Ablate the nodes in one run, in model order, later codes recomputed; the ``top`` largest changes are listed."""
    gone = kept_nodes(subject, nodes)
    seen: dict[HookPoint, Coded] = {}

    def edit(hook: HookPoint, coded: Coded) -> Change:
        seen[hook] = coded
        absent = baseline[hook]
        return Change(
            (absent.codes - coded.codes).masked_fill(~gone.features[hook], 0.0),
            (absent.error - coded.error).masked_fill(~gone.errors[hook][:, None], 0.0),
        )

    with torch.no_grad():
        logits = subject.logits(splice(subject.saes, edit, first=subject.prompt.first), rows=1)
    value = float(subject.metric.value(logits)[0])
    return JointAblation(
        effect=subject.metric_clean - value,
        metric_ablated=value,
        tokens=_token_shifts(subject.clean.logits[0, -1], logits[0, -1], tokenizer, top),
        features=_feature_shifts(subject, seen, nodes, top),
    )


def _token_shifts(
    clean: Float[Tensor, " vocab"], ablated: Float[Tensor, " vocab"], tokenizer: Tokenizer, top: int
) -> tuple[Shift, ...]:
    before, after = clean.float().softmax(dim=-1), ablated.float().softmax(dim=-1)
    largest = (after - before).abs().topk(min(top, before.numel())).indices.tolist()
    names = tokenizer.token_strings(largest)
    return tuple(
        Shift(name, float(before[index]), float(after[index])) for name, index in zip(names, largest, strict=True)
    )


def _feature_shifts(
    subject: Subject, seen: Mapping[HookPoint, Coded], nodes: Sequence[NodeId], top: int
) -> tuple[Shift, ...]:
    first = min(node.hook for node in nodes)
    taken = {(node.hook, node.index) for node in nodes}
    shifts: list[Shift] = []
    for hook in (hook for hook in subject.hooks if first < hook):
        before, after = strongest(subject.coded[hook].codes[0]), strongest(seen[hook].codes[0])
        largest = (after - before).abs().topk(min(top, before.numel())).indices.tolist()
        shifts += [
            Shift(str(NodeId(hook, index)), float(before[index]), float(after[index]))
            for index in largest
            if (hook, index) not in taken and before[index] != after[index]
        ]
    return tuple(sorted(shifts, key=lambda shift: -abs(shift.change))[:top])
