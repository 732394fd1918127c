"""One hook point with everything but some features taken from elsewhere: many such choices in one pass of the blocks
behind it, and how far the next token is then from what it was."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.metrics import log_softmax
from circuitcli.attribution.panel import Kept
from circuitcli.attribution.search.sampling import Sampler
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback

# What is remembered of activations at single positions, which many choices have in common.
_KEPT_BYTES = 2**27
# How many more rows tell a number that is reported than one that is compared.
MORE = 4


class Place(NamedTuple):
    """A feature at a position behind BOS."""

    position: int
    feature: int


@dataclass(frozen=True)
class Layer:
    """One hook point of a prompt, and its active features there in order: what a choice of features is a mask over."""

    subject: Subject
    hook: HookPoint
    sampler: Sampler
    kept: Kept = field(default_factory=lambda: Kept(_KEPT_BYTES), compare=False, repr=False)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """All features that are not zero."""
        return tuple(Place(*pair) for pair in self.subject.codes[self.hook][0].nonzero().tolist())

    @cached_property
    def _positions(self) -> Int[Tensor, " place"]:
        return torch.tensor([place.position for place in self.places], dtype=torch.int64)

    def numbers_at(self, position: int) -> Int[Tensor, " n"]:
        """The numbers of the places at a position."""
        return (self._positions == position).nonzero()[:, 0]

    def mask(self, places: Sequence[Place]) -> Bool[Tensor, " place"]:
        """The choice of these."""
        wanted = set(places)
        return torch.tensor([place in wanted for place in self.places], dtype=torch.bool)

    @property
    def n_positions(self) -> int:
        """Positions that carry nodes."""
        return self.subject.n_spliced

    def n_samples(self, more: int = 1) -> int:
        """Rows drawn for each choice."""
        settings = self.sampler.settings
        if not self.sampler.draws:
            return 1
        wanted = settings.samples * more
        return min(wanted, max(settings.samples, settings.nearest)) if settings.by == "nearest" else wanted

    def divergences(
        self, kept: Bool[Tensor, "choice place"], *, purpose: str = "search", more: int = 1
    ) -> Float[Tensor, " choice"]:
        """KL(clean || these features alone) of the next token, in nats, of the mean probabilities over samples."""
        n = self.n_samples(more)
        numbers, parts = self._parts(kept, purpose=purpose, n=n)
        shares = torch.zeros(len(kept), self.clean.shape[-1], dtype=torch.float64, device=self.clean.device)

        def run(rows: Sequence[int]) -> None:
            choices = torch.tensor(rows, device=self.clean.device) // n
            logits = self.subject.logits(
                self._tap(numbers, parts, rows, n=n),
                texts=_zeros(rows, self.clean),
                positions=slice(-1, None),
                start=first_block(self.hook),
            )
            shares.index_add_(0, choices, log_softmax(logits[:, -1]).double().exp() / n)

        size = rows_at_once(self.subject, first_block(self.hook), backward=False, at_most=len(kept) * n)
        with torch.no_grad():
            for _ in in_batches(range(len(kept) * n), run, size=size):
                pass
        found = (self.clean.exp() * (self.clean - shares.clamp_min(1e-300).log())).sum(dim=-1)
        return found.clamp_min(0.0).cpu()

    @cached_property
    def clean(self) -> Float[Tensor, " vocab"]:
        """Logarithms of the next token's probabilities in the unchanged model."""
        return log_softmax(self.subject.clean_logits(slice(-1, None))[0, -1]).double()

    def read_behind(
        self, kept: Bool[Tensor, "choice place"], other: HookPoint, *, purpose: str, more: int = 1
    ) -> Float[Tensor, "choice sample spliced d_sae"]:
        """Codes at a later hook point, where these features alone are kept here."""
        n, coder = self.n_samples(more), self.subject.coders[other]
        numbers, parts = self._parts(kept, purpose=purpose, n=n)

        def run(rows: Sequence[int]) -> Tensor:
            seen: dict[HookPoint, Tensor] = {}

            def look(x: Tensor) -> None:
                seen[other] = x

            taps: dict[HookPoint, Callback] = {**self._tap(numbers, parts, rows, n=n), other: look}
            self.subject.run(taps, texts=_zeros(rows, self.clean), start=first_block(self.hook), stop=other.layer + 1)
            return coder.encode(seen[other][:, self.subject.first :].to(coder.W_enc))

        codes = 3 * self.n_positions * coder.d_sae
        size = rows_at_once(self.subject, first_block(self.hook), backward=False, codes=codes, at_most=len(kept) * n)
        with torch.no_grad():
            found = torch.cat(list(in_batches(range(len(kept) * n), run, size=size)))
        return found.unflatten(0, (len(kept), n))

    def _tap(
        self, numbers: Int[Tensor, "choice spliced"], parts: Sequence[Tensor], rows: Sequence[int], *, n: int
    ) -> dict[HookPoint, Callback]:
        """Puts in, for each row, what its choice keeps and the row's sample of everything else."""
        chosen = torch.tensor(rows)
        choice, sample = chosen // n, chosen % n
        x = torch.stack(
            [part[numbers[choice, at], sample] for at, part in enumerate(parts)], dim=1
        )  # (row, spliced, d_model)

        def callback(arriving: Tensor) -> Tensor:
            front = arriving[:, : self.subject.first]
            return torch.cat([front, x.to(arriving)], dim=1)

        return {self.hook: callback}

    def _parts(
        self, kept: Bool[Tensor, "choice place"], *, purpose: str, n: int
    ) -> tuple[Int[Tensor, "choice spliced"], list[Float[Tensor, "subset sample d_model"]]]:
        """At each position the different subsets that the choices keep there, as activations, and which each has."""
        numbers, parts = [], []
        for position in range(self.n_positions):
            here = self.numbers_at(position)
            if not len(here):
                parts.append(self._activation(position, here, purpose=purpose, n=n)[None])
                numbers.append(torch.zeros(len(kept), dtype=torch.int64))
                continue
            subsets, which = kept[:, here].unique(dim=0, return_inverse=True)
            made = [self._activation(position, here[subset], purpose=purpose, n=n) for subset in subsets]
            parts.append(torch.stack(made))
            numbers.append(which)
        return torch.stack(numbers, dim=1), parts

    def _activation(
        self, position: int, numbers: Int[Tensor, " n"], *, purpose: str, n: int
    ) -> Float[Tensor, "sample d_model"]:
        key = (position, tuple(numbers.tolist()), purpose, n)
        return self.kept.take(key, lambda: self._made(position, numbers, purpose=purpose, n=n), lambda x: x.nbytes)

    def _made(self, position: int, numbers: Int[Tensor, " n"], *, purpose: str, n: int) -> Tensor:
        """The activation with these features kept at a position: as it is where all active ones are."""
        subject, hook = self.subject, self.hook
        own, coder, frame = subject.codes[hook][0, position], subject.coders[hook], subject.coded.frames[hook]
        frame = None if frame is None else type(frame)(*(part[0, position] for part in frame))
        features = [self.places[number].feature for number in numbers.tolist()]
        if len(features) == len(self.numbers_at(position)):
            codes = own[None].expand(n, -1)
        else:
            at = subject.first + position
            codes = self.sampler.samples(at, features, own[features], n=n, purpose=purpose).to(own)
        x = coder.decode(codes, frame)
        return x + subject.errors[hook][0, position] if self.sampler.settings.errors == "kept" else x


def _zeros(rows: Sequence[int], like: Tensor) -> Int[Tensor, " row"]:
    return torch.zeros(len(rows), dtype=torch.int64, device=like.device)
