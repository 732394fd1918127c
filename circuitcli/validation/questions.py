"""Files of multiple-choice questions, and the prompts that they make; torch-free.

Known are, as JSON lines, one JSON array, or a table with a header (CSV, TSV):

* ``question``, ``choices`` (a list) and ``answer`` (its number from 0, its letter, or its text), as of MMLU;
* ``question`` and ``mc1_targets`` with ``choices`` and ``labels`` (of which one is 1), as of TruthfulQA on the hub
  (Lin et al. 2022, arXiv:2109.07958);
* ``Question``, ``Best Answer`` and ``Incorrect Answers`` with ``;`` between them: TruthfulQA's own table.
"""

import csv
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitcli.errors import InputError
from circuitcli.reading import as_path, parse_json, parse_object, read_text

HINT = 'each line is an object such as {"question": "2 + 2 = ?", "choices": ["3", "4"], "answer": 1}'
FILE_BYTES = 64 * 2**20
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A question, at least two different choices, and which of them is right."""

    text: str
    choices: tuple[str, ...]
    answer: int

    def shuffled(self, numbers: random.Random) -> "Question":
        """The same with its choices in another order: in TruthfulQA's files the right one always comes first."""
        order = numbers.sample(range(len(self.choices)), len(self.choices))
        return Question(self.text, tuple(self.choices[old] for old in order), order.index(self.answer))

    @property
    def numbered(self) -> str:
        """The question, its choices with numbers, and where the number of the right one goes."""
        lines = [f"({number}) {choice}\n" for number, choice in enumerate(self.choices, 1)]
        return f"Q: {self.text}\n{''.join(lines)}A: ("

    @property
    def open(self) -> str:
        """The question, and where the text of the answer goes."""
        return f"Q: {self.text}\nA:"


def read_questions(name: str) -> tuple[Question, ...]:
    """The questions of a file, in its order.

    Raises InputError, naming the line, for a file that cannot be read, has no question or one without a right answer.
    """
    path = as_path(name, hint=HINT)
    text = read_text(path, limit_bytes=FILE_BYTES, hint=HINT)
    questions = tuple(_question(content, place) for content, place in _contents(text, str(path)))
    if not questions:
        raise InputError(f"{path} has no question", hint=HINT)
    return questions


def _contents(text: str, path: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    begin = text.lstrip()[:1]
    if begin == "[":
        for number, item in enumerate(parse_json(text, name=path, hint=HINT), 1):
            yield _object(item, f"{path} entry {number}"), f"{path} entry {number}"
    elif begin == "{":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield parse_object(line, name=f"{path} line {number}", hint=HINT), f"{path} line {number}"
    elif begin:
        first = text.lstrip("\r\n").partition("\n")[0]
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in first else ",")
        try:
            yield from ((row, f"{path} line {rows.line_num}") for row in rows)
        except csv.Error as error:
            raise InputError(f"{path} line {rows.line_num} is not a row of a table: {error}", hint=HINT) from None


def _object(item: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise InputError(f"{place} is not an object", hint=HINT)
    return item


def _question(content: Mapping[str, Any], place: str) -> Question:
    if "mc1_targets" in content:
        targets = _object(content["mc1_targets"], place)
        labels = targets.get("labels")
        right = [number for number, label in enumerate(labels) if label == 1] if isinstance(labels, list) else []
        return _checked(content.get("question"), targets.get("choices"), right[0] if len(right) == 1 else None, place)
    if "Best Answer" in content:
        wrong = [one.strip() for one in str(content.get("Incorrect Answers") or "").split(";") if one.strip()]
        return _checked(content.get("Question"), [content["Best Answer"], *wrong], 0, place)
    return _checked(content.get("question"), content.get("choices"), content.get("answer"), place)


def _checked(text: Any, choices: Any, answer: Any, place: str) -> Question:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place} has no question", hint=HINT)
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise InputError(f"{place} has no list of choices", hint=HINT)
    if len(choices) < 2 or len({*choices}) < len(choices):
        raise InputError(f"{place} has fewer than two choices, or one twice", hint=HINT)
    number = _number(answer, choices)
    if number is None:
        raise InputError(f"{place} does not say which of its {len(choices)} choices is right", hint=HINT)
    return Question(text.strip(), tuple(choice.strip() for choice in choices), number)


def _number(answer: Any, choices: Sequence[str]) -> int | None:
    """Which choice an answer names, from 0; None if none."""
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        letter = answer.strip().upper()
        number = _LETTERS.find(letter) if len(letter) == 1 else -1
    else:
        number = answer if isinstance(answer, int) and not isinstance(answer, bool) else -1
    return number if 0 <= number < len(choices) else None


def examples_of(questions: Sequence[Question], number: int, *, shots: int, seed: int) -> list[Question]:
    """Other questions that stand, with their answers, before one: drawn by the seed and its number."""
    others = [*questions[:number], *questions[number + 1 :]]
    return random.Random(f"{seed}/{number}").sample(others, min(shots, len(others)))
