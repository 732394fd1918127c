"""The edges of a frozen graph, split into heads."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from circuitcli.attribution.attention.heads import HeadSplit, Parts, Write
from circuitcli.attribution.frozen.linear import divisor, reading
from circuitcli.attribution.frozen.rows import logit_directions
from circuitcli.attribution.subject import Subject
from circuitcli.graphs import Edge
from circuitcli.hookpoints import HookPoint, NodeId, logit_token
from circuitcli.progress import task


def with_heads(subject: Subject, edges: Sequence[Edge], *, batch_size: int) -> list[Edge]:
    """The edges of a frozen graph, with their parts by head. Raises InputError if the model's heads are not known."""
    made = list(edges)
    for numbers, parts in parts_of(subject, edges, batch_size=batch_size):
        for number, edge in zip(numbers, parts.told([edges[number] for number in numbers]), strict=True):
            made[number] = edge
    return made


def parts_of(subject: Subject, edges: Sequence[Edge], *, batch_size: int) -> Iterator[tuple[list[int], Parts]]:
    """Numbers of some edges and their parts, batch by batch of their targets."""
    split = HeadSplit(subject)
    names = {name: number for number, name in enumerate(dict.fromkeys(edge.source for edge in edges))}
    nodes = [NodeId.parse(name) for name in names]
    carried = split.carried(len(nodes), lambda number: write_of(split, nodes[number]), batch_size=batch_size)
    groups: dict[HookPoint | None, dict[str, list[int]]] = {}
    for number, edge in enumerate(edges):
        hook = None if logit_token(edge.target) is not None else NodeId.parse(edge.target).hook
        groups.setdefault(hook, {}).setdefault(edge.target, []).append(number)
    sources = [names[edge.source] for edge in edges]
    with task("heads of edges", total=len(edges), unit="edges") as advance:
        for hook, into in groups.items():
            gradients = partial(_gradients, split, hook)
            for numbers, parts in split.pieces(into, sources, gradients, carried, batch_size=batch_size):
                yield numbers, parts
                advance(len(numbers))


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


def _gradients(split: HeadSplit, hook: HookPoint | None, names: Sequence[str]) -> dict[int, Tensor]:
    """Derivatives of targets by what attention adds in each block."""
    output, seeds = _logits(split, names) if hook is None else _features(split, hook, names)
    return split.towards([output], [seeds]) if output.requires_grad else {}


def _logits(split: HeadSplit, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    normed = split.normed
    return normed, logit_directions(split.subject, normed.detach(), [logit_token(name) or 0 for name in names])


def _features(split: HeadSplit, hook: HookPoint, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the coder reads, and the derivative of each feature's pre-activation by that."""
    coder, nodes = split.subject.coders[hook], [NodeId.parse(name) for name in names]
    x = (split.run.reads if coder.is_transcoder else split.run.arriving)[hook]
    positions = torch.tensor([node.number or 0 for node in nodes], device=x.device)
    rows = reading(coder, torch.tensor([node.index or 0 for node in nodes], device=x.device))
    divided = divisor(coder, x.detach().to(rows))
    rows = rows if divided is None else rows / divided[0, positions]
    seeds = x.new_zeros(len(nodes), *x.shape)
    seeds[torch.arange(len(nodes), device=x.device), 0, positions] = rows.to(x)
    return x, seeds
