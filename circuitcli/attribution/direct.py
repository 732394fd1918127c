"""The direct path: a run in which every spliced hook point goes on with its clean activation, plus what one source
itself writes there, plus what live skips carry; and which hook points have a direct path to which.

Each spliced activation is replaced by a leaf, so that one backward pass gives the direct derivatives by all sources.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.subject import Subject
from circuitcli.attribution.targets import End
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import shifted

# Everything that comes later in the model goes through these.
FULL_STREAM = frozenset({"embed", "resid_pre", "resid_mid", "resid"})


def ends_of(coders: Coders, hook: HookPoint, *, is_error: bool) -> tuple[HookPoint, ...]:
    """What a target of this name is computed from: what a coder reads, or what is written and all that its coders
    read."""
    if not is_error:
        return (hook,)
    return tuple(sorted({hook, *(coder.hook for coder in coders.writers(hook))}))


def sources_of(coders: Coders, ends: Iterable[HookPoint] | None) -> list[HookPoint]:
    """Written hook points that may have a direct path to these ends of a target (None: to the output), in model order.

    The last one that the whole stream passes through shields an end from all before it, but for what skips carry past.
    """
    reached: set[HookPoint] = set()
    waiting: list[HookPoint | None] = [None] if ends is None else list(ends)
    seen: set[HookPoint | None] = set()
    while waiting:
        end = waiting.pop()
        if end in seen:
            continue
        seen.add(end)
        for place in _near(coders, end):
            reached.add(place)
            waiting += [coder.hook for coder in coders.writers(place) if coder.config.skip]
    return sorted(reached)


def _near(coders: Coders, end: HookPoint | None) -> list[HookPoint]:
    """The written hook points before an end that the stream reaches it from."""
    before = [place for place in coders.written if end is None or place < end or _goes_on(coders, place, end)]
    walls = [number for number, place in enumerate(before) if place.site in FULL_STREAM]
    return before[walls[-1] :] if walls else before


def _goes_on(coders: Coders, place: HookPoint, end: HookPoint) -> bool:
    """Whether what is written at a hook point is read there: by all coders but autoencoders."""
    return place == end and end in coders and coders[end].is_transcoder


class DirectRun:
    """Copies of the texts on the direct path: every spliced hook point from block ``start`` on goes on with its clean
    activation, to which a leaf adds nothing, and with what live skips carry there.

    arriving, going_on: what the ends of targets see, at the spliced positions.
    """

    # Whether anything but leaves, which add nothing, differs from the clean run.
    moves = False

    def __init__(self, subject: Subject, texts: Int[Tensor, " row"], *, start: int) -> None:
        self.subject, self.texts, self.start = subject, texts, start
        self.leaves: dict[HookPoint, Tensor] = {}
        self.arriving: dict[HookPoint, Tensor] = {}
        self.going_on: dict[HookPoint, Tensor] = {}

    def until(self, ends: Sequence[HookPoint]) -> None:
        """Run until the last of these hook points, and keep what is there."""
        last = max(ends)
        places = [hook for hook in {*self.subject.coders.hooks, *ends} if self._meets(hook) and hook <= last]
        stop = last.layer + 1 if self.start >= 0 else None
        taps = {hook: self._tap(hook, keeps=hook in ends) for hook in places}
        self.subject.run(taps, texts=self.texts, start=self.start, stop=stop)

    def seen(self, hook: HookPoint, *, going_on: bool = False) -> Float[Tensor, "row spliced d_model"]:
        """What arrived at an end, or went on from it; where the run did not begin early enough, what does in the clean
        run."""
        values = (self.going_on if going_on else self.arriving).get(hook)
        return self._spliced(self.subject.activation(hook))[self.texts] if values is None else values

    def metric(self) -> Float[Tensor, " row"]:
        """The metric of each row."""
        taps = {hook: self._tap(hook, keeps=False) for hook in self.subject.coders.hooks if self._meets(hook)}
        return self.subject.metric_of(taps, texts=self.texts, start=self.start)

    def _meets(self, hook: HookPoint) -> bool:
        return first_block(hook) >= self.start

    def _tap(self, hook: HookPoint, *, keeps: bool) -> Callback:
        reader = self.subject.coders.get(hook)
        is_written = bool(self.subject.coders.writers(hook))

        def callback(x: Tensor) -> Tensor | None:
            held = self._held(hook, x) if is_written else None
            if keeps:
                self.arriving[hook] = self._spliced(x)
            if keeps or (reader is not None and reader.config.skip):
                self.going_on[hook] = self._spliced(x if held is None else held)
            return held

        return callback

    def _spliced(self, x: Tensor) -> Tensor:
        return x[:, self.subject.first :].to(next(iter(self.subject.coders.values())).W_enc)

    def _held(self, hook: HookPoint, x: Tensor) -> Tensor:
        self.leaves[hook] = held = leaf(self.value(hook))
        for coder in self.subject.coders.writers(hook):
            change = self._carried_change(coder, hook)
            held = held if change is None else shifted(held, change, first=self.subject.first)
        return held.to(x)

    def value(self, hook: HookPoint) -> Float[Tensor, "row position d_model"]:
        """What a written hook point goes on with but for skips."""
        return self.subject.activation(hook)[self.texts]

    def products(
        self, vectors: Mapping[End, Float[Tensor, "slot row spliced d_model"]]
    ) -> dict[HookPoint, Float[Tensor, "slot row spliced d_model"]]:
        """Vectors at the ends times the derivatives of what is there by what is written at each hook point, from one
        graph; hook points without a path to the ends are left out."""
        pairs = [(self.seen(end.hook, going_on=end.going_on), vector) for end, vector in vectors.items()]
        pairs = [(seen, vector.to(seen)) for seen, vector in pairs if seen.requires_grad]
        if not pairs:
            return {}
        ends, given = zip(*pairs, strict=True)
        gradients = products(ends, tuple(self.leaves.values()), given)
        return {
            hook: gradient[:, :, self.subject.first :]
            for hook, gradient in zip(self.leaves, gradients, strict=True)
            if gradient is not None
        }

    def _carried_change(self, coder: SparseCoder, hook: HookPoint) -> Tensor | None:
        """What a skip carries to a hook point beyond what it carries in the clean run; None for nothing."""
        read = self.going_on.get(coder.hook)
        if not coder.config.skip or read is None or not (read.requires_grad or self.moves):
            return None
        clean = self._spliced(self.subject.activation(coder.hook))[self.texts]
        return coder.skip(read - clean, hook)

    def gradients(self, value: Float[Tensor, ""]) -> dict[HookPoint, Float[Tensor, "row spliced d_model"]]:
        """Derivative of a value by what is written at each hook point; those without a path to it are left out."""
        if not value.requires_grad:
            return {}
        gradients = torch.autograd.grad(value, list(self.leaves.values()), allow_unused=True)
        return {
            hook: gradient[:, self.subject.first :]
            for hook, gradient in zip(self.leaves, gradients, strict=True)
            if gradient is not None
        }


class JointPath(DirectRun):
    """The direct run in which all sources are at one share of the straight path from the clean run (0) to their
    baseline (1)."""

    def __init__(
        self,
        subject: Subject,
        texts: Int[Tensor, " row"],
        *,
        start: int,
        share: float,
        steps: Mapping[HookPoint, Float[Tensor, "text spliced d_model"]],
    ) -> None:
        """steps: what is taken off at each written hook point at the end of the path."""
        super().__init__(subject, texts, start=start)
        self._share, self._steps = share, steps
        self.moves = share != 0

    def value(self, hook: HookPoint) -> Float[Tensor, "row position d_model"]:
        """See `DirectRun`."""
        clean = super().value(hook)
        step = self._steps.get(hook)
        if step is None or self._share == 0:
            return clean
        own = step if len(step) == 1 else step[self.texts]
        return shifted(clean, (-self._share * own).expand(len(clean), -1, -1), first=self.subject.first)


def products(
    ends: tuple[Tensor, ...], leaves: tuple[Tensor, ...], vectors: tuple[Tensor, ...]
) -> Sequence[Tensor | None]:
    """Vector-Jacobian products of many vectors at once; one after the other where a part of a model allows no batch."""
    options = {"allow_unused": True, "retain_graph": True}
    try:
        with warnings.catch_warnings():
            # An operation without a batched backward pass is run row by row, which torch warns of.
            warnings.simplefilter("ignore", UserWarning)
            return torch.autograd.grad(ends, leaves, vectors, is_grads_batched=True, **options)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
    single = [torch.autograd.grad(ends, leaves, one, **options) for one in zip(*vectors, strict=True)]
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*single, strict=True)]
