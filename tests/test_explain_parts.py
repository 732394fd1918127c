"""Parts of explaining features, each against a slow definition: examples, questions, answers, tallies, local models."""

import json
import os
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support_collect import hf_tokenizer, language_model, tokenizer

from circuitcli.explaining import prompts, scoring
from circuitcli.explaining.answers import judgements_of, label_of
from circuitcli.explaining.asking import Answer, Ask
from circuitcli.explaining.examples import ACTIVE, MOVED, NEIGHBOUR, SIMILAR, Example
from circuitcli.explaining.exchange import Accepted, request_body
from circuitcli.explaining.gathering import Text, Wanted, subject
from circuitcli.explaining.local import LocalModel
from circuitcli.explaining.price import Budget, Prices
from circuitcli.explaining.tallies import Tally, correlation, mean_of, wilson
from circuitcli.features.rates import BaseRates
from circuitcli.models.loading import load_model
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.settings.model import ModelSettings

HOW = scoring.How(("detection", "fuzzing"), False, 4, 50, 0.0, 0)


def text_of(n_blocks: int, *, seed: int, size: int = 12, n_features: int = 4) -> Text:
    """Random tokens and activations: feature 0 is active at a third of the places of token 0, others anywhere."""
    random = torch.Generator().manual_seed(seed)
    n = n_blocks * size
    tokens = torch.randint(0, 9, (n,), generator=random)
    active = {}
    for feature in range(n_features):
        chance = torch.rand(n, generator=random)
        rows = ((tokens == 0) & (chance < 0.35) if feature == 0 else chance < 0.03).nonzero()[:, 0]
        active[feature] = rows, 0.5 + torch.rand(len(rows), generator=random)
    starts = torch.arange(0, n + 1, size)
    strings = lambda ids: [f" t{number}" for number in ids]  # noqa: E731
    return Text(tokens, starts, torch.zeros_like(tokens), active, BaseRates(), strings)


def made(text: Text, *, window: int = 3, n: int = 8, seed: int = 0):
    wanted = Wanted(n, n, window, seed)
    return subject(text, 0, name="resid.0/0", sae=None, near=[1, 2], promoted=["x"], wanted=wanted)


