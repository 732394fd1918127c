"""The documents that models are run on, of whatever kind their source is: a text each, or the ids of its tokens.

Documents are numbered from 0 in a fixed order, so that a reader can go on at any of them.
"""

import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path

from circuitcli.activations import text
from circuitcli.activations.data_sets import PREFIX, DataSet, files_of, is_saved, row_documents, states
from circuitcli.activations.token_files import is_shard, shard_documents, token_shards
from circuitcli.activations.token_ids import Document
from circuitcli.errors import InputError
from circuitcli.models.tokenizer import Vocabulary

# Files whose documents are made of fields.
_WITH_FIELDS = (".jsonl", ".safetensors")


def documents(
    source: str, *, field: str | None = None, vocabulary: Vocabulary | None = None, start: int = 0
) -> Iterator[Document]:
    """Documents of the source from number ``start`` on.

    A folder with token shards in it is a folder of token shards, one that `datasets` saved is a data set, any other
    one is a folder of texts. field: which field of a JSON line, column of a data set or tensor of a file is the
    document; by default text, else input_ids, else tokens. Memory stays that of a few documents.
    Raises InputError for a missing, broken or undecodable source, and for token ids if no vocabulary tells what they
    mean; ToolError without the network or ``datasets``.
    """
    if (wanted := _data_set(source)) is not None:
        return row_documents(wanted, field=field, vocabulary=vocabulary, start=start)
    if (path := _shards(source)) is None:
        return text.documents(source, field=field, vocabulary=vocabulary, start=start)
    if vocabulary is None:
        raise InputError(
            f"{path} holds token ids, and text is needed here", hint="give the text that they were made of"
        )
    return shard_documents(path, field=field, vocabulary=vocabulary, start=start)


def texts(source: str, *, field: str | None = None) -> Iterator[str]:
    """Documents of a source of texts. Raises as `documents` does, and InputError for a source of token ids."""
    for document in documents(source, field=field):
        assert isinstance(document, str), "there is no vocabulary, so no ids come"
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
    return _sha256(f"{content} {name}") if path.suffix in _WITH_FIELDS else f"sha256:{content}"


def _data_set(source: str) -> DataSet | None:
    """The data set that a source is, if it is one."""
    if source.startswith(PREFIX):
        return DataSet.parse(source)
    path = Path(source).expanduser()
    return DataSet(source) if source and path.is_dir() and is_saved(path) else None


def _shards(source: str) -> Path | None:
    """The file or folder of token shards that a source is, if it is one."""
    path = Path(source).expanduser()
    is_shards = bool(token_shards(path)) if path.is_dir() else path.is_file() and is_shard(path)
    return path if source and is_shards else None


def _sha256(*lines: str) -> str:
    return "sha256:" + hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
