"""Whether a model still gives the activations that were cached from it."""

import torch

from circuitcli.activations.cache import ActivationCache, TokenBlock
from circuitcli.errors import InputError
from circuitcli.models.loading import LanguageModel
from circuitcli.models.taps import read

# Number types and devices change activations by a few per cent at most, of their norm.
LARGEST_GAP = 0.1


def check_model(model: LanguageModel, cache: ActivationCache, block: TokenBlock) -> None:
    """Raise InputError if the model no longer gives the cached activations of a block."""
    ids = torch.tensor([block.ids], device=model.adapter.device)
    with torch.no_grad():
        activations = read(model.adapter, ids, None, cache.hooks)
    for hook, activation in activations.items():
        rows = cache.rows(hook, block.start_row, block.stop_row)
        gap = (activation[0, block.positions].float().cpu() - rows).norm()
        if gap > LARGEST_GAP * rows.norm():
            raise InputError(
                f"{model.name} gives other activations at {hook} than those that were collected from it",
                hint="the model has changed since: run `circuit collect --force` and train again",
            )
