"""Running a model through its SAEs: every spliced activation is decode(codes) + error, and either part may be edited.

An edit gives the change of the codes and of the error; the activation gets the change added, so a run that is not
edited is the model's own, bit for bit. An edited activation goes on and is not encoded again.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import Callback
from circuitcli.saes.base import Coded, SparseCoder


class Change(NamedTuple):
    """What an edit adds to codes and error; None changes nothing."""

    codes: Float[Tensor, "batch position d_sae"] | None = None
    error: Float[Tensor, "batch position d_in"] | None = None


Edit = Callable[[HookPoint, Coded], Change]


def splice(saes: Mapping[HookPoint, SparseCoder], edit: Edit, *, first: int) -> dict[HookPoint, Callback]:
    """Taps that run the model through the SAEs with an edit.

    first: the first position that is spliced; 1 where position 0 is a BOS token, which cannot depend on the text.
    """
    return {hook: _callback(hook, sae, edit, first) for hook, sae in saes.items()}


def _callback(hook: HookPoint, sae: SparseCoder, edit: Edit, first: int) -> Callback:
    def callback(x: Tensor) -> Tensor | None:
        coded = sae.code(x[:, first:].to(sae.W_enc))
        change = edit(hook, coded)
        moved = None if change.codes is None else sae.change(change.codes, coded.frame)
        if change.error is not None:
            moved = change.error if moved is None else moved + change.error
        return None if moved is None else shifted(x, moved, first=first)

    return callback


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
