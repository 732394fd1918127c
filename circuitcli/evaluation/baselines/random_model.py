"""A model's architecture with random weights, and its activations on the tokens of a cache."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.evaluation.spliced import Block, Texts
from circuitcli.hookpoints import HookPoint
from circuitcli.models import checking
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.configuration import auto_class
from circuitcli.models.taps import read

_BLOCKS_AT_ONCE = 8


def random_copy(adapter: ModelAdapter, *, seed: int) -> ModelAdapter:
    """A model of the same configuration whose weights are drawn as before its training, on the same device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class(adapter.model.config).from_config(adapter.model.config, dtype=adapter.dtype)
    return checking.adapter_of(model.to(adapter.device).eval())


@torch.no_grad()
def rows_of(
    adapter: ModelAdapter, blocks: Iterable[Block], hooks: Sequence[HookPoint], *, pad_id: int
) -> dict[HookPoint, Float[Tensor, "row d_model"]]:
    """The activations of a model at the stored positions of blocks, of two tokens at least, block after block; in half
    the numbers of float32, on the CPU."""
    texts = Texts.of(blocks, pad_id=pad_id, batch_size=_BLOCKS_AT_ONCE, device=adapter.device)
    found: dict[HookPoint, list[Tensor]] = {hook: [] for hook in hooks}
    for ids, mask, _, stored in texts:
        for hook, activation in read(adapter, ids, mask, hooks).items():
            found[hook].append(activation[stored.to(activation.device)].to("cpu", torch.bfloat16))
    return {hook: torch.cat(parts) for hook, parts in found.items()}
