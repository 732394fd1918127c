"""Windows that are cut from a stream of tokens, the same for the same seed and step, whatever came before."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.pretraining.corpus import Corpus
from circuitcli.settings.pretrain import PretrainSettings


@dataclass(frozen=True)
class Batch:
    """What the model reads, and the next token of each of its first so many positions."""

    inputs: Int64[Tensor, "batch position"]
    targets: Int64[Tensor, "batch prediction"]

    def part(self, rank: int, n: int) -> "Batch":
        """The windows of one of ``n`` processes."""
        return self if n == 1 else Batch(self.inputs[rank::n], self.targets[rank::n])

    def on(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(self.inputs.to(device, non_blocking=True), self.targets.to(device, non_blocking=True))


class Windows:
    """Batches of training windows by number, and those of the held-out text.

    Where there is an end-of-text token it takes the place of each window's first, which attention then rests on, and
    windows overlap by that one; else a window of so many tokens asks for as many, the last of them behind it.
    """

    def __init__(self, corpus: Corpus, settings: PretrainSettings, *, seed: int) -> None:
        """Raises InputError for a text that is shorter than a window or, read in sequence, than a batch of them."""
        self.corpus, self.settings, self.seed = corpus, settings, seed
        self.n_predictions = settings.context_length - (corpus.end_of_text is not None)
        self._length = self.n_predictions + 1
        self.n_batches = (len(corpus.training) - 1) // (settings.batch_size * self.n_predictions)
        for name, stream in (("text", corpus.training), ("held-out text", corpus.validation)):
            if len(stream) < self._length:
                raise InputError(
                    f"the {name} has {len(stream):,} tokens, but a window of {settings.context_length} needs "
                    f"{self._length}",
                    hint="give more text, or lower --set pretrain.context_length",
                )
        if settings.order == "sequential" and not self.n_batches:
            raise InputError(
                f"the text has {len(corpus.training):,} tokens, fewer than a batch of {settings.batch_size} windows",
                hint="give more text, or lower --set pretrain.batch_size",
            )

    def batch(self, index: int) -> Batch:
        """The training batch of this number."""
        if self.settings.order == "sequential":
            first = index % self.n_batches * self.settings.batch_size * self.n_predictions
            starts = first + self.n_predictions * torch.arange(self.settings.batch_size)
        else:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
            last = len(self.corpus.training) - self._length
            starts = torch.randint(last + 1, (self.settings.batch_size,), generator=generator)
        return self._cut(self.corpus.training, starts)

    def held_out(self, *, n_batches: int | None = None) -> Iterator[Batch]:
        """Held-out windows that ask for every token of the stream once but the first and the tail, from the front."""
        stream = self.corpus.validation
        starts = torch.arange(0, len(stream) - self._length + 1, self.n_predictions)
        for part in starts.split(self.settings.batch_size)[:n_batches]:
            yield self._cut(stream, part)

    def _cut(self, stream: Int[Tensor, " token"], starts: Int[Tensor, " batch"]) -> Batch:
        windows = stream[starts[:, None] + torch.arange(self._length)].long()  # (batch, length)
        if self.corpus.end_of_text is None:
            return Batch(windows[:, :-1], windows[:, 1:])
        # Position 0 is the end-of-text token wherever the window was cut.
        windows[:, 0] = self.corpus.end_of_text
        return Batch(windows, windows[:, 1:])
