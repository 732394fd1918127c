"""What the weights of an SAE alone tell of its health, and what looks wrong, in plain sentences."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from circuitcli.evaluation.fit import Fit
from circuitcli.evaluation.geometry import PIECE, geometry_facts, nearest_cosines, pieces
from circuitcli.saes.abstopk import AbsTopKSae
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.signed_topk import SignedTopKSae

# Two decoder rows of this cosine write the same thing.
SAME_COSINE = 0.99
# Shares of features, and factors, from which something is said.
MANY_DUPLICATES, MANY_DEAD = 0.01, 0.1
LARGEST_BIAS, LARGEST_L0_FACTOR = 1.25, 2.0
# A code of more features than this share of the width is not sparse.
DENSE = 0.5


@torch.no_grad()
def weight_facts(sae: SparseCoder, *, radius: float | None = None) -> dict[str, Any]:
    """Numbers about the weights by name.

    radius: the largest length of an input, from which follows which features can fire at all; known by itself where
    the input is normalised. Cosines are left out where weights are not finite.
    """
    not_finite = {name: _n_not_finite(tensor) for name, tensor in sae.state_dict().items()}
    norms, encoder_norms = _row_norms(sae.W_dec), _row_norms(sae.W_enc.T)
    facts: dict[str, Any] = {
        "not_finite": {name: count for name, count in not_finite.items() if count},
        "decoder_norm": _range(norms),
        "encoder_norm": _range(encoder_norms),
        "zero_decoder_rows": int((norms < 1e-8).sum()),
        "zero_encoder_columns": int((encoder_norms < 1e-8).sum()),
    }
    if isinstance(sae, JumpReluSae):
        facts["threshold"] = _range(sae.threshold)
        facts["negative_thresholds"] = int((sae.threshold < 0).sum())
    if (silent := _cannot_fire(sae, radius)) is not None:
        facts["cannot_fire"] = silent
    if not facts["not_finite"]:
        nearest = nearest_cosines(sae.W_dec)
        facts |= geometry_facts(sae, nearest)
        facts["share_of_duplicates"] = int((nearest > SAME_COSINE).sum()) / max(1, len(nearest))
    return facts


def _row_norms(rows: Tensor) -> Tensor:
    return torch.cat([rows[piece].float().norm(dim=1) for piece in pieces(len(rows), width=rows.shape[1])])


def _n_not_finite(tensor: Tensor) -> int:
    return sum(int((~part.isfinite()).sum()) for part in tensor.flatten().split(PIECE))


def _range(values: Tensor) -> dict[str, float | None]:
    """Smallest, middle and largest of the finite ones."""
    finite = values[values.isfinite()].cpu().double()
    if not len(finite):
        return {"min": None, "median": None, "max": None}
    return {"min": float(finite.min()), "median": float(finite.median()), "max": float(finite.max())}


def _cannot_fire(sae: SparseCoder, radius: float | None) -> int | None:
    """How many features no input of this length can make positive; None where that cannot be told."""
    if sae.config.normalisation in ("layer-norm", "rms-norm"):
        radius = sae.d_in**0.5
    if radius is None or isinstance(sae, AbsTopKSae | SignedTopKSae):
        return None
    offset = sae.b_enc - (sae.b_dec @ sae.W_enc if sae.config.subtract_decoder_bias else 0)
    highest = radius * sae.W_enc.norm(dim=0) + offset
    threshold = sae.threshold.clamp_min(0) if isinstance(sae, JumpReluSae) else torch.zeros_like(highest)
    return int((highest <= threshold).sum())


def problems(
    sae: SparseCoder,
    weights: Mapping[str, Any],
    fit: Fit | None,
    *,
    dead: float | None = None,
    recorded_l0: float | None = None,
) -> list[str]:
    """What looks wrong, a sentence each. dead: share of features that no longer fired when training ended."""
    problems = _of_weights(sae, weights)
    if dead is not None and dead > MANY_DEAD:
        problems.append(f"{dead:.0%} of the features were dead when training ended")
    return problems + _of_fit(sae, fit, recorded_l0)


def _of_weights(sae: SparseCoder, facts: Mapping[str, Any]) -> list[str]:
    problems = [f"{name} has {count:,} numbers that are not finite" for name, count in facts["not_finite"].items()]
    if facts["zero_decoder_rows"]:
        problems.append(f"{_some(facts['zero_decoder_rows'], sae)} write nothing: their decoder rows are zero")
    if facts["zero_encoder_columns"]:
        problems.append(f"{_some(facts['zero_encoder_columns'], sae)} read nothing: their encoder columns are zero")
    if facts.get("cannot_fire"):
        problems.append(f"{_some(facts['cannot_fire'], sae)} cannot fire: their biases are too low for any input")
    if facts.get("negative_thresholds"):
        problems.append(f"{_some(facts['negative_thresholds'], sae)} have a negative threshold, which acts as zero")
    share = facts.get("share_of_duplicates", 0.0)
    if share > MANY_DUPLICATES:
        problems.append(f"{share:.1%} of the features write nearly what another one writes (cosine over {SAME_COSINE})")
    return problems


def _some(count: int, sae: SparseCoder) -> str:
    return f"{count:,} of {sae.d_sae:,} features"


def _of_fit(sae: SparseCoder, fit: Fit | None, recorded_l0: float | None) -> list[str]:
    if fit is None:
        return []
    quality, problems = fit.quality, []
    if quality.explained_variance is None:
        problems.append("the activations do not vary, or what it makes of them is not finite")
    elif fit.is_bad:
        problems.append(f"it {fit.sentence()}")
        if not fit.better:
            problems.append("is it of this model, checkpoint and hook point, and trained with the same BOS in front?")
    elif quality.relative_bias is not None and not 1 / LARGEST_BIAS < quality.relative_bias < LARGEST_BIAS:
        size = "short" if quality.relative_bias < 1 else "long"
        problems.append(f"reconstructions are too {size}: {quality.relative_bias:.2f} of the best length")
    if quality.l0 > DENSE * sae.d_in:
        problems.append(f"{quality.l0:.0f} features are active per token, at a width of {sae.d_in}: that is not sparse")
    elif not quality.l0:
        problems.append("no feature is active on any token")
    elif recorded_l0 and not 1 / LARGEST_L0_FACTOR < quality.l0 / recorded_l0 < LARGEST_L0_FACTOR:
        problems.append(f"{quality.l0:.0f} features are active per token, where {recorded_l0:.0f} were recorded")
    return problems
