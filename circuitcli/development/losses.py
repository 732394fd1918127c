"""The loss of each checkpoint with a crosscoder's reconstruction in the place of its activations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.aligned import AlignedCache
from circuitcli.activations.cache import TokenBlock
from circuitcli.evaluation.spliced import LEAST_HARM, MISSED_TARGET, Texts
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import tapped
from circuitcli.saes.checkpoint_crosscoder import CheckpointCrosscoder

_TEXTS_AT_ONCE = 8


@dataclass(frozen=True)
class CheckpointLoss:
    """Cross-entropy of one checkpoint on held-out text, in nats per token: its own, with the reconstruction, and with
    its mean activation. loss_recovered: as in `ModelLoss`; None where the mean does no harm."""

    n_predictions: int
    ce_clean: float
    ce_spliced: float
    ce_mean: float

    @property
    def ce_increase(self) -> float:
        """By how much the reconstruction raises the loss."""
        return self.ce_spliced - self.ce_clean

    @property
    def loss_recovered(self) -> float | None:
        """1 if the reconstruction changes nothing, 0 if it is no better than the mean."""
        harm = self.ce_mean - self.ce_clean
        return (self.ce_mean - self.ce_spliced) / harm if harm > LEAST_HARM else None


@dataclass(frozen=True)
class HeldOutText:
    """Whole blocks of held-out text and what a crosscoder makes of each checkpoint's activations there."""

    cache: AlignedCache
    blocks: tuple[TokenBlock, ...]
    parts: tuple[tuple[Float[Tensor, "row d_model"], ...], ...]

    @classmethod
    @torch.no_grad()
    def of(cls, cache: AlignedCache, coder: CheckpointCrosscoder, rows: range) -> "HeldOutText":
        """The blocks of these rows that predict something."""
        blocks = tuple(block for block in cache.blocks(rows.start, rows.stop) if len(block.ids) > 1)
        parts = []
        for block in blocks:
            x = [cache.rows(hook, block.start_row, block.stop_row).to(coder.W_enc) for hook in cache.hooks]
            parts.append(coder.parts(coder.reconstruct(coder.side_by_side(x))))
        return cls(cache, blocks, tuple(parts))

    def loss(self, adapter: ModelAdapter, number: int, *, pad_id: int) -> CheckpointLoss:
        """That of the checkpoint of this number, whose model this is."""
        mean = self.cache.mean(self.cache.hooks[number]).float()
        sums, n = [0.0, 0.0, 0.0], 0
        for blocks, parts in self._batches():
            ((ids, mask, target, stored),) = Texts.of(
                blocks, pad_id=pad_id, batch_size=len(blocks), device=adapter.device
            )
            rows = torch.cat([part[number] for part in parts])
            run = _runner(self.cache, adapter, ids, mask, stored)
            for index, value in enumerate((None, rows, mean.expand_as(rows))):
                sums[index] += _total(run(value), target)
            n += int((target != MISSED_TARGET).sum())
        clean, spliced, constant = (total / n for total in sums)
        return CheckpointLoss(n, clean, spliced, constant)

    def _batches(self) -> Iterator[tuple[list[TokenBlock], list[tuple[Tensor, ...]]]]:
        pairs = zip(self.blocks, self.parts, strict=True)
        while batch := list(islice(pairs, _TEXTS_AT_ONCE)):
            yield [block for block, _ in batch], [part for _, part in batch]


def _runner(
    cache: AlignedCache, adapter: ModelAdapter, ids: Tensor, mask: Tensor | None, stored: Tensor
) -> Callable[[Tensor | None], Tensor]:
    """Logits with other rows where activations are stored, or with the model's own."""

    @torch.no_grad()
    def run(rows: Tensor | None) -> Tensor:
        def put(x: Tensor) -> Tensor:
            edited = x.clone()
            assert rows is not None
            edited[stored] = rows.to(x)
            return edited

        with tapped(adapter, {} if rows is None else {cache.hook: put}):
            return adapter.logits(ids, mask)

    return run


def _total(logits: Float[Tensor, "text position vocab"], target: Tensor) -> float:
    flat, wanted = logits.flatten(0, 1).float(), target.flatten()
    return float(F.cross_entropy(flat, wanted, ignore_index=MISSED_TARGET, reduction="sum"))


def loss_table(losses: Sequence[CheckpointLoss]) -> dict[str, list[float | None]]:
    """Each number of all checkpoints, by name."""
    names = ("ce_clean", "ce_spliced", "ce_mean", "ce_increase", "loss_recovered")
    return {name: [getattr(one, name) for one in losses] for name in names}
