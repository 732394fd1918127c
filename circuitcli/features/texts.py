"""Which features are active in a text, token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from circuitcli.features.cards import token_ids
from circuitcli.features.coactivation import Codes
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.loading import LanguageModel
from circuitcli.models.taps import read
from circuitcli.saes.base import SparseCoder


@dataclass(frozen=True)
class ActiveAt:
    """A feature that is active at a token."""

    id: str
    activation: float


@dataclass(frozen=True)
class TokenFeatures:
    """A token of a text and the features that are active there, of each coder the strongest first.

    position: where the model read it, so that ``resid.9/331@4`` is feature 331 at position 4.
    """

    position: int
    token: str
    features: tuple[ActiveAt, ...]


@dataclass(frozen=True)
class ReadText:
    """A text as a model reads it, without BOS, in pieces where it is long, and each coder's codes at its tokens."""

    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    codes: Mapping[HookPoint, Codes]

    def strongest(self, n: int) -> tuple[TokenFeatures, ...]:
        """Each token with the ``n`` features of each coder whose codes are furthest from zero there."""
        found: list[list[ActiveAt]] = [[] for _ in self.tokens]
        for hook, codes in self.codes.items():
            for at, place in enumerate(found):
                own = codes.rows(at, at + 1)
                best = own.values.abs().topk(min(n, len(own.values))).indices
                pairs = zip(own.features[best].tolist(), own.values[best].tolist(), strict=True)
                place += [ActiveAt(str(NodeId(hook, feature)), value) for feature, value in pairs]
        whole = zip(self.positions, self.tokens, found, strict=True)
        return tuple(TokenFeatures(position, token, tuple(active)) for position, token, active in whole)


@torch.no_grad()
def read_text(model: LanguageModel, coders: Mapping[HookPoint, SparseCoder], text: str | Sequence[str]) -> ReadText:
    """A text, or several one after the other, run through the model and encoded.

    What is longer than the model's window, or than 1,024 tokens, is read in pieces that know nothing of each other.
    Raises InputError if there is no token.
    """
    pieces = token_ids([text] if isinstance(text, str) else text, model, None)
    hooks = sorted({hook for coder in coders.values() for hook in coder.reads})
    positions: list[int] = []
    parts: dict[HookPoint, list[Codes]] = {hook: [] for hook in coders}
    for ids in pieces:
        whole = model.tokenizer.with_bos(ids)
        first = len(whole) - len(ids)
        positions += range(first, len(whole))
        seen = read(model.adapter, torch.tensor([whole], device=model.adapter.device), None, hooks)
        for hook, coder in coders.items():
            x = coder.joined({place: seen[place] for place in coder.reads})[0, first:]
            parts[hook].append(_sparse(coder, x))
    tokens = model.tokenizer.token_strings([token for ids in pieces for token in ids])
    return ReadText(tuple(tokens), tuple(positions), {hook: _joined(own) for hook, own in parts.items()})


def _sparse(coder: SparseCoder, x: torch.Tensor) -> Codes:
    found = coder.active(x.to(coder.W_enc))
    counts = torch.bincount(found.tokens.cpu(), minlength=len(x))
    edges = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Codes(coder.d_sae, found.features.cpu().int(), found.values.float().cpu(), edges)


def _joined(parts: Sequence[Codes]) -> Codes:
    """Codes of tokens one piece after the other."""
    counts = torch.cat([part.edges.diff() for part in parts])
    edges = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    features, values = (torch.cat([getattr(part, name) for part in parts]) for name in ("features", "values"))
    return Codes(parts[0].d_sae, features, values, edges)
