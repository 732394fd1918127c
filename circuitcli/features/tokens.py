"""How much of a feature the current token alone explains: what a network without any training can do too."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.features.coactivation import Codes


def explained_by_token(codes: Codes, tokens: Int[Tensor, " token"]) -> Float[Tensor, " d_sae"]:
    """Share of each feature's variance that the mean of its codes at the same token elsewhere predicts; at least 0.

    Each code is predicted from all others at its token, so that a token that is seen once explains nothing. Zero for
    features that are dead or never change.
    """
    values, counts = codes.values.double(), codes.edges.diff()
    each = tokens[torch.arange(codes.n_tokens).repeat_interleave(counts)].long()
    size = int(tokens.max()) + 1 if len(tokens) else 1
    keys, groups = torch.unique(codes.features.long() * size + each, return_inverse=True)
    sums, squares = (
        torch.zeros(len(keys), dtype=torch.float64).index_add_(0, groups, one) for one in (values, values.square())
    )
    n = torch.bincount(tokens.long(), minlength=size)[keys % size].double()
    # Without the code itself, the mean is (sum - code) / (n - 1), and what it misses (n code - sum) / (n - 1).
    missed = torch.where(n > 1, (squares - sums.square() / n) * (n / (n - 1).clamp(min=1)).square(), squares)
    by_feature = torch.zeros(codes.d_sae, dtype=torch.float64).index_add_(0, keys // size, missed)
    total = codes.sums(2) - codes.sums(1).square() / codes.n_tokens
    return torch.where(total > 0, 1 - by_feature / total.clamp(min=1e-300), 0.0).clamp(min=0)
