"""How good a finished SAE is: on held-out activations, and spliced into the model on held-out text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import Callback, tapped
from circuitcli.saes.base import SparseAutoencoder
from circuitcli.saes.splice import shifted, splice, without_error

MISSED_TARGET = -100


@dataclass(frozen=True)
class Reconstruction:
    """Quality of reconstructions over some tokens.

    explained_variance: 1 - sum |x - x^|^2 / sum |x - mean|^2, one mean and one ratio over all tokens; None if the
    activations do not vary. l0: active features per token. mse: mean of |x - x^|^2 over tokens and dimensions.
    cosine: mean over tokens. silent: share of features that none of these tokens activates.
    """

    n_tokens: int
    explained_variance: float | None
    l0: float
    mse: float
    cosine: float
    silent: float


class ReconstructionMeter:
    """Sums from which `Reconstruction` follows, in float64, so that batches of any size add up."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        self.n_tokens = 0
        # Sums are taken around the first batch's mean: large means would cancel most digits of the variance.
        self._origin: Tensor | None = None
        self._sum = torch.zeros(d_in, dtype=torch.float64)
        self._squares = self._error = self._active = self._cosine = 0.0
        self._is_active = torch.zeros(d_sae, dtype=torch.bool)

    def update(
        self,
        x: Float[Tensor, "batch d_in"],
        reconstruction: Float[Tensor, "batch d_in"],
        codes: Float[Tensor, "batch d_sae"],
    ) -> None:
        """Count a batch."""
        x, reconstruction = x.to("cpu", torch.float64), reconstruction.to("cpu", torch.float64)
        self.n_tokens += x.shape[0]
        if self._origin is None:
            self._origin = x.mean(dim=0)
        self._sum += (x - self._origin).sum(dim=0)
        self._squares += float((x - self._origin).square().sum())
        self._error += float((x - reconstruction).square().sum())
        self._cosine += float(F.cosine_similarity(x, reconstruction, dim=1).sum())
        self._active += float((codes != 0).sum())
        self._is_active |= (codes != 0).any(dim=0).cpu()

    def result(self) -> Reconstruction:
        """What came of all batches so far, of which there must be one."""
        n = self.n_tokens
        variance = self._squares - float(self._sum.square().sum()) / n
        assert self._origin is not None
        # Activations that do not vary leave rounding errors of this size.
        varies = variance > 1e-24 * n * float(self._origin.square().sum())
        return Reconstruction(
            n_tokens=n,
            explained_variance=1 - self._error / variance if varies else None,
            l0=self._active / n,
            mse=self._error / n / self._sum.shape[0],
            cosine=self._cosine / n,
            silent=float((~self._is_active).double().mean()),
        )


