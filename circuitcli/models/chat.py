"""Conversations, and how a model's own chat template writes them as one text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuitcli.errors import CircuitError, InputError, ToolError, first_line
from circuitcli.reading import whole_characters


@dataclass(frozen=True)
class Message:
    """What one side said; ``role`` is the template's own word, such as user, assistant or system."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages in order; as long as what they say, for whoever counts characters."""

    messages: tuple[Message, ...]

    @classmethod
    def of_user(cls, text: str) -> "Conversation":
        """A text as what a user says first."""
        return cls((Message("user", text),))

    @classmethod
    def read(cls, value: Any, *, place: str) -> "Conversation":
        """The conversation in a list of objects with ``role`` and ``content``. Raises InputError for anything else."""
        messages = value if isinstance(value, list | tuple) else ()
        if not messages or not all(_is_message(message) for message in messages):
            raise InputError(
                f"{place} has no messages",
                hint='messages are a list such as [{"role": "user", "content": "Hello"}]',
            )
        said = ((whole_characters(message[name]) for name in ("role", "content")) for message in messages)
        return cls(tuple(Message(*texts) for texts in said))

    def __len__(self) -> int:
        return sum(len(message.content) for message in self.messages)


def is_conversation(value: object) -> bool:
    """Whether a list is one of messages rather than of numbers."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_message(message: object) -> bool:
    if not isinstance(message, dict):
        return False
    return all(isinstance(message.get(name), str) for name in ("role", "content"))


def render(hf: Any, conversation: Conversation, *, answers: bool) -> str:
    """The conversation as the template of a tokenizer (a PreTrainedTokenizerBase) writes it.

    answers: whether the assistant's turn is begun behind it. Raises InputError if there is no template, or if the
    template refuses the conversation.
    """
    if not getattr(hf, "chat_template", None):
        raise no_template()
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    try:
        text: str = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=answers)
    except ImportError as error:
        raise ToolError(f"chat templates need a package: {first_line(error)}", hint="pip install jinja2") from None
    except Exception as error:
        raise InputError(
            f"the model's chat template refuses this conversation: {first_line(error)}",
            hint=f"its roles are {_roles(conversation.messages)}; most templates expect user and assistant in turn",
        ) from None
    return text


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(message.role for message in messages[:8])


def no_template() -> CircuitError:
    """What is said where a conversation meets a model that has no chat template."""
    return InputError(
        "this model has no chat template",
        hint="leave out --chat, choose a field of text with --field, or use the chat version of the model",
    )
