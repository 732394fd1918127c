"""Where pinned features are active, and the run's own text, block by block, as something to ablate them in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitcli.activations.cache import ActivationCache, TokenBlock
from circuitcli.attribution import subject as subjects
from circuitcli.attribution.baselines import Baseline, differs
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.loading import LanguageModel
from circuitcli.saes.base import strongest
from circuitcli.saes.coders import Coders
from circuitcli.validation.circuits import check_node
from circuitcli.validation.scores import Case

# A feature that is active less often than that is not looked for.
MOST_TOKENS = 2**16
# Active features that are named where a pinned one is silent.
_NAMED = 12


class Activity:
    """Which pinned features differ from their baseline anywhere in what was seen so far."""

    def __init__(self, nodes: Sequence[NodeId]) -> None:
        self.nodes = tuple(nodes)
        self._found: set[NodeId] = set()
        self.alive: tuple[NodeId, ...] = ()

    def see(self, case: Case, where: Bool[Tensor, " position"] | None = None) -> bool:
        """Look at a case, at these of the positions that carry nodes; returns whether a pin differs there.

        Raises InputError for a feature that its SAE lacks.
        """
        for node in self.nodes:
            check_node(case.subject, node)
        moved = {hook: _differing(case, hook, where) for hook in {node.hook for node in self.nodes}}
        here = {node for node in self.nodes if bool(moved[node.hook][node.index])}
        self._found |= here
        self.alive = _most_active(case.subject)
        return bool(here)

    @property
    def silent(self) -> list[NodeId]:
        """The pins that differ nowhere."""
        return [node for node in self.nodes if node not in self._found]


def _differing(case: Case, hook: HookPoint, where: Tensor | None) -> Bool[Tensor, " d_sae"]:
    """Which features of a hook point differ from their baseline at these positions."""
    different = differs(case.subject.codes[hook], case.baseline.codes[hook])
    different = different if where is None else different & where.to(different.device)[:, None]
    return different.flatten(0, 1).any(dim=0)


def _most_active(subject: Subject) -> tuple[NodeId, ...]:
    """The features of the first hook point that are furthest from zero."""
    hook = min(subject.coders)
    sizes = strongest(subject.codes[hook].flatten(0, 1)).abs()
    largest = sizes.topk(min(_NAMED, len(sizes)))
    pairs = zip(largest.values.tolist(), largest.indices.tolist(), strict=True)
    return tuple(NodeId(hook, index) for size, index in pairs if size > 0)


@dataclass(frozen=True)
class Piece:
    """A block of the run's text, run once; ``has_row`` tells at which positions behind BOS there is a token of the
    text, not a separator."""

    subject: Subject
    has_row: Bool[Tensor, " position"]

    @property
    def n_tokens(self) -> int:
        """Tokens of the text."""
        return int(self.has_row.sum())

    def case(self, baseline: Baseline, nodes: Sequence[NodeId]) -> Case:
        """Something to test nodes on; its metric is minus the cross-entropy."""
        return Case(self.subject, baseline, tuple(nodes))


def pieces(folder: Path, language_model: LanguageModel, coders: Coders) -> Iterator[Piece]:
    """The blocks of the cached text, the last first, as training holds the last ones out; at most 65,536 tokens."""
    cache = ActivationCache(folder, ())
    blocks = list(cache.blocks(max(0, cache.n_tokens - MOST_TOKENS), cache.n_tokens))
    for block in reversed(blocks):
        if len(block.ids) > 1:
            yield _piece(block, language_model, coders)


def _piece(block: TokenBlock, language_model: LanguageModel, coders: Coders) -> Piece:
    adapter, tokenizer = language_model.adapter, language_model.tokenizer
    first = tokenizer.n_bos(block.ids)
    prompt = Prompt("", tuple(block.ids), tuple(tokenizer.token_strings(block.ids)), first)
    subject = subjects.build(adapter, coders, [prompt], metric="cross-entropy")
    has_row = torch.zeros(len(block.ids), dtype=torch.bool)
    has_row[block.positions] = True
    return Piece(subject, has_row[first:])
