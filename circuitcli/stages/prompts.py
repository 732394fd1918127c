"""The prompts that a circuit is tested on: that of its graph, those of a file, or the one in the settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuitcli.errors import CircuitError, InputError
from circuitcli.graphs import CircuitGraph
from circuitcli.reading import as_path, json_lines
from circuitcli.settings.graph import GraphSettings

if TYPE_CHECKING:
    from circuitcli.attribution.prompts import Written

HINT = (
    'each line is an object such as {"prompt": "The capital of France is", "target": " Paris"}, '
    'with "ids": [12, 7] or "messages" in place of "prompt" if that is how prompts come'
)
_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Example:
    """One prompt to test on: a text, or ids or messages, of which ``prompt`` is then what people are shown."""

    prompt: str
    target: str | int | None = None
    foil: str | None = None
    ids: tuple[int, ...] | None = None
    messages: tuple[tuple[str, str], ...] | None = None

    @property
    def written(self) -> "Written":
        """What is encoded."""
        from circuitcli.models.chat import Conversation, Message

        if self.ids is not None:
            return self.ids
        if self.messages is not None:
            return Conversation(tuple(Message(role, content) for role, content in self.messages))
        return self.prompt

    def with_chat(self, chat: bool) -> "Example":
        """The same, a text as a user's message if ``chat``."""
        if not chat or self.ids is not None or self.messages is not None:
            return self
        return Example(self.prompt, self.target, self.foil, messages=(("user", self.prompt),))


def graph_example(graph: CircuitGraph) -> Example:
    """The prompt of a graph, token by token as the graph saw it if its head tells."""
    head = graph.head
    target = head.target if head.target_id is None else head.target_id
    return Example(head.prompt, target, head.foil, ids=head.ids or None)


def asked_example(settings: GraphSettings) -> Example | None:
    """The prompt in the settings, None for none."""
    if settings.prompt is None and settings.prompt_ids is None:
        return None
    shown = settings.prompt if settings.prompt is not None else " ".join(map(str, settings.prompt_ids or ()))
    return Example(shown, settings.target, settings.foil, ids=settings.prompt_ids).with_chat(settings.chat)


def read_prompts(name: str, *, chat: bool = False) -> tuple[Example, ...]:
    """The prompts of a JSONL file; with ``chat`` texts are what a user says.

    Raises InputError, naming the line, for what is none.
    """
    path = as_path(name, hint=HINT)
    examples = tuple(_examples(path, chat=chat))
    if not examples:
        raise InputError(f"{path} holds no prompt", hint=HINT)
    return examples


def _examples(path: Any, *, chat: bool) -> Iterator[Example]:
    for place, content in json_lines(path, finite=False, hint=HINT):
        yield _example(content, place).with_chat(chat)


def _example(content: dict[str, Any], place: str) -> Example:
    given = [name for name in ("prompt", "ids", "messages") if content.get(name) is not None]
    target, foil = content.get("target"), content.get("foil")
    if len(given) != 1 or not _is_token(target) or not (foil is None or isinstance(foil, str)):
        raise _no_prompt(place)
    if given == ["ids"]:
        ids = _token_ids(content["ids"], place=place)
        return Example(" ".join(map(str, ids)), target, foil, ids=ids)
    if given == ["messages"]:
        from circuitcli.models.chat import Conversation

        said = tuple(
            (message.role, message.content) for message in Conversation.read(content["messages"], place=place).messages
        )
        return Example(said[-1][1], target, foil, messages=said)
    if not isinstance(content["prompt"], str):
        raise _no_prompt(place)
    return Example(content["prompt"], target, foil)


def _is_token(value: object) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def _token_ids(value: Any, *, place: str) -> tuple[int, ...]:
    """A list of token ids. Raises InputError for anything else."""
    items = value if isinstance(value, list | tuple) else (None,)
    if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= _LARGEST_ID for item in items):
        raise InputError(f"{place} has no list of token ids", hint=HINT)
    return tuple(items)


def _no_prompt(place: str) -> CircuitError:
    return InputError(f"{place} is no prompt", hint=HINT)
