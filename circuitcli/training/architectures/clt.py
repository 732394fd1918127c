"""Cross-layer transcoder (CLT): each layer's features read ``mlp_in`` there, and write ``mlp`` there and in all layers
above; all learn together (Ameisen et al. 2025, "Circuit Tracing").

The loss is the sum over written layers of the share of variance that is missed by the sum of all that is written there.
Each layer has k active features per token on average, as in BatchTopK, and one threshold in the end. Its decoders lie
side by side in one matrix, so that its codes are gathered once for all that they write, and AuxK lets a dead feature
reconstruct what is missed in all these layers.

Measured on `builtin:tiny` (4 layers, 200,000 tokens, 512 features a layer, k 16, one seed): explained variance on
average over the layers, KL with all MLPs replaced, features that stay silent, and seconds of training beside other
work. BatchTopK 0.758, 0.62, 0.2 %, 37; TopK 0.748, 0.63, 0.2 %, 30; JumpReLU with its penalty (L0 / k - 1)^2 in each
layer 0.752, 0.58, 6 %, 111; with the penalty on the L0 of all layers together 0.742, 0.56, 12 %, 100, of which the
first layer takes more than half. Two blocks of a 135M model (110,000 tokens, 2,304 features a layer, k 32): BatchTopK
0.609, 0.070, 24 %, 141; TopK 0.610, 0.071, 32 %, 106; JumpReLU 0.575, 0.073, 65 %, 156. Thresholds, unlike a k, are
what files of other tools can hold.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import CODES_AT_ONCE, SaeConfig, SparseCoder
from circuitcli.saes.fast.selection import BatchTopK
from circuitcli.saes.fast.sparse import Codes, Encoder, decode, encode
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.training.architectures.batchtopk import ThresholdMeter
from circuitcli.training.architectures.descriptions import CrossLayer
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
from circuitcli.training.rows import along_rows_removed, lengths_to_keep, rows_made_unit
from circuitcli.training.takeover import one_threshold, put, refuse_normalising


class CltLayer(nn.Module):
    """The features that read one layer. W_dec (d_sae, n_written * d_out) holds the decoders of what they write side by
    side, from below; b_dec is the bias of the first of these alone, as each layer has one bias."""

    def __init__(self, reads: HookPoint, writes: tuple[HookPoint, ...], *, d_in: int, d_out: int, d_sae: int) -> None:
        super().__init__()
        self.reads, self.writes, self.d_out = reads, writes, d_out
        # Stored transposed, as the sparse kernels like it.
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in).T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, len(writes) * d_out))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.register_buffer("silent_tokens", torch.zeros(d_sae, dtype=torch.int64))
        self.silent_tokens: Tensor
        self.threshold: float | None = None
        # Of decoder rows that keep their length, where that is not one.
        self.row_lengths: Float[Tensor, " d_sae"] | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder in the form of sparse products."""
        return Encoder(self.W_enc, self.b_enc, None)

    def written(self, codes: Codes) -> tuple[Float[Tensor, "batch d_out"], ...]:
        """What the codes add to each hook point that is written."""
        return decode(codes, self.W_dec).view(-1, len(self.writes), self.d_out).unbind(dim=1)

    def dead(self, dead_tokens: int) -> Int[Tensor, " n_dead"]:
        """Features that were silent for so many tokens."""
        return (self.silent_tokens >= dead_tokens).nonzero()[:, 0]


