"""Where finished SAEs of a run are measured: its held-out rows, and the model that its activations came from."""

from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.evaluation.held_out import HeldOut
from circuitcli.settings.model import PLACEMENT, ModelSettings
from circuitcli.stages.request import Request
from circuitcli.training.plan import JOINT

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache


def held_out(request: Request, cache: "ActivationCache", rows: range) -> HeldOut:
    """These rows, with the model on the device that is asked for now. Raises InputError if the model has changed.

    SAEs that learned together with a model are measured with that one.
    """
    from circuitcli.models.loading import load_model

    if request.settings.train.objective == JOINT:
        from circuitcli.evaluation.again import ReadAgain

        placed = {"name": str(joint_model(request)), "revision": None}
        model = load_model(model_settings(request).model_copy(update=placed))
        cache = ReadAgain(cache, model, rows)
        return HeldOut.of(
            cache,
            cache.known,
            load=lambda: model,
            n_loss_tokens=request.settings.train.loss_tokens,
            device=request.settings.model.device,
        )
    return HeldOut.of(
        cache,
        rows,
        load=lambda: load_model(model_settings(request)),
        n_loss_tokens=request.settings.train.loss_tokens,
        device=request.settings.model.device,
    )


def joint_model(request: Request) -> Path:
    """Where the model lies that learned together with SAEs."""
    return request.run.path / "model"


def model_settings(request: Request) -> ModelSettings:
    """The model that the activations came from, on the device that is asked for now."""
    model = request.settings.model
    collected = {
        name.removeprefix("model."): value
        for name, value in request.run.manifest().get("model_settings", {}).items()
        if name not in PLACEMENT
    }
    return model.model_copy(update=collected)
