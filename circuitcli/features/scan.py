"""One pass over the cached activations that a coder reads, or over texts, whole blocks of text at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from circuitcli import progress
from circuitcli.activations.cache import ActivationCache
from circuitcli.features.peaks import CodedBlocks, Entries, Peaks, drawn, entries
from circuitcli.features.statistics import ActivationStatistics
from circuitcli.features.surroundings import MARKS, Surroundings
from circuitcli.models.loading import LanguageModel
from circuitcli.models.taps import read
from circuitcli.saes.base import SparseCoder

# Numbers in one piece of codes at most, so that wide SAEs need no more memory than narrow ones (256 MiB).
MAX_CODES = 2**26
# Peaks that a label is made from; more than are shown as contexts.
LABEL_PEAKS = 32
# Documents from which on a feature's peaks are from different ones; of fewer there would be too few peaks.
MANY_DOCUMENTS = 4 * LABEL_PEAKS
# Rows from which it is told how long blocks are, and how many documents there are.
N_PROBED = 2**16


class TextCounts:
    """How often each token, and each mark of `surroundings`, is in the text that is looked at."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.tokens: Int[Tensor, " vocab"] = torch.zeros(0, dtype=torch.int64)
        self.marks: Int[Tensor, " mark"] = torch.zeros(len(MARKS), dtype=torch.int64)

    def add(self, blocks: CodedBlocks) -> None:
        """Count the tokens that have an activation."""
        token = blocks.token if blocks.has_row is None else blocks.token[blocks.has_row]
        size = max(len(self.tokens), int(token.max()) + 1 if len(token) else 0)
        counts = torch.bincount(token, minlength=size)
        counts[: len(self.tokens)] += self.tokens
        self.tokens, self.n_tokens = counts, self.n_tokens + len(token)
        if blocks.marks is not None:
            marks = blocks.marks if blocks.has_row is None else blocks.marks[blocks.has_row]
            self.marks += torch.stack([(marks >> bit & 1).sum() for bit in range(len(MARKS))])


@dataclass(frozen=True)
class Summary:
    """All that a pass finds out about the features of one coder, or about those that were chosen.

    ``negative`` is about the codes below zero, which few architectures have: statistics and peaks of what is left of
    them without the sign, though ``peaks.activations``, which windows show, keep it. None where no code was.
    ``samples``: activations drawn by lot, at most one of each block or document, in the order in which they were drawn.
    """

    statistics: ActivationStatistics
    peaks: Peaks
    samples: Peaks
    text: TextCounts
    negative: "Summary | None" = None

    @property
    def live(self) -> Int[Tensor, " live"]:
        """Rows of the features that were active at least once, with either sign, in order."""
        n_active = self.statistics.n_active
        return (n_active if self.negative is None else n_active + self.negative.statistics.n_active).nonzero()[:, 0]


