"""How well a finished SAE reconstructs held-out activations, and how sparsely."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitcli.evaluation.density import density_facts
from circuitcli.evaluation.jackknife import N_PARTS, standard_errors
from circuitcli.saes.base import SparseCoder

# What is summed over tokens: y is what is to be reconstructed, o a fixed origin, r the reconstruction, f the codes.
SUMS = ("tokens", "|y-o|2", "|y-r|2", "cos(y,r)", "|r|/|y|", "y!=0", "r.y", "|r|2", "|f|0", "|f|1")


@dataclass(frozen=True)
class Reconstruction:
    """Quality of reconstructions r over some tokens of activations y, for a transcoder those at its target.

    explained_variance: 1 - sum |y - r|^2 / sum |y - mean|^2, one mean and one ratio over all tokens; None if the
    activations do not vary. mse: mean of |y - r|^2 over tokens and dimensions. cosine: mean over tokens. l2_ratio: mean
    of |r| / |y|. relative_bias: mean |r|^2 / mean r.y, which is 1 where no other scale of r would be nearer to y
    (Rajamanoharan et al. 2024, arXiv:2404.16014). l0, l1: number and sum of |f| of active features per token.
    silent: share of features that none of these tokens activates. density: see `density_facts`.
    standard_errors: of all these means and ratios over other tokens, by name.
    """

    n_tokens: int
    explained_variance: float | None
    mse: float
    cosine: float
    l2_ratio: float | None
    relative_bias: float | None
    l0: float
    l1: float
    silent: float
    density: Mapping[str, Any] = field(default_factory=dict)
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    # Features by chunk of equal size, where they come in such: their shares of l0.
    l0_per_chunk: tuple[float, ...] | None = None


class ReconstructionMeter:
    """Sums from which `Reconstruction` follows, in float64, so that batches of any size add up."""

    def __init__(self, d_out: int, d_sae: int, *, chunk: int | None = None) -> None:
        """chunk: how many features make one, where they come in chunks."""
        self._chunk = chunk
        # Sums are taken around the first batch's mean: large means would cancel most digits of the variance.
        self._origin: Tensor | None = None
        self._d_out = d_out
        # One row for each of some parts of the data: the sums of SUMS, and then the sum of y - o.
        self._parts = torch.zeros(N_PARTS, len(SUMS) + d_out, dtype=torch.float64)
        self._n_batches = 0
        self._counts = torch.zeros(d_sae, dtype=torch.int64)

    def update(
        self,
        y: Float[Tensor, "batch d_out"],
        reconstruction: Float[Tensor, "batch d_out"],
        codes: Float[Tensor, "batch d_sae"],
    ) -> None:
        """Count a batch."""
        y, r = y.to("cpu", torch.float64), reconstruction.to("cpu", torch.float64)
        if self._origin is None:
            self._origin = y.mean(dim=0)
        is_active = codes != 0
        self._counts += is_active.sum(dim=0).cpu()
        length = y.norm(dim=1)
        is_long = length > 0
        centred = y - self._origin
        sums = (
            torch.tensor(len(y)),
            centred.square().sum(),
            (y - r).square().sum(),
            F.cosine_similarity(y, r, dim=1).sum(),
            (r.norm(dim=1)[is_long] / length[is_long]).sum(),
            is_long.sum(),
            (r * y).sum(),
            r.square().sum(),
            is_active.sum().cpu(),
            codes.abs().sum(dim=1).to("cpu", torch.float64).sum(),
        )
        part = self._parts[self._n_batches % N_PARTS]
        part += torch.cat([torch.stack([value.double() for value in sums]), centred.sum(dim=0)])
        self._n_batches += 1

    def result(self) -> Reconstruction:
        """What came of all batches so far, of which there must be one."""
        assert self._origin is not None
        parts = self._parts[: self._n_batches]
        n_tokens = round(float(parts[:, 0].sum()))
        return Reconstruction(
            n_tokens=n_tokens,
            l0_per_chunk=self._per_chunk(n_tokens),
            silent=float((self._counts == 0).double().mean()),
            density=density_facts(self._counts, n_tokens=n_tokens),
            standard_errors=standard_errors(parts, self._statistics),
            **self._statistics(parts.sum(dim=0)),  # type: ignore[arg-type]
        )

    def _per_chunk(self, n_tokens: int) -> tuple[float, ...] | None:
        if self._chunk is None:
            return None
        return tuple((self._counts.view(-1, self._chunk).sum(dim=1).double() / n_tokens).tolist())

    def _statistics(self, sums: Float[Tensor, " sums"]) -> dict[str, float | None]:
        n, squares, error, cosine, ratio, n_long, dot, energy, active, l1 = sums[: len(SUMS)].tolist()
        assert self._origin is not None
        variance = squares - float(sums[len(SUMS) :].square().sum()) / n
        # Activations that do not vary leave rounding errors of this size.
        varies = variance > 1e-24 * n * float(self._origin.square().sum())
        return {
            "explained_variance": 1 - error / variance if varies else None,
            "mse": error / n / self._d_out,
            "cosine": cosine / n,
            "l2_ratio": ratio / n_long if n_long else None,
            "relative_bias": energy / dot if dot > 0 else None,
            "l0": active / n,
            "l1": l1 / n,
        }


@torch.no_grad()
def reconstruction(
    sae: SparseCoder,
    batches: Iterable[Float[Tensor, "_ d_in"]],
    *,
    targets: Iterable[Float[Tensor, "_ d_out"]] | None = None,
    chunk: int | None = None,
) -> Reconstruction:
    """Quality of an SAE, on its own device, over batches of raw activations.

    targets: for a transcoder, the activations at its target in the same order. chunk: as of `ReconstructionMeter`.
    """
    meter = ReconstructionMeter(sae.d_out, sae.d_sae, chunk=chunk)
    pairs = ((batch, None) for batch in batches) if targets is None else zip(batches, targets, strict=True)
    for batch, target in pairs:
        x = batch.to(sae.W_enc.device, sae.W_enc.dtype)
        codes = sae.encode(x)
        meter.update(x if target is None else target, sae.reconstruction(x, codes), codes)
    return meter.result()
