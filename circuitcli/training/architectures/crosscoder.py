"""Crosscoder: features of several layers of a site at once (Lindsey et al. 2024), k active per token on average.

The loss is the sum over layers of the share of variance that is missed there. The norms of a feature's decoder rows sum
to one over the layers, so that the codes among which BatchTopK chooses are those times the norms, the quantity that the
paper's penalty sums: a feature pays for each layer that it writes. What is learned is an SAE of all layers' activations
side by side, by sparse sums; AuxK lets dead features reconstruct what is missed in all layers.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import CODES_AT_ONCE, SaeConfig, SparseCoder
from circuitcli.saes.crosscoder import Crosscoder
from circuitcli.saes.fast.selection import BatchTopK
from circuitcli.saes.fast.sparse import Encoder, decode, encode
from circuitcli.training.architectures.batchtopk import ThresholdMeter
from circuitcli.training.architectures.trainable import (
    Batch,
    BuildInputs,
    StepResult,
    Trainable,
    count_silent_tokens,
)
from circuitcli.training.auxk import auxk
from circuitcli.training.initial import generator_of, geometric_median, input_scale, unit_rows
from circuitcli.training.loss import missed_variance
from circuitcli.training.rows import along_rows_removed
from circuitcli.training.takeover import one_threshold, put, refuse_normalising


class TrainableCrosscoder(Trainable):
    """On activations scaled hook point by hook point to a mean squared norm of their width.

    W_enc (n_hooks * d_model, d_sae), W_dec (d_sae, n_hooks * d_model) and b_dec hold the hook points side by side.
    """

    needs_calibration = True

    def __init__(self, inputs: BuildInputs) -> None:
        super().__init__()
        self.config, self._hooks = inputs.config, inputs.hooks
        self.d_model = inputs.first[inputs.hooks[0]].shape[1]
        d_sae, d_in = self.config.d_sae, self.d_model * len(self._hooks)
        moments = [inputs.moments[hook] for hook in self._hooks]
        self.scales = [input_scale(one.mean_square_norm, d_in=self.d_model) for one in moments]
        self.variances = [one.variance * scale**2 or 1.0 for one, scale in zip(moments, self.scales, strict=True)]
        # Stored transposed, as the sparse kernels like it.
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in).T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("silent_tokens", torch.zeros(d_sae, dtype=torch.int64))
        self.silent_tokens: Tensor
        self._meter: ThresholdMeter | None = None
        self.threshold: float | None = None
        self.row_lengths: Float[Tensor, " d_sae"] | None = None

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """See `Trainable`."""
        return self._hooks

    @property
    def sae_hooks(self) -> tuple[HookPoint, ...]:
        """See `Trainable`: the first stands for all."""
        return self._hooks[:1]

    @torch.no_grad()
    def begin_from(self, coders: Mapping[HookPoint, SparseCoder], rows: Batch) -> None:
        """See `Trainable`."""
        coder = coders[self._hooks[0]]
        refuse_normalising(coder, "a crosscoder")
        self.threshold = one_threshold(coder)
        scales = self._scale_row()
        put(self.W_enc, coder.W_enc / scales[:, None])
        put(self.b_enc, coder.b_enc)
        put(self.W_dec, coder.W_dec * scales)
        put(self.b_dec, coder.b_dec * scales)
        # Of other activations than these the norms summed to one.
        self.row_lengths = self._lengths()

    def _scale_row(self) -> Float[Tensor, " d_in"]:
        return torch.tensor(self.scales).repeat_interleave(self.d_model).to(self.b_enc)

    def _lengths(self) -> Float[Tensor, " d_sae"]:
        return torch.stack([rows.norm(dim=1) for rows in self.W_dec.split(self.d_model, dim=1)]).sum(dim=0)

    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """See `Trainable`. Measures the missed share of the variance at each hook point."""
        x = self._joined(batch)
        encoder = Encoder(self.W_enc, self.b_enc, None)
        selection = BatchTopK(self.config.sae.k, self.ranks if self.ranks.n > 1 else None)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.config.autocast):
            codes = encode(x, encoder, selection)
            reconstruction = decode(codes, self.W_dec, self.b_dec)
        fvus = torch.stack(
            [
                missed_variance(y, part, variance=variance)
                for y, part, variance in zip(
                    x.split(self.d_model, dim=1), reconstruction.split(self.d_model, dim=1), self.variances, strict=True
                )
            ]
        )
        losses = {"reconstruction": fvus.sum()}
        if self.config.auxk_weight and len(dead := self._dead()):
            error, k = x - reconstruction.detach(), max(1, self.d_model // 2)
            missed = auxk(x, error, encoder, self.W_dec, dead, k=k, ranks=self.ranks)
            losses["auxk"] = self.config.auxk_weight * missed
        active = codes.active()
        count_silent_tokens(self.silent_tokens, active, n_tokens=len(x), ranks=self.ranks)
        measures = {f"fvu_{hook}": fvu for hook, fvu in zip(self._hooks, fvus.detach(), strict=True)}
        l0 = torch.tensor(len(active) / len(x))
        return {self._hooks[0]: StepResult(losses, fvus.detach().mean(), l0, measures)}

    def _joined(self, batch: Batch) -> Float[Tensor, "batch d_in"]:
        parts = [batch[hook].to(self.b_enc) * scale for hook, scale in zip(self._hooks, self.scales, strict=True)]
        return torch.cat(parts, dim=1)

    def _dead(self) -> Tensor:
        return (self.silent_tokens >= self.config.dead_tokens).nonzero()[:, 0]

    def dead_share(self, hook: HookPoint) -> float:
        """See `Trainable`."""
        return len(self._dead()) / self.config.d_sae

    def project_gradients(self) -> None:
        """Take off the part of the decoder's gradient along its rows, whose size is fixed."""
        along_rows_removed(self.W_dec)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Let the norms of each feature's decoder rows sum to one over the hook points, or to what they summed to."""
        lengths = 1.0 if self.row_lengths is None else self.row_lengths
        self.W_dec.div_((self._lengths().clamp_min(1e-12) / lengths)[:, None])

    @torch.no_grad()
    def calibrate(self, batch: Batch, *, n_tokens: int) -> None:
        """See `Trainable`: the threshold above which k pre-activations per token lie."""
        self._meter = self._meter or ThresholdMeter(self.config.sae.k, n_tokens=n_tokens)
        for rows in self._joined(batch).split(max(1, CODES_AT_ONCE // self.config.d_sae)):
            self._meter.update(rows @ self.W_enc + self.b_enc)
        self.threshold = self._meter.threshold()

    @torch.no_grad()
    def finished(self) -> dict[HookPoint, SparseCoder]:
        """See `Trainable`. Codes are those of scaled activations. Needs `calibrate`."""
        assert self.threshold is not None
        hook, d_in = self._hooks[0], len(self.W_enc)
        config = SaeConfig(hook, d_in, self.config.d_sae, subtract_decoder_bias=False)
        coder = Crosscoder(config, hooks=[str(one) for one in self._hooks]).to(self.b_enc.device)
        scales = self._scale_row()
        coder.W_enc.copy_(self.W_enc * scales[:, None])
        coder.b_enc.copy_(self.b_enc)
        coder.threshold.fill_(self.threshold)
        coder.W_dec.copy_(self.W_dec / scales)
        coder.b_dec.copy_(self.b_dec / scales)
        return {hook: coder.cpu().eval().requires_grad_(False)}


@torch.no_grad()
def build(inputs: BuildInputs) -> TrainableCrosscoder:
    """An untrained crosscoder: the encoder is the decoder's transpose, as of an SAE."""
    trainable = TrainableCrosscoder(inputs)
    d_sae, d_in = trainable.W_dec.shape
    x = trainable._joined({hook: inputs.first[hook].cpu().float() for hook in inputs.hooks})
    rows = unit_rows(d_sae, d_in, generator_of(inputs.config.seed, inputs.hooks[0]))
    trainable.W_dec.copy_(rows)
    trainable.project_parameters()
    trainable.W_enc.copy_(rows.T)
    trainable.b_enc.copy_(-(x.mean(dim=0) @ trainable.W_enc))
    trainable.b_dec.copy_(geometric_median(x.double()))
    return trainable.to(inputs.first[inputs.hooks[0]].device)
