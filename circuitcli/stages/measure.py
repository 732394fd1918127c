"""Measuring finished SAEs on what training did not see: held-out rows of the cache, and the model on their text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.settings.model import ModelSettings
from circuitcli.stages.request import Request
from circuitcli.training.plan import Plan

if TYPE_CHECKING:
    import torch

    from circuitcli.activations.cache import ActivationCache, TokenBlock
    from circuitcli.models.adapter import ModelAdapter
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseAutoencoder
    from circuitcli.training.quality import Texts

# Held-out tokens that the model reads, four times for each SAE; enough for two digits of the loss recovered.
LOSS_TOKENS = 4096
_LOSS_BATCH = 8
# Number types and devices change activations by a few per cent at most, of their norm.
LARGEST_MODEL_GAP = 0.1
_EVAL_ROWS = 1024


@dataclass(frozen=True)
class HeldOut:
    """Rows and text that training did not see, and the model that they came from."""

    cache: "ActivationCache"
    plan: Plan
    adapter: "ModelAdapter"
    texts: "Texts"
    first: int
    ce_clean: float

    @classmethod
    def of(cls, request: Request, cache: "ActivationCache", plan: Plan) -> "HeldOut":
        """Load the model on the device that is asked for now.

        Raises InputError if it no longer gives the cached activations.
        """
        from circuitcli.models.loading import load_model
        from circuitcli.training.quality import Texts, cross_entropy

        model = load_model(_model_settings(request))
        blocks = list(cache.blocks(plan.stop_row, min(plan.n_rows, plan.stop_row + LOSS_TOKENS)))
        _check_model(model, cache, blocks)
        texts = Texts.of(blocks, pad_id=model.tokenizer.pad_id, batch_size=_LOSS_BATCH, device=model.adapter.device)
        clean = cross_entropy(model.adapter, texts, {}) if texts.n_predictions else 0.0
        return cls(cache, plan, model.adapter, texts, int(model.tokenizer.bos_id is not None), clean)

    @property
    def device(self) -> "torch.device":
        """Where SAEs must be to be measured."""
        return self.adapter.device

    def facts(self, sae: "SparseAutoencoder") -> dict[str, Any]:
        """All that was measured of an SAE, by name."""
        facts = self._reconstruction(sae)
        return facts | self._recovered(sae) if self.texts.n_predictions else facts

    def _reconstruction(self, sae: "SparseAutoencoder") -> dict[str, Any]:
        from circuitcli.training.quality import reconstruction

        starts = range(self.plan.stop_row, self.plan.n_rows, _EVAL_ROWS)
        rows = (self.cache.rows(sae.hook, start, min(start + _EVAL_ROWS, self.plan.n_rows)) for start in starts)
        found = asdict(reconstruction(sae, rows))
        return {("n_eval_tokens" if key == "n_tokens" else key): value for key, value in found.items()}

    def _recovered(self, sae: "SparseAutoencoder") -> dict[str, Any]:
        from circuitcli.training.quality import recovered

        mean = self.cache.mean(sae.hook).float()
        return recovered(self.adapter, self.texts, sae, mean=mean, first=self.first, ce_clean=self.ce_clean).facts()


def _check_model(model: "LanguageModel", cache: "ActivationCache", blocks: "Sequence[TokenBlock]") -> None:
    """Raise InputError if the model no longer gives the cached activations of the first block."""
    import torch

    from circuitcli.models.taps import read

    for block in blocks[:1]:
        ids = torch.tensor([block.ids], device=model.adapter.device)
        with torch.no_grad():
            found = read(model.adapter, ids, None, cache.hooks)
        for hook, activation in found.items():
            rows = cache.rows(hook, block.start_row, block.stop_row)
            gap = (activation[0, block.positions].float().cpu() - rows).norm()
            if gap > LARGEST_MODEL_GAP * rows.norm():
                raise InputError(
                    f"{model.name} gives other activations at {hook} than those that were collected from it",
                    hint="the model has changed since: run `circuit collect --force` and train again",
                )


def _model_settings(request: Request) -> ModelSettings:
    """The model that the activations came from, on the device that is asked for now."""
    model = request.settings.model
    kept = {
        name.removeprefix("model."): value
        for name, value in request.run.manifest().get("model_settings", {}).items()
        if name not in ("model.device", "model.device_map")
    }
    return model.model_copy(update=kept)
