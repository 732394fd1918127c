"""RelP (Jafari et al. 2025, arXiv:2508.21258): layer-wise relevance propagation as a gradient.

Attention patterns and the denominators of norms are constants, activation functions the constant factor ``f(x) / x``,
and of a gated product each factor gets half of its gradient.
"""

from collections.abc import Iterator

from torch import nn

from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.rules.activations import linear_activations
from circuitcli.models.rules.calls import Around
from circuitcli.models.rules.frozen import parts as frozen_parts


def parts(adapter: ModelAdapter) -> Iterator[tuple[nn.Module, Around]]:
    """The modules whose derivative the rule changes, and how they are run for that."""
    yield from frozen_parts(adapter)
    yield from linear_activations(adapter)
