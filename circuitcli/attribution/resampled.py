"""Panels of some of a panel's prompts, each as often as it is wanted, of which none is run twice.

A circuit is found again on many samples of the same prompts. Clean runs, baselines and effects of a prompt are the same
in each, so they are taken once, as long as there is room, and only what depends on the sample is done again: means,
selection, and the edges into what was selected.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.panel import KEPT_BYTES, Kept, Panel
from circuitcli.attribution.positions import where
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import NodeId

T = TypeVar("T")


class _Shared(Kept):
    """The memory of a panel as that of another one, whose batch of each number is the panel's of another number."""

    def __init__(self, kept: Kept, batches: Sequence[int]) -> None:
        self._kept, self._batches = kept, tuple(batches)

    def take(self, name: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """As of the panel; names are what is kept, the number of the batch, and more."""
        assert isinstance(name, tuple) and isinstance(name[1], int)
        return self._kept.take((name[0], self._batches[name[1]], *name[2:]), make, size)


def one_by_one(panel: Panel) -> Panel:
    """The panel with a batch for each prompt, and a memory of its own."""
    return replace(panel, batches=tuple((number,) for number in range(panel.n_prompts)), kept=Kept(KEPT_BYTES))


def resampled(panel: Panel, numbers: Sequence[int]) -> Panel:
    """The panel of the prompts of these numbers, which may come several times; ``panel`` has batches of one prompt.

    Means, effects and edges are those of a panel that is made of such prompts, also where baselines are drawn for each.
    """
    chosen = tuple(numbers)

    def baseline_of(subject: Subject, own: Sequence[int]) -> Baseline:
        return panel.baseline_of(subject, [chosen[number] for number in own])

    return replace(
        panel,
        prompts=tuple(panel.prompts[number] for number in chosen),
        baseline_of=baseline_of,
        batches=tuple((number,) for number in range(len(chosen))),
        kept=_Shared(panel.kept, chosen),
        whole=panel.whole or panel,
    )


def without_nodes(panel: Panel, nodes: Iterable[NodeId]) -> Panel:
    """The panel in which these are no nodes: their baseline is what they are, so that they have no effect, no edge and
    no place in a circuit. They keep their own value in every run of a search."""
    excluded = tuple(nodes)

    def baseline_of(subject: Subject, own: Sequence[int]) -> Baseline:
        return _holding(subject, panel.baseline_of(subject, own), excluded)

    return replace(panel, baseline_of=baseline_of, kept=Kept(KEPT_BYTES))


def _holding(subject: Subject, baseline: Baseline, nodes: Iterable[NodeId]) -> Baseline:
    """The baseline with the clean values of some nodes."""
    codes, errors = (
        {hook: value.expand(subject.n_texts, subject.n_spliced, -1) for hook, value in part.items()}
        for part in (baseline.codes, baseline.errors)
    )
    for node in nodes:
        part, own = (errors, subject.errors) if node.is_error else (codes, subject.codes)
        if node.hook not in part:
            continue
        rows = where(subject.prompts, node.position, part[node.hook].device)
        absent, value = part[node.hook].clone(), own[node.hook]
        if node.index is None:
            absent[rows] = value[rows]
        else:
            absent[..., node.index] = torch.where(rows, value[..., node.index], absent[..., node.index])
        part[node.hook] = absent
    return Baseline(codes, errors)
