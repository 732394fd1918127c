"""The text that a model learns from, split, as two streams of tokens."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int32
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from circuitcli.errors import InputError
from circuitcli.pretraining import vocabularies
from circuitcli.pretraining.characters import CharacterTable
from circuitcli.pretraining.tokenizer_files import ASCII, OF_CHARACTERS
from circuitcli.reading import as_path
from circuitcli.settings.data import BUILTIN_TEXT
from circuitcli.settings.pretrain import PretrainSettings
from circuitcli.settings.settings import Settings
from circuitcli.text.data_files import is_data
from circuitcli.text.documents import documents
from circuitcli.text.token_files import is_shard

# A text, or the ids of its tokens.
Part = str | npt.NDArray[np.generic]
# What is in front of a held-out tail is a whole number of these.
_TAIL_UNIT = 256


@dataclass(frozen=True)
class Split:
    """The documents of a run, those to learn from and those that are held out."""

    training: list[Part]
    validation: list[Part]

    def texts(self, *, held_out: bool) -> Iterator[str]:
        """What there is to make a tokenizer from, with the held-out text or without."""
        parts = (*self.training, *self.validation) if held_out else self.training
        return (part for part in parts if isinstance(part, str))

    @property
    def is_text(self) -> bool:
        """Whether there are texts, and not ids."""
        return all(isinstance(part, str) for part in (*self.training, *self.validation))


@dataclass(frozen=True)
class Corpus:
    """Two streams of token ids, (token,), in which every document follows a separator: the end-of-text token if the
    tokenizer has one, else a line break. ``n_validation_bytes``: of the held-out text in UTF-8, None of token ids."""

    training: Int32[Tensor, " token"]
    validation: Int32[Tensor, " held_out_token"]
    n_ids: int
    end_of_text: int | None
    n_validation_bytes: int | None


def text_source(settings: Settings) -> str:
    """The text that is named, or the standard library."""
    return settings.data.text or BUILTIN_TEXT


def split_text(settings: Settings, tokenizer: PreTrainedTokenizerFast | None = None) -> Split:
    """The text of the settings, split. tokenizer: that which tells what token ids mean, None for one that is not yet.

    Raises InputError if there is too little text, SettingsError or ToolError where the text cannot be had.
    """
    pretrain, source = settings.pretrain, text_source(settings)
    vocabulary = None if tokenizer is None else vocabularies.vocabulary_of(tokenizer)
    stream = documents(source, field=settings.data.field, vocabulary=vocabulary)
    parts = [*_parts(stream, source=source, most=pretrain.most_characters)]
    return _tail(parts, pretrain, source=source) if _has_tail(source, pretrain) else _each_nth(parts, pretrain, source)


def _parts(stream: Iterable[object], *, source: str, most: int | None) -> Iterator[Part]:
    left, is_plain = math.inf if most is None else most, _is_plain(source)
    for document in stream:
        if not isinstance(document, str | np.ndarray):
            raise InputError(f"{source} holds conversations, but text is needed here", hint="choose a text by --field")
        # A blank piece of one file of text is a part of it, but no document.
        if not len(document) or (isinstance(document, str) and not is_plain and not document.strip()):
            continue
        part = document if len(document) <= left else document[: int(left)]
        yield part
        left -= len(part)
        if left <= 0:
            return


def _is_plain(source: str) -> bool:
    """Whether a source is a single file of text, whose pieces follow each other."""
    path = as_path(source)
    return path.is_file() and not is_data(path) and not is_shard(path)


def _has_tail(source: str, settings: PretrainSettings) -> bool:
    return settings.hold_out == "tail" or (settings.hold_out == "auto" and _is_plain(source))


def _tail(parts: list[Part], settings: PretrainSettings, *, source: str) -> Split:
    """All of the text in one piece, cut once. Documents of other sources are separated first, as they are below."""
    total = sum(map(len, parts))
    n_training = int(total * (1 - settings.validation_share)) // _TAIL_UNIT * _TAIL_UNIT
    if not 0 < n_training < total:
        raise InputError(
            f"{source} has {total:,} characters, too few to hold out a tail of them",
            hint="give more text, or hold out another --set pretrain.validation_share",
        )
    training, validation = [], list[Part]()
    for part in parts:
        kept, n_training = part[:n_training], max(0, n_training - len(part))
        training += [kept] if len(kept) else []
        validation += [part[len(kept) :]] if len(kept) < len(part) else []
    if _is_plain(source):
        return Split(["".join(map(str, training))], ["".join(map(str, validation))])
    return Split(training, validation)


def _each_nth(parts: list[Part], settings: PretrainSettings, source: str) -> Split:
    every = settings.validation_every
    if len(parts) < every:
        raise InputError(
            f"{source} has {len(parts)} documents, too few to hold out one in {every}",
            hint=f"set pretrain.validation_every lower than {every}, pretrain.hold_out=tail, or give more text",
        )
    training = [part for number, part in enumerate(parts) if number % every != every - 1]
    return Split(training, parts[every - 1 :: every])


def tokenize(source: Split, tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings) -> Corpus:
    """Both streams of a split text."""
    end = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    table = CharacterTable(tokenizer) if settings.tokenizer in OF_CHARACTERS else None
    encode = _Encoder(tokenizer, table, end)
    # What is read as ? costs as much as any other character of ASCII.
    encoding = "ascii" if settings.tokenizer == ASCII else "utf-8"
    n_bytes = sum(len(part.encode(encoding, "replace")) for part in source.validation if isinstance(part, str))
    return Corpus(
        encode.stream(source.training),
        encode.stream(source.validation),
        n_ids=len(tokenizer),
        end_of_text=end,
        n_validation_bytes=n_bytes if source.is_text else None,
    )


@dataclass(frozen=True)
class _Encoder:
    tokenizer: PreTrainedTokenizerFast
    table: CharacterTable | None
    end: int | None

    def stream(self, parts: Sequence[Part]) -> Int32[Tensor, " token"]:
        """All documents one after the other; in front of the first there is only what the tokenizer itself has."""
        separator = self._line_break if self.end is None else np.array([self.end])
        pieces = [piece for ids in self._ids(parts) for piece in (separator, ids)]
        if self.end is None:
            pieces = pieces[1:]
        return torch.from_numpy(np.concatenate(pieces or [np.empty(0)]).astype(np.int32))

    @property
    def _line_break(self) -> npt.NDArray[np.generic]:
        ids = self.tokenizer.backend_tokenizer.encode("\n", add_special_tokens=False).ids
        return np.array(ids, dtype=np.int32)

    def _ids(self, parts: Sequence[Part]) -> Iterator[npt.NDArray[np.generic]]:
        if self.table is not None:
            yield from (self.table.encode(part) if isinstance(part, str) else part for part in parts)
            return
        texts = [part for part in parts if isinstance(part, str)]
        encodings = iter(self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for part in parts:
            yield np.array(next(encodings).ids, dtype=np.int32) if isinstance(part, str) else part


def uniform_loss(n_ids: int) -> float:
    """Nats per token of a guess that takes every token for equally likely."""
    return math.log(n_ids)


def unigram_loss(corpus: Corpus) -> float:
    """Nats per held-out token of the training frequencies, one added to each count."""
    counts = torch.bincount(corpus.training, minlength=corpus.n_ids).double() + 1
    return float(-(counts / counts.sum()).log()[corpus.validation.long()].mean())
