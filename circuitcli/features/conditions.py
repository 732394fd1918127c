"""What can be said of a token by fixed rules: of its text, its neighbours and the text in front of it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from circuitcli.features.kinds import KINDS, OF_NEIGHBOURS, PREVIOUS
from circuitcli.printable import escaped

LONGEST_TOKEN = 20
AFFIX_LENGTHS = (5, 4, 3, 2)
# Tokens in front of a token in which words are looked for.
N_NEAR = 16
# Shortest words that tell what a text is about.
SHORTEST_WORD = 3
# Conditions on a neighbour: which one, and what is asked of it.
NEIGHBOURS = {
    "previous": ("previous", "token"),
    "previous tokens": ("previous", "tokens"),
    "previous kind": ("previous", "kind"),
    "following": ("following", "token"),
    "following tokens": ("following", "tokens"),
    "following kind": ("following", "kind"),
}


@dataclass(frozen=True)
class Peak:
    """A token at which a feature is active, with its neighbours; None at the ends of a block, or if not known.

    marks: names of what holds there, as of `surroundings`. near: the words of the tokens in front, as `word_of` gives
    them; None if they are not known.
    """

    token: str
    previous: str | None
    following: str | None = None
    marks: frozenset[str] = frozenset()
    near: frozenset[str] | None = None


class Condition(NamedTuple):
    """Something that holds of a token or of what is around it.

    about: ``token`` (value: what variants have in common), ``tokens`` (several of these), ``ending``, ``beginning`` (of
    a word's letters), ``kind`` (a name of `kinds.KINDS`); ``previous``, ``previous tokens``, ``previous kind`` and the
    same of ``following``, for the tokens in front and behind (None at the ends of a block); ``mark`` (a name of
    `surroundings.MARKS`); ``near`` (words, of which one is among the tokens in front).
    """

    about: str
    value: str | frozenset[str] | None

    def holds(self, peak: Peak) -> bool:
        """Whether it holds there."""
        match self.about, self.value:
            case "mark", value:
                return value in peak.marks
            case "near", frozenset() as words:
                return bool(words & (peak.near or frozenset()))
            case about, value if about in NEIGHBOURS:
                side, what = NEIGHBOURS[about]
                text = peak.previous if side == "previous" else peak.following
                return value is None if text is None else value is not None and holds_of(text, what, value)
            case "kind", str() as name if name in PREVIOUS:
                if peak.previous is None or not PREVIOUS[name](peak.previous):
                    return False
        assert self.value is not None
        return holds_of(peak.token, self.about, self.value)


def holds_of(text: str, what: str, value: str | frozenset[str]) -> bool:
    """Whether the text of a token is what is asked for."""
    match what, value:
        case "token", str():
            return key_of(text) == value
        case "tokens", frozenset() as several:
            return key_of(text) in several
        case "kind", str() as name:
            return KINDS[name](text)
        case (("ending" | "beginning"), str() as part):
            word = text.strip().casefold()
            is_longer = len(word) > len(part) and word.isalpha()
            return is_longer and (word.endswith(part) if what == "ending" else word.startswith(part))
    raise AssertionError(what, value)


@lru_cache(maxsize=2**17)
def facts_of(text: str) -> tuple[tuple[str, str], ...]:
    """All that holds of the text of a token: what is asked, and the value of which it is so, as of `holds_of`."""
    word = text.strip().casefold()
    lengths = [length for length in AFFIX_LENGTHS if len(word) > length] if word.isalpha() else []
    return (
        ("token", key_of(text)),
        *(("ending", word[-length:]) for length in lengths),
        *(("beginning", word[:length]) for length in lengths),
        *(("kind", name) for name, test in KINDS.items() if test(text)),
    )


def all_that_holds(peak: Peak) -> list[Condition]:
    """Every condition that holds at a token, but for those about several tokens or words."""
    found = [Condition(*fact) for fact in facts_of(peak.token)]
    for name, fits in PREVIOUS.items():
        if peak.previous is None or not fits(peak.previous):
            found = [condition for condition in found if condition != ("kind", name)]
    for side, text in (("previous", peak.previous), ("following", peak.following)):
        found += _of_neighbour(side, text)
    return [*found, *(Condition("mark", name) for name in peak.marks)]


@lru_cache(maxsize=2**17)
def _of_neighbour(side: str, text: str | None) -> tuple[Condition, ...]:
    if text is None:
        # Where a block ends tells of how text was cut, not of what the model has seen.
        return (Condition(side, None),) if side == "previous" else ()
    kinds = (
        Condition(f"{side} kind", value) for what, value in facts_of(text) if what == "kind" and value in OF_NEIGHBOURS
    )
    return (Condition(side, key_of(text)), *kinds)


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


def word_of(token: str) -> str | None:
    """The word that a token is, if it tells what a text is about."""
    word = token.strip().casefold()
    return word if len(word) >= SHORTEST_WORD and word.isalpha() else None
