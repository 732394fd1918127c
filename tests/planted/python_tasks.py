"""Choices between two tokens in Python source, each with the text that differs in what decides: in the spirit of the
twenty tasks of Gao et al. 2025 (arXiv:2511.13653), for the built-in model and its tokenizer.

    python -m tests.planted.python_tasks quote-kind 64 > quote-kind.jsonl
    circuit graph-grad --prompts quote-kind.jsonl --metric logit-diff --baseline counterfactual
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from circuitcli.attribution.examples import Example, as_line
from circuitcli.models.tokenizer import Tokenizer

# Words that are one token, with and without a space before them.
WORDS = (
    *("name", "value", "path", "key", "data", "text", "line", "code", "node"),
    *("item", "result", "message", "size", "type", "file", "mode", "state", "index"),
)
TRIES = 40


@dataclass(frozen=True)
class Choice:
    """Two texts that differ in what decides, and the token that comes next in each; ``rest`` is what may follow these,
    which tells the tokenizer how white space is split."""

    text: str
    answer: str
    other: str
    other_answer: str
    rest: str = ""

    def turned(self) -> "Choice":
        """The same with the other text first."""
        return Choice(self.other, self.other_answer, self.text, self.answer, self.rest)


@dataclass(frozen=True)
class Task:
    """A kind of choice: ``draw`` makes one of three different words."""

    name: str
    draw: Callable[[str, str, str], Choice]

    def examples(self, tokenizer: Tokenizer, n: int, *, seed: int = 0) -> list[Example]:
        """So many different prompts, half of them turned around, with counterfactuals of as many tokens.

        Raises ValueError if too few of those that are drawn are one token longer with either answer.
        """
        random, found = Random(f"{self.name} {seed}"), {}
        for _ in range(TRIES * n):
            choice = self.draw(*random.sample(WORDS, 3))
            if len(found) % 2:
                choice = choice.turned()
            example = encoded(choice, tokenizer)
            if example is not None:
                found.setdefault(example.ids, example)
            if len(found) == n:
                return list(found.values())
        raise ValueError(f"only {len(found)} prompts of {self.name} are aligned")


def encoded(choice: Choice, tokenizer: Tokenizer) -> Example | None:
    """The prompt in tokens, target and foil single tokens; None where the two texts do not correspond."""
    ways = [
        _split(text, answer, choice.rest, tokenizer)
        for text in (choice.text, choice.other)
        for answer in (choice.answer, choice.other_answer)
    ]
    if any(way is None for way in ways):
        return None
    (ids, target), (same, foil), (other, _), (same_other, _) = (way for way in ways if way is not None)
    if ids != same or other != same_other or len(ids) != len(other) or target == foil:
        return None
    return Example(choice.text, target, foil, ids=ids, counterfactual=other)


def _split(text: str, answer: str, rest: str, tokenizer: Tokenizer) -> tuple[tuple[int, ...], int] | None:
    """The tokens of the text, and that of its answer behind it."""
    ids = tokenizer.encode(text + answer + rest)
    for place in range(1, len(ids)):
        if tokenizer.decode(ids[:place]) == text:
            return (tuple(ids[:place]), ids[place]) if tokenizer.decode([ids[place]]) == answer else None
    return None


def _indentation(a: str, b: str, c: str) -> Choice:
    start = f"    {a} = {b}\n    "
    return Choice(f"{start}if {c}:", "\n       ", f"{start}{b} = {c}", "\n   ", " pass")


def _except(a: str, b: str, c: str) -> Choice:
    body = f":\n        {a} = {b}\n   "
    return Choice(f"    {c} = {b}\n    try{body}", " except", f"    {c} = {b}\n    else{body}", " return")


TASKS = tuple(
    Task(name, draw)
    for name, draw in {
        "quote-kind": lambda a, b, c: Choice(f'    {a} = get("{b}', '")', f"    {a} = get('{b}", "')"),
        "docstring-quotes": lambda a, b, c: Choice(
            f'    """Return the {a} of a {b}.\n   ', ' """', f"    '''Return the {a} of a {b}.\n   ", " '''"
        ),
        "bracket-kind": lambda a, b, c: Choice(f"    {a} = [{b}, {c}", "]", f"    {a} = ({b}, {c}", ")"),
        "bracket-depth": lambda a, b, c: Choice(f"    {a} = str(int({c}", "))", f"    {a} = str, int({c}", ")"),
        "dict-or-list": lambda a, b, c: Choice(f"    {a} = {{1: {b}, 2: {c}", "}", f"    {a} = [1, {b}, 2, {c}", "]"),
        "key-or-item": lambda a, b, c: Choice(f"    {a} = {{ '{b}", "':", f"    {a} = [ '{b}", "',"),
        "definition-or-call": lambda a, b, c: Choice(f"def {a}({b}, {c}", "):", f"del {a}({b}, {c}", ")"),
        "self-attribute": lambda a, b, c: Choice(
            f"class {c}:\n    def __init__(self, {a}):\n        self.{a} =",
            f" {a}",
            f"class {c}:\n    def __init__(self, {b}):\n        self.{b} =",
            f" {b}",
        ),
        "in-or-is": lambda a, b, c: Choice(f"    {b} = {c}\n    for {a}", " in", f"    {b} = {c}\n    if {a}", " is"),
        "loop-variable": lambda a, b, c: Choice(
            f"    for {a} in {c}:\n        if", f" {a}", f"    for {b} in {c}:\n        if", f" {b}"
        ),
        "imported-name": lambda a, b, c: Choice(
            f"from {c} import {a}\n\n{c} =", f" {a}", f"from {c} import {b}\n\n{c} =", f" {b}"
        ),
        "from-import": lambda a, b, c: Choice(f"import {b}\nfrom {a}", " import", f"import {b}\nimport {a}", "\n", "x"),
        "keyword-argument": lambda a, b, c: Choice(f"    {b}({a}, encoding", "=", f"    {b}.{a}\n    encoding", " ="),
        "compare-or-assign": lambda a, b, c: Choice(
            f"    {b} = {c}\n    if {a}", " ==", f"    {b} = {c}\n    del {a}", " ="
        ),
        "true-or-false": lambda a, b, c: Choice(
            f"    {a} = {b}\n    while", " True", f"    {a} = {b}\n    return", " False"
        ),
        "raise-or-return": lambda a, b, c: Choice(
            f"    if {a} is {b}:\n        raise", " ValueError", f"    if {a} is {b}:\n        return", " None"
        ),
        "method-or-body": lambda a, b, c: Choice(f"class {a}({b}):\n   ", " def", f"def {a}({b}):\n   ", " return"),
        "except-or-return": _except,
        "comment-goes-on": lambda a, b, c: Choice(
            f"    # If {a} and {b} {c}\n   ", " #", f"    {a} = {a} and {b} {c}\n   ", " return"
        ),
        "indentation": _indentation,
    }.items()
)


def lines(task: Task, tokenizer: Tokenizer, n: int, *, seed: int = 0) -> Iterator[str]:
    """The prompts as lines that ``--prompts`` takes."""
    return (json.dumps(as_line(example)) for example in task.examples(tokenizer, n, seed=seed))


if __name__ == "__main__":
    from circuitcli.models.loading import load_tokenizer
    from circuitcli.settings.model import ModelSettings

    wanted = next(task for task in TASKS if task.name == sys.argv[1])
    print("\n".join(lines(wanted, load_tokenizer(ModelSettings(name="builtin:tiny")), int(sys.argv[2]))))
