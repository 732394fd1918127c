"""One pass over the cached activations of a hook point, whole blocks of text at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuitcli import progress
from circuitcli.activations.cache import ActivationCache
from circuitcli.features.peaks import CodedBlocks, Peaks, entries
from circuitcli.features.statistics import ActivationStatistics
from circuitcli.saes.base import SparseCoder

# Numbers in one piece of codes at most, so that wide SAEs need no more memory than narrow ones (256 MiB).
MAX_CODES = 2**26
# Peaks that a label is made from; more than are shown as contexts.
LABEL_PEAKS = 32


@dataclass(frozen=True)
class Summary:
    """All that a pass finds out about the features of one hook point."""

    statistics: ActivationStatistics
    peaks: Peaks


def scan(
    cache: ActivationCache,
    sae: SparseCoder,
    *,
    n_tokens: int,
    batch_size: int,
    n_contexts: int,
    window: int,
) -> Summary:
    """Statistics and peaks of every feature over the first ``n_tokens`` rows.

    Memory is that of ``batch_size`` rows of codes (or of 256 MiB of them, if that is less) beside some KiB for each
    feature. ``batch_size`` does not change the result but for the rounding of the encoder.
    """
    statistics = ActivationStatistics(sae.d_sae)
    peaks = Peaks(sae.d_sae, n_peaks=LABEL_PEAKS, n_windows=n_contexts, window=window)
    size = max(1, min(batch_size, MAX_CODES // sae.d_sae))
    with progress.task(f"features of {sae.hook}", total=n_tokens, unit="tokens") as advance, torch.no_grad():
        for start, stop in block_spans(cache, n_tokens, size=size):
            blocks = _coded(cache, sae, start, stop)
            active = entries(blocks.codes)
            statistics.add(active.features, active.values, n_tokens=stop - start)
            peaks.add(blocks, active)
            advance(stop - start)
    return Summary(statistics, peaks)


def block_spans(cache: ActivationCache, n_tokens: int, *, size: int) -> Iterator[tuple[int, int]]:
    """Row spans that end where a block of text ends or at ``n_tokens``.

    A span has at most ``size`` rows, or more if a single block has more.
    """
    start = 0
    while start < n_tokens:
        stop = min(start + size, n_tokens)
        tokens = cache.tokens(start, stop)
        while stop < n_tokens and (edge := _last_edge(tokens.block)) == 0:
            stop = min(start + 2 * (stop - start), n_tokens)
            tokens = cache.tokens(start, stop)
        if stop < n_tokens:
            stop = start + edge
        yield start, stop
        start = stop


def _last_edge(block: Int[Tensor, " row"]) -> int:
    """The row at which the last block begins."""
    edges = block.diff().nonzero()
    return int(edges[-1]) + 1 if len(edges) else 0


def _coded(cache: ActivationCache, sae: SparseCoder, start: int, stop: int) -> CodedBlocks:
    """The text of the rows, with no code where a token has no row."""
    pieces = cache.pieces(start, stop, size=stop - start, by_text=sae.reads_context)
    rows = (cache.rows(sae.hook, *piece).to(sae.W_enc.device, sae.W_enc.dtype) for piece in pieces)
    codes = torch.cat([sae.encode(piece) for piece in rows])
    text = cache.text(start, stop)
    tokens = text.tokens
    if not bool(text.has_row.all()):
        everywhere = codes.new_zeros(len(text.has_row), sae.d_sae)
        everywhere[text.has_row.to(codes.device)] = codes
        codes = everywhere
    edges = tokens.block.diff().nonzero()[:, 0] + 1
    starts = torch.cat([torch.tensor([0]), edges, torch.tensor([len(tokens.token)])])
    return CodedBlocks(codes, tokens.token, tokens.block, tokens.position, starts)