def scan(
    cache: ActivationCache,
    sae: SparseCoder,
    *,
    n_tokens: int,
    batch_size: int,
    n_contexts: int,
    window: int,
    n_samples: int = 0,
    features: Sequence[int] | None = None,
    surroundings: Surroundings | None = None,
) -> Summary:
    """Statistics and peaks of every feature, or of those chosen, over the first ``n_tokens`` rows of what is read.

    n_samples: how many activations of each are drawn by lot. surroundings: tells what holds at each token. Memory is
    that of ``batch_size`` rows of codes (or of 256 MiB of them, if that is less) beside some KiB for each feature.
    ``batch_size`` does not change the result but for the rounding of the encoder.
    """
    size = max(1, min(batch_size, MAX_CODES // sae.d_sae))
    n_features = sae.d_sae if features is None else len(features)
    made = _Making(n_features, n_contexts=n_contexts, window=window, n_samples=n_samples)
    documents = _Documents.of(cache, n_tokens)
    with progress.task(f"features of {sae.hook}", total=n_tokens, unit="tokens") as advance, torch.no_grad():
        for start, stop in block_spans(cache, n_tokens, size=size):
            blocks = _marked(_coded(cache, sae, start, stop).of(features), surroundings)
            made.add(blocks if documents is None else documents.told(blocks), n_tokens=stop - start)
            advance(stop - start)
    return made.summary()


def scan_texts(
    model: LanguageModel,
    sae: SparseCoder,
    texts: Iterable[Sequence[int]],
    *,
    n_contexts: int,
    window: int,
    n_samples: int = 0,
    features: Sequence[int] | None = None,
    surroundings: Surroundings | None = None,
) -> Summary:
    """`scan` over what the model makes of texts, given as token ids without BOS; each text is a block."""
    n_features = sae.d_sae if features is None else len(features)
    made = _Making(n_features, n_contexts=n_contexts, window=window, n_samples=n_samples)
    with torch.no_grad():
        for number, ids in enumerate(texts):
            blocks = _marked(_coded_text(model, sae, ids, number), surroundings)
            made.add(blocks.of(features), n_tokens=len(blocks.token))
    return made.summary()


class _Making:
    """A summary under way; what is negative is counted from the first code below zero on."""

    def __init__(self, n_features: int, *, n_contexts: int, window: int, n_samples: int) -> None:
        self._new = partial(_empty, n_features, n_contexts=n_contexts, window=window, n_samples=n_samples)
        self._positive = self._new()
        self._negative: Summary | None = None

    def add(self, blocks: CodedBlocks, *, n_tokens: int) -> None:
        # The least code costs a sixth of looking for all that are below zero.
        if self._negative is None and blocks.codes.numel() and float(blocks.codes.min()) < 0:
            self._negative = replace(self._new(), text=self._positive.text)
            self._negative.statistics.n_tokens = self._positive.statistics.n_tokens
        _add(self._positive, blocks, entries(blocks.codes), n_tokens=n_tokens)
        if self._negative is not None:
            _add(self._negative, blocks, entries(blocks.codes, sign=-1), n_tokens=n_tokens)
        self._positive.text.add(blocks)

    def summary(self) -> Summary:
        return replace(self._positive, negative=self._negative)


def _empty(n_features: int, *, n_contexts: int, window: int, n_samples: int) -> Summary:
    peaks = Peaks(n_features, n_peaks=LABEL_PEAKS, n_windows=n_contexts, window=window)
    samples = Peaks(n_features, n_peaks=n_samples, n_windows=n_samples, window=window)
    return Summary(ActivationStatistics(n_features), peaks, samples, TextCounts())


def _add(into: Summary, blocks: CodedBlocks, active: Entries, *, n_tokens: int) -> None:
    into.statistics.add(active.features, active.values, n_tokens=n_tokens)
    into.peaks.add(blocks, active)
    if into.samples.n_peaks:
        into.samples.add(blocks, drawn(blocks, active))


def _marked(blocks: CodedBlocks, surroundings: Surroundings | None) -> CodedBlocks:
    return blocks if surroundings is None else replace(blocks, marks=surroundings.marks(blocks.token, blocks.starts))


@dataclass
class _Documents:
    """Which document each block is from: one ends with a block that is shorter than the longest.

    A document that ends where a block does goes on in the next one, as far as this can tell.
    """

    longest: int
    n_ended: int = 0

    @classmethod
    def of(cls, cache: ActivationCache, n_tokens: int) -> "_Documents | None":
        """None where documents cannot be told, or are so few that features would have few peaks."""
        n_probed = min(n_tokens, N_PROBED)
        text = cache.text(0, n_probed)
        if not bool(text.has_row.all()):
            return None
        lasts = text.tokens.position[_edges(text.tokens.block)[1:] - 1]
        longest = int(lasts.max()) if len(lasts) else 0
        n_documents = int((lasts < longest).sum()) * n_tokens / max(n_probed, 1)
        return cls(longest) if n_documents >= MANY_DOCUMENTS else None

    def told(self, blocks: CodedBlocks) -> CodedBlocks:
        """The next blocks, with their documents."""
        ends = blocks.position[blocks.starts[1:] - 1] < self.longest
        document = self.n_ended + ends.cumsum(0) - ends.long()
        self.n_ended += int(ends.sum())
        return replace(blocks, document=document)


def _edges(block: Int[Tensor, " row"]) -> Int[Tensor, " edge"]:
    """The row at which each block begins, and after the last one the number of rows."""
    return torch.cat([torch.tensor([0]), block.diff().nonzero()[:, 0] + 1, torch.tensor([len(block)])])


def coded_pieces(
    cache: ActivationCache, sae: SparseCoder, start: int, stop: int, *, batch_size: int
) -> Iterator[CodedBlocks]:
    """The codes of some rows and their text, in pieces as of `scan`."""
    size = max(1, min(batch_size, MAX_CODES // sae.d_sae))
    with torch.no_grad():
        for span in block_spans(cache, stop, size=size, start=start):
            yield _coded(cache, sae, *span)


def block_spans(cache: ActivationCache, n_tokens: int, *, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Row spans from ``start`` that end where a block of text ends or at ``n_tokens``.

    A span has at most ``size`` rows, or more if a single block has more.
    """
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
    rows = (sae.joined({hook: cache.rows(hook, *piece) for hook in sae.reads}) for piece in pieces)
    codes = torch.cat([sae.encode(piece.to(sae.W_enc.device, sae.W_enc.dtype)) for piece in rows])
    text = cache.text(start, stop)
    tokens = text.tokens
    if not bool(text.has_row.all()):
        everywhere = codes.new_zeros(len(text.has_row), sae.d_sae)
        everywhere[text.has_row.to(codes.device)] = codes
        codes = everywhere
    return CodedBlocks(codes, tokens.token, tokens.block, tokens.position, _edges(tokens.block), text.has_row)


def _coded_text(model: LanguageModel, sae: SparseCoder, ids: Sequence[int], number: int) -> CodedBlocks:
    """One text in codes; a BOS token in front has none."""
    whole = model.tokenizer.with_bos(ids)
    input_ids = torch.tensor([whole], device=model.adapter.device)
    first = len(whole) - len(ids)
    x = sae.joined(read(model.adapter, input_ids, None, sae.reads))[0, first:]
    codes = sae.encode(x.to(sae.W_enc.device, sae.W_enc.dtype))
    positions = torch.arange(first, len(whole))
    return CodedBlocks(
        codes, torch.tensor(whole)[first:], torch.full_like(positions, number), positions, torch.tensor([0, len(ids)])
    )
