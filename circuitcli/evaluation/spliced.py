"""What an SAE does to the model's loss on held-out text, when only what it reconstructs goes on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.evaluation.jackknife import standard_errors
from circuitcli.evaluation.together import replaced_by_crosscoder, replaced_together, written_by
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import block_pass, first_block, rerun, started_at
from circuitcli.models.taps import Callback
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.crosscoder import Crosscoder
from circuitcli.saes.splice import replaced

MISSED_TARGET = -100
LOGITS_AT_ONCE = 2**23
# Mean-ablation that does less harm than this, in nats, leaves nothing to recover.
LEAST_HARM = 1e-6


@dataclass(frozen=True)
class ModelLoss:
    """The model on text, nats per predicted token: untouched, spliced with the reconstruction, and with a constant.

    ce: cross-entropy with the text; kl: divergence of what the model then predicts from what it predicts untouched,
    KL(clean || run). mean: the mean activation stands there; zero: nothing does. ce_increase: ce_spliced - ce_clean.
    loss_recovered = (ce_mean - ce_spliced) / (ce_mean - ce_clean): 1 if the SAE changes nothing, 0 if it is no better
    than the mean activation; None where putting the mean there does no harm. loss_recovered_zero: the same against
    zero, as sae-lens and SAEBench take it; where zero does great harm, poor SAEs come near 1 too. kl_recovered =
    (kl_mean - kl_spliced) / kl_mean. standard_errors: of all these over other text, by name.
    """

    n_predictions: int
    ce_clean: float
    ce_spliced: float
    ce_mean: float
    ce_zero: float
    kl_spliced: float
    kl_mean: float
    kl_zero: float
    ce_increase: float
    loss_recovered: float | None
    loss_recovered_zero: float | None
    kl_recovered: float | None
    standard_errors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, sums: Float[Tensor, "text 8"]) -> "ModelLoss":
        """From sums over the predictions of each text: their number, and what `_statistics` names."""
        return cls(
            n_predictions=round(float(sums[:, 0].sum())),
            standard_errors=standard_errors(sums, _statistics),
            **_statistics(sums.sum(dim=0)),  # type: ignore[arg-type]
        )


def _statistics(sums: Float[Tensor, " 8"]) -> dict[str, float | None]:
    n, *totals = sums.tolist()
    clean, spliced, mean, zero, kl_spliced, kl_mean, kl_zero = (total / n for total in totals)
    return {
        "ce_clean": clean,
        "ce_spliced": spliced,
        "ce_mean": mean,
        "ce_zero": zero,
        "kl_spliced": kl_spliced,
        "kl_mean": kl_mean,
        "kl_zero": kl_zero,
        "ce_increase": spliced - clean,
        "loss_recovered": (mean - spliced) / (mean - clean) if mean - clean > LEAST_HARM else None,
        "loss_recovered_zero": (zero - spliced) / (zero - clean) if zero - clean > LEAST_HARM else None,
        "kl_recovered": (kl_mean - kl_spliced) / kl_mean if kl_mean > LEAST_HARM else None,
    }


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
    masks: Sequence[Int[Tensor, "_ _"] | None]
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
            # Without a mask attention takes its fastest way.
            masks.append(None if bool(mask.all()) else mask.to(device))
            targets.append(target.to(device))
            stored.append(is_stored.to(device))
        return cls(inputs, masks, targets, stored)

    @property
    def n_predictions(self) -> int:
        """Positions with a token to predict."""
        return sum(int((target != MISSED_TARGET).sum()) for target in self.targets)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        return zip(self.inputs, self.masks, self.targets, self.stored, strict=True)


class SplicedLoss:
    """The model on some text: what it predicts untouched, and with constants, is worked out once for all SAEs.

    Of untouched runs the output of the last block is kept, from which logits follow cheaply, and the residual where the
    runs for the latest hook point start: SAEs are best taken in the order of the model.
    """

    def __init__(self, adapter: ModelAdapter, texts: Texts, hooks: Iterable[HookPoint], *, first: int = 0) -> None:
        """hooks: where SAEs read and write. first: the first position that they see; 1 behind a BOS token."""
        self.adapter, self.texts, self._first = adapter, texts, first
        start = max(0, min(first_block(hook) for hook in hooks))
        self._clean = [block_pass(adapter, ids, mask, starts=[start]) for ids, mask, _, _ in texts]
        self._of_constants: dict[HookPoint, Float[Tensor, "text 4"]] = {}

    @torch.no_grad()
    def measure(self, sae: SparseCoder, *, mean: Float[Tensor, " d_out"]) -> ModelLoss:
        """The losses with an SAE that stands alone at its hook point, wherever activations are stored.

        mean: of the raw activations that it reconstructs: at its hook point, for a transcoder at its target.
        """
        hook = sae.target
        edits = [replaced(sae, first=self._first)]
        if hook not in self._of_constants:
            edits += [{hook: constant(mean)}, {hook: constant(torch.zeros_like(mean))}]
        sums = self._sums(edits)
        if hook not in self._of_constants:
            self._of_constants[hook] = sums[:, 4:]
        n, clean, spliced, kl = sums[:, :4].unbind(dim=1)
        ce_mean, kl_mean, ce_zero, kl_zero = self._of_constants[hook].unbind(dim=1)
        return ModelLoss.of(torch.stack([n, clean, spliced, ce_mean, ce_zero, kl, kl_mean, kl_zero], dim=1))

    @torch.no_grad()
    def measure_together(
        self, coders: Mapping[HookPoint, SparseCoder], *, means: Mapping[HookPoint, Float[Tensor, " d_out"]]
    ) -> ModelLoss:
        """The losses where all that the coders write stands in the place of all that they explain, at once.

        coders: by what they read. means: of the raw activations at each hook point that they write.
        """
        written = written_by(coders)
        edits = [
            replaced_together(coders, first=self._first),
            {hook: constant(means[hook]) for hook in written},
            {hook: constant(torch.zeros_like(means[hook])) for hook in written},
        ]
        n, clean, spliced, kl, mean, kl_mean, zero, kl_zero = self._sums(edits).unbind(dim=1)
        return ModelLoss.of(torch.stack([n, clean, spliced, mean, zero, kl, kl_mean, kl_zero], dim=1))

    @torch.no_grad()
    def measure_crosscoder(
        self, coder: Crosscoder, *, means: Mapping[HookPoint, Float[Tensor, " d_model"]]
    ) -> ModelLoss:
        """The losses with all hook points of a crosscoder replaced at once by what it makes of the untouched ones."""
        hooks = coder.hook_points
        edits = [
            *replaced_by_crosscoder(coder, first=self._first),
            {hook: constant(means[hook]) for hook in hooks},
            {hook: constant(torch.zeros_like(means[hook])) for hook in hooks},
        ]
        n, clean, _, _, spliced, kl, mean, kl_mean, zero, kl_zero = self._sums(edits).unbind(dim=1)
        return ModelLoss.of(torch.stack([n, clean, spliced, mean, zero, kl, kl_mean, kl_zero], dim=1))

    def _sums(self, edits: Sequence[Mapping[HookPoint, Callback]]) -> Float[Tensor, "text sums"]:
        """For each text, over its predictions: their number and clean cross-entropy, and of each edited run the
        cross-entropy and the divergence from the clean run; float64."""
        start = min(first_block(hook) for edit in edits for hook in edit)
        self._clean = [started_at(self.adapter, clean, start) for clean in self._clean]
        sums = []
        for clean, target, stored in zip(self._clean, self.texts.targets, self.texts.stored, strict=True):
            runs = [clean.final_residual]
            for edit in edits:
                callbacks = {hook: only_at(stored, callback) for hook, callback in edit.items()}
                runs.append(rerun(self.adapter, clean, callbacks, rows=len(target), start=start))
            asked = target != MISSED_TARGET
            of_each = prediction_losses(self.adapter, [run[asked.to(run.device)] for run in runs], target[asked])
            text = asked.nonzero()[:, 0].cpu()
            # Apple's GPUs have no float64.
            of_each = of_each.cpu().double()
            sums.append(of_each.new_zeros(len(target), of_each.shape[1]).index_add_(0, text, of_each))
        return torch.cat(sums)


def prediction_losses(
    adapter: ModelAdapter,
    runs: Sequence[Float[Tensor, "prediction d_model"]],
    target: Int[Tensor, " prediction"],
) -> Float[Tensor, "prediction losses"]:
    """Of each prediction from the last residual: 1, its cross-entropy in the first run, which is the clean one, and for
    each other run cross-entropy and KL(clean || run)."""
    pieces = []
    n_rows = rows_at_once(adapter)
    for (clean, *edited), asked in zip(
        zip(*(run.split(n_rows) for run in runs), strict=True), target.split(n_rows), strict=True
    ):
        log_p = log_softmax(adapter.head(clean[None])[0])
        p, chosen = log_p.exp(), asked.to(log_p.device)[:, None]
        losses = [torch.ones_like(log_p[:, 0]), -log_p.gather(1, chosen)[:, 0]]
        for rows in edited:
            log_q = log_softmax(adapter.head(rows[None])[0])
            losses += [-log_q.gather(1, chosen)[:, 0], (p * (log_p - log_q)).sum(dim=1)]
        pieces.append(torch.stack(losses, dim=1))
    return torch.cat(pieces)


def rows_at_once(adapter: ModelAdapter) -> int:
    """Predictions whose logits are in memory at once; those of a whole batch would be most of the memory."""
    return max(1, LOGITS_AT_ONCE // adapter.n_token_ids)


def log_softmax(logits: Float[Tensor, "position vocab"]) -> Float[Tensor, "position vocab"]:
    """In float32 at least."""
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def only_at(where: Bool[Tensor, "batch position"], callback: Callback) -> Callback:
    """A tap that changes what another one changes, at some positions alone."""

    def chosen(x: Tensor) -> Tensor | None:
        changed = callback(x)
        return None if changed is None else torch.where(where.to(x.device)[..., None], changed, x)

    return chosen


def constant(value: Float[Tensor, " d_out"]) -> Callback:
    """A tap that puts one value at every position."""

    def callback(x: Tensor) -> Tensor:
        return value.to(x.device, x.dtype).expand_as(x)

    return callback
