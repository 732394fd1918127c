"""How right judgements are: balanced accuracy with its interval, of one feature and of many; needs no torch."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean

import numpy as np

from circuitcli.explaining.examples import ACTIVE

# Of a normal distribution 95 % lie nearer to its mean than so many standard deviations.
_Z = 1.959964
N_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Interval:
    """A value, and the bounds between which it lies with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass
class Tally:
    """Judgements of one feature's examples: how many were right and how many there were, by kind of example.

    invalid: without a usable answer; they count neither way. graded: of each example whether yes is right, and how
    probable yes is, where that is known.
    """

    right: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    invalid: int = 0
    graded: list[tuple[bool, float]] = field(default_factory=list)

    def add(self, kind: str, says_yes: bool | None, probability: float | None = None) -> None:
        """Count one judgement; None where there is none."""
        if says_yes is None:
            self.invalid += 1
            return
        self.total[kind] += 1
        self.right[kind] += says_yes == (kind == ACTIVE)
        if probability is not None:
            self.graded.append((kind == ACTIVE, probability))

    @property
    def n_examples(self) -> int:
        """All examples, with an answer or not."""
        return self.total.total() + self.invalid

    @property
    def balanced_accuracy(self) -> Interval | None:
        """Mean of the shares of right answers about active and about other examples; None without either.

        The bounds join Wilson's intervals of the two shares as Newcombe 1998 does for a difference of shares.
        """
        n_active, n_other = self.total[ACTIVE], self.total.total() - self.total[ACTIVE]
        if not n_active or not n_other:
            return None
        shares = wilson(self.right[ACTIVE], n_active), wilson(self.right.total() - self.right[ACTIVE], n_other)
        value = fmean(share.value for share in shares)
        below = sqrt(sum((share.value - share.low) ** 2 for share in shares)) / 2
        above = sqrt(sum((share.high - share.value) ** 2 for share in shares)) / 2
        return Interval(value, max(value - below, 0.0), min(value + above, 1.0))

    @property
    def auc(self) -> float | None:
        """How often an active example has a higher probability of yes than another one, ties half; None without any."""
        yes, no = ([share for is_right, share in self.graded if is_right is which] for which in (True, False))
        if not yes or not no:
            return None
        return fmean((one > other) + (one == other) / 2 for one in yes for other in no)


def wilson(n_right: int, n: int) -> Interval:
    """A share, with the bounds of Wilson 1927."""
    share, extent = n_right / n, _Z * _Z / n
    middle = (share + extent / 2) / (1 + extent)
    reach = _Z / (1 + extent) * sqrt(share * (1 - share) / n + extent / (4 * n))
    return Interval(share, max(middle - reach, 0.0), min(middle + reach, 1.0))


def mean_of(values: Sequence[float], *, seed: int) -> Interval | None:
    """The mean over features, with bounds by a bootstrap over them; None of nothing."""
    if not values:
        return None
    each = np.asarray(values)
    draws = np.random.default_rng(seed).integers(0, len(each), (N_BOOTSTRAP, len(each)))
    low, high = np.quantile(each[draws].mean(axis=1), (0.025, 0.975))
    return Interval(float(each.mean()), float(low), float(high))


def shares_of(tallies: Iterable[Tally]) -> dict[str, float]:
    """Share of right answers by kind of example, over all features."""
    right, total = Counter[str](), Counter[str]()
    for tally in tallies:
        right += tally.right
        total += tally.total
    return {kind: right[kind] / total[kind] for kind in total}


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's, 0 where either never changes."""
    if len(one) < 2 or np.std(one) == 0 or np.std(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
