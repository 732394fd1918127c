"""Which tokenizer the settings name, and the files of one that is there. Needs neither torch nor transformers."""

from pathlib import Path

from circuitcli.errors import InputError
from circuitcli.reading import as_path
from circuitcli.settings.pretrain import PretrainSettings

BPE, CHARACTERS, ASCII = "bpe", "characters", "ascii"
OF_CHARACTERS = (CHARACTERS, ASCII)
# Of those that are made here; all others are files.
_MADE = (BPE, *OF_CHARACTERS)
# A vocabulary and its merges, as transformers names them and as OpenAI did.
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
HINT = "--tokenizer takes bpe, characters, ascii, a directory, a tokenizer.json or a vocab.json"


def is_file(settings: PretrainSettings) -> bool:
    """Whether the tokenizer is one that is there, and not made here."""
    return settings.tokenizer not in _MADE


def tokenizer_files(settings: PretrainSettings) -> list[Path]:
    """The files of a tokenizer that is there. Raises InputError if they are not."""
    path = as_path(settings.tokenizer)
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer_config.json", *(name for pair in PAIRS for name in pair))
        found = [path / name for name in names if (path / name).is_file()]
    else:
        pair = next((pair for pair in PAIRS if path.name == pair[0]), (path.name,))
        found = [path.with_name(name) for name in pair if path.with_name(name).is_file()]
    if not found:
        raise InputError(f"there is no tokenizer at '{settings.tokenizer}'", hint=HINT)
    return found
