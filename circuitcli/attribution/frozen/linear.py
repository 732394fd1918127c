"""The frozen model of one prompt: an affine map from what features, errors and tokens write to what is read.

Constant are attention patterns, the denominators of norms, what coders take off for normalisation, errors, and what
MLPs give, so that what reads an MLP's output has no incoming edges. Every spliced hook point goes on with its clean
activation plus what is added to it plus what live skips carry there: features do not follow what they read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.freezing import Frozen
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.base import EPSILON, SparseCoder
from circuitcli.saes.splice import shifted

EMBED = HookPoint(0, "embed")
# Derivatives as wide as the stream that a block's backward pass has at once.
_UNDER_WAY = 12
# Rounding to this share of a number, as in float16, shows bends in changes as large as what is changed.
_FINE = 2**-10
# Share of a change by which rounding in half precision may bend it, where it is more than rounding itself.
_MOST_BENT, _ROUNDING = 0.05, 1e-3


@dataclass(frozen=True)
class Seen:
    """What was there in one run: by the hook point, what its coder reads at the spliced positions; and the output of
    the final norm."""

    reads: dict[HookPoint, Float[Tensor, "row spliced d_in"]] = field(default_factory=dict)
    normed: list[Float[Tensor, "row position d_model"]] = field(default_factory=list)


class FrozenModel:
    """Run once, with a graph of derivatives that is kept; then derivatives and interventions in any number."""

    def __init__(self, subject: Subject) -> None:
        """subject: of one prompt."""
        self.subject = subject
        self.leaves: dict[HookPoint, Tensor] = {}
        self.constants: dict[HookPoint, Tensor] = {}
        self._frozen = Frozen()
        with torch.enable_grad(), self._frozen:
            self.seen = self._run(1, None)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.subject.adapter.device

    @cached_property
    def tokens(self) -> Float[Tensor, "spliced d_model"] | None:
        """What the embedding writes; None where a coder explains it."""
        if self.subject.coders.writers(EMBED):
            return None
        return self._spliced(self.leaves[EMBED].detach())[0]

    @property
    def places(self) -> tuple[HookPoint, ...]:
        """What features, errors and tokens write, in the order of the model."""
        return tuple(self.leaves)

    def gradients(
        self, output: Float[Tensor, "1 position width"], seeds: Float[Tensor, "target 1 position width"]
    ) -> dict[HookPoint, Float[Tensor, "target spliced d_out"]]:
        """Derivative of each target, which is the sum of an output times its seed, by all that is written before."""
        if not output.requires_grad:
            return {}
        found = torch.autograd.grad(
            output,
            list(self.leaves.values()),
            seeds,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        return {
            hook: gradient[:, 0, self.subject.first :].to(self._like)
            for hook, gradient in zip(self.leaves, found, strict=True)
            if gradient is not None
        }

    def reached(self, output: Float[Tensor, "1 position width"]) -> dict[HookPoint, bool]:
        """Where what is written has a path to the last position of an output, and whether from other positions too."""
        seed = torch.zeros_like(output)[None]
        seed[0, 0, -1] = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(0)).to(output)
        found = self.gradients(output, seed)
        return {hook: bool(gradient[:, :-1].any()) for hook, gradient in found.items() if gradient[:, -1].any()}

    def moved(self, moves: Mapping[HookPoint, Float[Tensor, "row spliced d_out"]]) -> Seen:
        """A forward run of as many rows as each move has, in which so much is added to what is written."""
        rows = len(next(iter(moves.values())))
        with torch.no_grad(), self._frozen.again():
            return self._run(rows, moves)

    def check_affine(self) -> None:
        """Raise InputError if what is read does not move twice as far when all that is written is moved twice as far:
        the model then has a part that is not held constant."""
        generator = torch.Generator().manual_seed(0)
        # The coarser numbers are, the further: what the clean run is rounded by is no bend.
        size = max(1.0, torch.finfo(self.subject.adapter.dtype).eps / _FINE)
        moves = {}
        for place, written in self.leaves.items():
            x = self._spliced(written.detach())
            move = torch.randn(x.shape, generator=generator).to(x) * x.std() * size
            moves[place] = torch.cat([move, 2 * move])
        seen = self.moved(moves)
        pairs = [(seen.reads[hook], before) for hook, before in self.seen.reads.items()]
        if any(_is_bent(after, before) for after, before in [*pairs, (seen.normed[0], self.seen.normed[0])]):
            raise InputError(
                f"the model type '{self.subject.adapter.model_type}' has a part that cannot be held constant, so that "
                "its frozen model is not linear",
                hint="leave --frozen out",
            )

    @property
    def bytes_of_target(self) -> int:
        """What a backward pass takes for each target, roughly: derivatives by all that is written, and those under
        way."""
        one = self.subject.clean.input_ids.shape[1] * self.subject.adapter.d_model * self._like.element_size()
        return one * (len(self.leaves) + _UNDER_WAY)

    def _run(self, rows: int, moves: Mapping[HookPoint, Tensor] | None) -> Seen:
        run = _Run(self, moves, rows)
        texts = torch.zeros(rows, dtype=torch.int64, device=self.device)
        adapter = self.subject.adapter
        hooks = {EMBED, *self.subject.coders.hooks, *self._mlps}
        final = self.subject.run({hook: run.tap(hook) for hook in sorted(hooks)}, texts=texts, start=-1)
        run.seen.normed.append(adapter.final_norm(final))
        return run.seen

    @cached_property
    def _mlps(self) -> tuple[HookPoint, ...]:
        """MLPs that no coder writes."""
        adapter = self.subject.adapter
        every = (HookPoint(layer, "mlp") for layer in range(adapter.n_layers))
        return tuple(hook for hook in every if adapter.offers(hook) and not self.subject.coders.writers(hook))

    @property
    def _like(self) -> Tensor:
        return next(iter(self.subject.coders.values())).W_enc

    def _spliced(self, x: Tensor) -> Tensor:
        return x[:, self.subject.first :].to(self._like)


def _is_bent(after: Float[Tensor, "2 position width"], before: Float[Tensor, "1 position width"]) -> bool:
    """Whether the second row is not twice as far from what was before as the first, beyond rounding."""
    once, twice = (after - before.detach()).float()
    bent = float((twice - 2 * once).norm())
    return bent > _MOST_BENT * max(float(twice.norm()), _ROUNDING * float(before.detach().float().norm()))


class _Run:
    """The taps of one run: the first (no moves), or a later one of rows in which something is moved."""

    def __init__(self, model: FrozenModel, moves: Mapping[HookPoint, Tensor] | None, rows: int) -> None:
        self.model, self.moves, self.rows = model, moves, rows
        self.seen = Seen()
        self.coders = model.subject.coders

    def tap(self, hook: HookPoint) -> Callback:
        """An autoencoder reads what arrives, any other coder what goes on from here."""
        reader = self.coders.get(hook)

        def callback(x: Tensor) -> Tensor | None:
            arriving = self._held_constant(hook, x) if hook.site == "mlp" else x
            going_on = self._written(hook, arriving) if self._is_written(hook) else arriving
            if reader is not None:
                self.seen.reads[hook] = self.model._spliced(going_on if reader.is_transcoder else arriving)
            return going_on

        return callback

    def _is_written(self, hook: HookPoint) -> bool:
        return hook == EMBED or bool(self.coders.writers(hook))

    def _held_constant(self, hook: HookPoint, x: Tensor) -> Tensor:
        if self.moves is None:
            self.model.constants[hook] = x.detach()
        return self.model.constants[hook].repeat(self.rows, 1, 1)

    def _written(self, hook: HookPoint, x: Tensor) -> Tensor:
        model, first = self.model, self.model.subject.first
        if self.moves is None:
            is_embedding = not self.coders.writers(hook)
            value = x.to(model._like) if is_embedding else model.subject.activation(hook)
            model.leaves[hook] = held = leaf(value)
        else:
            held = model.leaves[hook].detach().repeat(self.rows, 1, 1)
            if hook in self.moves:
                held = shifted(held, self.moves[hook], first=first)
        for coder in self.coders.writers(hook):
            change = self._carried_change(coder, hook)
            held = held if change is None else shifted(held, change, first=first)
        return held.to(x.dtype)

    def _carried_change(self, coder: SparseCoder, hook: HookPoint) -> Tensor | None:
        """What a skip carries to a hook point beyond what it carries in the clean run."""
        if not coder.config.skip:
            return None
        read = self.seen.reads[coder.hook]
        return coder.skip(read - self.model._spliced(self.model.subject.activation(coder.hook)), hook)


def divisor(coder: SparseCoder, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"] | None:
    """What a coder divides an activation by before it encodes it; None for nothing."""
    frame = coder.normal_frame(x)
    if frame is None:
        return None
    return frame.scale + EPSILON if coder.config.normalisation == "layer-norm" else frame.scale


def reading(coder: SparseCoder, indices: Tensor) -> Float[Tensor, "feature d_in"]:
    """Directions of what a coder sees, normalised, in which active features read: the derivative of their codes, which
    follow their pre-activations with slope 1; those of a gated coder its magnitudes."""
    rows = coder.W_enc.T[indices]
    gain = getattr(coder, "r_mag", None)
    return rows if gain is None else rows * gain.exp()[indices][:, None]
