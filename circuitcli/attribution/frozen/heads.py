"""The edges of a frozen graph, split into heads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcli.attribution.attention.heads import HeadSplit, Parts, Write
from circuitcli.attribution.frozen.linear import divisor, reading
from circuitcli.attribution.frozen.rows import logit_directions
from circuitcli.attribution.subject import Subject
from circuitcli.graphs import Edge
from circuitcli.hookpoints import HookPoint, NodeId, logit_token
from circuitcli.progress import task


def frozen_parts(subject: Subject, between: Sequence[Edge], *, batch_size: int) -> Parts:
    """Parts of edges of a frozen graph, in their order.

    Raises InputError if the heads of the model are not known.
    """
    split = HeadSplit(subject)
    sources = list(dict.fromkeys(edge.source for edge in between))
    targets = _Targets(split, list(dict.fromkeys(edge.target for edge in between)))
    numbers = [{name: number for number, name in enumerate(names)} for names in (sources, targets.names)]
    edges = torch.tensor(
        [[numbers[0][edge.source], numbers[1][edge.target]] for edge in between], dtype=torch.int64
    ).reshape(-1, 2)
    nodes = [NodeId.parse(name) for name in sources]
    with task("heads of edges", total=len(targets.names), unit="nodes") as advance:

        def batches() -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
            for some, gradients in targets.batches(batch_size):
                yield some, gradients
                advance(len(some))

        return split.parts(
            edges.to(subject.adapter.device),
            lambda number: write_of(split, nodes[number]),
            batches(),
            batch_size=batch_size,
        )


def write_of(split: HeadSplit, node: NodeId) -> Write:
    """What a feature, error or token writes in the clean run at its position, and nothing elsewhere."""
    subject, at = split.subject, (node.number or 0) - split.subject.first
    if node.index is None:
        whole = (
            split.run.leaves[node.hook].detach()[0, subject.first :] if node.is_token else subject.errors[node.hook][0]
        )
        return {node.hook: _only(whole, at)}
    coder, scale = subject.coders[node.hook], subject.scale(node.hook)
    code = subject.codes[node.hook][0, at, node.index] * (1.0 if scale is None else scale[0, at, 0])
    return {
        place: _only((code * coder.decoder(place)[node.index]).expand(subject.n_spliced, -1), at)
        for place in coder.writes
    }


def _only(values: Tensor, at: int) -> Tensor:
    """The values at one position, 0 elsewhere."""
    made = torch.zeros_like(values, memory_format=torch.contiguous_format)
    made[at] = values[at]
    return made


@dataclass(frozen=True)
class _Group:
    """Features of a coder, or logits (hook None), that edges lead to."""

    hook: HookPoint | None
    names: tuple[str, ...]


class _Targets:
    """Features and logits that edges lead to, by what they are read from."""

    def __init__(self, split: HeadSplit, names: Sequence[str]) -> None:
        self.split, self.subject = split, split.subject
        groups: dict[HookPoint | None, list[str]] = {}
        for name in names:
            groups.setdefault(None if logit_token(name) is not None else NodeId.parse(name).hook, []).append(name)
        self._groups = [_Group(hook, tuple(some)) for hook, some in groups.items()]
        self.names = [name for group in self._groups for name in group.names]

    def batches(self, size: int) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
        """Numbers of some targets, and their derivatives by what attention adds."""
        begin = 0
        for group in self._groups:
            for start in range(0, len(group.names), size):
                names = group.names[start : start + size]
                output, seeds = self._logits(names) if group.hook is None else self._features(group.hook, names)
                numbers = torch.arange(begin, begin + len(names), device=output.device)
                yield numbers, self.split.towards([output], [seeds]) if output.requires_grad else {}
                begin += len(names)

    def _logits(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        normed = self.split.normed
        return normed, logit_directions(self.subject, normed.detach(), [logit_token(name) or 0 for name in names])

    def _features(self, hook: HookPoint, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the coder reads, and the derivative of each feature's pre-activation by that."""
        coder, nodes = self.subject.coders[hook], [NodeId.parse(name) for name in names]
        x = (self.split.run.reads if coder.is_transcoder else self.split.run.arriving)[hook]
        positions = torch.tensor([node.number or 0 for node in nodes], device=x.device)
        rows = reading(coder, torch.tensor([node.index or 0 for node in nodes], device=x.device))
        divided = divisor(coder, x.detach().to(rows))
        rows = rows if divided is None else rows / divided[0, positions]
        seeds = x.new_zeros(len(nodes), *x.shape)
        seeds[torch.arange(len(nodes), device=x.device), 0, positions] = rows.to(x)
        return x, seeds
