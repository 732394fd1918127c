"""Attention patterns and the denominators of norms are constants, as in circuit-tracer (Ameisen et al. 2025)."""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.rules.attention import ruled_attention
from circuitcli.models.rules.calls import Around
from circuitcli.models.rules.norms import frozen_norms


def parts(adapter: ModelAdapter) -> Iterator[tuple[nn.Module, Around]]:
    """The modules whose derivative the rule changes, and how they are run for that."""
    yield from frozen_norms(adapter)
    yield from ruled_attention(adapter, _constant, halves=False)


def _constant(scores: Tensor, softmax: Callable[[Tensor], Tensor]) -> Tensor:
    return softmax(scores.detach())
