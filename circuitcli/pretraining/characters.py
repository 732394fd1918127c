"""Tokenizers whose tokens are single characters: those of ASCII, or those that a text has."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# What stands for a character that a tokenizer does not know, the first of these that it knows.
_STAND_INS = "? \n"
N_ASCII = 128


def ascii_tokenizer(*, context_length: int) -> PreTrainedTokenizerFast:
    """The 128 characters of ASCII by their codes; every other one is read as ``?``. Without special tokens."""
    tokenizer = _tokenizer([chr(code) for code in range(N_ASCII)], context_length=context_length)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"[^\x00-\x7f]"), "?")
    return tokenizer


def character_tokenizer(texts: Iterable[str], *, context_length: int) -> PreTrainedTokenizerFast:
    """The characters of the texts and the line break, in the order of their codes. Without special tokens.

    A character that none of them has is read as ``?`` if they have that, else as a space or a line break.
    """
    known = {"\n"}.union(*map(set, texts))
    return _tokenizer(sorted(known), context_length=context_length)


def _tokenizer(characters: Sequence[str], *, context_length: int) -> PreTrainedTokenizerFast:
    vocabulary = {character: number for number, character in enumerate(characters)}
    unknown = next(character for character in _STAND_INS if character in vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    # The library is not told of the stand-in: it would take every one in a text for a special token.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context_length, clean_up_tokenization_spaces=False
    )


class CharacterTable:
    """The ids of characters, looked up at once for a whole text; the same as those of the tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        unknown = next(character for character in _STAND_INS if character in vocabulary)
        # Codes behind the last that is known share one entry.
        self._ids = np.full(max(map(ord, vocabulary)) + 2, vocabulary[unknown], dtype=np.int32)
        for character, number in vocabulary.items():
            self._ids[ord(character)] = number

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """The ids of a text, (character,)."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        found: npt.NDArray[np.int32] = self._ids[np.minimum(codes, len(self._ids) - 1)]
        return found
