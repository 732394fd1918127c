"""Labels made from where a feature is active, by fixed rules and without a language model.

Each rule says where the feature should be active, as conditions on a token, its neighbours and the text in front of it:

    "self" 82%                     one token (case and surrounding spaces aside)
    "in" after "for" 91%           the same, where what comes before it is as constant
    "cat" "dog" 75%                one of a few tokens
    after "def" 64%                the token in front, also one of a few; before "(" 60%: the one behind
    "…ing" 75%                     tokens of one ending or one beginning
    punctuation 90%: "," "."       tokens of one kind; after digits 70%: "km"; before brackets 80%: "print"
    in quotes 85%: "he" "she"      what holds there, of `surroundings.MARKS`
    near "king" "crown" 70%        words that are in front more often than in any text
    "a" "b" "c" → "x" "y"          else the commonest tokens, and those that the feature promotes

The rule wins whose balanced accuracy is best, as far as the feature's own contexts and the base rates of any text tell.
The share is that of the strongest peaks; few are told as such: ``"self" 2 of 3``.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from circuitcli.features.conditions import NEIGHBOURS, Condition, Peak, all_that_holds, key_of, shown
from circuitcli.features.rates import BaseRates

# Of the strongest peaks at least so many have to be as a rule says.
DOMINANT, CONSTANT = 0.5, 0.9
# The same of several tokens or words together.
COVERED = 0.4
# Balanced accuracy from which on a rule is worth more than a list of tokens.
TELLING = 0.62
FEW_PEAKS, FEW_WINDOWS = 5, 8
# Tokens that are named where there are several, and tokens or words that a rule is about at most.
N_TOP, N_SEVERAL = 3, 5
# What a rule must be better by than one that says less: what is chosen from much fits by chance.
_COST = {"token": 0.0, "kind": 0.005, "tokens": 0.03, "mark": 0.04, "near": 0.06}
_USUAL_COST, _NEIGHBOUR_COST = 0.01, 0.01
# What a token is worth that nearly all, or most, of the strongest peaks are.
_CONSTANT_TOKEN, _DOMINANT_TOKEN = 0.1, 0.04
# What each further token or word costs.
_COST_EACH = 0.004
# How many standard errors above its base rate a token must be to be one of several, and a word to be a topic: the
# candidates are as many as there are words.
_Z_TOKEN, _Z_TOPIC = 2.5, 4.0


@dataclass(frozen=True)
class Rule:
    """A label, and the conditions that all hold where it says that the feature is active.

    confidence: the balanced accuracy to be expected of it, from the contexts that it was made from and base rates.
    """

    text: str
    conditions: tuple[Condition, ...]
    confidence: float | None = field(default=None, compare=False)

    def covers(self, peak: Peak) -> bool:
        """Whether the feature should be active at a token."""
        return all(condition.holds(peak) for condition in self.conditions)


class Tally:
    """How many of some peaks a condition holds of, counted once for all conditions."""

    def __init__(self, peaks: Sequence[Peak]) -> None:
        self.n = len(peaks)
        self.counts: Counter[Condition] = Counter()
        for peak in peaks:
            self.counts.update(all_that_holds(peak))
        self.near = [peak.near for peak in peaks if peak.near is not None]

    def of(self, condition: Condition) -> tuple[int, int]:
        """Of how many it holds, and of how many that can be told."""
        about, value = condition
        if about == "near":
            assert isinstance(value, frozenset)
            return sum(not value.isdisjoint(words) for words in self.near), len(self.near)
        if isinstance(value, frozenset):
            single = NEIGHBOURS[about][0] if about in NEIGHBOURS else "token"
            return sum(self.counts[Condition(single, key)] for key in value), self.n
        return self.counts[condition], self.n


class Evidence:
    """What is known of where a feature is active: its strongest peaks, activations drawn by lot, how often it is."""

    def __init__(self, peaks: Sequence[Peak], samples: Sequence[Peak], *, rates: BaseRates, density: float) -> None:
        self.peaks, self.samples, self.rates, self.density = peaks, samples, rates, density
        self.of_peaks, self.of_samples = Tally(peaks), Tally(samples)

    @property
    def every(self) -> list[Peak]:
        """Peaks and samples."""
        return [*self.peaks, *self.samples]

    def confidence(self, condition: Condition) -> float:
        """Balanced accuracy of a rule of one condition: recall is the mean of that on the peaks and on the samples,
        each as if there were one more that it misses."""
        told = [tally.of(condition) for tally in (self.of_peaks, self.of_samples)]
        recalls = [count / (n + 1) for count, n in told if n]
        recall = sum(recalls) / max(len(recalls), 1)
        silent = max(self.rates.share(condition) - self.density * recall, 0) / max(1 - self.density, 1e-9)
        return (recall + 1 - min(silent, 1.0)) / 2


def label(
    peaks: Sequence[Peak],
    promoted: Sequence[str] = (),
    *,
    samples: Sequence[Peak] = (),
    rates: BaseRates | None = None,
    density: float = 0.0,
) -> Rule:
    """A short description of a feature from its strongest peaks, strongest first, at least one.

    samples: of all that is active, drawn by lot. rates: of any text; density: how often the feature is active.
    """
    evidence = Evidence(peaks, samples, rates=rates or BaseRates(), density=density)
    best, most = None, TELLING
    for condition in _candidates(evidence):
        count, n = evidence.of_peaks.of(condition)
        if count < (COVERED if isinstance(condition.value, frozenset) else DOMINANT) * n:
            continue
        score = evidence.confidence(condition) - _cost(condition)
        if condition.about == "token":
            # What weaker activations have in common is told by more general rules, which say less of the strong ones.
            score += _CONSTANT_TOKEN if count >= CONSTANT * n else _DOMINANT_TOKEN
        if score > most:
            best, most = condition, score
    return _commonest(evidence, promoted) if best is None else _rule(best, evidence)


def _cost(condition: Condition) -> float:
    about, value = condition
    what = NEIGHBOURS[about][1] if about in NEIGHBOURS else about
    several = _COST_EACH * len(value) if isinstance(value, frozenset) else 0.0
    # What comes behind a token is not known to the model there.
    neighbour = _NEIGHBOUR_COST * (5 if about.startswith("following") else about in NEIGHBOURS)
    return _COST.get(what, _USUAL_COST) + neighbour + several


def _candidates(evidence: Evidence) -> Iterator[Condition]:
    """Conditions that may hold where the feature is active, in an order that does not change."""
    counts, n = evidence.of_peaks.counts, evidence.of_peaks.n
    single = sorted(
        (
            condition
            for condition, count in counts.items()
            # Marks hold so often that a few tokens have one by chance.
            if count >= DOMINANT * n and (condition.about != "mark" or n >= FEW_WINDOWS)
        ),
        key=lambda condition: (condition.about, str(condition.value)),
    )
    if n < FEW_PEAKS:
        # Among a few tokens some neighbour is there twice by chance; of those that are there once the strongest counts.
        for condition in single:
            is_telling = n == 1 or counts[condition] > 1 or condition.holds(evidence.peaks[0])
            if is_telling and not condition.about.startswith(("previous", "following")):
                yield condition
        return
    yield from single
    yield from (*_several(evidence, "token", "tokens"), *_several(evidence, "previous", "previous tokens"))
    yield from _topics(evidence)


def _several(evidence: Evidence, about: str, several: str) -> Iterator[Condition]:
    """The two commonest tokens, the three commonest, ... of those that are there more than once, and more often than
    anywhere."""
    counts, n = evidence.of_peaks.counts + evidence.of_samples.counts, evidence.of_peaks.n + evidence.of_samples.n
    own = (condition for condition, count in counts.items() if condition.about == about and count > 1)
    found = [one for one in own if one.value and _errors(counts[one], n, evidence.rates.share(one)) > _Z_TOKEN]
    keys = [str(one.value) for one in sorted(found, key=lambda one: (-counts[one], one.value))[:N_SEVERAL]]
    yield from (Condition(several, frozenset(keys[:number])) for number in range(2, len(keys) + 1))


def _topics(evidence: Evidence) -> Iterator[Condition]:
    """Words that are in front of the feature's tokens more often than anywhere: the most telling, the two most, ..."""
    seen = [*evidence.of_peaks.near, *evidence.of_samples.near]
    counts = Counter(word for words in seen for word in words)
    n, found = len(seen), []
    if n < FEW_WINDOWS:
        return
    for word in (word for word, count in counts.items() if count > 2):
        chance = evidence.rates.share(Condition("near", frozenset({word})))
        if _errors(counts[word], n, chance) > _Z_TOPIC:
            found.append((counts[word] / n - chance, word))
    words = [word for _, word in sorted(found, key=lambda pair: (-pair[0], pair[1]))[:N_SEVERAL]]
    yield from (Condition("near", frozenset(words[:number])) for number in range(1, len(words) + 1))


