"""Where finished SAEs of a run are measured: its held-out rows, and the model that its activations came from."""

from typing import TYPE_CHECKING

from circuitcli.evaluation.held_out import HeldOut
from circuitcli.settings.model import PLACEMENT, ModelSettings
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache


def held_out(request: Request, cache: "ActivationCache", rows: range) -> HeldOut:
    """These rows, with the model on the device that is asked for now. Raises InputError if the model has changed."""
    from circuitcli.models.loading import load_model

    return HeldOut.of(
        cache,
        rows,
        load=lambda: load_model(model_settings(request)),
        n_loss_tokens=request.settings.train.loss_tokens,
        device=request.settings.model.device,
    )


def model_settings(request: Request) -> ModelSettings:
    """The model that the activations came from, on the device that is asked for now."""
    model = request.settings.model
    collected = {
        name.removeprefix("model."): value
        for name, value in request.run.manifest().get("model_settings", {}).items()
        if name not in PLACEMENT
    }
    return model.model_copy(update=collected)
