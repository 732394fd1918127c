"""Which field of a record, a JSON line or a row of a data set, is its document."""

from typing import Any

from circuitcli.errors import InputError
from circuitcli.models.chat import Conversation, is_conversation
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.reading import whole_characters
from circuitcli.text.token_ids import Document, document_ids, listed_ids

# What is looked for, in this order, if no field is named.
NAMES = ("text", "input_ids", "tokens", "messages")


def document_of(record: object, place: str, *, field: str | None, vocabulary: Vocabulary | None) -> Document:
    """The text, the token ids or the messages of a record; a record may be a text itself.

    Raises InputError, naming the place, if the field is none, or holds ids and there is no vocabulary for them.
    """
    if isinstance(record, str) and field is None:
        return whole_characters(record)
    if not isinstance(record, dict):
        raise InputError(f"{place} is not a JSON object", hint=f'write {{"{field or NAMES[0]}": "..."}} on each line')
    name = field or next((name for name in NAMES if record.get(name) is not None), NAMES[0])
    value = record.get(name)
    if isinstance(value, str):
        return whole_characters(value)
    if not isinstance(value, list):
        raise _no_document(record, place, field)
    if is_conversation(value):
        return Conversation.read(value, place=f"field '{name}' of {place}")
    ids = listed_ids(value, place=f"field '{name}' of {place}")
    if vocabulary is None:
        raise InputError(f"{place} has token ids, but text is needed here", hint=_hint(record))
    return document_ids(ids, vocabulary, place=place)


def _no_document(record: dict[Any, Any], place: str, field: str | None) -> InputError:
    wanted = f"'{field}'" if field else " or ".join(f"'{name}'" for name in NAMES)
    return InputError(f"{place} has no text in field {wanted}", hint=_hint(record))


def _hint(record: dict[Any, Any]) -> str:
    names = [f"'{name}'" for name, value in record.items() if isinstance(value, str)]
    return f"fields with text: {', '.join(names) or 'none'}; choose with --field NAME"
