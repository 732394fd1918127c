"""Which tokenizer a model gets: one of characters, a BPE that is trained on its text, or one that is there."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from circuitcli.errors import InputError, first_line
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.pretraining import tokenizer as bpe
from circuitcli.pretraining.characters import ascii_tokenizer, character_tokenizer
from circuitcli.pretraining.tokenizer_files import ASCII, CHARACTERS, HINT, PAIRS, is_file, tokenizer_files
from circuitcli.settings.pretrain import PretrainSettings


def fixed(settings: PretrainSettings) -> PreTrainedTokenizerFast | None:
    """The tokenizer that does not depend on the text; None for one that is made from it.

    Raises InputError for a file that is not there or holds no tokenizer.
    """
    if settings.tokenizer == ASCII:
        return ascii_tokenizer(context_length=settings.context_length)
    return _loaded(settings) if is_file(settings) else None


def made(texts: Iterable[str], settings: PretrainSettings) -> PreTrainedTokenizerFast:
    """The tokenizer that is made from the text that the model trains on; one of characters knows all that is given."""
    if settings.tokenizer == CHARACTERS:
        return character_tokenizer(texts, context_length=settings.context_length)
    return bpe.train(texts, vocab_size=settings.vocab_size, context_length=settings.context_length)


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """What ids of token files mean to a model with this tokenizer."""
    return Vocabulary(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def _loaded(settings: PretrainSettings) -> PreTrainedTokenizerFast:
    files = {path.name: path for path in tokenizer_files(settings)}
    try:
        tokenizer = _read(files)
    except Exception as error:
        # Both libraries fail on broken files in all ways in which Python and Rust do.
        raise InputError(f"{settings.tokenizer} holds no tokenizer: {first_line(error)}", hint=HINT) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or not len(tokenizer):
        raise InputError(f"{settings.tokenizer} holds no fast tokenizer", hint=HINT)
    tokenizer.model_max_length = settings.context_length
    return tokenizer


def _read(files: dict[str, Path]) -> PreTrainedTokenizerFast:
    if "tokenizer_config.json" in files:
        return AutoTokenizer.from_pretrained(files["tokenizer_config.json"].parent, local_files_only=True)
    if "tokenizer.json" in files:
        return _with_end(Tokenizer.from_file(str(files["tokenizer.json"])))
    for vocabulary, merges in PAIRS:
        if vocabulary in files and merges in files:
            return _gpt2(files[vocabulary], files[merges])
    (name, path), *_ = files.items()
    if path.suffix == ".json" and name not in (pair[0] for pair in PAIRS):
        return _with_end(Tokenizer.from_file(str(path)))
    raise ValueError(f"{name} lacks the file of its merges")


def _gpt2(vocabulary: Path, merges: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE of GPT-2 (Radford et al. 2019) from its two files."""
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_end(tokenizer)


def _with_end(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A bare tokenizer; its end-of-text token, if it has one, begins, ends and pads, as GPT-2's does."""
    special = {}
    if tokenizer.token_to_id(bpe.END_OF_TEXT) is not None:
        special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), bpe.END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
