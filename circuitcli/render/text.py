"""Text of people and tokenizers made fit for pictures: nothing invisible, nothing that reads as markup."""

import unicodedata

_NAMED = {"\n": "↵", "\r": "␍", "\t": "⇥", "\x7f": "␡", "\xa0": "⍽"}
# A "]" in front of a closing tag is a syntax error to dot, and a backslash begins an escape even here.
_MARKUP = str.maketrans(
    {"\\": "\\\\", "]": "&#93;", "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", " ": "&#160;"}
)
# These change the direction or the lines of the text around them; other format characters join emoji and are kept.
_DIRECTIONS = frozenset(
    "\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


# A letter may carry accents, an emoji is several characters.
_CHARACTERS_PER_COLUMN = 4


def visible(text: str) -> str:
    """The text on one line, with a visible sign for each control character; all else, emoji too, stays as it is."""
    return text if _is_plain(text) else "".join(_visible(character) for character in text)


def _is_plain(text: str) -> bool:
    """Whether each character is one column that shows itself, as most texts are; there is much of them."""
    return text.isascii() and text.isprintable()


def _visible(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Cs", "Cn"):
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character


def width(text: str) -> int:
    """Columns that the visible text takes; East Asian characters and emoji take two."""
    return len(text) if _is_plain(text) else sum(_columns(character) for character in visible(text))


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, columns: int) -> str:
    """The visible text, cut with an ellipsis where it is wider."""
    shown = visible(text[: _enough(columns)])
    beginning = _beginning(shown, columns)
    return shown if beginning == shown else _beginning(shown, columns - 1) + "…"


def _enough(columns: int) -> int:
    """Characters of which some are left over in so many columns, whatever they are."""
    return _CHARACTERS_PER_COLUMN * max(columns, 1) + 1


def _beginning(shown: str, columns: int) -> str:
    """As much of the text as fits; of accents and other characters without a width only so many."""
    if _is_plain(shown):
        return shown[: max(columns, 0)]
    most = _CHARACTERS_PER_COLUMN * max(columns, 1)
    for index, character in enumerate(shown):
        columns -= _columns(character)
        if columns < 0 or index == most:
            return shown[:index]
    return shown


def wrapped(text: str, columns: int, *, lines: int) -> list[str]:
    """The visible text on a few lines, broken at spaces where there are some, cut with an ellipsis."""
    shown = visible(text.strip(" ")[: _enough(columns * lines)]).strip()
    broken: list[str] = []
    while len(broken) < lines - 1 and (cut := _beginning(shown, columns)) != shown:
        # The blank after a word that just fits is a place to break too.
        blank = shown[: len(cut) + 1].rfind(" ")
        cut = cut[:blank] if blank > 0 else cut
        broken.append(cut)
        shown = shown[len(cut) :].lstrip()
    return [*broken, shortened(shown, columns)] if shown else broken


def markup(text: str) -> str:
    """The text for the inside of a Graphviz HTML-like label: visible, escaped, blanks kept, never empty."""
    return visible(text).translate(_MARKUP) or "&#160;"


def quoted(token: str) -> str:
    """A token as people write it, with its blanks in quotation marks."""
    return f'"{visible(token)}"'


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def signed(value: float, unit: str | None = None) -> str:
    """Three significant digits with the sign, and the unit where there is one."""
    return f"{value:+.3g} {unit}" if unit else f"{value:+.3g}"


def measured(value: float, unit: str | None = None, *, standard_error: float | None = None) -> str:
    """`signed` with the standard error behind it, where there is one."""
    if standard_error is None:
        return signed(value, unit)
    return f"{signed(value)} ± {standard_error:.2g}" + (f" {unit}" if unit else "")


def percent(share: float) -> str:
    """A share as a percentage with one digit after the point."""
    return f"{100 * share:.1f} %"
