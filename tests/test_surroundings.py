"""What holds at a token because of the text in front of it, against a slow reading, token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcli.features.conditions import NEIGHBOURS, Condition, Peak, all_that_holds
from circuitcli.features.kinds import KINDS
from circuitcli.features.peaks import CodedBlocks
from circuitcli.features.rates import BaseRates
from circuitcli.features.scan import TextCounts
from circuitcli.features.surroundings import MARKS, N_EARLY, Surroundings, names

WORDS = ["a", ' "', "(", ") [", "]", "\n", "#", " //x", " b", '""', "}{", "the"]


def strings(ids: list[int]) -> list[str]:
    return [WORDS[one] for one in ids]


def slowly(texts: list[str], place: int) -> frozenset[str]:
    """The marks of one token of a block."""
    before = texts[:place]
    text = "".join(before)
    pairs = list(zip([None, *texts[:-1]], texts, strict=True))
    line = [one for number, one in enumerate(before) if not any("\n" in later for later in before[number + 1 :])]
    held = {
        "in quotes": text.count('"') % 2 == 1,
        "in brackets": sum(map(text.count, "([{")) > sum(map(text.count, ")]}")),
        "in a comment": any("#" in one or "//" in one for one in line),
        "token seen before": texts[place] in before,
        "repeats what came before": place > 0 and pairs[place] in pairs[1:place],
        "early in a text": place < N_EARLY,
    }
    assert tuple(held) == MARKS
    return frozenset(name for name, is_so in held.items() if is_so)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(range(len(WORDS))), min_size=1, max_size=12), min_size=1, max_size=4))
def test_marks_are_those_of_a_slow_reading_of_each_block(blocks: list[list[int]]) -> None:
    starts = torch.tensor([0, *(len(block) for block in blocks)]).cumsum(0)
    found = Surroundings(strings).marks(torch.tensor([one for block in blocks for one in block]), starts)
    expected = [slowly(strings(block), place) for block in blocks for place in range(len(block))]
    assert [names(int(marks)) for marks in found] == expected


TEXT = st.sampled_from([" the", "The", "ing", " sing", ",", "\n", " 12", "<0xE6>", "Привет", " He", "(", "n't", "été"])


@given(st.builds(Peak, TEXT, st.none() | TEXT, TEXT, st.frozensets(st.sampled_from(MARKS))))
def test_all_that_is_said_to_hold_holds_and_of_kinds_nothing_is_forgotten(peak: Peak) -> None:
    said = all_that_holds(peak)
    assert all(condition.holds(peak) for condition in said) and len(set(said)) == len(said)
    every = [*(Condition("kind", name) for name in KINDS), *(Condition("mark", name) for name in MARKS)]
    assert {one for one in said if one.about in ("kind", "mark")} == {one for one in every if one.holds(peak)}


def test_base_rates_are_shares_of_the_counted_text() -> None:
    token = torch.tensor([0, 8, 11, 0, 8, 2, 5, 0])
    starts = torch.tensor([0, 8])
    marks = Surroundings(strings).marks(token, starts)
    seen = torch.tensor([True] * 7 + [False])
    counts = TextCounts()
    for part in (slice(0, 4), slice(4, 8)):
        edges = torch.tensor([0, 4])
        counts.add(
            CodedBlocks(
                torch.zeros(4, 1), token[part], token[part] * 0, token[part] * 0, edges, seen[part], None, marks[part]
            )
        )
    rates, texts = BaseRates(counts, strings), [WORDS[one] for one in token[:7].tolist()]
    for condition in (
        *(Condition("kind", name) for name in KINDS if name != "rest of a word"),
        Condition("token", "b"),
        Condition("beginning", "th"),
    ):
        assert rates.share(condition) == pytest.approx(sum(condition.holds(Peak(text, "-")) for text in texts) / 7)
    assert rates.share(Condition("previous tokens", frozenset({"a", "the"}))) == pytest.approx(3 / 7)
    assert rates.share(Condition("near", frozenset({"the"}))) == pytest.approx(1 - (6 / 7) ** 16)
    for name in MARKS:
        held = sum(name in names(int(one)) for one in marks[:7])
        assert rates.share(Condition("mark", name)) == pytest.approx(held / 7)
    assert set(NEIGHBOURS) >= {"previous", "following kind"}
