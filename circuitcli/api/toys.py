"""Autoencoders on planted features."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from circuitcli.api.arguments import checked
from circuitcli.models.loading import choose_device
from circuitcli.settings.toy import ToySettings
from circuitcli.toys.ground_truth import plant
from circuitcli.toys.measures import Measured, measure
from circuitcli.toys.stack import Dictionary, Stack, models
from circuitcli.toys.training import train


@dataclass(frozen=True)
class Toy:
    """What was planted, (feature, d_model) and how often, and for each autoencoder its tensors and how far it got."""

    features: Tensor
    probabilities: Tensor
    dictionaries: tuple[Dictionary, ...]
    measured: tuple[Measured, ...]

    def __iter__(self) -> Iterator[Measured]:
        return iter(self.measured)

    def __len__(self) -> int:
        return len(self.measured)


def toy(
    *,
    d_model: int | None = None,
    n_features: int | None = None,
    n_active: float | int | None = None,
    l1_weights: Sequence[float | int] | None = None,
    ratios: Sequence[float | int] | None = None,
    steps: int | None = None,
    correlation: Literal["examples", "batches", "none"] | None = None,
    seed: int = 0,
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
) -> Toy:
    """Autoencoders trained side by side on sums of planted features, and how much of these each found.

        found = circuit.toy(l1_weights=[0.1, 0.3, 1], ratios=[1, 2])
        best = max(found, key=lambda one: one.mmcs)
        best.model.name, best.mmcs, best.dead, best.is_collapsed

    All arguments are settings of `circuit toy` and have its defaults; settings: any others of them by name, for example
    {"noise": 0.1, "divide_penalty": False}. The same seed gives the numbers of the command. Raises SettingsError for
    what does not fit, CircuitError if weights stop being finite.
    """
    named: dict[str, Any] = {
        **{"d_model": d_model, "n_features": n_features, "n_active": n_active, "steps": steps},
        **{"l1_weights": _listed(l1_weights), "ratios": _listed(ratios), "correlation": correlation},
    }
    chosen = checked(ToySettings, **{**named, **(settings or {})})
    truth = plant(chosen, seed=seed)
    stack = Stack(models(chosen), chosen, seed=seed, device=choose_device(device))
    train(stack, truth)
    measured = measure(stack, truth)
    return Toy(truth.directions, truth.probabilities, tuple(own for _, own in stack.dictionaries()), tuple(measured))


def _listed(values: Sequence[float | int] | None) -> list[float | int] | None:
    return None if values is None else list(values)
