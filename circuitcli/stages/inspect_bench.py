"""Where `circuit inspect` takes real activations from: the run's cache, or the model on some text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord
from circuitcli.saes.exchange.hooks import same_model
from circuitcli.stages.fitting import cached
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from circuitcli.evaluation.fit import Sample
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.exchange.place import About


@dataclass
class Bench:
    """Where real activations come from; the model is loaded when it is first needed."""

    request: Request
    is_chosen: bool
    loaded: "list[LanguageModel]" = field(default_factory=list)
    # Of the activations that were last read.
    bos: bool | None = None
    is_cached: bool = False

    @property
    def model(self) -> "LanguageModel":
        if not self.loaded:
            from circuitcli.models.loading import load_model

            self.loaded.append(load_model(self.request.settings.model))
        return self.loaded[0]

    def is_for(self, about: "About") -> bool:
        """Whether an SAE is to be held against this model."""
        if self.is_chosen:
            return True
        has_cache = bool(self.request.records.of(ActivationsRecord))
        return has_cache and about.model is not None and same_model(about.model, self.request.settings.model.name)

    def activations(self, sae: "SparseCoder", wrong: list[str]) -> "tuple[str, Sample] | None":
        """Where they are from, and those at the SAE's hook points and, of the same tokens, at others.

        None if there are none; to ``wrong`` is added what the model lacks.
        """
        from circuitcli.evaluation.fit import n_tokens
        from circuitcli.saes.crosscoder import Crosscoder

        if not isinstance(sae, Crosscoder):
            return self.rows(list(dict.fromkeys((sae.hook, sae.target))), n_tokens(sae), wrong)
        found = self.rows(sae.hook_points, n_tokens(sae), wrong)
        if found is None:
            return None
        # All that it reads at once stands for its first hook point.
        return found[0], found[1]._replace(rows={sae.hook: sae.joined(found[1].rows)})

    def rows(self, ends: Sequence[HookPoint], n_tokens: int, wrong: list[str]) -> "tuple[str, Sample] | None":
        """As `activations`, at these hook points, of so many tokens or fewer."""
        count = min(n_tokens, self.request.settings.inspect.tokens)
        found = cached(self.request, ends, n_tokens=count)
        self.is_cached, self.bos = found is not None, None if found is None else found.bos
        if found is not None:
            return f"the cache of {self.request.run.path}", found
        if not self.is_chosen:
            return None
        try:
            for hook in ends:
                self.model.adapter.check(hook)
        except SettingsError as error:
            wrong.append(f"the model is not its own: {error.message}")
            return None
        from circuitcli.stages.live import read_rows

        text, rows = read_rows(self.request, self.model, ends, n_tokens=count)
        self.bos = self.model.tokenizer.bos_id is not None
        return f"{self.model.name} on {text}", rows
