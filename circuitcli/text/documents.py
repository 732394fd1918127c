"""The documents that models are run on, of whatever kind their source is: a text, a chat, or the ids of its tokens.

Documents are numbered from 0 in a fixed order, so that a reader can go on at any of them.
"""

import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path

from circuitcli.errors import InputError, SettingsError
from circuitcli.models.chat import Conversation
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.reading import as_path
from circuitcli.text import files as text
from circuitcli.text.data_files import SUFFIXES, is_data
from circuitcli.text.data_sets import PREFIX, DataSet, files_of, is_saved, row_documents, states
from circuitcli.text.token_files import is_shard, shard_documents, token_shards
from circuitcli.text.token_ids import Document


def documents(
    source: str,
    *,
    field: str | None = None,
    vocabulary: Vocabulary | None = None,
    chat: bool = False,
    start: int = 0,
) -> Iterator[Document]:
    """Documents of the source from number ``start`` on.

    A folder with token shards in it is a folder of token shards, one that `datasets` saved is a data set, any other
    one is a folder of texts. field: which field of a record, column of a data set or tensor of a file is the document;
    by default text, else input_ids, tokens or messages. chat: whether a text is what a user says in a conversation.
    Memory stays that of a few documents. Raises InputError for a missing, broken or undecodable source, and for token
    ids if no vocabulary tells what they mean; SettingsError for a field where there is none; ToolError without the
    network or ``datasets``.
    """
    check_field(source, field)
    if chat and _shards(source) is not None:
        raise SettingsError(f"--chat needs text, but {source} holds token ids", hint="leave it out, or give a text")
    stream = _documents(source, field=field, vocabulary=vocabulary, start=start)
    if not chat:
        return stream
    return (Conversation.of_user(each) if isinstance(each, str) else each for each in stream)


def _documents(source: str, *, field: str | None, vocabulary: Vocabulary | None, start: int) -> Iterator[Document]:
    if (wanted := _data_set(source)) is not None:
        return row_documents(wanted, field=field, vocabulary=vocabulary, start=start)
    if (path := _shards(source)) is None:
        return text.documents(source, field=field, vocabulary=vocabulary, start=start)
    if vocabulary is None:
        raise InputError(
            f"{path} holds token ids, but text is needed here", hint="give the text that they were made from"
        )
    return shard_documents(path, field=field, vocabulary=vocabulary, start=start)


def texts(source: str, *, field: str | None = None) -> Iterator[str]:
    """Documents of a source of texts. Raises as `documents` does, and InputError for a source of token ids."""
    for document in documents(source, field=field):
        if not isinstance(document, str):
            raise InputError(f"{source} holds conversations, but text is needed here", hint="choose a text by --field")
        yield document


def source_digest(source: str, *, field: str | None = None) -> str:
    """``sha256:...`` that identifies the documents of a source.

    Covers a file's content; names, sizes and times of a folder's files; the Python version; a hub data set's name. The
    field counts where documents are made of fields.
    """
    name = field or "text"
    if source == text.BUILTIN:
        return _sha256(f"{text.BUILTIN} {platform.python_version()} format {text.FORMAT_VERSION}")
    if (wanted := _data_set(source)) is not None:
        state = () if wanted.folder is None else states(wanted.folder, files_of(wanted.folder))
        return _sha256(f"{source if source.startswith(PREFIX) else PREFIX} {name}", *state)
    path = text.existing(source)
    if path.is_dir():
        return _sha256(name, *states(path, token_shards(path) if _shards(source) else text.text_files(path)))
    try:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise text.unreadable(path, error) from None
    return _sha256(f"{content} {name}") if _has_fields(path) else f"sha256:{content}"


def check_field(source: str, field: str | None) -> None:
    """Raise SettingsError where a field is named and documents are made of none."""
    if field is None or _data_set(source) is not None:
        return
    if source != text.BUILTIN:
        path = text.existing(source)
        files = text.text_files(path) if path.is_dir() else [path]
        if any(map(_has_fields, token_shards(path) if path.is_dir() else ())) or any(map(_has_fields, files)):
            return
    raise SettingsError(
        f"--field {field} does not apply to {source}, which has no fields",
        hint=f"leave it out; fields are in data sets, .safetensors and {', '.join(SUFFIXES)} files",
    )


def _has_fields(path: Path) -> bool:
    return is_data(path) or path.suffix == ".safetensors"


def _data_set(source: str) -> DataSet | None:
    """The data set that a source is, if it is one."""
    if source.startswith(PREFIX):
        return DataSet.parse(source)
    path = as_path(source)
    return DataSet(source) if source and path.is_dir() and is_saved(path) else None


def _shards(source: str) -> Path | None:
    """The file or folder of token shards that a source is, if it is one."""
    path = as_path(source)
    is_shards = bool(token_shards(path)) if path.is_dir() else path.is_file() and is_shard(path)
    return path if source and is_shards else None


def _sha256(*lines: str) -> str:
    return "sha256:" + hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
