"""Kinds of tokens that have a name, each by a test of the token's text."""

import unicodedata
from collections.abc import Callable

_CLASSES = {
    "pronouns": "i me my mine you your yours he him his she her hers it its we us our ours they them their theirs "
    "myself yourself himself herself itself ourselves themselves",
    "determiners": "the a an this that these those some any each every no another such both all",
    "prepositions": "of in on at by for with from to into onto upon about over under between among through against "
    "during without within before after toward towards near across behind beyond",
    "conjunctions": "and or but nor so yet because although though while if unless since whereas",
    "forms of be, have and do": "be am is are was were been being have has had having do does did done doing",
    "modal verbs": "can could may might must shall should will would cannot ought",
    "question words": "who whom whose which what when where why how",
    "negations": "not no never none nothing nobody neither nor n't without cannot",
    "number words": "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty "
    "hundred thousand million billion first second third fourth fifth",
    "months and days": "january february march april june july august september october november december monday "
    "tuesday wednesday thursday friday saturday sunday",
}
_WORDS = {name: frozenset(words.split()) for name, words in _CLASSES.items()}
_SCRIPTS = {
    "Cyrillic": "CYRILLIC",
    "Greek": "GREEK",
    "Arabic": "ARABIC",
    "Hebrew": "HEBREW",
    "Devanagari": "DEVANAGARI",
    "Chinese characters": "CJK",
    "Hiragana": "HIRAGANA",
    "Katakana": "KATAKANA",
    "Hangul": "HANGUL",
    "Thai": "THAI",
}


def _is_symbol(token: str) -> bool:
    core = token.strip()
    return bool(core) and not any(character.isalnum() for character in core)


def _is_of(characters: str) -> Callable[[str], bool]:
    return lambda token: bool(token.strip()) and set(token.strip()) <= set(characters)


def _is_among(words: frozenset[str]) -> Callable[[str], bool]:
    return lambda token: token.strip().casefold() in words


def _is_written_in(script: str) -> Callable[[str], bool]:
    def test(token: str) -> bool:
        letter = next((character for character in token if ord(character) > 0x7F and character.isalpha()), "")
        return bool(letter) and unicodedata.name(letter, "").startswith(script)

    return test


def _has_accents(token: str) -> bool:
    return any(ord(one) > 0x7F and unicodedata.name(one, "").startswith("LATIN") for one in token)


KINDS: dict[str, Callable[[str], bool]] = {
    "line breaks": lambda token: "\n" in token and not token.strip(),
    "indentation": lambda token: not token.strip() and token.strip("\n") not in ("", " "),
    "whitespace": lambda token: not token.strip(),
    "parts of characters": lambda token: token.startswith("<0x"),
    "digits": lambda token: token.strip().isdecimal(),
    "ends of sentences": _is_of(".!?"),
    "quotation marks": _is_of("\"'`“”‘’«»"),
    "brackets": _is_of("()[]{}<>"),
    "punctuation": _is_symbol,
    "capitals": lambda token: token.strip().isupper() and len(token.strip()) > 1,
    "single letters": lambda token: len(token.strip()) == 1 and token.strip().isalpha(),
    # With what stands in front of it, as of `PREVIOUS`.
    "rest of a word": lambda token: token[:1].isalpha(),
    "capitalised": lambda token: token.strip()[:1].isupper(),
    **{name: _is_among(words) for name, words in _WORDS.items()},
    **{name: _is_written_in(script) for name, script in _SCRIPTS.items()},
    "letters with accents": _has_accents,
    "names with underscores": lambda token: "_" in token and any(map(str.isalpha, token)),
}
# What the token in front has to be, for kinds that are about both.
PREVIOUS: dict[str, Callable[[str], bool]] = {"rest of a word": lambda token: token[-1:].isalpha()}
# Kinds of neighbours that are worth a label.
OF_NEIGHBOURS = (
    *("line breaks", "digits", "ends of sentences", "quotation marks", "brackets", "punctuation", "capitals"),
    *("capitalised", "names with underscores", *_WORDS),
)