def _errors(count: int, n: int, chance: float) -> float:
    """How many standard errors a count is above what chance would have it."""
    return (count - n * chance) / (n * chance * (1 - chance) + 0.25) ** 0.5


def _rule(condition: Condition, evidence: Evidence) -> Rule:
    """The rule of the best condition, with the token in front where that is as constant."""
    confidence = evidence.confidence(condition)
    peaks = evidence.peaks
    if condition.about == "token" and len(peaks) >= FEW_PEAKS:
        before = [peak for peak in peaks if condition.holds(peak)]
        key, constant = Counter(peak.previous and key_of(peak.previous) for peak in before).most_common(1)[0]
        previous = Condition("previous", key)
        if key is not None and constant >= CONSTANT * len(before) and _stays(condition, previous, evidence):
            text = f"{_named(condition, peaks)} after {_named(previous, before)} {_share(constant, len(peaks))}"
            return Rule(text, (condition, previous), confidence)
    return Rule(_written(condition, _share(*evidence.of_peaks.of(condition)), evidence), (condition,), confidence)


def _stays(condition: Condition, previous: Condition, evidence: Evidence) -> bool:
    """Whether the token in front is as constant in what was drawn by lot."""
    found = [peak for peak in evidence.samples if condition.holds(peak)]
    return sum(map(previous.holds, found)) >= CONSTANT * len(found)