class TrainableClt(Trainable):
    """All layers of a cross-layer transcoder, on activations scaled hook point by hook point to a mean squared norm of
    their width."""

    needs_calibration = True

    def __init__(self, inputs: BuildInputs) -> None:
        super().__init__()
        self._meters: list[ThresholdMeter] = []
        self.config = inputs.config
        widths = {hook: rows.shape[1] for hook, rows in inputs.first.items()}
        self.scales = {
            hook: input_scale(inputs.moments[hook].mean_square_norm, d_in=widths[hook]) for hook in inputs.hooks
        }
        self.layers = nn.ModuleList(
            CltLayer(
                shape.reads[0],
                shape.writes,
                d_in=widths[shape.reads[0]],
                d_out=widths[shape.writes[0]],
                d_sae=self.config.d_sae,
            )
            for shape in CrossLayer().coders(inputs.hooks)
        )
        self.variances = [
            inputs.moments[hook].variance * self.scales[hook] ** 2 or 1.0 for hook in self._layers[0].writes
        ]

    @property
    def _layers(self) -> list[CltLayer]:
        return [cast(CltLayer, layer) for layer in self.layers]

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """See `Trainable`: all that is read, then all that is written."""
        return (*self.sae_hooks, *self._layers[0].writes)

    @property
    def sae_hooks(self) -> tuple[HookPoint, ...]:
        """See `Trainable`."""
        return tuple(layer.reads for layer in self._layers)

    @torch.no_grad()
    def begin_from(self, coders: Mapping[HookPoint, SparseCoder], rows: Batch) -> None:
        """See `Trainable`. Biases of a hook point that several coders write add up to that of its own layer."""
        for layer in self._layers:
            coder = coders[layer.reads]
            refuse_normalising(coder, "a cross-layer transcoder")
            read, first = self.scales[layer.reads], self.scales[layer.writes[0]]
            put(layer.W_enc, coder.W_enc * (first / read))
            put(layer.b_enc, coder.b_enc * first)
            decoders = [coder.decoder(hook) * (self.scales[hook] / first) for hook in layer.writes]
            put(layer.W_dec, torch.cat(decoders, dim=1))
            writers = [other for other in coders.values() if layer.writes[0] in other.writes]
            put(
                layer.b_dec,
                sum((other.decoder_bias(layer.writes[0]) for other in writers), start=torch.zeros(1)) * first,
            )
            layer.threshold, layer.row_lengths = one_threshold(coder) * first, lengths_to_keep(layer.W_dec)

    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """See `Trainable`. Each layer's own result tells of what it is the first to write, which others add to."""
        layers = self._layers
        x = [self._scaled(batch, layer.reads) for layer in layers]
        y = [self._scaled(batch, layer.writes[0]) for layer in layers]
        selection = BatchTopK(self.config.sae.k, self.ranks if self.ranks.n > 1 else None)
        with torch.autocast(x[0].device.type, dtype=torch.bfloat16, enabled=self.config.autocast):
            codes = [encode(rows, layer.encoder, selection) for rows, layer in zip(x, layers, strict=True)]
            sums = self._sums(codes)
        fvus = [
            missed_variance(rows, total, variance=variance)
            for rows, total, variance in zip(y, sums, self.variances, strict=True)
        ]
        errors = [rows - total.detach() for rows, total in zip(y, sums, strict=True)]
        results = {}
        for number, (layer, layer_codes, fvu) in enumerate(zip(layers, codes, fvus, strict=True)):
            losses = {"reconstruction": fvu}
            if self.config.auxk_weight and len(dead := layer.dead(self.config.dead_tokens)):
                losses["auxk"] = self.config.auxk_weight * self._auxk(layer, x[number], errors[number:], dead)
            active = layer_codes.active()
            count_silent_tokens(layer.silent_tokens, active, n_tokens=len(x[number]), ranks=self.ranks)
            results[layer.reads] = StepResult(losses, fvu.detach(), torch.tensor(len(active) / len(x[number])))
        return results

    def _sums(self, codes: Sequence[Codes]) -> list[Float[Tensor, "batch d_out"]]:
        """What all layers write together, at each written hook point."""
        n_tokens = len(codes[0].starts)
        sums: list[Tensor] = [layer.b_dec.expand(n_tokens, -1) for layer in self._layers]
        for first, (layer, layer_codes) in enumerate(zip(self._layers, codes, strict=True)):
            for number, part in enumerate(layer.written(layer_codes), first):
                sums[number] = sums[number] + part
        return sums

    def _auxk(
        self, layer: CltLayer, x: Tensor, errors: Sequence[Float[Tensor, "batch d_out"]], dead: Int[Tensor, " n_dead"]
    ) -> Float[Tensor, ""]:
        """What dead features of a layer miss of all errors that they could write, taken together."""
        error = torch.cat(list(errors), dim=1)
        return auxk(x, error, layer.encoder, layer.W_dec, dead, k=max(1, layer.d_out // 2), ranks=self.ranks)

    def _scaled(self, batch: Batch, hook: HookPoint) -> Float[Tensor, "batch d"]:
        return batch[hook].to(self._layers[0].b_enc) * self.scales[hook]

    def dead_share(self, hook: HookPoint) -> float:
        """See `Trainable`."""
        layer = next(layer for layer in self._layers if layer.reads == hook)
        return len(layer.dead(self.config.dead_tokens)) / self.config.d_sae

    def project_gradients(self) -> None:
        """Take off the part of the decoders' gradient along their rows, whose length over all layers is fixed."""
        for layer in self._layers:
            along_rows_removed(layer.W_dec, layer.row_lengths)

    def project_parameters(self) -> None:
        """Give the decoders' rows their length over all layers again."""
        for layer in self._layers:
            rows_made_unit(layer.W_dec, layer.row_lengths)

    @torch.no_grad()
    def calibrate(self, batch: Batch, *, n_tokens: int) -> None:
        """See `Trainable`: the threshold of each layer."""
        if not self._meters:
            self._meters = [ThresholdMeter(self.config.sae.k, n_tokens=n_tokens) for _ in self._layers]
        for layer, meter in zip(self._layers, self._meters, strict=True):
            for rows in self._scaled(batch, layer.reads).split(max(1, CODES_AT_ONCE // self.config.d_sae)):
                meter.update(rows @ layer.W_enc + layer.b_enc)
            layer.threshold = meter.threshold()

    @torch.no_grad()
    def finished(self) -> dict[HookPoint, SparseCoder]:
        """See `Trainable`. Codes are in units of the first hook point that is written. Needs `calibrate`."""
        return {layer.reads: self._finished(layer).cpu().eval().requires_grad_(False) for layer in self._layers}

    def _finished(self, layer: CltLayer) -> SparseCoder:
        assert layer.threshold is not None
        read, first = self.scales[layer.reads], self.scales[layer.writes[0]]
        config = SaeConfig(
            layer.reads,
            len(layer.W_enc),
            self.config.d_sae,
            subtract_decoder_bias=False,
            target=layer.writes[0],
            d_out=layer.d_out,
            further=layer.writes[1:],
        )
        coder = JumpReluSae(config).to(layer.b_enc.device)
        coder.W_enc.copy_(layer.W_enc * (read / first))
        coder.b_enc.copy_(layer.b_enc / first)
        coder.threshold.fill_(layer.threshold / first)
        for hook, decoder in zip(layer.writes, layer.W_dec.split(layer.d_out, dim=1), strict=True):
            coder.decoder(hook).copy_(decoder * (first / self.scales[hook]))
        # Each hook point has one bias, which belongs to the coder that reads in its layer.
        coder.b_dec.copy_(layer.b_dec / first)
        return coder


@torch.no_grad()
def build(inputs: BuildInputs) -> TrainableClt:
    """An untrained CLT: random directions, biases that centre what is read and begin at what is written."""
    trainable = TrainableClt(inputs)
    for layer in trainable._layers:
        generator = generator_of(inputs.config.seed, layer.reads)
        x, y = (inputs.first[hook].cpu().float() * trainable.scales[hook] for hook in (layer.reads, layer.writes[0]))
        d_sae, d_written = layer.W_dec.shape
        layer.W_enc.copy_(unit_rows(d_sae, len(layer.W_enc), generator).T)
        layer.W_dec.copy_(unit_rows(d_sae, d_written, generator))
        layer.b_enc.copy_(-(x.mean(dim=0) @ layer.W_enc))
        layer.b_dec.copy_(geometric_median(y.double()))
    return trainable.to(inputs.first[inputs.hooks[0]].device)
