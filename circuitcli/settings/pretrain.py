"""How a small language model is trained from nothing."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from circuitcli.errors import SettingsError
from circuitcli.settings.section import MOST_TOKENS, FilePath, FolderPath, Section, Split, Words
from circuitcli.settings.train import Tracker

MOST_STEPS = 2**40
# Settings that change no result, or no more than another device does.
NO_MATTER = ("pretrain.output", "pretrain.save_every", "pretrain.log", "pretrain.compile", "pretrain.tf32")
_MOST_CHECKPOINTS = 10_000
_CHECKPOINTS = re.compile(r"(?:(log|every):)?([0-9]{1,13})|log", re.ASCII)


def checkpoint_steps(moments: Iterable[str], *, n_steps: int) -> list[int]:
    """The steps after which the model is kept: of ``log`` 0 and the powers of two, of ``log:N`` up to N, of ``every:N``
    each multiple of N, and steps by number.

    Raises SettingsError for what is none of these, for a step behind the last, and for more than anybody has room for.
    """
    steps = set[int]()
    for moment in moments:
        found = _CHECKPOINTS.fullmatch(moment)
        number = int(found[2] or n_steps) if found else 0
        if found is None or (moment.startswith("every") and not number):
            raise SettingsError(
                f"'{moment[:60]}' is not a moment of a training", hint="write log, log:512, every:1000, or a step"
            )
        if found[2] and not found[1] and number > n_steps:
            raise SettingsError(
                f"the checkpoint after step {number} is behind the last of {n_steps}",
                hint="take it out of pretrain.checkpoints, or train for more --steps",
            )
        if moment.startswith("every"):
            _check_number(n_steps // number)
            steps |= {*range(number, n_steps + 1, number)}
        elif moment.startswith("log"):
            steps |= {0, *(2**power for power in range(n_steps.bit_length()) if 2**power <= min(number, n_steps))}
        else:
            steps.add(number)
    _check_number(len(steps))
    return sorted(steps)


def _check_number(n: int) -> None:
    if n > _MOST_CHECKPOINTS:
        raise SettingsError(
            f"{n:,} checkpoints are more than the {_MOST_CHECKPOINTS:,} that are kept at most",
            hint="choose fewer, for example --set pretrain.checkpoints=log:512,every:1000",
        )


class PretrainSettings(Section):
    """How a small language model is trained from nothing."""

    output: FolderPath | None = None
    """Where the model goes, a Hugging Face directory; checkpoints lie in its folder checkpoints/, all that the training
    itself keeps in training/."""
    tokenizer: FilePath = "bpe"
    """bpe (byte-level, trained on the text), characters (those of the text), ascii (128, others become ?), or a local
    one: a directory, a tokenizer.json, or the vocab.json of a GPT-2 BPE with its merges.txt beside it."""
    vocab_size: int = Field(2048, ge=257, le=65_536)
    """Tokens of a BPE that is trained, with the 256 bytes and the end-of-text token."""
    hold_out: Literal["auto", "tail", "documents"] = "auto"
    """What validation reads: the tail of the text, or every n-th document; auto takes the tail of a single file of
    text."""
    validation_share: float = Field(0.1, gt=0, lt=1)
    """Share of the text that is its tail; what is in front of it is cut to a multiple of 256 characters."""
    validation_every: int = Field(20, ge=2, le=2**31 - 1)
    """Every n-th document is held out."""
    most_characters: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Read no more of the text than this, as some data sets have no end; of token ids, so many tokens."""
    n_layers: int = Field(4, ge=1, le=1000)
    """Transformer blocks."""
    n_heads: int = Field(4, ge=1, le=1000)
    """Attention heads of a block; they divide the width."""
    d_model: int = Field(128, ge=1, le=2**20)
    """Width of the residual stream."""
    context_length: int = Field(256, ge=2, le=2**20)
    """Tokens of a window. With a tokenizer that has an end-of-text token the first one is always that."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of embeddings, attention and what blocks add that is left out while training."""
    steps: int = Field(12_000, ge=1, le=MOST_STEPS)
    """Optimiser steps."""
    batch_size: int = Field(8, ge=1, le=2**20)
    """Windows that the model reads at once; several processes share them out."""
    accumulation: int = Field(1, ge=1, le=2**20)
    """Batches of one optimiser step: their gradients are averaged."""
    order: Literal["random", "sequential"] = "random"
    """Where windows are cut: anywhere, or one behind the other, and again from the front at the end of the text."""
    learning_rate: float = Field(3e-3, gt=0, le=10)
    """Peak rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After a linear warm-up: a cosine down to the minimum, or none of it."""
    warmup_steps: int = Field(300, ge=0, le=MOST_STEPS)
    """Steps of linear warm-up."""
    minimum_rate: float = Field(0.0, ge=0, le=10)
    """Rate at which the cosine ends."""
    weight_decay: float = Field(0.1, ge=0, le=10)
    """Decoupled decay of the weight matrices and embeddings; biases and norms have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's mean of gradients."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients."""
    gradient_norm: float = Field(1.0, gt=0, le=1e6)
    """Largest norm of the gradient."""
    evaluate_every: int = Field(500, ge=1, le=MOST_STEPS)
    """Steps between two looks at the held-out text, always the same batches of it."""
    evaluation_batches: int = Field(8, ge=1, le=2**31 - 1)
    """Batches of such a look; in the end the whole held-out text is measured."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the model: the last, or those with the smallest loss at a look."""
    checkpoints: Words = ()
    """Steps after which the model is kept as it is then, in checkpoints/stepN: log (0 and the powers of two), log:512
    (those up to 512), every:1000, or numbers; several with commas."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number type of stored weights."""
    autocast: bool = False
    """Multiply matrices in bfloat16, on GPUs and on CPUs that know the format about twice as fast."""
    compile: bool = False
    """Compile the model with torch.compile, on a GPU; the first step takes a minute."""
    tf32: bool = True
    """On NVIDIA GPUs multiply in TF32, which keeps 10 bits of each factor; looks and measures stay in float32."""
    save_every: int = Field(500, ge=1, le=MOST_STEPS)
    """Steps between two states, which are written every five minutes at least; a killed command goes on from the last
    one."""
    log: Annotated[tuple[Tracker, ...], Split] = ()
    """Where metrics go besides training/metrics.jsonl; several with commas. Each needs its package."""

    def check(self) -> None:
        """Raise SettingsError for values that do not fit together."""
        if self.d_model % self.n_heads:
            raise SettingsError(
                f"pretrain.d_model {self.d_model} is not a multiple of n_heads {self.n_heads}",
                hint="choose a multiple, for example --set pretrain.n_heads=1",
            )
        if self.minimum_rate > self.learning_rate:
            raise SettingsError(
                f"pretrain.minimum_rate {self.minimum_rate:g} is above learning_rate {self.learning_rate:g}",
                hint="lower it, for example --set pretrain.minimum_rate=0",
            )
        checkpoint_steps(self.checkpoints, n_steps=self.steps)
