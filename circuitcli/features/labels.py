"""Labels made from where a feature peaks, by fixed rules and without a language model.

The first rule that covers enough of the peaks makes the label:

    "self" 82%                 one token (case and surrounding spaces aside), in at least half of the peaks
    "in" after "for" 91%       the same, where what comes before it is as constant
    after "def" 64%            one token comes before, in at least half
    "…ing" 75%                 tokens of one ending or one beginning, in at least 70 %
    punctuation 90%: "," "."   tokens of one kind, in at least 70 %
    "a" "b" "c" → "x" "y"      else the commonest tokens, and those that the feature promotes

Few peaks are told as such: ``"self" 2 of 3``. Each label says where its feature should be active, as conditions on a
token and the one before it, so that it can be scored.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from circuitcli.printable import escaped

DOMINANT, CONSTANT, COMMON = 0.5, 0.9, 0.7
FEW_PEAKS = 5
LONGEST_TOKEN = 20
AFFIX_LENGTHS = (5, 4, 3, 2)
# Tokens that are named where there are several.
N_TOP = 3


@dataclass(frozen=True)
class Peak:
    """The token at which a feature is strongest in a block, and the one before it; None at the block's start."""

    token: str
    previous: str | None


class Condition(NamedTuple):
    """Something that holds of a token or of the one before it.

    about: ``token`` and ``previous`` (value: what variants have in common, None at the start of a block), ``tokens``
    (value: several of these), ``ending``, ``beginning`` (of a word's letters), ``kind`` (a name of `KINDS`).
    """

    about: str
    value: str | frozenset[str] | None

    def holds(self, peak: Peak) -> bool:
        """Whether a token fulfils it."""
        word = peak.token.strip().casefold()
        match self.about, self.value:
            case "token", value:
                return key_of(peak.token) == value
            case "tokens", frozenset() as several:
                return key_of(peak.token) in several
            case "previous", value:
                return (None if peak.previous is None else key_of(peak.previous)) == value
            case "kind", str() as name:
                return KINDS[name](peak)
            case about, str() as part:
                is_longer = len(word) > len(part) and word.isalpha()
                return is_longer and (word.endswith(part) if about == "ending" else word.startswith(part))
        raise AssertionError(self)


@dataclass(frozen=True)
class Rule:
    """A label, and the conditions that all hold where it says that the feature is active."""

    text: str
    conditions: tuple[Condition, ...]

    def covers(self, peak: Peak) -> bool:
        """Whether the feature should be active at a token."""
        return all(condition.holds(peak) for condition in self.conditions)


def label(peaks: Sequence[Peak], promoted: Sequence[str] = ()) -> Rule:
    """A short description of a feature from its strongest peaks, strongest first, at least one."""
    rules = (_one_token, _one_previous, _affix, _kind)
    return next((found for rule in rules if (found := rule(peaks))), None) or _commonest(peaks, promoted)


def shown(token: str) -> str:
    """A token as people read it: quoted, without the spaces around it, unprintable characters escaped."""
    core = token.strip()
    if core:
        if len(core) > LONGEST_TOKEN:
            core = core[: LONGEST_TOKEN - 1] + "…"
        mark = "'" if '"' in core else '"'
        return mark + escaped(core) + mark
    if "\n" in token or "\r" in token:
        return "newline"
    if token == "\t" * len(token):
        return "tab" if token else "nothing"
    return "space" if len(token) == 1 else f"{len(token)} spaces"


def key_of(token: str) -> str:
    """What variants of a token have in common."""
    return token.strip().casefold() or shown(token)


def _dominant(items: Sequence[str], key: Callable[[str], Hashable] = key_of) -> tuple[str, int]:
    """The commonest variant of the commonest item, and how many items are its variants; of equals the first."""
    groups = Counter(map(key, items))
    winner, count = groups.most_common(1)[0]
    variants = Counter(item for item in items if key(item) == winner)
    return variants.most_common(1)[0][0], count


def _share(count: int, n_peaks: int) -> str:
    if n_peaks < FEW_PEAKS:
        return f"{count} of {n_peaks}"
    return f"{100 * count / n_peaks:.0f}%"


