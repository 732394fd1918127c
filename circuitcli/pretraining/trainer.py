"""The training loop: resumable, and the same bit for bit whether or not it was interrupted."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from circuitcli.errors import InputError
from circuitcli.pretraining import corpus as corpora
from circuitcli.pretraining.configuration import PretrainingSettings
from circuitcli.pretraining.corpus import Corpus
from circuitcli.progress import task

# Enough held-out windows for a curve; the whole held-out text is measured at the end.
_CURVE_WINDOWS = 64


@dataclass
class Training:
    """What a checkpoint holds: the model, the optimiser and the number of steps done."""

    model: GPT2LMHeadModel
    optimizer: torch.optim.AdamW
    step: int = 0


def begin(settings: PretrainingSettings, *, end_of_text: int) -> Training:
    """A model with the first weights of the seed."""
    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=settings.vocab_size,
        n_positions=settings.context_length,
        n_embd=settings.d_model,
        n_layer=settings.n_layers,
        n_head=settings.n_heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    model = GPT2LMHeadModel(config)
    return Training(model, _optimizer(model, settings))


def _optimizer(model: GPT2LMHeadModel, settings: PretrainingSettings) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def learning_rate(settings: PretrainingSettings, *, step: int) -> float:
    """Rate of a step: a line up to the peak, then a cosine down to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def run(training: Training, corpus: Corpus, settings: PretrainingSettings, *, output: Path) -> None:
    """Train to the last step, with a checkpoint and a line of ``metrics.jsonl`` every so many steps."""
    with task("pretrain", total=float(settings.steps), unit="steps", done=float(training.step)) as advance:
        while training.step < settings.steps:
            loss = _step(training, corpus, settings)
            due = training.step % settings.checkpoint_every == 0 or training.step == settings.steps
            if due:
                held_out = evaluate(training.model, corpus, settings, n_windows=_CURVE_WINDOWS)
                save(training, corpus, settings, output=output)
                _log(output, step=training.step, training_loss=loss, validation_loss=held_out)
            advance(note=f"loss {held_out:.3f} held out" if due else f"loss {loss:.3f}")


def _step(training: Training, corpus: Corpus, settings: PretrainingSettings) -> float:
    training.model.train()
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(settings, step=training.step)
    windows = corpora.batch(corpus, settings, step=training.step)
    loss = _token_losses(training.model, windows, settings).mean()
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), settings.gradient_norm)
    training.optimizer.step()
    training.step += 1
    return loss.item()


def _token_losses(
    model: GPT2LMHeadModel, windows: Int64[Tensor, "batch position"], settings: PretrainingSettings
) -> Float[Tensor, " prediction"]:
    """Nats of each predicted token, all but the first of each window."""
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast):
        logits = model(input_ids=windows, use_cache=False).logits  # (batch, position, vocab)
    predictions = logits[:, :-1].flatten(0, 1).float()
    return functional.cross_entropy(predictions, windows[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def evaluate(
    model: GPT2LMHeadModel, corpus: Corpus, settings: PretrainingSettings, *, n_windows: int | None = None
) -> float:
    """Mean nats per held-out token in float32, over the first windows or all."""
    model.eval()
    exact = settings.model_copy(update={"autocast": False})
    windows = corpora.held_out_windows(corpus, context_length=settings.context_length, n=n_windows)
    return float(torch.cat([_token_losses(model, window, exact) for window in windows]).double().mean())


def save(training: Training, corpus: Corpus, settings: PretrainingSettings, *, output: Path) -> None:
    """Write ``checkpoint.pt`` in one step, so that a kill leaves the old one or the new one."""
    state = {
        "settings": settings.digest,
        "corpus": corpus.digest,
        "step": training.step,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
    }
    with replacing(output / "checkpoint.pt") as partial:
        torch.save(state, partial)


def resume(training: Training, corpus: Corpus, settings: PretrainingSettings, *, output: Path) -> None:
    """Go to the state of ``checkpoint.pt`` if there is one; InputError if it belongs to another run."""
    path = output / "checkpoint.pt"
    if not path.exists():
        return
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, digest in (("settings", settings.digest), ("corpus", corpus.digest)):
        if state[name] != digest:
            raise InputError(f"{path} was made with another {name}", hint="choose another --output")
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.step = state["step"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when all went well."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    partial.replace(path)


def _log(output: Path, **figures: int | float) -> None:
    with (output / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(figures) + "\n")
