"""Training and held-out text as two streams of tokens, and the windows that are cut from them."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from circuitcli.errors import InputError
from circuitcli.pretraining.configuration import PretrainingSettings
from circuitcli.text.documents import texts as documents_of


@dataclass(frozen=True)
class Documents:
    """The documents of a run: every n-th is held out."""

    training: list[str]
    validation: list[str]

    @property
    def n_validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out text."""
        return sum(len(document.encode()) for document in self.validation)


@dataclass(frozen=True)
class Corpus:
    """Two streams of token ids, (token,), in which every document follows an end-of-text token."""

    training: Int64[Tensor, " token"]
    validation: Int64[Tensor, " held_out_token"]
    n_validation_bytes: int
    end_of_text: int

    @property
    def digest(self) -> str:
        """Identifies the tokens: another interpreter has another standard library."""
        streams = (self.training, self.validation)
        return "sha256:" + hashlib.sha256(b"|".join(stream.numpy().tobytes() for stream in streams)).hexdigest()


def documents(settings: PretrainingSettings) -> Documents:
    """The text of the settings, split; raises InputError if there is too little of it."""
    every = settings.validation_every
    texts = [text for text in documents_of(settings.text, field=settings.field) if text.strip()]
    if len(texts) < every:
        message = f"{settings.text} has {len(texts)} documents, too few to hold out one in {every}"
        raise InputError(message, hint="set validation_every lower or give more text")
    training = [document for number, document in enumerate(texts) if number % every != every - 1]
    return Documents(training, texts[every - 1 :: every])


def tokenize(source: Documents, tokenizer: PreTrainedTokenizerFast, *, context_length: int) -> Corpus:
    """Both streams; raises InputError if one is shorter than a window."""
    streams = [_stream(part, tokenizer) for part in (source.training, source.validation)]
    if min(len(stream) for stream in streams) <= context_length:
        raise InputError(f"the text has fewer than {context_length} tokens", hint="set context_length lower")
    return Corpus(streams[0], streams[1], source.n_validation_bytes, tokenizer.bos_token_id)


def _stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    end = [tokenizer.bos_token_id]
    return torch.from_numpy(np.concatenate([np.array(end + encoding.ids) for encoding in encodings]))


def batch(corpus: Corpus, settings: PretrainingSettings, *, step: int) -> Int64[Tensor, "batch position"]:
    """Random windows of the training stream, the same for the same seed and step, whatever came before."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    last = len(corpus.training) - settings.context_length
    starts = torch.randint(last + 1, (settings.batch_size,), generator=generator)
    return _windows(corpus.training, starts, length=settings.context_length, first=corpus.end_of_text)


def held_out_windows(corpus: Corpus, *, context_length: int, n: int | None = None) -> Iterator[Tensor]:
    """Held-out windows, (1, position), that ask for every token of the stream once but the first and the tail."""
    starts = torch.arange(0, len(corpus.validation) - context_length + 1, context_length - 1)
    for start in starts[:n]:
        yield _windows(corpus.validation, start[None], length=context_length, first=corpus.end_of_text)


def _windows(stream: Tensor, starts: Tensor, *, length: int, first: int) -> Tensor:
    windows = stream[starts[:, None] + torch.arange(length)]  # (batch, position)
    # Position 0 is the end-of-text token wherever the window was cut: it is what attention rests on.
    windows[:, 0] = first
    return windows


def uniform_loss(vocab_size: int) -> float:
    """Nats per token of a guess that takes every token for equally likely."""
    return math.log(vocab_size)


def unigram_loss(corpus: Corpus, *, vocab_size: int) -> float:
    """Nats per held-out token of the training frequencies, one added to each count."""
    counts = torch.bincount(corpus.training, minlength=vocab_size).double() + 1
    return float(-(counts / counts.sum()).log()[corpus.validation].mean())
