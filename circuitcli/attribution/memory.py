"""How many copies of a prompt run at once: one budget for all passes, and what happens where it was too large.

What a row takes is estimated from the prompt's length, the model's widths, the blocks that are still to run (all of
which a backward pass keeps), the logits that the metric reads, and codes that the caller keeps for each row.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch

from circuitcli.attribution.metrics import Metric
from circuitcli.errors import is_out_of_memory
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import BlockPass
from circuitcli.models.rules import RULES
from circuitcli.saes.coders import Coders

R = TypeVar("R")
T = TypeVar("T")

logger = logging.getLogger(__name__)

# What the rows of one pass may take on a processor, beside the model, its coders and what is kept of the clean run.
BUDGET_BYTES = 2**31
# Of a GPU's whole memory, so that the size of batches, and with it rounding, depends on the device alone.
_SHARE_OF_GPU = 4
# Numbers that a block makes for each position: as wide as the stream, and as wide as inside the MLP.
_STREAMS, _INNER = 10, 3
# How often logits are there at once in a forward pass: themselves and their logarithms of shares; a backward pass adds
# the gradients of both.
_LOGITS, _LOGITS_BACKWARD = 2, 4


@runtime_checkable
class Measured(Protocol):
    """What runs: a subject, as far as its memory depends on it."""

    @property
    def adapter(self) -> ModelAdapter:
        """The model."""

    @property
    def coders(self) -> Coders:
        """Its coders."""

    @property
    def clean(self) -> BlockPass:
        """The prompts, run cleanly."""

    @property
    def metric(self) -> Metric:
        """What is measured."""


class _Halvings:
    """How often batches of this process did not fit and were halved: later ones begin there."""

    count = 0


def rows_at_once(
    subject: Measured,
    start: int,
    *,
    backward: bool,
    at_most: int,
    codes: int = 0,
    stop: int | None = None,
    method: str | None = None,
) -> int:
    """How many rows a pass from block ``start`` on takes; one at least.

    stop: the block that it ends before, without logits; by default it goes to the metric. codes: numbers, in the
    coders' type, that are kept or made for each row, all at once. method: whose rule the backward pass goes by.
    """
    of_row = bytes_of_row(subject, start, backward=backward, codes=codes, stop=stop, method=method)
    fitting = budget_of(subject.adapter) // of_row
    return max(1, min(at_most, fitting) >> _Halvings.count)


def budget_of(adapter: ModelAdapter) -> int:
    """Bytes that the rows of one pass may take on the model's device."""
    if adapter.device.type != "cuda":
        return BUDGET_BYTES
    return max(BUDGET_BYTES, torch.cuda.get_device_properties(adapter.device).total_memory // _SHARE_OF_GPU)


def bytes_of_row(
    subject: Measured,
    start: int,
    *,
    backward: bool,
    codes: int = 0,
    stop: int | None = None,
    method: str | None = None,
) -> int:
    """What one row of such a pass takes, roughly."""
    # Rules look into attention, so that patterns are there as a whole.
    whole = backward and method in RULES
    adapter = subject.adapter
    n_positions, size = subject.clean.input_ids.shape[1], adapter.dtype.itemsize
    n_blocks = max(1, (adapter.n_layers if stop is None else stop) - max(0, start)) if backward else 1
    numbers = n_positions * _STREAMS * adapter.d_model + n_blocks * _of_block(adapter, n_positions, whole=whole)
    coder_size = next(iter(subject.coders.values())).W_enc.element_size()
    return numbers * size + codes * coder_size + (0 if stop is not None else _of_logits(subject, backward=backward))


def _of_block(adapter: ModelAdapter, n_positions: int, *, whole: bool) -> int:
    """Numbers that a block makes of one row. whole: its scores and patterns are there, whatever the model does."""
    config, d_model = adapter.text_config, adapter.d_model
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d_model
    inner = max(inner) if isinstance(inner, list | tuple) else inner
    numbers = n_positions * (_STREAMS * d_model + _INNER * inner)
    if getattr(config, "_attn_implementation", "eager") != "eager" and not whole:
        return numbers
    # Scores and patterns of each head as whole matrices.
    return numbers + 2 * int(getattr(config, "num_attention_heads", 1)) * n_positions**2


def _of_logits(subject: Measured, *, backward: bool) -> int:
    """Bytes of the logits that the metric reads and of what is made of them, in float32 at least."""
    n_positions = subject.clean.input_ids.shape[1]
    n_read = len(range(*subject.metric.positions.indices(n_positions)))
    size = max(4, subject.adapter.dtype.itemsize) * (_LOGITS_BACKWARD if backward else _LOGITS)
    return n_read * subject.adapter.n_token_ids * (size + (2 if subject.adapter.dtype.itemsize < 4 else 0))


def in_batches(rows: Sequence[T], run: Callable[[Sequence[T]], R], *, size: int) -> Iterator[R]:
    """What ``run`` makes of ``size`` rows after the other; what does not fit the memory is halved, and so is all that
    comes later.

    Raises what the run raised if one row does not fit.
    """
    begin = 0
    while begin < len(rows):
        made = _unless_too_large(run, rows[begin : begin + size])
        if made is None:
            size = halved(min(size, len(rows) - begin))
            continue
        begin += size
        yield made[0]


def _unless_too_large(run: Callable[[Sequence[T]], R], rows: Sequence[T]) -> tuple[R] | None:
    """What a run makes of some rows; None if it did not fit the memory and there are fewer to try."""
    try:
        return (run(rows),)
    except Exception as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    return None


def halved(size: int) -> int:
    """Half as many rows, once the memory that so many took is free again; all later batches have half as many too."""
    _Halvings.count += 1
    # What the failed run held went with its traceback.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning(
        "out of memory with %d rows in one pass: going on with %d (--set graph.batch_size=%d begins there)",
        size,
        size // 2,
        size // 2,
    )
    return size // 2
