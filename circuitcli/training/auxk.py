"""AuxK: dead features reconstruct what the others miss, and so come to life (Gao et al. 2024, arXiv:2406.04093)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuitcli.saes.fast.selection import TopK
from circuitcli.saes.fast.sparse import Encoder, decode, encode
from circuitcli.saes.topk import largest
from circuitcli.training.ranks import ALONE, Ranks

# With more than so many times k dead features, sums over the k strongest cost less than products with all. Measured on
# two cores: both take equally long at 6, 576 dimensions.
SPARSE_FROM = 8
# In products so many pre-activations are held at once.
_AT_ONCE = 2**22


def auxk(
    x: Float[Tensor, "batch d_in"],
    error: Float[Tensor, "batch d_out"],
    encoder: Encoder,
    W_dec: Float[Tensor, "d_sae d_out"],
    dead: Int[Tensor, " n_dead"],
    *,
    k: int,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """Share of the reconstruction error's variance that the k strongest dead features of each token miss.

    error: what the reconstruction of x misses; both are constants here. Gradients reach the encoder's and the decoder's
    rows of the dead features, and the decoder bias where the encoder subtracts it; the decoded sum has no bias. An
    error without variance costs nothing. ranks: the processes over whose batches the variance is taken.
    Source: Gao et al. 2024, arXiv:2406.04093, section 2.4 and appendix A.2.
    """
    x, error = x.detach(), error.detach()
    rows, bias = encoder.W_enc.T.index_select(0, dead), encoder.b_enc.index_select(0, dead)
    decoder = W_dec.index_select(0, dead)
    if len(dead) > SPARSE_FROM * k:
        codes = encode(x, Encoder(rows.T, bias, encoder.b_dec), TopK(k))
        missed = (decode(codes, decoder) - error).square().sum()
    else:
        folded = bias if encoder.b_dec is None else bias - rows @ encoder.b_dec
        missed = _Missed.apply(x, error, rows, folded, decoder, k)
    mean = ranks.sum(error.mean(dim=0)) / ranks.n
    spread = ranks.sum((error - mean).square().sum()) / ranks.n
    return missed / spread if spread > 0 else missed * 0.0


def most_bytes(*, d_sae: int, d_in: int, d_out: int, batch: int, k: int) -> int:
    """What `auxk` and its gradients hold at most, in float32, where all features are dead."""
    # Rows of the dead features, their gradients, and these among those of all features.
    weights = 3 * (d_in + d_out) * d_sae
    # Pre-activations of a piece of the batch; of each token codes, where they are, their gradients, and what is missed.
    rows = min(batch * d_sae, _AT_ONCE) + batch * (2 * d_out + 6 * k)
    return 4 * (weights + rows)


class _Missed(torch.autograd.Function):
    """(rows, bias, decoder) -> the squared length of ``codes @ decoder - error``, and its gradients at once.

    The codes are the k largest of ``relu(x @ rows.T + bias)``. A piece of the batch is worked on after the other, so
    that memory does not grow with the batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Tensor, rows: Tensor, bias: Tensor, decoder: Tensor, k: int) -> Tensor:
        missed = x.new_zeros(())
        gradients = [torch.zeros_like(part) for part in (rows, bias, decoder)]
        n_at_once = max(1, _AT_ONCE // len(rows))
        for rows_in, rest in zip(x.split(n_at_once), error.split(n_at_once), strict=True):
            pre = torch.addmm(bias, rows_in, rows.T)
            codes = largest(pre, k) if k < len(rows) else pre.relu_()
            difference = torch.addmm(rest, codes, decoder, beta=-1.0)
            missed += difference.square().sum()
            by_pre = (difference @ decoder.T).masked_fill_(codes == 0, 0.0)
            gradients[0].addmm_(by_pre.T, rows_in)
            gradients[1] += by_pre.sum(dim=0)
            gradients[2].addmm_(codes.T, difference)
        ctx.save_for_backward(*gradients)
        return missed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_missed: Tensor) -> tuple[Any, ...]:
        by_rows, by_bias, by_decoder = (2 * by_missed * gradient for gradient in ctx.saved_tensors)
        return None, None, by_rows, by_bias, by_decoder, None