@torch.no_grad()
def reconstruction(sae: SparseAutoencoder, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Reconstruction:
    """Quality of an SAE, on its own device, over batches of raw activations."""
    meter = ReconstructionMeter(sae.d_in, sae.d_sae)
    for batch in batches:
        x = batch.to(sae.W_enc.device, sae.W_enc.dtype)
        codes = sae.encode(x)
        meter.update(x, sae.decode(codes, sae.frame(x)), codes)
    return meter.result()


@dataclass(frozen=True)
class Recovered:
    """Cross-entropy of the model, nats per token: untouched, spliced with the reconstruction, and with a constant.

    ``loss_recovered`` = (ce_mean - ce_spliced) / (ce_mean - ce_clean): 1 if the SAE changes nothing, 0 if it is no
    better than the mean activation; None where putting the mean there does no harm.
    """

    n_predictions: int
    ce_clean: float
    ce_spliced: float
    ce_mean: float
    ce_zero: float

    @property
    def loss_recovered(self) -> float | None:
        """Share of the loss of mean-ablation that the SAE avoids."""
        harm = self.ce_mean - self.ce_clean
        return (self.ce_mean - self.ce_spliced) / harm if harm > 1e-6 else None

    def facts(self) -> dict[str, Any]:
        """All numbers by name."""
        return {"loss_recovered": self.loss_recovered, "loss_ablation": "mean", **asdict(self)}


@runtime_checkable
class Block(Protocol):
    """Tokens of one block as the model sees them."""

    @property
    def ids(self) -> list[int]:
        """Token ids, with BOS if the model gets one."""
        ...

    @property
    def positions(self) -> list[int]:
        """The places of tokens whose activations are stored."""
        ...


@dataclass(frozen=True)
class Texts:
    """Batches of held-out blocks, each (batch, position): padded at the end, what each position is to predict, and
    which positions an SAE stands at: those whose activations are stored."""

    inputs: Sequence[Int[Tensor, "_ _"]]
    masks: Sequence[Int[Tensor, "_ _"]]
    targets: Sequence[Int[Tensor, "_ _"]]
    stored: Sequence[Bool[Tensor, "_ _"]]

    @classmethod
    def of(cls, blocks: Iterable[Block], *, pad_id: int, batch_size: int, device: torch.device) -> "Texts":
        """Blocks of at least two tokens; shorter ones predict nothing."""
        inputs, masks, targets, stored = [], [], [], []
        rows = (block for block in blocks if len(block.ids) > 1)
        while group := list(islice(rows, batch_size)):
            length = max(len(block.ids) for block in group)
            ids = torch.full((len(group), length), pad_id)
            mask, is_stored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
            for row, block in enumerate(group):
                ids[row, : len(block.ids)] = torch.tensor(block.ids)
                mask[row, : len(block.ids)] = 1
                is_stored[row, block.positions] = True
            target = F.pad(ids.masked_fill(mask == 0, MISSED_TARGET)[:, 1:], (0, 1), value=MISSED_TARGET)
            inputs.append(ids.to(device))
            masks.append(mask.to(device))
            targets.append(target.to(device))
            stored.append(is_stored.to(device))
        return cls(inputs, masks, targets, stored)

    @property
    def n_predictions(self) -> int:
        """Positions with a token to predict."""
        return sum(int((target != MISSED_TARGET).sum()) for target in self.targets)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return zip(self.inputs, self.masks, self.targets, self.stored, strict=True)


@torch.no_grad()
def cross_entropy(adapter: ModelAdapter, texts: Texts, callbacks: Mapping[HookPoint, Callback]) -> float:
    """Mean over all predictions, in nats, while the callbacks edit the run where activations are stored."""
    total = 0.0
    for ids, mask, target, stored in texts:
        with tapped(adapter, {hook: only_at(stored, callback) for hook, callback in callbacks.items()}):
            logits = adapter.logits(ids, mask).flatten(0, 1)
        losses = F.cross_entropy(
            logits.float(), target.flatten().to(logits.device), ignore_index=MISSED_TARGET, reduction="none"
        )
        total += float(losses.double().sum())
    return total / texts.n_predictions


def only_at(where: Bool[Tensor, "batch position"], callback: Callback) -> Callback:
    """A tap that changes what another one changes, at some positions alone."""

    def chosen(x: Tensor) -> Tensor | None:
        changed = callback(x)
        return None if changed is None else torch.where(where.to(x.device)[..., None], changed, x)

    return chosen


def recovered(
    adapter: ModelAdapter,
    texts: Texts,
    sae: SparseAutoencoder,
    *,
    mean: Float[Tensor, " d_in"],
    first: int,
    ce_clean: float,
) -> Recovered:
    """What an SAE that stands alone at its hook point does to the model's loss.

    first: the first position that is touched, 1 where position 0 is a BOS token. Mean: of the raw activations.
    """
    hook = sae.hook
    return Recovered(
        n_predictions=texts.n_predictions,
        ce_clean=ce_clean,
        ce_spliced=cross_entropy(adapter, texts, splice({hook: sae}, without_error, first=first)),
        ce_mean=cross_entropy(adapter, texts, {hook: constant(mean, first=first)}),
        ce_zero=cross_entropy(adapter, texts, {hook: constant(torch.zeros_like(mean), first=first)}),
    )


def constant(value: Float[Tensor, " d_in"], *, first: int) -> Callback:
    """A tap that puts one value at every position from ``first`` on."""

    def callback(x: Tensor) -> Tensor:
        return shifted(x, value.to(x.device, x.dtype) - x[:, first:], first=first)

    return callback
