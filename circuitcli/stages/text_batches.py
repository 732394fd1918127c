"""The model that activations came from, reading their text again while SAEs learn from what it predicts."""

from typing import TYPE_CHECKING

from circuitcli.stages.measure import check_model, model_settings
from circuitcli.stages.request import Request
from circuitcli.training.plan import Plan

if TYPE_CHECKING:
    from circuitcli.activations.batches import ShuffledBatches
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.training.readings import RowsThenTexts


def then_texts(request: Request, cache: "ActivationCache", plan: Plan, rows: "ShuffledBatches") -> "RowsThenTexts":
    """The rows up to the share of the run that trains locally, then the model's readings of their text.

    Loads the model. Raises InputError if it has changed.
    """
    from circuitcli.models.loading import load_model
    from circuitcli.training.readings import RowsThenTexts, TextBatches

    model = load_model(model_settings(request))
    check_model(model, cache, next(cache.blocks(0, plan.n_rows)))
    texts = TextBatches(
        cache,
        model.adapter,
        pad_id=model.tokenizer.pad_id,
        batch_size=plan.batch_size,
        n_tokens=plan.tokens,
        seed=request.settings.seed,
        stop_row=plan.stop_row,
    )
    return RowsThenTexts(rows, texts, n_row_steps=round(request.settings.train.local_share * plan.n_steps))
