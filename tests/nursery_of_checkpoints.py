"""A small training as its checkpoints: random models whose weights move, saved as DIR/checkpoints/stepN."""

from pathlib import Path
from typing import Any

import torch
from support_collect import hf_gpt2, hf_tokenizer

from circuitcli.records import Stream
from circuitcli.runs import Run
from circuitcli.settings.sources import load
from circuitcli.stages.request import Request

STEPS = (0, 16, 1000)
OPTIONS: dict[str, Any] = {
    "model.device": "cpu",
    "data.layers": "1:2",
    "data.sites": "resid",
    "data.tokens": 900,
    "data.block_length": 16,
    "data.shard_tokens": 500,
    "sae.k": 4,
    "sae.d_sae": 32,
    "train.batch_size": 128,
    "train.eval_tokens": 128,
    "train.loss_tokens": 64,
    "develop.revisions": "step*",
    "develop.tokens": 400,
    "interp.contexts": 2,
}


def save_checkpoints(directory: Path, *, steps: tuple[int, ...] = STEPS) -> Path:
    """A directory that `develop --model` takes: from one random model on a straight line to another one."""
    first, last = hf_gpt2(0).state_dict(), hf_gpt2(1).state_dict()
    for number, step in enumerate(steps):
        model, share = hf_gpt2(0), number / max(1, len(steps) - 1)
        model.load_state_dict({name: torch.lerp(first[name], last[name], share) for name in first})
        folder = directory / "checkpoints" / f"step{step}"
        model.save_pretrained(folder)
        hf_tokenizer().save_pretrained(folder)
    return directory


def text_file(path: Path, *, n: int = 4000) -> Path:
    """A text of a few words, drawn."""
    generator = torch.Generator().manual_seed(3)
    words = ("the king", " my lord", " of", " and", " to be,", " or not", " sweet", " night.", "\n")
    path.write_text("".join(words[i] for i in torch.randint(len(words), (n // 4,), generator=generator)))
    return path


def asking(run: Path, model: Path, text: Path, *, force: bool = False, **changes: Any) -> Request:
    """What `circuit develop` asks of its stage; changes are written as sae__k."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    flags = OPTIONS | {"model.name": str(model), "data.text": str(text)} | named
    return Request(load(flags, environment={}, directory=Path("/nonexistent")).settings, Stream(), Run(run), force)
