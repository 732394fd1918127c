"""How active the features of a graph are along the prompt: what a reader sees first of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.panel import Panel
from circuitcli.attribution.subject import Subject
from circuitcli.graphs import CircuitGraph, Trace
from circuitcli.hookpoints import HookPoint

# Significant digits: more than a shade shows.
DIGITS = 6
Run = tuple[Sequence[int], Subject]


@dataclass(frozen=True)
class _Best:
    """The prompt in which a feature is furthest from zero, of those looked at."""

    size: float
    number: int
    values: Float[Tensor, " spliced"]
    subject: Subject
    text: int

    @property
    def rank(self) -> tuple[float, int]:
        """Of equals the first prompt."""
        return self.size, -self.number


def runs_of(panel: Panel) -> Iterable[Run]:
    """Each batch of a panel with the numbers of its prompts; those still in memory are not run again."""
    return ((panel.batches[batch], panel.subject(batch)[0]) for batch in panel.numbers)


def with_traces(graph: CircuitGraph, runs: Iterable[Run]) -> CircuitGraph:
    """The graph with the clean activations of its features at every token, of several prompts those of the prompt in
    which the feature is furthest from zero; of equals the first.

    runs: clean runs, with the numbers of their prompts from 0. Features of coders that are not spliced are left out.
    """
    wanted = _features(graph)
    found: dict[tuple[HookPoint, int], _Best] = {}
    for run in runs if wanted else ():
        for hook, indices in wanted.items():
            if hook in run[1].codes:
                for index, best in zip(indices, _best(run, hook, indices), strict=True):
                    found[hook, index] = max(found.get((hook, index), best), best, key=lambda one: one.rank)
    several = graph.head.n_prompts > 1
    return replace(graph, traces=tuple(_trace(*key, found[key], several=several) for key in sorted(found)))


def _features(graph: CircuitGraph) -> dict[HookPoint, list[int]]:
    """The features that are nodes, by hook point."""
    found: dict[HookPoint, set[int]] = {}
    for node in graph.nodes:
        if (place := node.place) is not None and place.index is not None:
            found.setdefault(place.hook, set()).add(place.index)
    return {hook: sorted(indices) for hook, indices in found.items()}


def _best(run: Run, hook: HookPoint, indices: Sequence[int]) -> Iterable[_Best]:
    """For each of these features the prompt of a run in which it is furthest from zero."""
    numbers, subject = run
    codes = subject.codes[hook]
    codes = codes[:, :, torch.tensor(indices, device=codes.device)].cpu()  # (text, spliced, feature)
    sizes = codes.abs().amax(dim=1).numpy()
    # Of equals numpy takes the first, which torch does not promise.
    for place, text in enumerate(sizes.argmax(axis=0).tolist()):
        yield _Best(float(sizes[text, place]), numbers[text], codes[text, :, place], subject, text)


def _trace(hook: HookPoint, index: int, best: _Best, *, several: bool) -> Trace:
    values = (float(f"{value:.{DIGITS}g}") for value in best.values.tolist())
    made = Trace(f"{hook}/{index}", (*[0.0] * best.subject.first, *values))
    prompt = best.subject.prompts[best.text]
    return replace(made, prompt=best.number + 1, tokens=prompt.tokens) if several else made
