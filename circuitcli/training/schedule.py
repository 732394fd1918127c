"""How the learning rate rises and falls, and how high it goes."""

from dataclasses import dataclass

REFERENCE_RATE, REFERENCE_WIDTH = 2e-4, 2**14
SHORT_RUN_TOKENS, SHORT_RUN_FACTOR = 5_000_000, 3.0


def default_rate(d_sae: int, *, tokens: int) -> float:
    """Adam's step size where none is set: 2e-4 / sqrt(d_sae / 16384), three times that under 5 million tokens.

    Source: Gao et al. 2024, arXiv:2406.04093, appendix A.3 (rates fall with the root of the width).
    """
    rate = REFERENCE_RATE / (d_sae / REFERENCE_WIDTH) ** 0.5
    return rate * (SHORT_RUN_FACTOR if tokens < SHORT_RUN_TOKENS else 1.0)


@dataclass(frozen=True)
class Schedule:
    """A learning rate that rises linearly, stays, and falls linearly to zero; shares are of the whole run."""

    peak: float
    n_steps: int
    warmup: float
    decay: float

    def rate(self, step: int) -> float:
        """The rate of the step with this number, counted from 0; every step moves."""
        rising = (step + 1) / max(1.0, self.warmup * self.n_steps)
        falling = (self.n_steps - step) / max(1.0, self.decay * self.n_steps)
        return self.peak * min(1.0, rising, falling)
