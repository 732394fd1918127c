"""Labels: each rule on a list of peaks that it is for, and odd tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcli.features.conditions import LONGEST_TOKEN, Peak, shown
from circuitcli.features.labels import label
from circuitcli.features.rates import BaseRates
from circuitcli.features.scan import TextCounts


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


def told(text: str, **counts: int) -> BaseRates:
    """Base rates of a text of these tokens and many others."""
    words = [*counts, *text.split(" ")]
    found = TextCounts()
    found.tokens, found.n_tokens = torch.tensor([*counts.values(), *[50] * (len(words) - len(counts))]), 0
    found.n_tokens = int(found.tokens.sum())
    return BaseRates(found, lambda ids: [words[one] for one in ids])


RATES = told(" ".join(f"w{number}" for number in range(20)), the=2000, cat=10, dog=10, king=10, He=300, X=5)


def near(*pairs: tuple[str, str]) -> list[Peak]:
    """Tokens with words in front."""
    return [Peak(token, f"x{token}", near=frozenset(words.split())) for token, words in pairs]


@pytest.mark.parametrize(
    "found, samples, expected",
    [
        # A token that is everywhere is no part of a rule, however often it is there.
        ([Peak(one, f"w{n}") for n, one in enumerate(["cat", "dog", "the"] * 4)], [], '"cat" "dog" 67%'),
        (near(*((f"w{n}", f"king w{n + 1}") for n in range(10))), [], 'near "king" 100%'),
        (
            [Peak(f"w{n}", f"x{n}", marks=frozenset({"in quotes"})) for n in range(10)],
            [],
            'in quotes 100%: "w0" "w1" "w2"',
        ),
        ([Peak(f"w{n}", one) for n, one in enumerate(["cat", "dog"] * 5)], [], 'after "cat" "dog" 100%'),
        ([Peak(f"w{n}", f"w{n + 1}", "(") for n in range(10)], [], 'before "(" 100%'),
        # What is drawn by lot shows that the strongest peaks are no exception, or that they are.
        ([Peak("X", "w1")] * 6, [Peak("X", "w1")] * 6, '"X" after "w1" 100%'),
        ([Peak("X", "w1")] * 6, [Peak("X", f"w{n}") for n in range(6)], '"X" 100%'),
        ([Peak("cat", "w1"), Peak("dog", "w2")], [], '"cat" 1 of 2'),
    ],
)
def test_rules_are_weighed_against_how_often_they_hold_anywhere(found, samples, expected) -> None:
    made = label(found, samples=samples, rates=RATES, density=0.01)
    assert made.text == expected and 0.5 < made.confidence < 1
    assert made.covers(found[0])