def _one_token(peaks: Sequence[Peak]) -> Rule | None:
    token, count = _dominant([peak.token for peak in peaks])
    if count < DOMINANT * len(peaks):
        return None
    is_token = Condition("token", key_of(token))
    before = [peak.previous for peak in peaks if is_token.holds(peak)]
    known = [previous for previous in before if previous is not None]
    if known and len(peaks) >= FEW_PEAKS:
        previous, agreeing = _dominant(known)
        if agreeing >= CONSTANT * len(before):
            text = f"{shown(token)} after {shown(previous)} {_share(agreeing, len(peaks))}"
            return Rule(text, (is_token, Condition("previous", key_of(previous))))
    return Rule(f"{shown(token)} {_share(count, len(peaks))}", (is_token,))


def _one_previous(peaks: Sequence[Peak]) -> Rule | None:
    known = [peak.previous for peak in peaks if peak.previous is not None]
    if len(known) < len(peaks) / 2:
        text = f"start of a block {_share(len(peaks) - len(known), len(peaks))}"
        return Rule(text, (Condition("previous", None),))
    previous, count = _dominant(known)
    if count < DOMINANT * len(peaks):
        return None
    text = f"after {shown(previous)} {_share(count, len(peaks))}"
    return Rule(text, (Condition("previous", key_of(previous)),))


def _affix(peaks: Sequence[Peak]) -> Rule | None:
    """One ending or beginning; of several the longest."""
    words = [peak.token.strip().casefold() for peak in peaks]
    for length in AFFIX_LENGTHS:
        for about, cut, form in (("ending", slice(-length, None), '"…{}"'), ("beginning", slice(length), '"{}…"')):
            parts = Counter(word[cut] for word in words if len(word) > length and word.isalpha())
            part, count = max(parts.items(), key=lambda item: item[1], default=("", 0))
            if count >= COMMON * len(peaks):
                return Rule(f"{form.format(part)} {_share(count, len(peaks))}", (Condition(about, part),))
    return None


def _kind(peaks: Sequence[Peak]) -> Rule | None:
    for name, matches in KINDS.items():
        of_kind = [peak.token for peak in peaks if matches(peak)]
        if len(of_kind) >= COMMON * len(peaks):
            text = f"{name} {_share(len(of_kind), len(peaks))}: {' '.join(_top(of_kind))}"
            return Rule(text, (Condition("kind", name),))
    return None


def _commonest(peaks: Sequence[Peak], promoted: Sequence[str]) -> Rule:
    tokens = [peak.token for peak in peaks]
    text, likely = " ".join(_top(tokens)), list(dict.fromkeys(map(shown, promoted)))[:2]
    told = f"{text} → {' '.join(likely)}" if likely else text
    return Rule(
        told, (Condition("tokens", frozenset(key for key, _ in Counter(map(key_of, tokens)).most_common(N_TOP))),)
    )


def _top(tokens: Sequence[str]) -> list[str]:
    first = {key_of(token): shown(token) for token in reversed(tokens)}
    return [first[key] for key, _ in Counter(map(key_of, tokens)).most_common(N_TOP)]


def _continues_word(peak: Peak) -> bool:
    return peak.token[:1].isalpha() and peak.previous is not None and peak.previous[-1:].isalpha()


def _is_symbol(token: str) -> bool:
    core = token.strip()
    return bool(core) and not any(character.isalnum() for character in core)


def _is_bytes(token: str) -> bool:
    return token.startswith("<0x")


KINDS: dict[str, Callable[[Peak], bool]] = {
    "whitespace": lambda peak: not peak.token.strip(),
    "parts of characters": lambda peak: _is_bytes(peak.token),
    "digits": lambda peak: peak.token.strip().isdecimal(),
    "punctuation": lambda peak: _is_symbol(peak.token),
    "capitals": lambda peak: peak.token.strip().isupper() and len(peak.token.strip()) > 1,
    "rest of a word": _continues_word,
    "capitalised": lambda peak: peak.token.strip()[:1].isupper(),
}
