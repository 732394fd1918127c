"""The nodes of a frozen graph in a row: active features by coder, errors, token embeddings, output logits."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from circuitcli.attribution.frozen.linear import EMBED, FrozenModel
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError
from circuitcli.graphs.influence import ERROR, FEATURE, LOGIT, TOKEN
from circuitcli.hookpoints import HookPoint, NodeId, logit_name

# As circuit-tracer takes them.
PROBABILITY, MOST_LOGITS = 0.95, 10


@dataclass(frozen=True)
class Active:
    """The features of a coder that are active, by position, then number; ``start`` is the first one's number among all
    nodes."""

    hook: HookPoint
    positions: Int[Tensor, " feature"]
    indices: Int[Tensor, " feature"]
    codes: Float[Tensor, " feature"]
    start: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def numbers(self) -> range:
        """Their numbers among all nodes."""
        return range(self.start, self.start + len(self))


@dataclass(frozen=True)
class Nodes:
    """All that may become a node; ``first`` is the position that spliced positions count from."""

    active: tuple[Active, ...]
    errors: tuple[HookPoint, ...]
    has_tokens: bool
    logits: tuple[int, ...]
    probabilities: tuple[float, ...]
    n_positions: int
    first: int

    @classmethod
    def of(cls, model: FrozenModel, logits: dict[int, float]) -> "Nodes":
        """Those of a prompt, with the tokens that are explained and their probabilities."""
        subject, start, active = model.subject, 0, []
        for hook, codes in subject.codes.items():
            positions, indices = codes[0].nonzero(as_tuple=True)
            active.append(Active(hook, positions, indices, codes[0, positions, indices], start))
            start += len(indices)
        return cls(
            active=tuple(active),
            errors=subject.coders.written,
            has_tokens=model.tokens is not None,
            logits=tuple(logits),
            probabilities=tuple(logits.values()),
            n_positions=subject.n_spliced,
            first=subject.first,
        )

    @property
    def n_features(self) -> int:
        """Number of active features; their numbers come first."""
        return sum(map(len, self.active))

    @property
    def n_sources(self) -> int:
        """Number of nodes that edges lead from: all but logits."""
        return self.n_features + self.n_positions * (len(self.errors) + self.has_tokens)

    @property
    def n(self) -> int:
        """Number of all nodes."""
        return self.n_sources + len(self.logits)

    def errors_start(self, hook: HookPoint) -> int:
        """The number of the first error of a hook point."""
        return self.n_features + self.errors.index(hook) * self.n_positions

    @property
    def tokens_start(self) -> int:
        """The number of the first token."""
        return self.n_features + len(self.errors) * self.n_positions

    def _spread(self, features: list[Any], errors: list[Any], token: Any, logit: Any) -> list[Any]:
        """A value for each node, from values of the groups that they are in."""
        spread: list[Any] = []
        for value, active in zip(features, self.active, strict=True):
            spread += [value] * len(active)
        for value in errors:
            spread += [value] * self.n_positions
        return spread + [token] * (self.n_positions * self.has_tokens) + [logit] * len(self.logits)

    @cached_property
    def kinds(self) -> NDArray[np.int8]:
        """What each is: a feature, an error, a token or a logit."""
        kinds = self._spread([FEATURE] * len(self.active), [ERROR] * len(self.errors), TOKEN, LOGIT)
        return np.array(kinds, dtype=np.int8)

    @cached_property
    def orders(self) -> NDArray[np.int32]:
        """Where each one is in the order of the model, so that every edge leads from a smaller number to a larger."""
        hooks = sorted({active.hook for active in self.active} | set(self.errors) | {EMBED})
        rank = {hook: 2 * number for number, hook in enumerate(hooks)}
        # A coder that reads what goes on from a hook point reads the error there too.
        features = [rank[active.hook] + 1 for active in self.active]
        errors = [rank[hook] for hook in self.errors]
        return np.array(self._spread(features, errors, rank[EMBED], 2 * len(hooks)), dtype=np.int32)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """The probability of each logit, 0 for all others."""
        weights = np.zeros(self.n)
        weights[self.n_sources :] = self.probabilities
        return weights

    def name(self, number: int) -> str:
        """The name of a node."""
        for active in self.active:
            if number in active.numbers:
                one = number - active.start
                return str(NodeId(active.hook, int(active.indices[one]), self.first + int(active.positions[one])))
        if number >= self.n_sources:
            return logit_name(self.logits[number - self.n_sources])
        place, position = divmod(number - self.n_features, self.n_positions)
        if place == len(self.errors):
            return str(NodeId(EMBED, None, self.first + position, is_token=True))
        return str(NodeId(self.errors[place], None, self.first + position))

    def activation(self, number: int) -> float | None:
        """How active a feature is; None for other nodes."""
        for active in self.active:
            if number in active.numbers:
                return float(active.codes[number - active.start])
        return None


def explained_logits(subject: Subject, tokens: tuple[int, ...] = ()) -> dict[int, float]:
    """Tokens that are explained, with their probabilities: those named, by default `likeliest`."""
    probabilities = subject.clean_logits(slice(-1, None))[0, -1].cpu().double().softmax(dim=-1)
    return {token: float(probabilities[token]) for token in tokens} or likeliest(probabilities)


def likeliest(probabilities: Float[Tensor, " vocab"]) -> dict[int, float]:
    """The fewest tokens that have 0.95 of the probability together, at most 10, the likeliest first."""
    values, indices = probabilities.topk(min(MOST_LOGITS, len(probabilities)))
    count = int((values.cumsum(dim=0) < PROBABILITY).sum()) + 1
    return dict(zip(indices[:count].tolist(), values[:count].tolist(), strict=False))


def check_frozen(subject: Subject) -> None:
    """Raise InputError for coders whose active features do not follow pre-activations."""
    for hook, coder in subject.coders.items():
        if coder.architecture == "matching_pursuit":
            raise InputError(
                f"the features at {hook} are found one after the other, by what those before them leave, so that they "
                "have no pre-activations",
                hint="leave --frozen out, or use other SAEs",
            )