def _written(condition: Condition, share: str, evidence: Evidence) -> str:
    about, value = condition
    peaks = evidence.peaks
    if about in ("ending", "beginning"):
        return f'"…{value}" {share}' if about == "ending" else f'"{value}…" {share}'
    if about in ("token", "tokens"):
        return f"{_named(condition, evidence.every)} {share}"
    if about == "near":
        assert isinstance(value, frozenset)
        words = sorted(value, key=lambda word: (-sum(word in (peak.near or ()) for peak in evidence.every), word))
        return f"near {' '.join(map(shown, words))} {share}"
    if about in ("previous", "following") and value is None:
        return f"start of a block {share}"
    where = {"previous": "after ", "following": "before "}.get(about.split()[0], "")
    if where and not about.endswith("kind"):
        return f"{where}{_named(condition, evidence.every)} {share}"
    examples = " ".join(_top([peak.token for peak in peaks if condition.holds(peak)]))
    return f"{where}{value} {share}: {examples}"


def _named(condition: Condition, peaks: Iterable[Peak]) -> str:
    """The tokens that a condition is about, in the commonest of their variants."""
    about, value = condition
    side = about.split()[0] if about.split()[0] in ("previous", "following") else "token"
    texts = [text for peak in peaks if (text := getattr(peak, side)) is not None]
    keys = value if isinstance(value, frozenset) else {value}
    return " ".join(_top([text for text in texts if key_of(text) in keys], n=N_SEVERAL))


def _commonest(evidence: Evidence, promoted: Sequence[str]) -> Rule:
    tokens = [peak.token for peak in evidence.peaks]
    text, likely = " ".join(_top(tokens)), list(dict.fromkeys(map(shown, promoted)))[:2]
    told = f"{text} → {' '.join(likely)}" if likely else text
    keys = frozenset(key for key, _ in Counter(map(key_of, tokens)).most_common(N_TOP))
    condition = Condition("tokens", keys)
    return Rule(told, (condition,), evidence.confidence(condition))


def _share(count: int, n_peaks: int) -> str:
    if n_peaks < FEW_PEAKS:
        return f"{count} of {n_peaks}"
    return f"{100 * count / n_peaks:.0f}%"


def _dominant(items: Sequence[str], key: Callable[[str], Hashable] = key_of) -> str:
    """The commonest variant of the commonest item; of equals the first."""
    winner = Counter(map(key, items)).most_common(1)[0][0]
    return Counter(item for item in items if key(item) == winner).most_common(1)[0][0]


def _top(tokens: Sequence[str], *, n: int = N_TOP) -> list[str]:
    """The commonest tokens, each in its commonest variant."""
    keys = [key for key, _ in Counter(map(key_of, tokens)).most_common(n)]
    return [shown(_dominant([token for token in tokens if key_of(token) == key])) for key in keys]
