"""Non-negative factors of activations, whose positive and negative parts are told apart so that both can be had."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.topk import TopKSae

# Steps in which factors are found, and in which the codes of new rows are.
FITTING_STEPS, CODING_STEPS = 60, 20
_TINY = 1e-9


def parts(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch both"]:
    """The positive part, and the negative one turned round: both are nowhere negative."""
    return torch.cat([x.relu(), (-x).relu()], dim=-1)


class NmfCoder(TopKSae):
    """Codes are non-negative weights of the factors that come nearest to the row's two parts; the k largest stay.

    ``factors`` (feature, 2 d); the decoder takes their second half off their first. Raises as `TopKSae`.
    """

    # What TopK finds fast are pre-activations that are one product.
    active = SparseCoder.active
    architecture = "nmf"
    elementwise = False
    factors: Tensor

    def __init__(self, config: SaeConfig, *, k: int, factors: Float[Tensor, "feature both"]) -> None:
        super().__init__(config, k=k)
        self.register_buffer("factors", factors)

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """See `SparseCoder`."""
        rows = parts(self.centred(x)).flatten(end_dim=-2)
        codes = weights(rows, self.factors, steps=CODING_STEPS)
        return codes.reshape(*x.shape[:-1], self.d_sae)


def nmf(
    hook: HookPoint,
    rows: Float[Tensor, "row d"],
    mean: Float[Tensor, " d"],
    *,
    n: int,
    k: int,
    generator: torch.Generator,
) -> NmfCoder:
    """``n`` non-negative factors of the rows about their mean, by the updates of Lee & Seung 2001.

    Factors whose decoder row is made unit, so that a code says how far its feature carries.
    """
    x = parts(rows.float() - mean.float())
    factors = torch.rand(n, x.shape[1], generator=generator) * 2 * x.mean()
    codes = weights(x, factors, steps=1)
    for _ in range(FITTING_STEPS):
        factors *= (codes.T @ x) / (codes.T @ codes @ factors + _TINY)
        codes *= (x @ factors.T) / (codes @ (factors @ factors.T) + _TINY)
    d = rows.shape[1]
    decoder = factors[:, :d] - factors[:, d:]
    lengths = decoder.norm(dim=1, keepdim=True).clamp_min(_TINY)
    coder = NmfCoder(SaeConfig(hook, d, n), k=min(k, n), factors=factors / lengths)
    coder.W_dec.data, coder.b_dec.data = decoder / lengths, mean.float()
    coder.W_enc.data = coder.W_dec.data.T.contiguous()
    return coder.eval().requires_grad_(False)


def weights(
    x: Float[Tensor, "row both"], factors: Float[Tensor, "feature both"], *, steps: int
) -> Float[Tensor, "row feature"]:
    """Non-negative codes that bring ``codes @ factors`` near to ``x``: so many updates from equal ones."""
    towards, products = x @ factors.T, factors @ factors.T
    codes = towards / products.sum(dim=1).clamp_min(_TINY)
    for _ in range(steps):
        codes = codes * towards / (codes @ products + _TINY)
    return codes
