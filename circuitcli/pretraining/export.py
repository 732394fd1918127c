"""A model as a Hugging Face directory, and how good it is."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from circuitcli.pretraining import corpus as corpora
from circuitcli.pretraining.batches import Windows
from circuitcli.pretraining.optimiser import evaluate
from circuitcli.runs import make_folder, write_error

WEIGHTS = "model.safetensors"
# What tells that a directory holds a model already.
OF_A_MODEL = ("config.json", WEIGHTS, "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.json")


@dataclass(frozen=True)
class Quality:
    """Held-out loss of the stored weights beside two guesses; losses in nats per token."""

    n_parameters: int
    n_tokens_seen: int
    n_training_tokens: int
    n_validation_tokens: int
    validation_loss: float
    uniform_loss: float
    unigram_loss: float
    bits_per_byte: float | None


def write(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, output: Path, *, dtype: str) -> None:
    """Store weights and tokenizer in a directory. Raises InputError where the disk takes no more."""
    # Of a model on a GPU or half compiled, what is stored is a plain one.
    stored = GPT2LMHeadModel(model.config)
    stored.load_state_dict(model.state_dict())
    try:
        make_folder(output)
        with _quiet():
            stored.to(getattr(torch, dtype)).save_pretrained(output)
        # The library leaves the weights readable by their owner alone.
        (output / WEIGHTS).chmod(0o644)
        write_tokenizer(tokenizer, output)
    except OSError as error:
        raise write_error(output, error) from None


def write_whole(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, output: Path, *, partial: Path, dtype: str
) -> None:
    """As `write`, into a directory that is ``partial`` until all is in it."""
    shutil.rmtree(partial, ignore_errors=True)
    write(model, tokenizer, partial, dtype=dtype)
    shutil.rmtree(output, ignore_errors=True)
    make_folder(output.parent)
    partial.rename(output)


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Store a tokenizer so that every supported transformers release reads it."""
    tokenizer.save_pretrained(output)
    path = output / "tokenizer_config.json"
    values = json.loads(path.read_text("utf-8"))
    # How this process found the files is nobody else's concern.
    kept = {name: value for name, value in values.items() if name not in ("is_local", "local_files_only")}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def read(output: Path) -> GPT2LMHeadModel:
    """The model of a directory in float32."""
    with _quiet():
        model: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(output, dtype=torch.float32)
    return model


def measure(model: GPT2LMHeadModel, windows: Windows, *, n_tokens_seen: int, device: torch.device) -> Quality:
    """The model on the whole held-out text."""
    loss = evaluate(model.to(device), windows.held_out(), device=device)
    corpus, tokens = windows.corpus, len(windows.corpus.validation)
    n_bytes = corpus.n_validation_bytes
    return Quality(
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        n_tokens_seen=n_tokens_seen,
        n_training_tokens=len(corpus.training),
        n_validation_tokens=tokens,
        validation_loss=loss,
        uniform_loss=corpora.uniform_loss(corpus.n_ids),
        unigram_loss=corpora.unigram_loss(corpus),
        bits_per_byte=loss / math.log(2) * tokens / n_bytes if n_bytes else None,
    )


def write_quality(quality: Quality, output: Path) -> None:
    """``quality.json`` beside the model."""
    (output / "quality.json").write_text(json.dumps(asdict(quality), indent=2) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars off stderr."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
