"""The model that activations came from, reading their text again while SAEs learn from what it predicts."""

from circuitcli.activations.agreement import check_model
from circuitcli.activations.batches import ShuffledBatches
from circuitcli.activations.cache import ActivationCache
from circuitcli.models.loading import LanguageModel
from circuitcli.settings.settings import Settings
from circuitcli.training.joint import TrainableJoint, WordBatches
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import Plan
from circuitcli.training.readings import RowsThenTexts, TextBatches


def then_texts(
    model: LanguageModel, cache: ActivationCache, plan: Plan, rows: ShuffledBatches, *, settings: Settings
) -> RowsThenTexts:
    """The rows up to the share of the run that trains locally, then the model's readings of their text.

    Raises InputError if the model has changed.
    """
    check_model(model, cache, next(cache.blocks(0, plan.n_rows)))
    texts = TextBatches(
        cache,
        model.adapter,
        pad_id=model.tokenizer.pad_id,
        batch_size=plan.batch_size,
        n_tokens=plan.tokens,
        seed=settings.seed,
        stop_row=plan.stop_row,
    )
    return RowsThenTexts(rows, texts, n_row_steps=round(settings.train.local_share * plan.n_steps))


def words(optimiser: CoderOptimiser, cache: ActivationCache, plan: Plan, *, seed: int) -> WordBatches:
    """The text, for a model that learns from it together with SAEs. Raises InputError if the model has changed."""
    assert isinstance(optimiser.trainable, TrainableJoint)
    return WordBatches(
        cache,
        optimiser.trainable.adapter,
        pad_id=0,
        batch_size=plan.batch_size,
        n_tokens=plan.tokens,
        seed=seed,
        stop_row=plan.stop_row,
    )
