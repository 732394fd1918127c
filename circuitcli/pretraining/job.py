"""One training from a text to a stored model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from circuitcli import group, processes
from circuitcli.pretraining import export, vocabularies
from circuitcli.pretraining.batches import Windows
from circuitcli.pretraining.corpus import Corpus, split_text, tokenize
from circuitcli.pretraining.export import Quality
from circuitcli.pretraining.optimiser import ModelOptimiser, new_model
from circuitcli.pretraining.tokenizer_files import CHARACTERS
from circuitcli.pretraining.trainer import Trainer
from circuitcli.settings.settings import Settings
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.ranks import ALONE, AllRanks
from circuitcli.training.trackers.tracker import Tracker

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Text:
    """A tokenizer and the text in its tokens."""

    tokenizer: PreTrainedTokenizerFast
    corpus: Corpus


def read_text(settings: Settings, *, kept: Path | None = None) -> Text:
    """The text of the settings in the tokens of its tokenizer, which is the one ``kept`` by an earlier start, or new.

    Raises InputError for a text that is not there, too short or of token ids that nothing explains.
    """
    pretrain = settings.pretrain
    tokenizer = vocabularies.fixed(pretrain)
    split = split_text(settings, tokenizer)
    if tokenizer is None and kept is not None and (kept / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(kept)
    if tokenizer is None:
        held_out = pretrain.tokenizer == CHARACTERS
        tokenizer = vocabularies.made(split.texts(held_out=held_out), pretrain)
    return Text(tokenizer, tokenize(split, tokenizer, pretrain))


@dataclass(frozen=True)
class Job:
    """What is trained, where it goes, and where its state is.

    output: the directory of the model; folder: that of all else, in which ``states`` keeps what it goes on from.
    """

    settings: Settings
    text: Text
    windows: Windows
    device: torch.device
    output: Path
    folder: Path
    states: Checkpoints
    trackers: Sequence[Tracker] = ()

    def with_trackers(self, opened: Sequence[Tracker]) -> "Job":
        """The same, watched by trackers."""
        return replace(self, trackers=opened)

    def finished(self) -> Quality | None:
        """Train, from a state if there is one, and write the model; its quality, in the main process."""
        pretrain, tokenizer = self.settings.pretrain, self.text.tokenizer
        if processes.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            export.write_tokenizer(tokenizer, self.folder / TOKENIZER)
        optimiser = self.optimiser()
        trainer = Trainer(
            optimiser,
            self.windows,
            tokenizer,
            self.states,
            self.folder,
            self.output,
            seed=self.settings.seed,
            trackers=self.trackers,
        )
        trainer.run()
        if pretrain.keep == "best":
            optimiser.restore_best()
        quality = self._written(optimiser, n_tokens_seen=trainer.done * trainer.tokens_a_step)
        group.barrier()
        return quality

    def optimiser(self) -> ModelOptimiser:
        """The model with its first weights."""
        corpus, ranks = self.text.corpus, AllRanks() if processes.count() > 1 else ALONE
        model = new_model(
            self.settings.pretrain, n_ids=corpus.n_ids, end_of_text=corpus.end_of_text, seed=self.settings.seed
        )
        return ModelOptimiser(model, self.settings.pretrain, device=self.device, ranks=ranks)

    def _written(self, optimiser: ModelOptimiser, *, n_tokens_seen: int) -> Quality | None:
        if not processes.is_main():
            return None
        export.write(optimiser.model, self.text.tokenizer, self.output, dtype=self.settings.pretrain.dtype)
        stored = export.read(self.output)
        quality = export.measure(stored, self.windows, n_tokens_seen=n_tokens_seen, device=self.device)
        export.write_quality(quality, self.folder)
        return quality