@pytest.mark.parametrize("seed", range(4))
def test_no_block_serves_both_and_silent_examples_are_silent(seed: int) -> None:
    text = text_of(60, seed=seed)
    codes = torch.zeros(len(text.tokens))
    codes[text.active[0][0]] = text.active[0][1]
    one = made(text, seed=seed)

    def places(example: Example) -> set[int]:
        """All blocks with exactly these tokens and activations."""
        found = set()
        for first in range(len(codes) - len(example.tokens) + 1):
            last = first + len(example.tokens)
            is_same = [f" t{number}" for number in text.tokens[first:last].tolist()] == list(example.tokens)
            if is_same and np.allclose(codes[first:last], example.activations, rtol=1e-4):
                found.add(first // 12)
        return found

    shown = set().union(*map(places, one.shown))
    active = [example for example in one.held if example.kind == ACTIVE]
    silent = [example for example in one.held if example.kind != ACTIVE]
    assert len(one.shown) == 8 and active and len(silent) == len(active)
    assert not shown & set().union(*map(places, active))
    assert all(places(example) for example in (*one.shown, *one.held))
    assert not any(any(example.activations) for example in silent)
    kinds = {example.kind for example in silent}
    assert {NEIGHBOUR, SIMILAR} <= kinds
    assert all(" t0" in example.tokens for example in silent if example.kind == SIMILAR)
    assert one == made(text, seed=seed) and one.held != made(text, seed=seed + 1).held


def test_parts_of_characters_are_joined_and_keep_the_strongest_activation() -> None:
    tokens = torch.tensor([7, 0, 1, 2, 7])
    words = {0: "<0xE6>", 1: "<0x96>", 2: "<0x87>", 7: "a"}
    active = {0: (torch.tensor([1, 2]), torch.tensor([0.5, 2.0]))}
    starts = torch.tensor([0, 5])
    text = Text(tokens, starts, torch.zeros_like(tokens), active, BaseRates(), lambda ids: [words[one] for one in ids])
    found = text.example(0, 2, window=5, kind=ACTIVE)
    assert found.tokens == ("a", "文", "a") and found.activations == (0.0, 2.0, 0.0)
    assert found.marks == (False, True, False) and [peak.token for peak in found.peaks] == ["a", "<0xE6>", "a"]


def test_of_few_silent_examples_one_of_each_hard_kind_is_there() -> None:
    kinds = [example.kind for example in made(text_of(60, seed=3), n=3).held]
    assert {ACTIVE, NEIGHBOUR, SIMILAR} <= set(kinds) and kinds.count(ACTIVE) == 3 == len(kinds) - 3


def test_a_feature_of_one_block_has_a_label_and_no_score() -> None:
    text = text_of(3, seed=0)
    text.active[0] = torch.tensor([4]), torch.tensor([1.0])
    one = made(text)
    assert len(one.shown) == 1 and one.held == () and not list(scoring.questions(one, "a", "model", HOW))


def test_shown_examples_are_the_strongest_and_of_all_quantiles() -> None:
    text = text_of(200, seed=1)
    one = made(text, n=10)
    peaks = sorted((max(example.activations) for example in one.shown), reverse=True)
    largest = float(text.active[0][1].max())
    assert peaks[0] > 0.95 * largest and peaks[-1] < 0.6 * largest + 0.2


def example(*tokens: str, at: tuple[int, ...] = ()) -> Example:
    return Example.of(tokens, [1.0 * (place in at) for place in range(len(tokens))], ACTIVE if at else "random")


def test_marks_are_around_runs_and_are_others_where_a_text_has_them() -> None:
    one = example("a", "b", "c", "d", at=(1, 2))
    assert prompts.marked(one, prompts.marks_of([one])) == "a<<bc>>d"
    assert prompts.marked(example("a", "b", at=(1,)), ("<<", ">>")) == "a<<b>>"
    code = example("x", " << ", "2", "\n", at=(2, 3))
    assert prompts.marked(code, prompts.marks_of([code])) == "x << ⟦2⏎⟧"


@pytest.mark.parametrize("said", ["the cat", "die Katze läßt", "猫在桌子上", "\n\t'\"<>", "\ud83d"])
@pytest.mark.parametrize("kind", ["label", "detection", "fuzzing", "one", "simulation"])
def test_what_is_sent_is_no_longer_than_what_is_paid_for_in_advance(said: str, kind: str) -> None:
    example = Example.of([said] * 20, [0.0] * 19 + [1.0], ACTIVE)
    asks = {
        "label": prompts.explanation([example], [said], max_tokens=60),
        "detection": prompts.detection(said, [example] * 4, max_tokens=60),
        "fuzzing": prompts.fuzzing(said, [example] * 4, max_tokens=60),
        "one": prompts.one_detection(said, example),
        "simulation": prompts.simulation(said, example),
    }
    sent = request_body(asks[kind], "model", Accepted())
    n_bytes = sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in sent["messages"])
    # What frames a list of tokens is as long whatever they are.
    assert n_bytes <= asks[kind].n_bytes + 100
    prices, usd = Prices(1e6, 1e6), n_bytes / 2 - 40 + sent["max_tokens"]
    assert not Budget(prices, max_usd=usd).begin(0, asks[kind])
    assert Budget(prices, max_usd=2.0 * n_bytes + sent["max_tokens"]).begin(0, asks[kind])


@given(st.lists(st.tuples(st.text(max_size=4), st.booleans()), min_size=1, max_size=9))
def test_questions_keep_each_text_in_one_line(pairs: list[tuple[str, bool]]) -> None:
    one = example(*(token for token, _ in pairs), at=tuple(n for n, (_, is_active) in enumerate(pairs) if is_active))
    asked = prompts.fuzzing("a\nb", [one, one], max_tokens=9).user.split("\n")
    assert len(asked) == 3 and asked[1].startswith("Text 1: ") and asked[0] == "Description: a⏎b"
    assert len(prompts.explanation([one], ["p\n"], max_tokens=9).user.split("\n")) == 2


def test_an_explanation_shows_strengths_from_1_to_10() -> None:
    two = [Example.of(("a", "b"), (4.0, 0.0), ACTIVE), Example.of(("c", "d"), (0.1, 0.2), ACTIVE)]
    asked = prompts.explanation(two, [" x"], max_tokens=9)
    assert asked.user.split("\n") == [
        'Text 1: <<a>>b   ("a" 10)',
        'Text 2: <<cd>>   ("c" 1, "d" 1)',
        'Made more likely: " x"',
    ]


