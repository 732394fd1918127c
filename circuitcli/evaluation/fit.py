"""Whether an SAE fits the activations that it is given, and under which other convention it would fit better."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

from circuitcli.evaluation.quality import Reconstruction, reconstruction
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import Normalisation, SparseCoder

# Tokens to judge by: enough for a ratio of variances, and for wide SAEs so many that it takes seconds.
MOST_TOKENS, FEWEST_TOKENS, PRODUCTS = 2048, 64, 4e10
BATCH = 256
# Published SAEs explain more; so much less than was recorded is no matter of other text.
LEAST_EXPLAINED, MOST_BELOW_RECORDED = 0.35, 0.3
# Another convention is named if it explains so much more.
CLEARLY_BETTER = 0.15

_WORDS: dict[str, str] = {
    "none": "if its input were not normalised",
    "centre": "if the mean over the width were removed from its input",
    "layer-norm": "if its input were layer-normed",
    "rms-norm": "if its input had unit root mean square",
}


class Sample(NamedTuple):
    """Activations of some tokens, (token, width) at each hook point, and how many of the tokens each text has.

    bos: whether a BOS token stood in front of each text, where that is known.
    """

    rows: Mapping[HookPoint, Float[Tensor, "token _"]]
    lengths: Sequence[int]
    bos: bool | None = None


@dataclass(frozen=True)
class Fit:
    """Quality on real activations, and the explained variance under other conventions, by what they are, best first.

    radius: length of the longest input as the encoder sees it. recorded: the explained variance that whoever trained it
    wrote down.
    """

    quality: Reconstruction
    radius: float
    recorded: float | None = None
    better: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_bad(self) -> bool:
        """Whether it explains so little that something is wrong."""
        explained = self.quality.explained_variance
        return explained is not None and not explained >= _least(self.recorded)

    def sentence(self) -> str:
        """How much it explains, for people, and what would explain more."""
        text = f"explains {_share(self.quality.explained_variance)} of the variance of {self.quality.n_tokens:,} tokens"
        if self.recorded is not None:
            text += f", where {self.recorded:.2f} was recorded"
        if not self.better:
            return text
        name, value = next(iter(self.better.items()))
        return f"{text}; {name}, it would be {value:.2f}"


def _least(recorded: float | None) -> float:
    return LEAST_EXPLAINED if recorded is None else recorded - MOST_BELOW_RECORDED


def _share(value: float | None) -> str:
    return "an unknown share" if value is None or math.isnan(value) else f"{value:.2f}"


def n_tokens(sae: SparseCoder) -> int:
    """How many tokens to judge an SAE by."""
    return max(FEWEST_TOKENS, min(MOST_TOKENS, int(PRODUCTS / (2 * sae.d_in * sae.d_sae))))


def fit(
    sae: SparseCoder,
    x: Float[Tensor, "token d_in"],
    *,
    target: Float[Tensor, "token d_out"] | None = None,
    elsewhere: Mapping[str, Float[Tensor, "token _"]] | None = None,
    lengths: Sequence[int] | None = None,
    recorded: float | None = None,
) -> Fit:
    """How an SAE fits activations at its hook point; if badly, how it would otherwise.

    target: what a transcoder is to predict. elsewhere: activations of the same tokens at other hook points, by name.
    lengths: tokens of each text, all of one if not given, for an SAE that reads context.
    """
    judged = judge(sae, x, target=target, lengths=lengths, recorded=recorded)
    return otherwise(judged, sae, x, target=target, elsewhere=elsewhere, lengths=lengths) if judged.is_bad else judged


def otherwise(
    judged: Fit,
    sae: SparseCoder,
    x: Float[Tensor, "token d_in"],
    *,
    target: Float[Tensor, "token d_out"] | None = None,
    elsewhere: Mapping[str, Float[Tensor, "token _"]] | None = None,
    lengths: Sequence[int] | None = None,
) -> Fit:
    """The judgement, with how the SAE would fit better; it takes ten times as long as to judge it."""
    sizes = _sizes(sae, x, lengths)
    explained: dict[str, float | None] = {
        words: _quality(other, x, target, sizes).explained_variance for words, other in _others(sae).items()
    }
    for name, activations in (elsewhere or {}).items():
        if not sae.is_transcoder and activations.shape[1] == sae.d_in:
            explained[f"at {name} instead"] = _quality(sae, activations, None, sizes).explained_variance
    least = (judged.quality.explained_variance or 0) + CLEARLY_BETTER
    better = {name: value for name, value in explained.items() if value is not None and value > max(least, 0)}
    return replace(judged, better=dict(sorted(better.items(), key=lambda item: -item[1])))


def judge(
    sae: SparseCoder,
    x: Float[Tensor, "token d_in"],
    *,
    target: Float[Tensor, "token d_out"] | None = None,
    lengths: Sequence[int] | None = None,
    recorded: float | None = None,
) -> Fit:
    """As `fit`, without how it would fit otherwise."""
    return Fit(_quality(sae, x, target, _sizes(sae, x, lengths)), _radius(sae, x), recorded)


def _sizes(sae: SparseCoder, x: Tensor, lengths: Sequence[int] | None) -> int | list[int]:
    return list(lengths or [len(x)]) if sae.reads_context else BATCH


def _radius(sae: SparseCoder, x: Tensor) -> float:
    centred = x - x.mean(dim=1, keepdim=True) if sae.config.normalisation == "centre" else x
    return float(centred.norm(dim=1).max())


def _quality(sae: SparseCoder, x: Tensor, target: Tensor | None, sizes: int | list[int]) -> Reconstruction:
    """sizes: of the pieces in which the tokens are taken."""
    targets = None if target is None else target.split(sizes)
    return reconstruction(sae, x.split(sizes), targets=targets)


def _others(sae: SparseCoder) -> dict[str, SparseCoder]:
    """The same weights under other conventions, by what they are."""
    config = sae.config
    others = {
        _WORDS[name]: _with(sae, normalisation=name) for name in get_args(Normalisation) if name != config.normalisation
    }
    if not sae.is_transcoder:
        words = "not subtracted" if config.subtract_decoder_bias else "subtracted"
        rule = not config.subtract_decoder_bias
        others[f"if its decoder bias were {words}"] = _with(sae, subtract_decoder_bias=rule)
    return others


def _with(sae: SparseCoder, **changes: object) -> SparseCoder:
    """One that shares the weights."""
    other = copy.copy(sae)
    other.config = replace(sae.config, **changes)  # type: ignore[arg-type]
    return other
