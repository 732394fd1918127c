"""Train the model that ships with the package, on the standard library of this Python.

The same settings, Python, torch and number of threads give the same weights; interrupted, the same
command goes on. OUTPUT becomes a Hugging Face directory that ``--model`` takes.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from circuitcli.errors import CircuitError
from circuitcli.pretraining import configuration, corpus, export, tokenizer, trainer
from circuitcli.pretraining.configuration import PretrainingSettings
from circuitcli.progress import Advance, set_sink


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m circuitcli.pretraining", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="TOML settings, see configs/tiny-model.toml")
    parser.add_argument("--output", type=Path, required=True, help="directory of the checkpoint and the model")
    parser.add_argument("--export", action="store_true", help="write the model of the last checkpoint, do not train")
    options = parser.parse_args(arguments)
    set_sink(_stderr)
    transformers_logging.disable_progress_bar()
    try:
        settings = configuration.load(options.config)
        quality = pretrain(settings, output=options.output, train=not options.export)
    except CircuitError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        return error.exit_status
    sys.stdout.writelines(f"{name} {value:.6g}\n" for name, value in asdict(quality).items())
    return 0


def pretrain(settings: PretrainingSettings, *, output: Path, train: bool = True) -> export.Quality:
    """Train, or go on with training, and write model, tokenizer and ``quality.json`` to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    source = corpus.documents(settings)
    vocabulary = _tokenizer(source, settings, output=output)
    tokens = corpus.tokenize(source, vocabulary, context_length=settings.context_length)
    training = trainer.begin(settings, end_of_text=tokens.end_of_text)
    trainer.resume(training, tokens, settings, output=output)
    if train:
        trainer.run(training, tokens, settings, output=output)
    stored = export.write(training.model, vocabulary, output=output)
    quality = export.measure(stored, tokens, settings, step=training.step)
    export.write_quality(quality, output=output)
    return quality


def _tokenizer(source: corpus.Documents, settings: PretrainingSettings, *, output: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an earlier start, or a new one."""
    if (output / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(output)
    trained = tokenizer.train(source.training, vocab_size=settings.vocab_size, context_length=settings.context_length)
    trained.save_pretrained(output)
    return trained


@contextmanager
def _stderr(title: str, total: float | None, unit: str, done: float) -> Iterator[Advance]:
    """A line on stderr every ten seconds."""
    begin = last = time.monotonic()
    first = done

    def advance(amount: float = 1, *, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= 10 or done == total:
            rate = (done - first) / (now - begin)
            sys.stderr.write(f"{title} {done:.0f}/{total or 0:.0f} {unit}, {rate:.2f} a second, {note}\n")
            last = now

    yield advance


if __name__ == "__main__":
    sys.exit(main())
