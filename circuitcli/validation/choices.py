"""Multiple-choice questions, answered by a model as it is and with some of its features ablated or amplified.

Each choice has a score, and the choice with the largest is the answer. By ``text`` the score is the log-probability of
the choice's text behind the question, the sum over its tokens (as MC1 of TruthfulQA, Lin et al. 2022,
arXiv:2109.07958); by ``number`` that of its number behind the numbered choices, whose order is drawn. Features are
scaled as `Steering` does, at every position.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution.metrics import log_softmax
from circuitcli.errors import InputError
from circuitcli.models.taps import tapped
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.models.window import window
from circuitcli.progress import task
from circuitcli.validation.questions import Question, examples_of
from circuitcli.validation.steering import Steering

# Logits that are in memory at once.
_AT_ONCE = 2**25
# Digits that are single tokens in every tokenizer that is known.
MOST_NUMBERED = 9


@dataclass(frozen=True)
class Asked:
    """A question as texts in token ids, one for each choice: from ``start`` on a text is the choice itself."""

    question: Question
    ids: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """What was answered to each question: whether rightly, and the probability of the right choice among all.

    scores: of every choice of every question, one after the other.
    """

    chosen: Int[Tensor, " question"]
    is_right: Float[Tensor, " question"]
    probability: Float[Tensor, " question"]
    scores: Float[Tensor, " choice"]


def ask(questions: Sequence[Question], tokenizer: Tokenizer, *, by: str, shots: int, seed: int) -> list[Asked]:
    """Questions as texts. ``shots``: others with their answers before each; ``seed`` draws these and the order of
    numbered choices.

    Raises InputError for a question with too many choices to be numbered, and for a tokenizer in which what stands
    before a choice is not the beginning of the whole.
    """
    ordered = questions
    if by == "number":
        ordered = [question.shuffled(random.Random(f"{seed}:{n}")) for n, question in enumerate(questions)]
        if wide := next((one for one in ordered if len(one.choices) > MOST_NUMBERED), None):
            raise InputError(
                f"'{wide.text}' has {len(wide.choices)} choices, and a number must be one digit",
                hint="set validate.choices_by=text, or give fewer choices",
            )
    return [
        _asked(question, _before(ordered, number, by=by, shots=shots, seed=seed), tokenizer, by=by)
        for number, question in enumerate(ordered)
    ]


def _before(questions: Sequence[Question], number: int, *, by: str, shots: int, seed: int) -> str:
    shown = examples_of(questions, number, shots=shots, seed=seed)
    if by == "number":
        return "".join(f"{one.numbered}{one.answer + 1})\n\n" for one in shown)
    return "".join(f"{one.open} {one.choices[one.answer]}\n\n" for one in shown)


def _asked(question: Question, before: str, tokenizer: Tokenizer, *, by: str) -> Asked:
    if by == "number":
        prompt = before + question.numbered
        texts = [f"{prompt}{number}" for number in range(1, len(question.choices) + 1)]
    else:
        prompt = before + question.open
        texts = [f"{prompt} {choice}" for choice in question.choices]
    ids = [tuple(tokenizer.with_bos(tokenizer.encode(text))) for text in texts]
    head = tuple(tokenizer.with_bos(tokenizer.encode(prompt)))
    starts = tuple(_common(head, one) for one in ids)
    return Asked(question, tuple(ids), starts)


def _common(head: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens two texts begin with alike, but at least one less than all of the second: a tokenizer may join
    the prompt's last characters with the choice's first, which then count with the choice."""
    n = 0
    while n < min(len(head), len(whole) - 1) and head[n] == whole[n]:
        n += 1
    return n


def answers(asked: Sequence[Asked], steering: Steering, *, clean: bool, batch_size: int) -> Answers:
    """What the model answers, as it is or with features scaled."""
    rows = [(ids, start) for one in asked for ids, start in zip(one.ids, one.starts, strict=True)]
    found = torch.tensor(_log_probs(rows, steering, clean=clean, batch_size=batch_size), dtype=torch.float64)
    chosen, right, probability = [], [], []
    for one, scores in zip(asked, found.split([len(one.ids) for one in asked]), strict=True):
        best = int(scores.argmax())
        chosen.append(best)
        right.append(float(best == one.question.answer))
        probability.append(float(scores.softmax(dim=0)[one.question.answer]))
    return Answers(
        chosen=torch.tensor(chosen),
        is_right=torch.tensor(right, dtype=torch.float64),
        probability=torch.tensor(probability, dtype=torch.float64),
        scores=found,
    )


def _log_probs(
    rows: Sequence[tuple[tuple[int, ...], int]], steering: Steering, *, clean: bool, batch_size: int
) -> list[float]:
    """The sum of the log-probabilities of each row's tokens from its start on; texts of one length run together."""
    found = [0.0] * len(rows)
    title = "questions as they are" if clean else "questions with features scaled"
    with task(title, total=len(rows), unit="choices") as advance:
        for numbers in _batches([ids for ids, _ in rows], batch_size, steering.adapter.model.config.vocab_size):
            ids = torch.tensor([rows[number][0] for number in numbers], device=steering.adapter.device)
            with torch.no_grad(), tapped(steering.adapter, {} if clean else steering.taps(steering.first)):
                logits = steering.adapter.logits(ids)[:, :-1]
            told = log_softmax(logits).gather(2, ids[:, 1:, None])[..., 0].double().cpu()  # (row, position)
            for number, of_row in zip(numbers, told, strict=True):
                found[number] = float(of_row[rows[number][1] - 1 :].sum())
            advance(len(numbers))
    return found


def _batches(texts: Sequence[Sequence[int]], batch_size: int, vocab_size: int) -> Iterator[list[int]]:
    """Numbers of texts of one length, few enough that their logits fit."""
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(texts):
        by_length.setdefault(len(ids), []).append(number)
    for length, numbers in sorted(by_length.items()):
        size = max(1, min(batch_size, _AT_ONCE // (length * vocab_size)))
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def check_lengths(asked: Iterable[Asked], steering: Steering) -> None:
    """Raise InputError for a text that is longer than the model's window, or begins with a choice."""
    longest = window(steering.adapter.model.config)
    for one in asked:
        if longest is not None and max(map(len, one.ids)) > longest:
            raise InputError(
                f"'{one.question.text}' has {max(map(len, one.ids))} tokens, and the model's window {longest}",
                hint="set validate.shots lower, or leave the question out",
            )
