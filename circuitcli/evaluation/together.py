"""Coders that write together, as the layers of a cross-layer transcoder do: what the sum of all that they write
explains, and a model in which it takes the place of what it explains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.evaluation.quality import Reconstruction, ReconstructionMeter
from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import Callback
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.crosscoder import Crosscoder

Coders = Mapping[HookPoint, SparseCoder]


@dataclass(frozen=True)
class Together:
    """Of each coder, by what it reads, how well all together reconstruct what it is the first to write, and how sparse
    it is; and the explained variance at each hook point that any of them writes."""

    coders: Mapping[HookPoint, Reconstruction]
    explained_variance: Mapping[HookPoint, float | None]


def written_by(coders: Coders) -> tuple[HookPoint, ...]:
    """All hook points that some of these coders write, in the order of the model."""
    return tuple(sorted({hook for coder in coders.values() for hook in coder.writes}))


def hooks_of(coders: Coders) -> tuple[HookPoint, ...]:
    """All hook points that these coders read or write."""
    return tuple(sorted({*coders, *written_by(coders)}))


def sets_of(writes: Mapping[HookPoint, Iterable[HookPoint]]) -> list[tuple[HookPoint, ...]]:
    """Coders, by what they read, in sets that write some hook point together; most write theirs alone.

    writes: of each coder what it writes.
    """
    sets: list[tuple[set[HookPoint], set[HookPoint]]] = []
    for read, written in writes.items():
        reads, targets = {read}, set(written)
        joined = [one for one in sets if one[1] & targets]
        sets = [one for one in sets if one not in joined]
        sets.append((reads.union(*(one[0] for one in joined)), targets.union(*(one[1] for one in joined))))
    return sorted(tuple(sorted(reads)) for reads, _ in sets)


@torch.no_grad()
def sums_written(
    coders: Coders, x: Mapping[HookPoint, Float[Tensor, "*batch _"]], codes: Mapping[HookPoint, Tensor] | None = None
) -> dict[HookPoint, Float[Tensor, "*batch _"]]:
    """What the coders write together at each hook point, of raw activations where they read.

    codes: by what is read, where they are known already.
    """
    sums: dict[HookPoint, Tensor] = {}
    for read, coder in coders.items():
        rows = x[read].to(coder.W_enc)
        features = coder.encode(rows) if codes is None else codes[read]
        frame = coder.written_frame(rows)
        for hook in coder.writes:
            written, skip = coder.decode(features, frame, hook=hook), coder.skip(rows, hook)
            written = written if skip is None else written + skip
            sums[hook] = sums[hook] + written if hook in sums else written
    return sums


@torch.no_grad()
def reconstruction_together(
    coders: Coders, batches: Iterable[Mapping[HookPoint, Float[Tensor, "batch _"]]]
) -> Together:
    """Quality of the coders over batches of raw activations at all that they read and write."""
    meters = {read: ReconstructionMeter(coder.d_out, coder.d_sae) for read, coder in coders.items()}
    widths = {hook: coder.d_out for coder in coders.values() for hook in coder.writes}
    # Of what is written no codes are its own.
    of_written = {hook: ReconstructionMeter(width, 1) for hook, width in widths.items()}
    for batch in batches:
        codes = {read: coder.encode(batch[read].to(coder.W_enc)) for read, coder in coders.items()}
        sums = sums_written(coders, batch, codes)
        for read, coder in coders.items():
            meters[read].update(batch[coder.target], sums[coder.target], codes[read])
        for hook, total in sums.items():
            of_written[hook].update(batch[hook], total, total.new_zeros(len(total), 1))
    return Together(
        {read: meter.result() for read, meter in meters.items()},
        {hook: of_written[hook].result().explained_variance for hook in sorted(of_written)},
    )


@torch.no_grad()
def reconstruction_of_crosscoder(
    coder: Crosscoder, batches: Iterable[Mapping[HookPoint, Float[Tensor, "batch _"]]]
) -> dict[HookPoint, Reconstruction]:
    """Quality of a crosscoder at each of its hook points, over batches of raw activations at them."""
    meters = {hook: ReconstructionMeter(coder.d_model, coder.d_sae) for hook in coder.hook_points}
    for batch in batches:
        codes = coder.encode(coder.joined(batch).to(coder.W_enc))
        for hook, part in coder.parts(coder.decode(codes)).items():
            meters[hook].update(batch[hook], part, codes)
    return {hook: meter.result() for hook, meter in meters.items()}


def replaced_by_crosscoder(
    coder: Crosscoder, *, first: int
) -> tuple[dict[HookPoint, Callback], dict[HookPoint, Callback]]:
    """Taps for two runs of one batch: the first reads what the crosscoder reads, the second has what it makes of that.

    In one run its codes are not known before the first of its hook points is written.
    """
    x: dict[HookPoint, Tensor] = {}

    def take(hook: HookPoint) -> Callback:
        return lambda activation: x.__setitem__(hook, activation[:, first:].to(coder.W_enc))

    def put(hook: HookPoint) -> Callback:
        def write(y: Tensor) -> Tensor:
            texts = zip(*(x[one].split(1) for one in coder.hook_points), strict=True)
            made = [coder.parts(coder.reconstruct(torch.cat(text, dim=-1)))[hook] for text in texts]
            result = y.clone()
            result[:, first:] = torch.cat(made).to(y)
            return result

        return write

    return {hook: take(hook) for hook in coder.hook_points}, {hook: put(hook) for hook in coder.hook_points}


def replaced_together(coders: Coders, *, first: int) -> dict[HookPoint, Callback]:
    """Taps that put the sum of what is written in the place of each written hook point's activation.

    Each coder reads the run in which all others stand as well. first: the first position that is replaced.
    """
    sums: dict[HookPoint, Tensor] = {}
    begins = min(coders)

    def read_by(coder: SparseCoder) -> Callback:
        def read(x: Tensor) -> None:
            if coder.hook == begins:
                # What an interrupted run left.
                sums.clear()
            rows = x[:, first:]
            texts = [sums_written({coder.hook: coder}, {coder.hook: text}) for text in rows.split(1)]
            for hook in coder.writes:
                written = torch.cat([text[hook] for text in texts])
                sums[hook] = sums[hook] + written if hook in sums else written

        return read

    def write_at(hook: HookPoint) -> Callback:
        def write(y: Tensor) -> Tensor:
            result = y.clone()
            result[:, first:] = sums.pop(hook).to(y)
            return result

        return write

    reads = {hook: read_by(coder) for hook, coder in coders.items()}
    writes = {hook: write_at(hook) for hook in written_by(coders)}
    return {hook: _both(reads.get(hook), writes.get(hook)) for hook in hooks_of(coders)}


def _both(read: Callback | None, write: Callback | None) -> Callback:
    """First one tap, then the other."""

    def both(x: Tensor) -> Tensor | None:
        if read is not None:
            read(x)
        return None if write is None else write(x)

    return both
