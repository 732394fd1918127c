"""What pages say of features: their lines in the run, and what is computed from coders, cache and model for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.features.documents import Pairs, document
from circuitcli.features.label_files import LabelBook
from circuitcli.features.lines import Context, Details, first_lines
from circuitcli.hookpoints import HookPoint
from circuitcli.schema import STRONG
from circuitcli.stages.inputs import open_cache
from circuitcli.stages.interp import file_of, reads_of
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource, load_saes

if TYPE_CHECKING:
    from circuitcli.features.ablated import Ablation, Passages
    from circuitcli.features.relations import Related, Relations
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseCoder

CROSSCODER = "crosscoder"


@dataclass(frozen=True)
class Row:
    """What the index says of a feature."""

    index: int
    label: str
    density: float | None
    max: float | None
    score: float | None


def read_rows(path: Path, book: LabelBook, *, sae: str | None) -> list[Row]:
    """The features of a file, by number, with the labels that count.

    Raises InputError for a damaged file, and for one about another SAE.
    """
    found: dict[int, Row] = {}
    for details in first_lines(path):
        if sae is not None and details.sae != sae:
            raise InputError(f"{path} is about the features of another SAE", hint="run `circuit interp --force`")
        details = book.details(details)
        index = int(details.id.rpartition("/")[2])
        found[index] = Row(index, details.label, details.density, details.max, score_of(details))
    return [found[index] for index in sorted(found)]


def is_strong(context: Context) -> bool:
    """Whether it shows a feature where it is strongest, rather than at a lower quantile of its activations."""
    return context.quantile is None or context.quantile >= STRONG


def score_of(details: Details) -> float | None:
    """How well the label tells where the feature is active, by whatever it was scored last."""
    own = details.label_score
    return own if own is not None or details.score is None else details.score.balanced_accuracy


class FeatureFacts:
    """Documents of features; what is needed for them is loaded when the first one is made."""

    def __init__(
        self,
        request: Request,
        sources: Mapping[HookPoint, SaeSource],
        *,
        ablates: bool,
    ) -> None:
        """Raises InputError for a damaged file, and for one about another SAE."""
        self.request, self.sources, self.ablates = request, sources, ablates
        self.book = LabelBook.of(request.run.path, request.settings.explain.labels)
        self.rows = {
            hook: read_rows(file_of(request, hook), self.book, sae=source.digest) for hook, source in sources.items()
        }
        self._labels = {f"{hook}/{row.index}": row.label for hook, own in self.rows.items() for row in own}

    @cached_property
    def relations(self) -> "Relations":
        """What is like what."""
        import torch

        from circuitcli.features.relations import Described, Relations

        described = {
            hook: Described(
                torch.tensor([row.index for row in own], dtype=torch.int64), sum(row.density or 0.0 for row in own)
            )
            for hook, own in self.rows.items()
            if own
        }
        settings = self.request.settings.pages
        reads = {
            HookPoint.parse(name) for hook in described for name in reads_of(self.request, hook, self.sources[hook])
        }
        return Relations(
            self.coder,
            open_cache(self.request, sorted(reads), purpose="interp"),
            described,
            n_top=settings.neighbours,
            n_tokens=settings.correlation_tokens,
        )

    @cached_property
    def model(self) -> "LanguageModel":
        """The run's model."""
        from circuitcli.models.loading import load_model

        return load_model(self.request.settings.model)

    @cached_property
    def passages(self) -> "Passages":
        """Where contexts are in the cache."""
        from circuitcli.features.ablated import Passages

        return Passages(self.relations.cache)

    def coder(self, hook: HookPoint) -> "SparseCoder":
        """The coder that reads there."""
        name = self.request.settings.model.name
        loaded = load_saes(self.sources, [hook], model=name, adapter=None, load_adapter=lambda: self.model.adapter)
        return loaded[hook].sae.requires_grad_(False)

    def documents(self, hook: HookPoint, features: Sequence[Details]) -> Iterator[dict[str, Any]]:
        """What pages show of features of one coder."""
        numbers = [int(one.id.rpartition("/")[2]) for one in features]
        related = self.relations.of(hook, numbers)
        for place, (number, details) in enumerate(zip(numbers, features, strict=True)):
            yield document(
                self.book.details(details),
                decoders=_pairs(related, place, "decoders"),
                codes=_pairs(related, place, "codes"),
                label_of=self._label,
                ablation=self._ablated(hook, number, details) if self.ablates else None,
            )

    def _label(self, name: str) -> str:
        return self._labels.get(name, "")

    def _ablated(self, hook: HookPoint, number: int, details: Details) -> dict[str, Any] | None:
        from circuitcli.features.ablated import ablation

        coder = self.relations.coder(hook)
        if coder.architecture == CROSSCODER:
            return None
        adapter = self.model.adapter
        passages = [self.passages.of(one) if is_strong(one) else None for one in details.contexts]
        found = ablation(adapter, coder.to(adapter.device), number, [one for one in passages if one is not None])
        if found is None:
            return None
        changes = iter(self._changes(found))
        return {**self._told(found), "contexts": [None if one is None else next(changes) for one in passages]}

    def _told(self, found: "Ablation") -> dict[str, Any]:
        return {
            "divergence": found.divergence,
            "loss": found.loss,
            "raised": [(self._word(token), value) for token, value in found.raised],
            "lowered": [(self._word(token), value) for token, value in found.lowered],
        }

    def _changes(self, found: "Ablation") -> Iterator[dict[str, Any]]:
        for change in found.changes:
            following = None if change.following is None else self._word(change.following)
            yield {"divergence": change.divergence, "loss": change.loss, "following": following}

    def _word(self, token: int) -> str:
        return self.model.tokenizer.token_strings([token])[0]


def _pairs(related: "Related", place: int, name: str) -> dict[str, Pairs]:
    found = getattr(related, name)
    return {
        str(hook): [(f"{hook}/{feature}", value) for feature, value in nearest.row(place)]
        for hook, nearest in found.items()
    }
