"""What is explained: one number for each run, larger is better."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.errors import SettingsError
from circuitcli.settings.graph import GraphSettings


@dataclass(frozen=True)
class Metric(ABC):
    """A function of a run's logits."""

    name: str
    unit: str

    @abstractmethod
    def value(self, logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, " batch"]:
        """The metric of each run, in ``unit``."""

    @property
    def is_flat_at_clean(self) -> bool:
        """Whether its gradient vanishes at the clean run, so that attribution patching says nothing."""
        return False


@dataclass(frozen=True)
class LogProb(Metric):
    """Log-probability of the target at the last position, in nats."""

    target: int

    def value(self, logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, " batch"]:
        """log p(target)."""
        return log_softmax(logits[:, -1])[:, self.target]


@dataclass(frozen=True)
class LogitDifference(Metric):
    """Logit of the target minus logit of the foil at the last position."""

    target: int
    foil: int

    def value(self, logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, " batch"]:
        """logit(target) - logit(foil)."""
        return logits[:, -1, self.target] - logits[:, -1, self.foil]


@dataclass(frozen=True)
class MinusCrossEntropy(Metric):
    """Mean log-probability of the prompt's own next tokens, in nats: minus the cross-entropy."""

    ids: Int[Tensor, "1 position"]

    def value(self, logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, " batch"]:
        """Mean over positions 0 .. n-2 of log p(next token)."""
        following = self.ids[:, 1:, None].expand(logits.shape[0], -1, -1)
        return log_softmax(logits[:, :-1]).gather(-1, following)[..., 0].mean(dim=-1)


@dataclass(frozen=True)
class MinusDivergence(Metric):
    """Minus the divergence KL(clean || run) at the last position, in nats."""

    clean: Float[Tensor, " vocab"]

    def value(self, logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, " batch"]:
        """-sum p log(p / q)."""
        expected = log_softmax(self.clean)
        return (expected.exp() * (log_softmax(logits[:, -1]) - expected)).sum(dim=-1)

    @property
    def is_flat_at_clean(self) -> bool:
        """The divergence is least at the clean run itself."""
        return True


def build(
    settings: GraphSettings,
    *,
    ids: Int[Tensor, "1 position"],
    clean_logits: Float[Tensor, "1 position vocab"],
    target: int,
    foil: int | None,
) -> Metric:
    """The metric that the settings name. Raises SettingsError for logit-diff without a foil, or too short a prompt."""
    if settings.metric == "log-prob":
        return LogProb("log-prob", "nats", target)
    if settings.metric == "logit-diff":
        if foil is None:
            raise SettingsError("the metric logit-diff needs a foil", hint="add --foil TOKEN")
        return LogitDifference("logit-diff", "logits", target, foil)
    if settings.metric == "cross-entropy":
        if ids.shape[1] < 2:
            raise SettingsError("cross-entropy needs a prompt of at least two tokens", hint="use --metric log-prob")
        return MinusCrossEntropy("cross-entropy", "nats", ids)
    return MinusDivergence("kl", "nats", clean_logits[0, -1].detach())


def log_softmax(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """In float32 at least: half precision has too few digits for a difference of log-probabilities."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return exact.log_softmax(dim=-1)