@given(st.text(max_size=60), st.integers(1, 4))
def test_reading_never_fails_and_never_guesses(text: str, n: int) -> None:
    found = judgements_of(text, n)
    assert found is None or len(found) == n
    label_of(text)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.sampled_from(["{}", "So:\n```json\n{}\n```", "[9] no, {}"]))
def test_a_list_is_found_in_what_is_said_around_it(judgements: list[bool], around: str) -> None:
    written = around.format(json.dumps([int(one) for one in judgements]))
    assert judgements_of(written, len(judgements)) == tuple(judgements)
    assert judgements_of(written, len(judgements) + 1) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("LABEL: numbers in code", "numbers in code"),
        ('I think...\n\n**LABEL:** "names of months"', "names of months"),
        ("<think>LABEL: no</think>\nlabel: yes", "yes"),
        ("only one line", "only one line"),
        ("LABEL: \ud800x", "\N{REPLACEMENT CHARACTER}x"),
        (None, None),
    ],
)
def test_labels_are_read_from_what_models_write(text: str | None, label: str | None) -> None:
    assert label_of(text) == label


@pytest.mark.parametrize(("right", "n"), [(0, 7), (3, 10), (10, 10), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(right: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(right, n).proportion_ci(method="wilson")
    found = wilson(right, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_intervals_hold_what_they_should_as_often_as_they_say() -> None:
    """Of judges that are right with known chances; and the mean over many features."""
    random = np.random.default_rng(0)
    hits, means = 0, []
    for _ in range(400):
        tally = Tally()
        for kind, chance in ((ACTIVE, 0.7), ("random", 0.9)):
            for is_right in random.random(20) < chance:
                tally.add(kind, bool(is_right) == (kind == ACTIVE))
        found = tally.balanced_accuracy
        hits += found.low <= 0.8 <= found.high
        means.append(found.value)
    assert 0.92 <= hits / 400 <= 0.995
    whole = mean_of(means, seed=0)
    assert whole.low < 0.8 < whole.high and whole.high - whole.low < 0.03


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.4, 0.5, 0.9])), max_size=12))
def test_the_curve_is_how_often_yes_is_likelier(graded: list[tuple[bool, float]]) -> None:
    tally = Tally(graded=list(graded))
    pairs = [(a, b) for is_a, a in graded if is_a for is_b, b in graded if not is_b]
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else None
    assert tally.auc == pytest.approx(expected) if expected is not None else tally.auc is None


def test_what_never_changes_correlates_with_nothing() -> None:
    assert correlation([1.0, 1.0], [0.0, 2.0]) == 0 and correlation([1.0], [1.0]) == 0
    assert correlation([0.0, 1.0, 5.0], [1.0, 3.0, 11.0]) == pytest.approx(1)


def test_wrong_marks_are_where_the_feature_is_silent_and_as_many() -> None:
    one = made(text_of(60, seed=2))
    examples = scoring.of_score(one, "fuzzing", seed=0)
    n_active = sum(example.kind == ACTIVE for example in examples)
    moved = [example for example in examples if example.kind == MOVED]
    assert n_active * 2 == len(examples) and len(moved) == (n_active + 1) // 2
    for example in moved:
        assert all(value == 0 for value, is_marked in zip(example.activations, example.marks, strict=True) if is_marked)
    assert all(any(example.marks) for example in examples)


@pytest.fixture(scope="module")
def local() -> LocalModel:
    return LocalModel(language_model(), "test")


def answers(local: LocalModel, asks: list[Ask]) -> list[Answer]:
    found: dict[int, Answer] = {}
    local.answer(asks, found.__setitem__)
    assert sorted(found) == list(range(len(asks)))
    return [found[number] for number in range(len(asks))]


