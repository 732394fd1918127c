"""A prompt as the model sees it, from a text, a conversation or token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int

from circuitcli.errors import InputError, SettingsError
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.chat import Conversation
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.models.window import window
from circuitcli.reading import is_text
from circuitcli.settings.graph import GraphSettings

# What a prompt can be given as.
Written = str | Sequence[int] | Conversation


@dataclass(frozen=True)
class Prompt:
    """A text as the model sees it; ``first`` is the first position that can carry nodes (1 behind a BOS token)."""

    text: str
    ids: Int[torch.Tensor, "1 position"]
    tokens: tuple[str, ...]
    first: int

    @property
    def last(self) -> int:
        """Index of the last position."""
        return self.ids.shape[1] - 1

    @property
    def n_spliced(self) -> int:
        """Number of positions that carry nodes."""
        return self.ids.shape[1] - self.first

    @property
    def bos(self) -> bool:
        """Whether a BOS token stands in front, of the text's own or put there; there is never more than one."""
        return self.first > 0


def asked_prompt(settings: GraphSettings) -> Written | None:
    """The prompt that the settings name, None for none. Raises SettingsError if they name two."""
    return _asked(settings, "prompt", chat=settings.chat)


def asked_counterfactual(settings: GraphSettings) -> Written | None:
    """The other prompt, likewise."""
    return _asked(settings, "counterfactual", chat=settings.chat)


def _asked(settings: GraphSettings, name: str, *, chat: bool) -> Written | None:
    text, ids = getattr(settings, name), getattr(settings, f"{name}_ids")
    if text is not None and ids is not None:
        raise SettingsError(f"graph.{name} and graph.{name}_ids are both set", hint="leave one of them out")
    if ids is not None and chat:
        raise SettingsError(
            f"graph.chat writes a text, and graph.{name}_ids are token ids", hint="leave --chat out, or give a text"
        )
    if ids is not None:
        return tuple(ids)
    return Conversation.of_user(text) if chat and text is not None else text


def encode_prompt(written: Written, tokenizer: Tokenizer, adapter: ModelAdapter) -> Prompt:
    """The prompt in tokens, with BOS in front where the tokenizer puts one, and never with two.

    A conversation is written by the model's chat template, with the assistant's turn begun. Raises InputError if the
    prompt has no token, more than the model's window, or one that the model does not know.
    """
    ids = _ids(written, tokenizer, n_ids=adapter.n_token_ids)
    full = tokenizer.with_bos(ids)
    first = tokenizer.n_bos(full)
    if first == len(full):
        raise InputError("the prompt is empty", hint="give some text with --prompt")
    longest = window(adapter.model.config)
    if longest is not None and len(full) > longest:
        raise InputError(f"the prompt has {len(full)} tokens, the model's window {longest}", hint="shorten the prompt")
    return Prompt(
        text=_text(written, tokenizer),
        ids=torch.tensor([full], device=adapter.device),
        tokens=tuple(tokenizer.token_strings(full)),
        first=first,
    )


def _ids(written: Written, tokenizer: Tokenizer, *, n_ids: int) -> Sequence[int]:
    if isinstance(written, Conversation):
        return tokenizer.encode(tokenizer.render(written, answers=True))
    if isinstance(written, str):
        if not is_text(written):
            raise InputError("the prompt is no text: it holds bytes that are no UTF-8", hint="give UTF-8 text")
        return tokenizer.encode(written)
    wrong = [number for number in written if not 0 <= number < n_ids]
    if wrong:
        raise InputError(
            f"the prompt has token id {wrong[0]}, and this model knows 0 to {n_ids - 1}",
            hint="give ids of this model's own tokenizer",
        )
    return [*written]


def _text(written: Written, tokenizer: Tokenizer) -> str:
    """What people are shown as the prompt: of a conversation what was said last."""
    if isinstance(written, str):
        return written
    return written.messages[-1].content if isinstance(written, Conversation) else tokenizer.decode([*written])
