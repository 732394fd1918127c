"""Behaviours where no prompt is given: what the model predicts best of some text, beyond how frequent the token is.

A prediction's gain is ``log p(token | context) - log p_unigram(token)``. The text is cut into pieces that overlap by
one token, so that every token but the first of a block is predicted once, from at most `CONTEXT` tokens before it, by a
pass of its own as the circuit's clean run is: nothing depends on how many pieces are read at once. The contexts of one
piece all begin at its first token, so of several predictions no two are of one piece.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nlargest

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.cache import ActivationCache, TokenBlock
from circuitcli.attribution.examples import Example
from circuitcli.attribution.metrics import log_softmax
from circuitcli.models.loading import LanguageModel
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.models.window import window
from circuitcli.progress import track

# Longest context, in tokens of the text.
CONTEXT = 64
# Rows over which frequencies of tokens are counted, at most.
COUNTED_ROWS = 2**20


@dataclass(frozen=True)
class Prediction:
    """A context, as the model sees it, and the token that follows it in the text.

    log_prob: of that token, in nats; gain: over its frequency, in nats.
    """

    ids: tuple[int, ...]
    target: int
    log_prob: float
    gain: float

    def example(self, tokenizer: Tokenizer) -> Example:
        """The prompt whose next token is explained."""
        ids = tokenizer.own_part(self.ids)
        return Example(tokenizer.decode(ids), self.target, ids=ids)


@dataclass(frozen=True)
class _Piece:
    """Consecutive tokens of a block, and the places among them, past the first, that may be predicted."""

    ids: list[int]
    places: list[int]


def best_predictions(cache: ActivationCache, model: LanguageModel, rows: range, n: int) -> tuple[Prediction, ...]:
    """Of the blocks that lie wholly in these rows the ``n`` predictions with the largest gains, the best one first.

    No two have overlapping contexts, or the same context and target; of equals the first counts. Special tokens and
    what has no row are no targets. There are fewer where the text has fewer.
    """
    tokenizer, longest = model.tokenizer, window(model.adapter.model.config)
    front = len(tokenizer.with_bos(()))
    # A context is at most as long as the window, BOS included.
    context = CONTEXT if longest is None else max(1, min(CONTEXT, longest - front))
    pieces = [
        piece for block in cache.blocks(rows.start, rows.stop) for piece in _pieces(block, tokenizer, context=context)
    ]
    frequencies = unigram(cache, rows, n_ids=model.adapter.n_token_ids)
    each = (_best_of(piece, model, frequencies) for piece in track(pieces, "text to explain", unit="pieces"))
    return tuple(nlargest(n, _once(each), key=lambda found: found.gain))


def _once(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Each of them the first time: a text may repeat itself."""
    seen: set[tuple[tuple[int, ...], int]] = set()
    for found in predictions:
        if (what := (found.ids, found.target)) not in seen:
            seen.add(what)
            yield found


def _pieces(block: TokenBlock, tokenizer: Tokenizer, *, context: int) -> Iterator[_Piece]:
    has_row = set(block.positions)
    for first in range(tokenizer.n_bos(block.ids), len(block.ids) - 1, context):
        # A BOS token in the middle, between packed texts, begins no context: there are never two in front.
        start = first + tokenizer.n_bos(block.ids[first : first + context])
        part = block.ids[start : first + context + 1]
        places = [at for at in range(1, len(part)) if start + at in has_row and part[at] not in tokenizer.special_ids]
        if places:
            yield _Piece(part, places)


def unigram(cache: ActivationCache, rows: range, *, n_ids: int) -> Float[Tensor, " vocab"]:
    """log p of each token, in nats, by its count in the text before these rows, one added."""
    counted = cache.tokens(max(0, rows.start - COUNTED_ROWS), rows.start).token.long()
    counts = torch.bincount(counted, minlength=n_ids)[:n_ids].double() + 1
    return (counts / counts.sum()).log()


def _best_of(piece: _Piece, model: LanguageModel, frequencies: Float[Tensor, " vocab"]) -> Prediction:
    """The best prediction of one piece, by one pass without its last token, which is only predicted."""
    ids = model.tokenizer.with_bos(piece.ids[:-1])
    front = len(ids) - len(piece.ids) + 1
    with torch.no_grad():
        logits = model.adapter.logits(torch.tensor([ids], device=model.adapter.device))[0]
    logs = log_softmax(logits[[front + at - 1 for at in piece.places]]).cpu().double()
    targets = torch.tensor([piece.ids[at] for at in piece.places])
    found = logs.gather(1, targets[:, None])[:, 0]
    gains = (found - frequencies[targets]).nan_to_num(nan=-torch.inf)
    first = int(gains.argmax())
    at = piece.places[first]
    return Prediction(tuple(ids[: front + at]), piece.ids[at], float(found[first]), float(gains[first]))
