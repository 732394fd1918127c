"""One view of every Hugging Face tokenizer."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

from circuitcli.errors import InputError
from circuitcli.models.chat import Conversation, render

# Of a text that is not the one token that it should be.
_SHOWN_PIECES, _SHOWN_CHARACTERS = 12, 80

IdSequence = TypeVar("IdSequence", bound=Sequence[int])


@dataclass(frozen=True)
class Vocabulary:
    """What ids mean to a model: they are below ``n_ids``; None for special tokens that its tokenizer lacks.

    ``keeps_bos``: whether a text that begins with BOS keeps it, because none is put in front of it.
    """

    n_ids: int
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    keeps_bos: bool = False

    @property
    def separators(self) -> tuple[int, ...]:
        """Ids that are between two documents of a stream."""
        return tuple({number for number in (self.bos_id, self.eos_id, self.pad_id) if number is not None})


class Tokenizer:
    """Text to ids and back; ``bos_id`` is None where no BOS token is put before a text.

    A BOS token that a text itself begins with, as rendered chats do, stands for the one that is put there: there are
    never two. Where none is put, it stays. In either case its position carries nothing.
    """

    def __init__(self, hf: Any, *, bos: str = "auto") -> None:
        """hf: a PreTrainedTokenizerBase; bos: auto, always or never. Raises InputError for always without one."""
        self.hf = hf
        # A text longer than the model's window is cut into blocks later; the library's warning would be wrong.
        hf.model_max_length = int(1e30)
        if bos == "always" and hf.bos_token_id is None:
            raise InputError("this tokenizer has no BOS token", hint="leave out --set model.bos=always")
        # The tokenizer's BOS token, whether it is put in front of texts or not.
        self.own_bos_id: int | None = getattr(hf, "bos_token_id", None)
        self.bos_id: int | None = None if bos == "never" else self.own_bos_id
        self._quick = getattr(hf, "backend_tokenizer", None)
        if self._quick is not None:
            # A tokenizer's file may ask for it.
            self._quick.no_truncation()
            self._quick.no_padding()

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return len(self.hf)

    def vocabulary(self, *, n_ids: int) -> Vocabulary:
        """What ids mean to a model that knows ``n_ids`` of them."""
        special = (self.own_bos_id, self.hf.eos_token_id, self.hf.pad_token_id)
        return Vocabulary(n_ids, *special, keeps_bos=self.bos_id is None)

    @property
    def pad_id(self) -> int:
        """An id to fill batches with; masked everywhere, so any id serves."""
        for candidate in (self.hf.pad_token_id, self.hf.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that the tokenizer itself calls special: BOS, EOS, padding, unknown text, chat markers."""
        added = self.hf.added_tokens_decoder
        return frozenset({*self.hf.all_special_ids, *(number for number, token in added.items() if token.special)})

    def separator_id(self) -> int:
        """The id that stands between two documents: EOS, else BOS. Raises InputError if there is neither."""
        for candidate in (self.hf.eos_token_id, self.hf.bos_token_id):
            if candidate is not None:
                return int(candidate)
        raise InputError("this tokenizer has no token to put between documents", hint="leave out --set data.pack")

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with no special token added."""
        return self.encode_all([text])[0].tolist()

    def encode_all(self, texts: Sequence[str]) -> list["array[int]"]:
        """Ids of each text, with no special token added; takes several threads where the tokenizer has them."""
        if self._quick is None:
            each = (self.hf(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts)
        else:
            # Leaves out where in the text each token is, which takes a quarter of the time.
            each = (encoding.ids for encoding in self._quick.encode_batch_fast(texts, add_special_tokens=False))
        return [array("i", ids) for ids in each]

    def ranges(self, text: str) -> list[tuple[int, int]]:
        """For each id of a text the characters that it stands for, (first, last + 1); of an empty token none.

        Where the tokenizer does not tell, they are what the ids so far decode to more than those before.
        """
        if self._quick is not None:
            return [*map(tuple, self._quick.encode(text, add_special_tokens=False).offsets)]
        ids = self.encode(text)
        edges = [min(len(self.decode(ids[:stop])), len(text)) for stop in range(len(ids) + 1)]
        # The later bytes of a character decode to nothing more.
        return [(first if first < last else max(0, first - 1), last) for first, last in pairwise(edges)]

    def n_bos(self, ids: Sequence[int]) -> int:
        """How many BOS tokens there are in front."""
        count = 0
        while count < len(ids) and ids[count] == self.own_bos_id:
            count += 1
        return count

    def own_part(self, ids: IdSequence) -> IdSequence:
        """What is to stand behind the BOS token that is put in front, if any: BOS in front is never doubled."""
        n_front = self.n_bos(ids)
        start = n_front if self.bos_id is not None else max(0, n_front - 1)
        return ids[start:] if start else ids  # type: ignore[return-value]

    def with_bos(self, ids: Sequence[int]) -> list[int]:
        """The ids as the model gets them."""
        front = [] if self.bos_id is None else [self.bos_id]
        return [*front, *self.own_part(ids)]

    def render(self, conversation: Conversation, *, answers: bool = False) -> str:
        """A conversation as the chat template writes it; ``answers``: with the assistant's turn begun.

        Raises InputError if there is no template, or if it refuses the conversation.
        """
        return render(self.hf, conversation, answers=answers)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special ones written out."""
        text: str = self.hf.decode([*ids], clean_up_tokenization_spaces=False)
        return text

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """What people are shown for each id: its text, or ``<0xE2>`` for bytes that are no whole character."""
        return [self._shown(int(token)) for token in ids]

    def _shown(self, token: int) -> str:
        text = self.hf.decode([token], clean_up_tokenization_spaces=False)
        if "\ufffd" in text:
            return self._bytes(token)
        # SentencePiece tokenizers drop the leading space of a lone token.
        piece = self.hf.convert_ids_to_tokens(token) or ""
        return " " + text if piece.startswith("▁") and not text.startswith(" ") else text

    def _bytes(self, token: int) -> str:
        piece = self.hf.convert_ids_to_tokens(token) or ""
        if piece.startswith("<0x"):
            return piece
        table = _byte_alphabet()
        return "".join(f"<0x{table[character]:02X}>" if character in table else character for character in piece)

    def single_token(self, text: str, *, what: str) -> int:
        """The id of a text that is one token. Raises InputError, showing the pieces, if it is not."""
        ids = self.encode(text)
        if len(ids) != 1:
            more = " ..." if len(ids) > _SHOWN_PIECES else ""
            pieces = " ".join(repr(piece) for piece in self.token_strings(ids[:_SHOWN_PIECES])) or "nothing"
            written = repr(text[:_SHOWN_CHARACTERS]) + "..." * (len(text) > _SHOWN_CHARACTERS)
            spaced = "this tokenizer writes it in pieces; name a token that it has whole"
            raise InputError(
                f"{what} {written} is not one token but {len(ids)}: {pieces}{more}",
                hint=spaced if text[:1].isspace() else "most words need their leading space, for example ' Paris'",
            )
        return ids[0]


def _byte_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level BPE vocabulary stands for (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
