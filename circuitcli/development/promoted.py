"""What features of a checkpoint say by themselves: the tokens that each would make more likely."""

from collections.abc import Sequence

import torch

from circuitcli.features.logits import background, directions, logit_effects
from circuitcli.models.loading import LanguageModel
from circuitcli.saes.base import SparseCoder


def promoted(model: LanguageModel, coder: SparseCoder, features: Sequence[int], *, n_top: int = 3) -> list[list[str]]:
    """Of each feature the tokens that it raises most beyond what other features do if it writes straight to logits, as
    `circuit interp` ranks them; none where it does not write to the residual stream."""
    rows = directions(coder, torch.tensor(features, dtype=torch.long))
    if rows is None or not features:
        return [[] for _ in features]
    vocab_size = min(model.tokenizer.vocab_size, model.adapter.n_token_ids)
    others = background(model.adapter, coder, vocab_size=vocab_size)
    found = logit_effects(model.adapter, rows, n_top=n_top, vocab_size=vocab_size, others=others)
    return [list(model.tokenizer.token_strings(tokens)) for tokens in found.promoted.tolist()]
