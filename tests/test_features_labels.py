"""Labels: each rule on a list of peaks that it is for, and odd tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcli.features.conditions import LONGEST_TOKEN, Peak, shown
from circuitcli.features.labels import label


def peaks(*pairs: tuple[str | None, str]) -> list[Peak]:
    return [Peak(token, previous) for previous, token in pairs]


BEFORE = [" a", " b", " c", " d", " e", " f", " g", " h", " i", " j"]


@pytest.mark.parametrize(
    "found, expected",
    [
        (peaks(*((before, " self") for before in BEFORE[:8]), (" x", " y"), (" z", " w")), '"self" 80%'),
        (peaks(*((before, token) for before, token in zip(BEFORE, [" the", "The"] * 5, strict=True))), '"the" 100%'),
        (peaks(*[(" for", " in")] * 10), '"in" after "for" 100%'),
        (peaks(*((" def", f" name_{n}") for n in range(6)), *((f" {n}", f"_{n}") for n in "abcd")), 'after "def" 60%'),
        (peaks(*((before, f" {stem}ing") for before, stem in zip(BEFORE, "abcdefghij", strict=True))), '"…ing" 100%'),
        (peaks(*((before, f"un{stem}") for before, stem in zip(BEFORE, "abcdefghij", strict=True))), '"un…" 100%'),
        (
            peaks(*((before, token) for before, token in zip(BEFORE, "..,,;:!?.)", strict=True))),
            'punctuation 100%: "." "," ";"',
        ),
        (peaks(*((before, f" {n}") for n, before in enumerate(BEFORE))), 'digits 100%: "0" "1" "2"'),
        (peaks(*((None, f" {stem}1") for stem in "abcdef")), "start of a block 100%"),
        (peaks((" x", "\n"), (" y", "\n"), (" z", "  ")), "newline 2 of 3"),
        (peaks((" x", " self")), '"self" 1 of 1'),
    ],
)
def test_the_rule_that_tells_best_makes_the_label(found: list[Peak], expected: str) -> None:
    assert label(found, [" Paris"]).text == expected


def test_without_a_pattern_the_commonest_and_the_promoted_tokens_are_named() -> None:
    found = peaks(*zip(BEFORE[:8], [" cat", " cat", " dog", " owl", " hen", " pig", " fox", " bee"], strict=True))
    assert label(found, [" Paris", "Paris", " London", " Rome"]).text == '"cat" "dog" "owl" → "Paris" "London"'
    assert label(found).text == '"cat" "dog" "owl"'


@pytest.mark.parametrize(
    "token, expected",
    [
        (" Paris", '"Paris"'),
        ("\n", "newline"),
        ("\n    ", "newline"),
        ("\t\t", "tab"),
        (" ", "space"),
        ("    ", "4 spaces"),
        ("", "nothing"),
        ("<0xE2>", '"<0xE2>"'),
        ("a\nb", '"a\\nb"'),
        ("\x00", '"\\x00"'),
        ("x" * 50, f'"{"x" * (LONGEST_TOKEN - 1)}…"'),
        ('"', "'\"'"),
    ],
)
def test_odd_tokens_are_readable(token: str, expected: str) -> None:
    assert shown(token) == expected


@settings(deadline=None)
@given(
    st.lists(st.builds(Peak, st.text(max_size=8), st.none() | st.text(max_size=8)), min_size=1, max_size=12),
    st.lists(st.text(max_size=8), max_size=3),
)
def test_every_list_of_peaks_has_one_short_printable_label(found: list[Peak], promoted: list[str]) -> None:
    made = label(found, promoted)
    assert made == label(found, promoted)
    text = made.text
    assert text.isprintable() and 0 < len(text) < 5 * (12 * LONGEST_TOKEN)
