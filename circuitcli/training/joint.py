"""A model that learns together with the SAEs on its activations, so that these come to be easy to explain.

The loss is the model's own cross-entropy plus ``train.regularisation`` times the mean over SAEs of what each would
minimise alone: the share of the variance that it misses, its penalty, its dead features' part (after "SAE
regularization produces more interpretable models", Lai 2025). The share is of the variance at hand, so that nothing is
won by making activations small; gpt-circuits divides by their norm. SAEs keep the scale that the model's activations
had before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcli.errors import SettingsError
from circuitcli.evaluation.spliced import MISSED_TARGET, Texts
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.loading import LanguageModel, quiet
from circuitcli.models.taps import Callback, tapped
from circuitcli.training.architectures.several import TrainableCoders
from circuitcli.training.architectures.trainable import Batch, StepResult, TrainableCoder
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.readings import TextBatches

# Losses that are shares of the variance.
_SHARES = ("reconstruction", "l1", "gate")
_WEIGHTS = "weights."


@dataclass(frozen=True)
class Words(Mapping[HookPoint, Float[Tensor, "row d_model"]]):
    """Some text, before the model that learns from it has read it: no activations are known yet."""

    ids: Int[Tensor, "text position"]
    mask: Int[Tensor, "text position"] | None
    target: Int[Tensor, "text position"]
    stored: Bool[Tensor, "text position"]

    def __getitem__(self, hook: HookPoint) -> Float[Tensor, "row d_model"]:
        raise KeyError(hook)

    def __iter__(self) -> Iterator[HookPoint]:
        return iter(())

    def __len__(self) -> int:
        return 0


class WordBatches(TextBatches):
    """The blocks of `TextBatches`, which are not read beforehand."""

    def from_step(self, step: int) -> Iterator[Words]:  # type: ignore[override]
        """Batches ``step`` to ``n_steps``, as they come in an unbroken reading of all of them."""
        for index in range(step, self.n_steps):
            blocks = [self._text(number) for number in self.blocks_of(index)]
            texts = Texts.of(blocks, pad_id=self._pad_id, batch_size=len(blocks), device=self.adapter.device)
            ((ids, mask, target, stored),) = texts
            yield Words(ids, mask, target, stored)


class TrainableJoint(TrainableCoders):
    """SAEs and the weights of the model, each once, whatever shares them."""

    def __init__(
        self, coders: Sequence[TrainableCoder], adapter: ModelAdapter, *, weight: float, rate_factor: float
    ) -> None:
        """rate_factor: of the model's learning rate over that of the SAEs. Raises SettingsError unless float32."""
        super().__init__()
        if adapter.dtype != torch.float32:
            dtype = str(adapter.dtype).removeprefix("torch.")
            raise SettingsError(
                f"a model in {dtype} does not learn: its steps are lost in rounding",
                hint="collect with --dtype float32",
            )
        self.saes = nn.ModuleList(coders)
        self.weights = nn.ParameterList(adapter.model.requires_grad_(True).parameters())
        # Not a part of this module, or its weights would be kept twice.
        self._adapter = (adapter,)
        self._weight, self._rate_factor = weight, rate_factor

    @property
    def adapter(self) -> ModelAdapter:
        """The model that learns."""
        return self._adapter[0]

    @property
    def coders(self) -> list[TrainableCoder]:
        """See `TrainableCoders`."""
        return [cast(TrainableCoder, one) for one in self.saes]

    def rate_factor(self, name: str) -> float:
        """See `Trainable`."""
        if name.startswith(_WEIGHTS):
            return self._rate_factor
        _, number, rest = name.split(".", 2)
        return self.coders[int(number)].rate_factor(rest)

    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """See `Trainable`. The first SAE's losses hold the model's own."""
        assert isinstance(batch, Words)
        rows, cross_entropy = self._read(batch)
        results = super().training_forward(rows, share=share)
        found = {}
        for coder in self.coders:
            result = results[coder.sae.hook]
            x = coder.scaled(rows[coder.sae.hook], coder.scale)
            live = (x - x.mean(dim=0)).square().sum(dim=1).mean().clamp_min(torch.finfo(x.dtype).tiny)
            losses = {
                name: self._weight / len(self.saes) * (part * coder.variance / live if name in _SHARES else part)
                for name, part in result.losses.items()
            }
            measures = {**result.measures, "cross_entropy": cross_entropy.detach()}
            found[coder.sae.hook] = result._replace(losses=losses, measures=measures)
        first = next(iter(found))
        found[first] = found[first]._replace(losses={**found[first].losses, "model": cross_entropy})
        return found

    def _read(self, batch: Words) -> tuple[dict[HookPoint, Float[Tensor, "row d_model"]], Float[Tensor, ""]]:
        """Activations where they would be stored, and the model's loss; both take gradients to its weights."""
        seen: dict[HookPoint, Tensor] = {}
        with tapped(self.adapter, {hook: _keeping(seen, hook) for hook in self.hooks}):
            logits = self.adapter.logits(batch.ids, batch.mask)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.target.flatten(), ignore_index=MISSED_TARGET)
        return {hook: x[batch.stored.to(x.device)] for hook, x in seen.items()}, loss


def _keeping(seen: dict[HookPoint, Tensor], hook: HookPoint) -> Callback:
    """A tap that keeps an activation with its gradient."""

    def take(activation: Tensor) -> None:
        seen[hook] = activation

    return take


def joined(
    optimisers: Sequence[CoderOptimiser], model: LanguageModel, *, weight: float, model_rate: float
) -> CoderOptimiser:
    """One optimiser for all SAEs of these, which have not moved yet, and for the model."""
    first = optimisers[0]
    coders = [one.trainable for one in optimisers]
    assert all(isinstance(coder, TrainableCoder) for coder in coders)
    factor = model_rate / first.config.schedule.peak
    trainable = TrainableJoint(cast(list[TrainableCoder], coders), model.adapter, weight=weight, rate_factor=factor)
    return CoderOptimiser(trainable, first.config, variant=first.variant)


def save_model(optimiser: CoderOptimiser, model: LanguageModel, directory: Path) -> None:
    """Write the model of `joined` as Hugging Face's libraries read it, with the tokenizer of the one that it was."""
    trainable = optimiser.trainable
    assert isinstance(trainable, TrainableJoint)
    with quiet():
        trainable.adapter.model.save_pretrained(directory)
    model.tokenizer.hf.save_pretrained(directory)
