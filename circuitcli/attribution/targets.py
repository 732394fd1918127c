"""What edges lead to, as vectors: the derivative of each target by the activations that it is computed from.

A feature target d is ``g_d f_d`` with ``g_d = dm/df_d`` held constant, an error target ``g_x . e`` with ``e = x -
decode(f) - skips`` and every ``f`` following its own read. Either is known by one vector at each of its ends: codes
follow their pre-activations with a slope each, and these are linear in what is read.

At the clean run the slope is the code's derivative. Between two runs it is the secant ``(f(clean) - f(other)) /
(pre(clean) - pre(other))``, the rescale rule of DeepLIFT (Shrikumar et al. 2017, arXiv:1704.02685): a feature that is
silent in one of them then has edges too, and edges sum to ``g_d`` times the whole change of ``f_d``, jumps included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.gradients import Effects
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder

# A code that moved by more times its pre-activation's change was moved by others, as TopK chooses: the secant would
# blow up, and the mean of the slopes at both ends stands for it.
STEEPEST = 10.0


@dataclass(frozen=True)
class Target:
    """A node that edges lead to: feature ``index`` (None: the error), at a group of positions."""

    index: int | None
    group: int = 0


class End(NamedTuple):
    """Something that a target is computed from: what arrives at a hook point, or what goes on from there."""

    hook: HookPoint
    going_on: bool = False

    @classmethod
    def of_reading(cls, coder: SparseCoder) -> "End":
        """What a coder reads: an autoencoder what arrives, any other what goes on."""
        return cls(coder.hook, coder.is_transcoder)


Vectors = dict[End, Float[Tensor, "row spliced d_model"]]


@dataclass(frozen=True)
class TargetRows:
    """Targets of one hook point in rows, each of one text, at the positions that ``where`` says.

    reached: by hook point that is read, the activation at the other end of the path, (text, spliced, d_in), for the
    texts of the subject; None for derivatives at the clean run. values: what a unit of each row's code counts, in place
    of ``dm/df_d``.
    """

    subject: Subject
    hook: HookPoint
    indices: Sequence[int | None]
    texts: Int[Tensor, " row"]
    where: Bool[Tensor, "row spliced"]
    effects: Mapping[HookPoint, Effects]
    reached: Mapping[HookPoint, Float[Tensor, "text spliced d_in"]] | None = None
    values: Float[Tensor, " row"] | None = None

    def vectors(self) -> Vectors:
        """The derivative of each row's target by what is at each of its ends."""
        found: Vectors = {}
        features = [row for row, index in enumerate(self.indices) if index is not None]
        errors = [row for row, index in enumerate(self.indices) if index is None]
        if features:
            end = End.of_reading(self.subject.coders[self.hook])
            self._add(found, end, self._rows(features), self._of_features(features))
        if errors:
            rows = self._rows(errors)
            arriving = self._gradient(self._error_group, self.hook)[rows] * self._mask(rows)
            self._add(found, End(self.hook), rows, arriving)
            for coder in self.subject.coders.writers(self.hook):
                self._add(found, End.of_reading(coder), rows, self._of_errors(coder, rows))
        return found

    def _add(self, found: Vectors, end: End, rows: Tensor, values: Tensor) -> None:
        if end not in found:
            found[end] = values.new_zeros(len(self.indices), *values.shape[1:])
        found[end].index_add_(0, rows, values)

    def _rows(self, rows: Sequence[int]) -> Int[Tensor, " some"]:
        return torch.tensor(rows, device=self.texts.device)

    def _mask(self, rows: Int[Tensor, " some"]) -> Float[Tensor, "some spliced 1"]:
        like = next(iter(self.subject.codes.values()))
        return self.where[rows][..., None].to(like)

    @property
    def _error_group(self) -> HookPoint:
        return self.subject.coders.group_of_error(self.hook)

    def _gradient(self, group: HookPoint, place: HookPoint) -> Float[Tensor, "row spliced d_out"]:
        """The metric's, by what is written at a place, as the effects of the group come from it."""
        return self.effects[group].gradients[place][self.texts]

    def _of_features(self, numbers: Sequence[int]) -> Float[Tensor, "some spliced d_in"]:
        coder, rows = self.subject.coders[self.hook], self._rows(numbers)
        indices = self._rows([self.indices[row] or 0 for row in numbers])
        weights = self._weights(coder, rows, indices) * self._mask(rows)[..., 0]
        if not coder.elementwise:
            return self._pulled_back(coder, rows, _one_hot(weights, indices, coder.d_sae))
        ends = self._ends(coder)
        slopes = ends.slopes_of(self.texts[rows], indices)  # (some, spliced)
        reading = coder.W_enc.T[indices][:, None]  # (some, 1, d_in)
        return self._divided(coder, rows, (weights * slopes)[..., None] * reading)

    def _weights(
        self, coder: SparseCoder, rows: Int[Tensor, " some"], indices: Int[Tensor, " some"]
    ) -> Float[Tensor, "some spliced"]:
        """What a unit of each row's code counts at each position."""
        if self.values is not None:
            return self.values[rows, None].to(coder.W_enc).expand(-1, self.where.shape[1])
        weights = torch.stack(
            [
                torch.einsum("rpd,rd->rp", self._gradient(self.hook, place)[rows], coder.decoder(place)[indices])
                for place in self.effects[self.hook].gradients
            ]
        ).sum(dim=0)
        scale = self.subject.scale(self.hook)
        return weights if scale is None else weights * scale[self.texts[rows], :, 0]

    def _of_errors(self, coder: SparseCoder, rows: Int[Tensor, " some"]) -> Float[Tensor, "some spliced d_in"]:
        """What a writer's codes and skip take off the error."""
        gradient = self._gradient(self._error_group, self.hook)[rows]
        frame = self.subject.coded.frames[coder.hook]
        found = gradient.new_zeros(*gradient.shape[:-1], coder.d_in)
        # The positions that a target stands for: of a wide coder the codes of others would be most of the memory.
        row, position = self.where[rows].nonzero(as_tuple=True)
        for some in torch.arange(len(row), device=row.device).split(coder.rows_at_once):
            at = row[some], position[some]
            weights = gradient[at] @ coder.decoder(self.hook).T
            if frame is not None:
                weights = weights * frame.scale[self.texts[rows[at[0]]], at[1]]
            found[at] = -self._through(coder, self.texts[rows[at[0]]], at[1], weights)
        carried = self._skipped(coder, gradient * self._mask(rows))
        return found if carried is None else found - carried

    def _skipped(self, coder: SparseCoder, gradient: Tensor) -> Tensor | None:
        return gradient @ coder.skip_weight(self.hook) if coder.config.skip else None

    def _through(
        self,
        coder: SparseCoder,
        texts: Int[Tensor, " n"],
        positions: Int[Tensor, " n"],
        weights: Float[Tensor, "n d_sae"],
    ) -> Float[Tensor, "n d_in"]:
        """Weights on all codes at some positions, as weights on what is read there."""
        if not coder.elementwise:
            return self._ends(coder).pulled_back(texts, positions, weights)
        ends = self._ends(coder)
        slopes = ends.slopes_at(texts, positions)
        vectors = (weights * slopes) @ coder.W_enc.T
        return vectors if ends.divisor is None else vectors / ends.divisor[texts, positions]

    def _divided(self, coder: SparseCoder, rows: Tensor, vectors: Tensor) -> Tensor:
        divisor = self._ends(coder).divisor
        return vectors if divisor is None else vectors / divisor[self.texts[rows]]

    def _pulled_back(
        self, coder: SparseCoder, rows: Int[Tensor, " some"], weights: Float[Tensor, "some spliced d_sae"]
    ) -> Float[Tensor, "some spliced d_in"]:
        found = weights.new_zeros(*weights.shape[:-1], coder.d_in)
        row, position = self.where[rows].nonzero(as_tuple=True)
        found[row, position] = self._ends(coder).pulled_back(self.texts[rows[row]], position, weights[row, position])
        return found

    def _ends(self, coder: SparseCoder) -> "Ends":
        if coder.hook not in self._known:
            reached = None if self.reached is None else self.reached[coder.hook]
            self._known[coder.hook] = Ends(self.subject, coder, reached)
        return self._known[coder.hook]

    @cached_property
    def _known(self) -> dict[HookPoint, "Ends"]:
        return {}


