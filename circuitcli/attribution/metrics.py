"""What is explained: one number for each run, larger is better."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.errors import SettingsError

LAST = slice(-1, None)


@dataclass(frozen=True)
class Metric(ABC):
    """A function of a run's logits at the positions that it names; no others are computed."""

    name: str
    unit: str

    @property
    def positions(self) -> slice:
        """Positions whose logits it needs."""
        return LAST

    @abstractmethod
    def value(
        self, logits: Float[Tensor, "row position vocab"], texts: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, " row"]:
        """The metric of each run, in ``unit``, from the logits at its positions.

        texts: which text each row is a run of; by default each in turn, or all of the only one.
        """

    @property
    def is_flat_at_clean(self) -> bool:
        """Whether its gradient vanishes at the clean run, so that attribution patching says nothing."""
        return False


@dataclass(frozen=True)
class LogProb(Metric):
    """Log-probability of each text's target at the last position, in nats."""

    target: Int[Tensor, " text"]

    def value(
        self, logits: Float[Tensor, "row position vocab"], texts: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, " row"]:
        """log p(target)."""
        return picked(log_softmax(logits[:, -1]), self.target, texts)


@dataclass(frozen=True)
class LogitDifference(Metric):
    """Logit of the target minus logit of the foil at the last position."""

    target: Int[Tensor, " text"]
    foil: Int[Tensor, " text"]

    def value(
        self, logits: Float[Tensor, "row position vocab"], texts: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, " row"]:
        """logit(target) - logit(foil)."""
        last = logits[:, -1]
        return picked(last, self.target, texts) - picked(last, self.foil, texts)


@dataclass(frozen=True)
class MinusCrossEntropy(Metric):
    """Mean log-probability of the prompt's own next tokens, in nats: minus the cross-entropy."""

    ids: Int[Tensor, "text position"]

    @property
    def positions(self) -> slice:
        """All that have a next token."""
        return slice(0, -1)

    def value(
        self, logits: Float[Tensor, "row position vocab"], texts: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, " row"]:
        """Mean over positions 0 .. n-2 of log p(next token)."""
        following = of_rows(self.ids, texts, n_rows=len(logits))[:, 1:, None]
        return log_softmax(logits).gather(-1, following)[..., 0].mean(dim=-1)


@dataclass(frozen=True)
class MinusDivergence(Metric):
    """Minus the divergence KL(clean || run) at the last position, in nats."""

    clean: Float[Tensor, "text vocab"]

    def value(
        self, logits: Float[Tensor, "row position vocab"], texts: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, " row"]:
        """-sum p log(p / q)."""
        expected = of_rows(log_softmax(self.clean), texts, n_rows=len(logits))
        return (expected.exp() * (log_softmax(logits[:, -1]) - expected)).sum(dim=-1)

    @property
    def is_flat_at_clean(self) -> bool:
        """The divergence is least at the clean run itself."""
        return True


def build(
    name: str,
    *,
    ids: Int[Tensor, "text position"],
    last: Float[Tensor, "text vocab"],
    target: Int[Tensor, " text"],
    foil: Sequence[int | None],
) -> Metric:
    """The metric of this name. ``last``: clean logits at the last position.

    Raises SettingsError for logit-diff without a foil, or too short a prompt.
    """
    if name == "log-prob":
        return LogProb(name, "nats", target)
    if name == "logit-diff":
        if any(one is None for one in foil):
            raise SettingsError("the metric logit-diff needs a foil", hint="add --foil TOKEN")
        return LogitDifference(name, "logits", target, torch.tensor(foil, device=target.device))
    if name == "cross-entropy":
        if ids.shape[1] < 2:
            raise SettingsError("cross-entropy needs a prompt of at least two tokens", hint="use --metric log-prob")
        return MinusCrossEntropy(name, "nats", ids)
    return MinusDivergence("kl", "nats", last.detach())


def picked(
    values: Float[Tensor, "row vocab"], ids: Int[Tensor, " text"], texts: Int[Tensor, " row"] | None
) -> Float[Tensor, " row"]:
    """The value of its text's token in each row."""
    return values.gather(1, of_rows(ids, texts, n_rows=len(values))[:, None])[:, 0]


def of_rows(values: Tensor, texts: Int[Tensor, " row"] | None, *, n_rows: int) -> Tensor:
    """What belongs to each row, of what belongs to each text, or is the same for all."""
    if texts is not None and len(values) > 1:
        return values[texts]
    return values.expand(n_rows, *values.shape[1:])


def log_softmax(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """In float32 at least: half precision has too few digits for a difference of log-probabilities."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return exact.log_softmax(dim=-1)
