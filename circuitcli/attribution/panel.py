"""The prompts of a behaviour in batches of one length, each run when it is needed, in bounded memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.attribution import subject as subjects
from circuitcli.attribution.baselines import Baseline, BaselineRule, metric_at
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject, TokenNames
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.adapter import ModelAdapter
from circuitcli.saes.coders import Coders

T = TypeVar("T")

# Codes of a batch of prompts that are in memory at once: half a gigabyte of float32.
CODES_IN_BATCH = 2**27
# What is kept of batches that were run, so that it need not be run again.
KEPT_BYTES = 2**30


class Kept:
    """What was made before, by name, as long as it fits; what was used last stays."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes, self._size = n_bytes, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def take(self, name: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """The value of this name, made now unless it is still there."""
        if name in self._values:
            self._values.move_to_end(name)
            found: T = self._values[name][0]
            return found
        value = make()
        self._values[name] = value, size(value)
        self._size += size(value)
        while self._size > self._n_bytes and len(self._values) > 1:
            self._size -= self._values.popitem(last=False)[1][1]
        return value


@dataclass(frozen=True)
class Panel:
    """Prompts that are explained together; ``batches`` holds the numbers of those that run at once.

    baseline: of a subject whose prompts have these numbers. whole: the panel that this one is a sample of.
    """

    adapter: ModelAdapter
    coders: Coders
    prompts: tuple[Prompt, ...]
    metric: str
    positions: Positions
    baseline_of: Callable[[Subject, Sequence[int]], Baseline]
    batches: tuple[tuple[int, ...], ...]
    token_names: TokenNames | None = None
    kept: Kept = field(default_factory=lambda: Kept(KEPT_BYTES), compare=False, repr=False)
    whole: "Panel | None" = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        adapter: ModelAdapter,
        coders: Coders,
        prompts: Sequence[Prompt],
        *,
        metric: str,
        positions: Positions,
        baseline_of: Callable[[Subject, Sequence[int]], Baseline],
        batch_size: int,
        token_names: TokenNames | None = None,
    ) -> "Panel":
        """The panel of these prompts, at most ``batch_size`` of them at once; ``token_names`` is for messages.

        Raises SettingsError for a rule of the baseline that these prompts do not go with.
        """
        if isinstance(baseline_of, BaselineRule):
            baseline_of = baseline_of.over(prompts)
        batches = tuple(_batches(prompts, d_codes=sum(coder.d_sae for coder in coders.values()), batch_size=batch_size))
        return cls(adapter, coders, tuple(prompts), metric, positions, baseline_of, batches, token_names)

    @classmethod
    def of_subject(cls, subject: Subject, baseline: Baseline, *, positions: str) -> "Panel":
        """The panel of prompts that were run already."""
        made = cls(
            subject.adapter,
            subject.coders,
            subject.prompts,
            subject.metric.name,
            Positions.of(positions, subject.prompts),
            lambda subject, numbers: baseline,
            (tuple(range(subject.n_texts)),),
        )
        made.kept.take(("subject", 0), lambda: (subject, baseline), lambda _: 0)
        return made

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """The hook points that name nodes, in model order."""
        return self.coders.hooks

    @property
    def numbers(self) -> range:
        """The numbers of the batches."""
        return range(len(self.batches))

    def node_id(self, hook: HookPoint, index: int | None, group: int) -> str:
        """The name of a node at a group of positions."""
        return str(NodeId(hook, index, self.positions.names[group]))

    def subject(self, batch: int) -> tuple[Subject, Baseline]:
        """A batch, run cleanly, with its baseline."""

        def make() -> tuple[Subject, Baseline]:
            numbers = self.batches[batch]
            prompts = [self.prompts[number] for number in numbers]
            subject = subjects.build(
                self.adapter, self.coders, prompts, metric=self.metric, token_names=self.token_names
            )
            return subject, self.baseline_of(subject, numbers)

        return self.kept.take(("subject", batch), make, lambda made: made[0].n_bytes + made[1].n_bytes)

    def subjects(self) -> Iterator[tuple[Subject, Baseline]]:
        """Each batch in turn."""
        return (self.subject(batch) for batch in self.numbers)

    def masks(self, subject: Subject) -> Bool[Tensor, "text group spliced"]:
        """Which positions of each prompt a node stands for."""
        return self.positions.masks(subject.prompts, subject.adapter.device)

    def metric_clean(self) -> list[float]:
        """The metric of the unchanged model for each prompt, in their order."""
        return self._of_prompts(lambda batch: self.subject(batch)[0].metric_clean)

    def metric_empty(self) -> list[float]:
        """The metric with every node and error at its baseline for each prompt, in their order."""
        return self._of_prompts(
            lambda batch: self.kept.take(("empty", batch), lambda: metric_at(*self.subject(batch)), lambda _: 0)
        )

    @cached_property
    def behaviour(self) -> float:
        """What there is to explain, a mean over prompts: ``m(clean) - m(0)``."""
        differences = [clean - empty for clean, empty in zip(self.metric_clean(), self.metric_empty(), strict=True)]
        return sum(differences) / self.n_prompts

    @cached_property
    def level(self) -> float:
        """The mean size of the clean metric."""
        return sum(map(abs, self.metric_clean())) / self.n_prompts

    def _of_prompts(self, of_batch: Callable[[int], Float[Tensor, " text"]]) -> list[float]:
        """Numbers of the prompts of each batch, in the order of the prompts."""
        values = [0.0] * self.n_prompts
        for batch in self.numbers:
            for number, value in zip(self.batches[batch], of_batch(batch).tolist(), strict=True):
                values[number] = value
        return values


def _batches(prompts: Sequence[Prompt], *, d_codes: int, batch_size: int) -> Iterator[tuple[int, ...]]:
    """Numbers of prompts of one length, as many at once as their codes allow; lengths as they first come."""
    by_length: dict[tuple[int, int], list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault((len(prompt.ids), prompt.first), []).append(number)
    for (length, first), numbers in by_length.items():
        size = max(1, min(batch_size, CODES_IN_BATCH // ((length - first) * d_codes)))
        for begin in range(0, len(numbers), size):
            yield tuple(numbers[begin : begin + size])


def wide(values: Tensor) -> Tensor:
    """In float64, where the device has it, so that sums over many prompts lose nothing."""
    return values.to(torch.float64) if _has_float64(values.device.type) else values


@cache
def _has_float64(device: str) -> bool:
    """Apple's GPUs have none."""
    try:
        torch.zeros(1, device=device).to(torch.float64)
    except (TypeError, RuntimeError):
        return False
    return True
