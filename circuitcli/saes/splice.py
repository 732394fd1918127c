"""Running a model through its coders: at every spliced hook point decodings and an error stand for the activation.

An edit gives the change of codes and of errors; the activation gets the change added, so a run that is not edited is
the model's own, bit for bit. An edited activation goes on and is not encoded again. Codes are those of the run at hand,
and the error takes them off as they were encoded, not as they were edited; skips carry what is read in the run at hand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import Callback
from circuitcli.saes.base import Frame, SparseCoder
from circuitcli.saes.coders import Coders


def unchanged(hook: HookPoint, values: Tensor) -> None:
    """The edit of codes or errors that changes nothing."""


@dataclass(frozen=True)
class Edit:
    """What is added to the codes (row, position, d_sae) of the coder that reads a hook point, and to the error (row,
    position, d_out) of one that is written; each gets the run's own and gives None to change nothing."""

    codes: Callable[[HookPoint, Tensor], Tensor | None] = unchanged
    error: Callable[[HookPoint, Tensor], Tensor | None] = unchanged


class Encoded(NamedTuple):
    """What a coder read in a run, and what is added to its codes."""

    x: Float[Tensor, "row position d_in"]
    codes: Float[Tensor, "row position d_sae"]
    frame: Frame | None
    change: Float[Tensor, "row position d_sae"] | None


def splice(coders: Coders, edit: Edit, *, first: int) -> dict[HookPoint, Callback]:
    """Taps for one run of the model through the coders with an edit.

    first: the first position that is spliced; 1 where position 0 is a BOS token, which cannot depend on the text.
    """
    run = _Run(coders, edit, first)
    return {hook: run.tap(hook) for hook in coders.hooks}


class _Run:
    """What one run has read so far."""

    def __init__(self, coders: Coders, edit: Edit, first: int) -> None:
        self.coders, self.edit, self.first = coders, edit, first
        self.encoded: dict[HookPoint, Encoded] = {}

    def tap(self, hook: HookPoint) -> Callback:
        """An autoencoder reads what arrives, any other coder what goes on from here."""
        reader = self.coders.get(hook)

        def callback(x: Tensor) -> Tensor | None:
            if reader is not None and not reader.is_transcoder:
                self._read(reader, x)
            moved = self._change(hook, x) if self.coders.writers(hook) else None
            going_on = x if moved is None else shifted(x, moved, first=self.first)
            if reader is not None and reader.is_transcoder:
                self._read(reader, going_on)
            return None if moved is None else going_on

        return callback

    def _read(self, coder: SparseCoder, x: Tensor) -> None:
        x = x[:, self.first :].to(coder.W_enc)
        codes, frame = coder.encode_framed(x)
        self.encoded[coder.hook] = Encoded(x, codes, frame, self.edit.codes(coder.hook, codes))

    def _change(self, hook: HookPoint, x: Tensor) -> Tensor | None:
        """What is added at a written hook point; None for nothing."""
        writers = self.coders.writers(hook)
        moved = None
        for coder in writers:
            read = self.encoded[coder.hook]
            if read.change is not None:
                part = coder.change(read.change, read.frame, hook=hook)
                moved = part if moved is None else moved + part
        if self.edit.error is unchanged:
            return moved
        arriving = x[:, self.first :].to(writers[0].W_enc)
        change = self.edit.error(hook, error_of(writers, hook, arriving, self.encoded))
        if change is None:
            return moved
        return change if moved is None else moved + change


def error_of(
    writers: tuple[SparseCoder, ...], hook: HookPoint, x: Tensor, encoded: Mapping[HookPoint, Encoded]
) -> Float[Tensor, "row position d_out"]:
    """What is left of an activation without what the coders that write it decode, and without what skips carry."""
    for coder in writers:
        read = encoded[coder.hook]
        x = x - coder.decode(read.codes, read.frame, hook=hook)
        carried = coder.skip(read.x, hook)
        x = x if carried is None else x - carried
    return x


def shifted(
    x: Float[Tensor, "batch position d_model"], by: Float[Tensor, "batch spliced d_model"], *, first: int
) -> Float[Tensor, "batch position d_model"]:
    """The activation with a change added at the spliced positions."""
    result = x.clone()
    result[:, first:] = result[:, first:] + by.to(x)
    return result


def replaced(sae: SparseCoder, *, first: int) -> dict[HookPoint, Callback]:
    """Taps that put what an SAE reconstructs in the place of its activations.

    A transcoder's prediction replaces its target, computed from what it reads in the same run.
    """
    predicted: list[Tensor] = []

    def read(x: Tensor) -> None:
        predicted[:] = [_reconstructed(sae, x[:, first:].to(sae.W_enc))]

    def write(y: Tensor) -> Tensor:
        result = y.clone()
        result[:, first:] = predicted.pop().to(y)
        return result

    def both(x: Tensor) -> Tensor:
        read(x)
        return write(x)

    return {sae.hook: read, sae.target: write} if sae.is_transcoder else {sae.hook: both}


def _reconstructed(sae: SparseCoder, x: Float[Tensor, "batch position d_in"]) -> Float[Tensor, "batch position d_out"]:
    """What the SAE makes of the activations, a piece after the other: codes of them all would be most of the memory."""
    if sae.reads_context:
        return torch.cat([sae.reconstruct(text) for text in x.split(1)])
    rows = x.flatten(0, 1).split(sae.rows_at_once)
    return torch.cat([sae.reconstruct(some) for some in rows]).unflatten(0, x.shape[:2])