def shares_after(local: LocalModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return local.model.adapter.model(torch.tensor([ids])).logits[0, -1].softmax(-1)


def prompt_ids(user: str) -> list[int]:
    return tokenizer().with_bos(tokenizer().encode(f"s\n\n{user}\n\nAnswer:"))


def test_choices_in_batches_are_those_of_single_questions(local: LocalModel) -> None:
    random = Random(0)
    asks = [Ask("choice", "s", "x" * random.randrange(1, 9), 1, options=("Yes", "No")) for _ in range(11)]
    for ask, answer in zip(asks, answers(local, asks), strict=True):
        shares = shares_after(local, prompt_ids(ask.user))
        # Each byte is a token, so that a word begins with its letter, behind a space or not.
        expected = [float(shares[tokenizer().encode(letter)[0]]) for letter in "YN"]
        assert answer.numbers == pytest.approx(expected, abs=1e-5) and answer.tokens_in == len(prompt_ids(ask.user))


@pytest.mark.parametrize("begins", ["", "LABEL:"])
def test_texts_are_the_likeliest_ones_and_begin_as_they_should(local: LocalModel, begins: str) -> None:
    (answer,) = answers(local, [Ask("text", "s", "u", 5, begins=begins)])
    ids = prompt_ids("u") + tokenizer().encode(begins)
    start = len(ids)
    for _ in range(answer.tokens_out):
        ids.append(int(shares_after(local, ids).argmax()))
    new = [token for token in ids[start:] if token not in tokenizer().special_ids]
    assert answer.text == begins + tokenizer().decode(new) and answer.tokens_in == start
    assert answer.tokens_out == 5 or "\n" in answer.text


def test_expected_digits_are_read_behind_each_token(local: LocalModel) -> None:
    (answer,) = answers(local, [Ask("digits", "s", "u", 9, tokens=("a", "b"))])
    expected, ids = [], prompt_ids("u")
    for token in ("a", "b"):
        ids += tokenizer().encode(f"{token!r}\t")
        shares = shares_after(local, ids)[[tokenizer().encode(str(digit))[0] for digit in range(10)]]
        expected.append(float((shares / shares.sum()) @ torch.arange(10.0)))
        ids += tokenizer().encode("?\n")
    assert answer.numbers == pytest.approx(expected, abs=1e-4)


def test_what_is_longer_than_the_model_takes_is_cut_in_the_middle_or_told(local: LocalModel) -> None:
    long = [Ask("choice", "s", "x" * 500, 1, options=("Yes", "No")), Ask("text", "s", "x" * 500, 9)]
    assert all(answer.problem is None and answer.tokens_in <= 64 for answer in answers(local, long))
    (told,) = answers(local, [Ask("digits", "s", "u", 9, tokens=("abcdef",) * 20)])
    assert told.numbers is None and "more than the model takes" in told.problem


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}SYSTEM{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "[assistant]"
)


@pytest.mark.parametrize("takes_system", [True, False])
def test_chat_models_are_asked_in_their_template(takes_system: bool) -> None:
    refusing = TEMPLATE.replace("SYSTEM", "{{ raise_exception('no system') }}")
    hf = hf_tokenizer()
    hf.chat_template = TEMPLATE if takes_system else refusing
    model = replace(language_model(), tokenizer=Tokenizer(hf))
    ids = LocalModel(model, "")._prompt(Ask("choice", "s", "u", 1, options=("Yes",)))
    written = Tokenizer(hf).decode(ids[1:])
    assert written == ("SYSTEM[system]s[user]u[assistant]" if takes_system else "[user]s\n\nu[assistant]")


@pytest.mark.real
def test_a_real_small_model_says_a_label_and_answers_by_yes_and_no() -> None:
    path = os.environ.get("CIRCUIT_TEST_MODEL")
    if path is None:
        pytest.skip("set CIRCUIT_TEST_MODEL to the directory of a chat model")
    local = LocalModel(load_model(ModelSettings(name=path)), "real")
    words = ["red", "green", "blue", "yellow"]
    shown = [example("the ", "car ", "is ", word, at=(3,)) for word in words]
    explaining = prompts.explanation(shown, [], max_tokens=30)
    texts = [example("a ", word, " hat") for word in (*words, "and", "seven", "walks", "of")]
    asks = [explaining, *(prompts.one_detection("names of colours", text) for text in texts)]
    said, *judged = answers(local, asks)
    assert label_of(said.text)
    # It judges no better than chance, which scores then say.
    assert all(0.05 < sum(one.numbers) <= 1 + 1e-6 for one in judged)
