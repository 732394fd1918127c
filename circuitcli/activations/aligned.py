"""The caches of several models on the same text, at one hook point, side by side as one cache.

The models are checkpoints of one training. Each has a number, and its activations stand as those of the layer of that
number: what reads one site of several layers reads one hook point of several checkpoints so.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.storage.token_shards import TokenShard
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint

# Rows of which the tokens are compared at once.
_ROWS = 2**16


def stand_in(number: int, hook: HookPoint) -> HookPoint:
    """The hook point by which the checkpoint of this number is known in an `AlignedCache`."""
    return HookPoint(number, hook.site if hook.site != "embed" else "resid_pre")


class AlignedCache(ActivationCache):
    """The shards of ``hook`` below each of ``paths`` (RUN/activations), as one table: one row for each token.

    ``hooks`` are the stand-ins, in the order of the paths. Blocks and tokens are those of the first.
    """

    def __init__(self, paths: Sequence[Path], hook: HookPoint) -> None:
        """Raises InputError if a shard is missing or damaged, or if the rows are not of the same tokens."""
        own = [ActivationCache(path, [hook]) for path in paths]
        _check_aligned(own)
        self.path, self.hook = paths[0], hook
        self.hooks = tuple(stand_in(number, hook) for number in range(len(paths)))
        self._tokens: list[TokenShard] = own[0]._tokens
        self._edges = own[0]._edges
        self._rows = {one: cache._rows[hook] for one, cache in zip(self.hooks, own, strict=True)}


def _check_aligned(caches: Sequence[ActivationCache]) -> None:
    """Raise InputError unless all have the same tokens in the same rows and files."""
    first = caches[0]
    for cache in caches[1:]:
        if cache._edges != first._edges or cache.bos_id != first.bos_id or not _same_tokens(first, cache):
            raise InputError(
                f"the activations in {cache.path} are not of the same tokens as those in {first.path}",
                hint="collect all checkpoints from one text with the same settings",
            )


def _same_tokens(one: ActivationCache, other: ActivationCache) -> bool:
    for start in range(0, one.n_tokens, _ROWS):
        stop = min(start + _ROWS, one.n_tokens)
        a, b = one.tokens(start, stop), other.tokens(start, stop)
        if not (torch.equal(a.token, b.token) and torch.equal(a.position, b.position)):
            return False
    return True
