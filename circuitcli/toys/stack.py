"""Autoencoders of any widths that learn side by side from the same batches.

All dictionaries lie one after the other in three tensors: one product encodes a batch for all of them, and one fused
Adam moves them all. Each learns as if it were alone: c = relu(W_enc x + b_enc), decoded by unit rows without a bias,
loss = mean squared error + l1 * mean over the batch of the sum of codes (over its width, where that is divided by).
Gradients are written out: nearly all codes are zero, and what a zero multiplies is not computed (`gradients`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.settings.toy import ToySettings
from circuitcli.toys.gradients import Layout, encoded, gradients
from circuitcli.toys.ground_truth import seeded

NAMES = ("W_enc", "b_enc", "W_dec")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Model:
    """One autoencoder of a sweep: its weight of the penalty, and how wide it is."""

    l1_weight: float
    ratio: float
    width: int

    @property
    def name(self) -> str:
        """What it is called in files."""
        return f"l1={self.l1_weight:g},ratio={self.ratio:g}"


def models(settings: ToySettings) -> list[Model]:
    """All combinations, those of one width together, as they lie in a stack."""
    ratios = sorted(set(settings.ratios))
    return [
        Model(l1_weight, ratio, max(1, round(ratio * settings.n_features)))
        for ratio in ratios
        for l1_weight in sorted(set(settings.l1_weights))
    ]


@dataclass(frozen=True)
class Dictionary:
    """One autoencoder's own part of the stack's tensors, which share memory with it."""

    W_enc: Float[Tensor, "feature d_model"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_model"]


class Stack:
    """Autoencoders and their Adam; ``done`` counts the steps behind them."""

    def __init__(self, chosen: Sequence[Model], settings: ToySettings, *, seed: int, device: torch.device) -> None:
        self.models, self.settings, self.done = list(chosen), settings, 0
        divisors = [model.width if settings.divide_penalty else 1 for model in chosen]
        weights = [model.l1_weight / divisor for model, divisor in zip(chosen, divisors, strict=True)]
        self.layout = Layout.of([model.width for model in chosen], weights, device)
        tensors = _first_weights(chosen, settings.d_model, seed=seed)
        self.parameters = {name: nn.Parameter(tensor.to(device)) for name, tensor in tensors.items()}
        is_fused = device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), lr=settings.learning_rate, fused=is_fused, foreach=None if is_fused else False
        )

    @property
    def tensors(self) -> Dictionary:
        """All dictionaries, one after the other."""
        return Dictionary(**{name: parameter.detach() for name, parameter in self.parameters.items()})

    def dictionaries(self) -> Iterator[tuple[Model, Dictionary]]:
        """Each autoencoder with its part."""
        for model, part in zip(self.models, self.layout.parts, strict=True):
            yield model, Dictionary(**{name: tensor.detach()[part] for name, tensor in self.parameters.items()})

    @torch.no_grad()
    def step(self, x: Float[Tensor, "batch d_model"]) -> None:
        """Learn from one batch."""
        whole = self.tensors
        found = gradients(x, encoded(x, whole.W_enc, whole.b_enc), whole.W_dec, self.layout)
        for name, gradient in zip(NAMES, found, strict=True):
            self.parameters[name].grad = gradient
        self.optimizer.step()
        rows_made_unit(whole.W_dec)
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, besides the batch and the settings; tensors share memory."""
        state = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"{name}.{key}": moments[key] for key in _MOMENTS if key in moments}
        return state

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], *, done: int) -> None:
        """Go on where `state` was taken, after so many steps. Raises KeyError or RuntimeError if it does not fit."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])
            # Adam counts on the CPU unless it is fused on a GPU.
            like = parameter.device if parameter.device.type == "cuda" else torch.device("cpu")
            moments = {key: torch.empty_like(parameter).copy_(state[f"{name}.{key}"]) for key in _MOMENTS[:2]}
            self.optimizer.state[parameter] = {"step": state[f"{name}.step"].to(like, copy=True), **moments}
        self.done = done


def rows_made_unit(rows: Float[Tensor, "feature d_model"]) -> None:
    """Put the rows back on the unit sphere."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12))


def _first_weights(chosen: Sequence[Model], d_model: int, *, seed: int) -> dict[str, Tensor]:
    """As PyTorch begins a linear encoder, and an orthogonal decoder; those of one width begin alike."""
    by_width = {width: _first(width, d_model, seed=seed) for width in dict.fromkeys(one.width for one in chosen)}
    return {name: torch.cat([by_width[model.width][name] for model in chosen]) for name in NAMES}


def _first(width: int, d_model: int, *, seed: int) -> dict[str, Tensor]:
    source, bound = seeded(seed, width), d_model**-0.5
    W_enc = torch.empty(width, d_model).uniform_(-bound, bound, generator=source)
    b_enc = torch.empty(width).uniform_(-bound, bound, generator=source)
    W_dec = nn.init.orthogonal_(torch.empty(d_model, width), generator=source).T.contiguous()
    rows_made_unit(W_dec)
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec}