class Ends:
    """What a coder reads and encodes in the clean run, and at the other end of a path if there is one."""

    def __init__(
        self, subject: Subject, coder: SparseCoder, reached: Float[Tensor, "text spliced d_in"] | None
    ) -> None:
        self.coder, self.reached = coder, reached
        self.x = subject.activation(coder.hook)[:, subject.first :]
        self.codes = subject.codes[coder.hook]

    @cached_property
    def divisor(self) -> Float[Tensor, "text spliced 1"] | None:
        """What the clean activation is divided by before it is encoded; None for one."""
        return self.coder.divisor(self.x)

    @cached_property
    def codes_reached(self) -> Float[Tensor, "text spliced d_sae"]:
        """Codes at the other end. What normalisation takes off is a constant: that of the clean run."""
        assert self.reached is not None
        with torch.no_grad():
            moved = self.x - self.reached
            moved = moved if self.divisor is None else moved / self.divisor
            seen = (self.coder.centred(self.x) - moved).flatten(0, 1).split(self.coder.rows_at_once)
            codes = [self.coder.sparsify(some @ self.coder.W_enc + self.coder.b_enc) for some in seen]
        return torch.cat(codes).unflatten(0, self.x.shape[:2])

    def slopes_of(self, texts: Int[Tensor, " row"], features: Int[Tensor, " row"]) -> Float[Tensor, "row spliced"]:
        """At each position of a row's text the slope of the row's feature."""
        codes = self.codes[texts, :, features].T  # (spliced, row)
        slopes = self.coder.slopes(codes, features)
        if self.reached is None:
            return slopes.T
        other = self.codes_reached[texts, :, features].T
        moved = torch.einsum("rpd,rd->pr", (self.x - self.reached)[texts], self.coder.W_enc.T[features])
        moved = moved if self.divisor is None else moved / self.divisor[texts][..., 0].T
        return self._secants(codes, other, moved, features).T

    def slopes_at(self, texts: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n d_sae"]:
        """The slopes of all features at some positions."""
        codes, every = self.codes[texts, positions], slice(None)
        if self.reached is None:
            return self.coder.slopes(codes)
        moved = (self.x - self.reached)[texts, positions] @ self.coder.W_enc
        moved = moved if self.divisor is None else moved / self.divisor[texts, positions]
        return self._secants(codes, self.codes_reached[texts, positions], moved, every)

    def _secants(
        self,
        codes: Float[Tensor, "*batch n"],
        other: Float[Tensor, "*batch n"],
        moved: Float[Tensor, "*batch n"],
        features: Int[Tensor, " n"] | slice,
    ) -> Float[Tensor, "*batch n"]:
        changed = codes - other
        steepest = STEEPEST * self.coder.slopes(torch.ones_like(codes), features)
        is_steep = changed.abs() > steepest * moved.abs()
        secants = torch.where(moved == 0, 0.0, changed / torch.where(moved == 0, 1.0, moved))
        mean = (self.coder.slopes(codes, features) + self.coder.slopes(other, features)) / 2
        return torch.where(is_steep | (moved == 0), mean, secants)

    def pulled_back(
        self, texts: Int[Tensor, " n"], positions: Int[Tensor, " n"], weights: Float[Tensor, "n d_sae"]
    ) -> Float[Tensor, "n d_in"]:
        """Weights on codes, as weights on what is read, of a coder whose codes are not `elementwise`: from its
        derivative, the mean of those at both ends of a path."""
        runs = [self.x] if self.reached is None else [self.x, self.reached]
        total = weights.new_zeros(len(weights), self.coder.d_in)
        for run in runs:
            with torch.enable_grad():
                x = run[texts, positions].detach().requires_grad_()
                total = total + torch.autograd.grad(self.coder.encode(x), x, weights)[0]
        return total / len(runs)


def _one_hot(weights: Float[Tensor, "row spliced"], indices: Int[Tensor, " row"], width: int) -> Tensor:
    found = weights.new_zeros(*weights.shape, width)
    return found.scatter(2, indices[:, None, None].expand(-1, weights.shape[1], 1), weights[..., None])
