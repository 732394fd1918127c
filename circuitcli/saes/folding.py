"""Conventions of other libraries, folded into the weights so that the plain forward pass gives the same results.

Each function changes the SAE in place, unless it returns one. ``z`` is the product with the encoder, before any bias.
"""

from copy import deepcopy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.gated import GatedSae
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.matching_pursuit import MatchingPursuitSae
from circuitcli.saes.temporal import TemporalSae


@torch.no_grad()
def scale_input(sae: SparseCoder, factor: float, *, output: float | None = None) -> None:
    """Take over an SAE that was trained on inputs multiplied by ``factor``, targets by ``output``; its codes stay.

    output: that of the input unless given. Not for an SAE that normalises its input, to which a factor is nothing.
    """
    sae.W_enc.mul_(factor)
    if isinstance(sae, MatchingPursuitSae):
        sae.residual_threshold /= factor
    for hook in sae.writes:
        sae.decoder(hook).div_(factor if output is None else output)
        sae.decoder_bias(hook).div_(factor if output is None else output)


@torch.no_grad()
def whiten_input(
    sae: SparseCoder,
    *,
    mean: Float[Tensor, " d_in"],
    matrix: Float[Tensor, "d_in d_in"],
    inverse: Float[Tensor, "d_in d_in"],
) -> None:
    """Take over an SAE that was trained on ``(x - mean) @ matrix``; its codes stay."""
    _check_plain(sae)
    # Whitening matrices have entries of very different sizes.
    W_enc = matrix.double() @ sae.W_enc.double()
    sae.W_enc.copy_(W_enc)
    if not sae.config.subtract_decoder_bias:
        _shift(sae, -mean.float())
    sae.W_dec.copy_(sae.W_dec.double() @ inverse.double())
    sae.b_dec.copy_(sae.b_dec.double() @ inverse.double() + mean.double())


@torch.no_grad()
def fold_decoder_norms(sae: SparseCoder) -> None:
    """Give every decoder row length 1; codes are multiplied by the lengths, reconstructions stay.

    For a TopK this selects by ``pre * |W_dec|``, and a JumpReLU's threshold is multiplied too.
    """
    _check_plain(sae)
    norms = sae.W_dec.norm(dim=1).clamp_min(1e-8)  # (d_sae,)
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms)
    sae.b_enc.mul_(norms)
    if isinstance(sae, JumpReluSae):
        sae.threshold.mul_(norms)
    if isinstance(sae, GatedSae):
        sae.b_mag.mul_(norms)


def with_decoder_bias_rule(sae: SparseCoder, *, subtracts: bool) -> SparseCoder:
    """One that subtracts the decoder bias before encoding or does not, its encoder's bias moved: the codes stay."""
    if sae.config.subtract_decoder_bias == subtracts:
        return sae
    _check_plain(sae)
    changed = deepcopy(sae)
    with torch.no_grad():
        _shift(changed, sae.b_dec if subtracts else -sae.b_dec)
    changed.config = replace(sae.config, subtract_decoder_bias=subtracts)
    return changed


@torch.no_grad()
def fold_affine_input(
    sae: SparseCoder, gain: Float[Tensor, " d_in"], bias: Float[Tensor, " d_in"] | None = None
) -> None:
    """Take over an SAE that was trained on y where it now reads ``y * gain + bias``; its codes stay.

    Raises ValueError for one that normalises its input.
    """
    if sae.config.normalisation != "none":
        raise ValueError("a gain cannot be folded into an SAE that normalises its input")
    _check_plain(sae)
    if sae.config.subtract_decoder_bias:
        _shift(sae, -sae.b_dec)
        sae.config = replace(sae.config, subtract_decoder_bias=False)
    sae.W_enc.div_(gain[:, None])
    if not sae.is_transcoder:
        sae.W_dec.mul_(gain)
        sae.b_dec.mul_(gain)
    if bias is not None:
        _shift(sae, -bias)
        if not sae.is_transcoder:
            sae.b_dec.add_(bias)
    for hook in sae.writes if sae.config.skip else ():
        _fold_into_skip(sae, hook, gain, bias)


def _fold_into_skip(sae: SparseCoder, hook: HookPoint, gain: Tensor, bias: Tensor | None) -> None:
    skip = sae.skip_weight(hook)
    # One that carries nothing may have one number for all.
    if bool(skip.any()):
        skip.div_(gain)
        if bias is not None:
            sae.decoder_bias(hook).sub_(skip @ bias)


def _check_plain(sae: SparseCoder) -> None:
    """Raises InputError for codes that follow from more than pre-activations."""
    if isinstance(sae, MatchingPursuitSae):
        raise InputError(
            f"the SAE at {sae.hook} stops by the length of the remainder, which this would change",
            hint="leave it in its present format",
        )
    if isinstance(sae, TemporalSae):
        raise InputError(
            f"the SAE at {sae.hook} subtracts its prediction from what the encoder sees, which this would change",
            hint="leave it in its present format",
        )


def _shift(sae: SparseCoder, by: Float[Tensor, " d_in"]) -> None:
    """Add to the input, by way of the biases."""
    z = by @ sae.W_enc  # (d_sae,)
    sae.b_enc.add_(z)
    if isinstance(sae, GatedSae):
        # Magnitudes start from the product without the gate's bias.
        sae.b_mag.add_(z * sae.r_mag.exp())
