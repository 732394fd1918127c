"""Prompts as people give them, before any tokenizer has seen them: text or ids, target, foil, counterfactual, spans.

Needs no torch, so that a command can look at all of its prompts before it loads a model.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from circuitcli.errors import CircuitError, InputError
from circuitcli.models.chat import Conversation, Message
from circuitcli.runs import digest

logger = logging.getLogger(__name__)

# What a prompt can be given as.
Written = str | Sequence[int] | Conversation
# Characters FROM to TO of a prompt, TO not among them.
Range = tuple[int, int]

SKIP_HINT = "--skip-bad leaves such prompts out"


class BadPrompt(InputError):
    """One prompt of several cannot be used; ``reason`` says in a few words of which kind it is, to be counted by.

    is_of_all: what is wrong with it says that all of the file are about something else, so it is never left out.
    """

    def __init__(self, message: str, *, reason: str, hint: str = "", is_of_all: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.reason, self.is_of_all = reason, is_of_all


@dataclass(frozen=True)
class Example:
    """One prompt: a text, or ids or messages, of which ``prompt`` is then what people are shown.

    target, foil: a token as text or as id; by default the model's most likely one, and none. counterfactual: the other
    prompt. spans: names of ranges of characters of the prompt, (first, last + 1). place: where it was read.
    """

    prompt: str
    target: str | int | None = None
    foil: str | int | None = None
    ids: tuple[int, ...] | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    counterfactual: Written | None = None
    spans: tuple[tuple[str, Range], ...] = ()
    place: str = field(default="", compare=False)

    @property
    def written(self) -> Written:
        """What is encoded."""
        if self.ids is not None:
            return self.ids
        if self.messages is not None:
            return Conversation(tuple(Message(role, content) for role, content in self.messages))
        return self.prompt

    def with_chat(self, chat: bool) -> "Example":
        """The same, texts as what a user says if ``chat``."""
        if not chat or self.ids is not None or self.messages is not None:
            return self
        other = self.counterfactual
        said = Conversation.of_user(other) if isinstance(other, str) else other
        return replace(self, messages=(("user", self.prompt),), counterfactual=said)

    def facts(self) -> dict[str, Any]:
        """All that counts, by name: what is given, without the place where it was read."""
        return {name: value for name, value in asdict(self).items() if name != "place" and value not in (None, ())}


def as_line(example: Example) -> dict[str, Any]:
    """The fields of a line of a file of prompts, from which the same prompt is read again."""
    if example.ids is not None:
        told: dict[str, Any] = {"ids": list(example.ids)}
    elif example.messages is not None:
        told = {"messages": [{"role": role, "content": content} for role, content in example.messages]}
    else:
        told = {"prompt": example.prompt}
    told |= {"target": example.target, "foil": example.foil, "counterfactual": _plain(example.counterfactual)}
    told["spans"] = {name: list(span) for name, span in example.spans} or None
    return {name: value for name, value in told.items() if value is not None}


def _plain(written: Written | None) -> Any:
    if isinstance(written, Conversation):
        return [{"role": message.role, "content": message.content} for message in written.messages]
    return written if written is None or isinstance(written, str) else list(written)


def digest_of(examples: Sequence[Example]) -> str:
    """A digest of what is asked, whatever the files are called."""
    return digest([example.facts() for example in examples])


@contextmanager
def placed(place: str, reason: str) -> Iterator[None]:
    """Around work on one prompt: an InputError becomes a BadPrompt that names the place, if there is one.

    ``reason`` is that of errors that do not tell their own.
    """
    try:
        yield
    except InputError as error:
        bad = error if isinstance(error, BadPrompt) else BadPrompt(error.message, reason=reason, hint=error.hint)
        message = f"{place}: {bad.message}" if place else bad.message
        raise BadPrompt(message, reason=bad.reason, hint=bad.hint, is_of_all=bad.is_of_all) from None


class LeftOut:
    """What becomes of bad prompts: the first one is raised, or, if ``allowed``, all are counted by reason.

    hint: how to leave them out, for who did not ask for it.
    """

    def __init__(self, *, allowed: bool = False, hint: str = SKIP_HINT) -> None:
        self.allowed, self.hint = allowed, hint
        self.reasons: Counter[str] = Counter()
        self.first: CircuitError | None = None

    @property
    def n(self) -> int:
        """How many were left out."""
        return self.reasons.total()

    @contextmanager
    def each(self, reason: str = "", *, is_only: bool = False) -> Iterator[None]:
        """Around what is done with one prompt. ``reason`` is that of errors that do not tell their own.

        is_only: there is no other, so leaving it out would leave nothing, and is not proposed.
        Raises the prompt's error unless such prompts are left out.
        """
        try:
            yield
        except InputError as error:
            if isinstance(error, BadPrompt) and error.is_of_all:
                raise
            if not self.allowed:
                error.hint = "; ".join(filter(None, (error.hint, "" if is_only else self.hint)))
                raise
            self.first = self.first or error
            self.reasons[error.reason if isinstance(error, BadPrompt) else reason] += 1

    def check(self, n_used: int, *, source: str) -> None:
        """Raise InputError if prompts were left out and no other is there."""
        if self.first is not None and not n_used:
            raise InputError(
                f"{source} has no prompt that can be used: {self._counts}; the first: {self.first.message}",
                hint=self.first.hint or "look at what the file holds",
            )

    def warn(self, n_used: int) -> None:
        """Say how many were left out, and why."""
        if self.first is not None:
            logger.warning(
                "left out %d of %d prompts: %s; the first: %s",
                *(self.n, self.n + n_used, self._counts, self.first.message),
            )

    @property
    def _counts(self) -> str:
        return ", ".join(f"{count} with {reason}" for reason, count in self.reasons.most_common())
