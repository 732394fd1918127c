"""Rows of a cache as another model than the one that was collected has them: the same text, read again."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.models.taps import read


class ReadAgain(ActivationCache):
    """A cache of which only the rows of whole blocks in a range are known, in memory."""

    def __init__(self, cache: ActivationCache, model: LanguageModel, rows: range) -> None:
        """rows: of the cache, of which `known` are read. Raises InputError if they hold no whole block."""
        vars(self).update(vars(cache))
        blocks = list(cache.blocks(rows.start, rows.stop))
        if not blocks:
            raise InputError("the held-out rows hold no whole block", hint="raise train.eval_tokens")
        self.known = range(blocks[0].start_row, blocks[-1].stop_row)
        self._again: dict[HookPoint, Tensor] = {
            hook: torch.zeros(len(self.known), cache.d_model(hook)) for hook in cache.hooks
        }
        for block in blocks:
            ids = torch.tensor([block.ids], device=model.adapter.device)
            with torch.no_grad():
                found = read(model.adapter, ids, None, list(cache.hooks))
            at = slice(block.start_row - self.known.start, block.stop_row - self.known.start)
            for hook, activation in found.items():
                self._again[hook][at] = activation[0, block.positions].float().cpu()

    def rows(self, hook: HookPoint, start: int, stop: int) -> Float[Tensor, "row d_model"]:
        """See `ActivationCache`."""
        if not self.known.start <= start <= stop <= self.known.stop:
            raise IndexError(f"rows {start} to {stop}, of which {self.known} are known")
        return self._again[hook][start - self.known.start : stop - self.known.start]

    def mean(self, hook: HookPoint) -> Float[Tensor, " d_model"]:
        """Mean of the known rows, float64."""
        return self._again[hook].double().mean(dim=0)
