"""The finished model as a Hugging Face directory, and how good it is."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from circuitcli.pretraining import corpus as corpora
from circuitcli.pretraining import trainer
from circuitcli.pretraining.configuration import PretrainingSettings
from circuitcli.pretraining.corpus import Corpus


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
    bits_per_byte: float


def write(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *, output: Path) -> GPT2LMHeadModel:
    """Store weights in float16 with the tokenizer; returns the model as it will be read, in float32."""
    stored = GPT2LMHeadModel(model.config)
    stored.load_state_dict(model.state_dict())
    stored.half().save_pretrained(output)
    # The library leaves the weights readable by their owner alone.
    (output / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(output)
    _make_portable(output / "tokenizer_config.json")
    return GPT2LMHeadModel.from_pretrained(output, dtype=torch.float32)


def _make_portable(path: Path) -> None:
    """Name the class that every supported transformers release knows; drop how this process found the files."""
    values = json.loads(path.read_text("utf-8"))
    kept = {name: value for name, value in values.items() if name not in ("is_local", "local_files_only")}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def measure(model: GPT2LMHeadModel, corpus: Corpus, settings: PretrainingSettings, *, step: int) -> Quality:
    """The model on the whole held-out text."""
    loss = trainer.evaluate(model, corpus, settings)
    tokens = len(corpus.validation)
    return Quality(
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        n_tokens_seen=step * settings.batch_size * settings.context_length,
        n_training_tokens=len(corpus.training),
        n_validation_tokens=tokens,
        validation_loss=loss,
        uniform_loss=corpora.uniform_loss(settings.vocab_size),
        unigram_loss=corpora.unigram_loss(corpus, vocab_size=settings.vocab_size),
        bits_per_byte=loss / math.log(2) * tokens / corpus.n_validation_bytes,
    )


def write_quality(quality: Quality, *, output: Path) -> None:
    """``quality.json`` beside the model."""
    (output / "quality.json").write_text(json.dumps(asdict(quality), indent=2) + "\n", encoding="utf-8")
