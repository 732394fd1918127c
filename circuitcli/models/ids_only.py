"""The tokenizer of a model that comes without one: token ids are all that can be given, and all that is shown."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from circuitcli.errors import InputError
from circuitcli.models.chat import Conversation
from circuitcli.models.tokenizer import Tokenizer, Vocabulary
from circuitcli.reading import whole_number

HINT = (
    "give token ids: --prompt-ids 12,7,3 (--set graph.counterfactual_ids=... likewise), lines with ids in --prompts, "
    "or --text FILE.npy; or put a tokenizer beside the model"
)

# A tokenizer has one of these, whatever its kind.
_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tokenizer_config.json",
)


class IdsOnly(Tokenizer):
    """Stands for the tokenizer that is not there; which ids are BOS, EOS and padding the model's configuration says."""

    def __init__(self, config: Any, *, model: str, bos: str = "auto") -> None:
        """config: a model's PretrainedConfig; bos: as for a tokenizer. Raises InputError for always without BOS."""
        # No call of the parent's: it asks a tokenizer for everything.
        text = config.get_text_config()
        self._model, self._n_ids = model, int(text.vocab_size)
        self.own_bos_id, self._eos_id, self._pad_id = (
            _known(getattr(text, f"{name}_token_id", None), self._n_ids) for name in ("bos", "eos", "pad")
        )
        if bos == "always" and self.own_bos_id is None:
            raise InputError(f"{model} has no BOS token", hint="leave out --set model.bos=always")
        self.bos_id = None if bos == "never" else self.own_bos_id

    @property
    def vocab_size(self) -> int:
        """Number of ids of the model's embedding."""
        return self._n_ids

    def vocabulary(self, *, n_ids: int) -> Vocabulary:
        """What ids mean to a model that knows ``n_ids`` of them."""
        return Vocabulary(n_ids, self.own_bos_id, self._eos_id, self._pad_id, keeps_bos=self.bos_id is None)

    @property
    def pad_id(self) -> int:
        """An id to fill batches with; masked everywhere, so any id serves."""
        return next((number for number in (self._pad_id, self._eos_id) if number is not None), 0)

    @property
    def special_ids(self) -> frozenset[int]:
        """BOS, EOS and padding."""
        return frozenset(self.vocabulary(n_ids=self._n_ids).separators)

    def separator_id(self) -> int:
        """The id that stands between two documents: EOS, else BOS. Raises InputError if there is neither."""
        for candidate in (self._eos_id, self.own_bos_id):
            if candidate is not None:
                return candidate
        raise InputError("this model has no token to put between documents", hint="leave out --set data.pack")

    def encode_all(self, texts: Sequence[str]) -> list["array[int]"]:
        """Raises InputError: a text needs a tokenizer."""
        self._refuse("a text needs one")

    def render(self, conversation: Conversation, *, answers: bool = False) -> str:
        """Raises InputError: a chat template comes with a tokenizer."""
        self._refuse("a chat template comes with one")

    def decode(self, ids: Sequence[int]) -> str:
        """The ids themselves."""
        return " ".join(self.token_strings(ids))

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """Each id, written in digits."""
        return [str(int(token)) for token in ids]

    def single_token(self, text: str, *, what: str) -> int:
        """The id that a text writes in digits. Raises InputError for another text, and for an id past the model."""
        number = whole_number(text.strip())
        if number is None:
            self._refuse(f"{what} {text!r} needs one")
        if number >= self._n_ids:
            raise InputError(f"{what} {number} is not a token: this model has ids 0 to {self._n_ids - 1}", hint=HINT)
        return number

    def _refuse(self, reason: str) -> NoReturn:
        raise InputError(f"{self._model} has no tokenizer, and {reason}", hint=HINT)


def has_tokenizer(source: str, options: Mapping[str, Any]) -> bool:
    """Whether a directory or a hub model has files of a tokenizer; of one that is out of reach nobody knows, so yes.

    Without them transformers would give a tokenizer that knows no word.
    """
    if "gguf_file" in options or options.get("local_files_only"):
        return True
    from transformers.utils.hub import cached_file

    revision = options.get("revision")
    return any(
        cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False) for name in _FILES
    )


def _known(value: Any, n_ids: int) -> int | None:
    """A special token of a configuration: of several the first, None for one that the embedding does not have."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) and 0 <= first < n_ids else None
