"""Tokens per second of `circuit pretrain` beside nanoGPT's loop, at one size, in one run.

    python -m tests.bench.bench_pretrain [--threads 2] [--rounds 5] [--config configs/shakespeare_64x4.toml]
    python -m tests.bench.bench_pretrain --nanogpt PATH         # a checkout of github.com/karpathy/nanoGPT
    python -m tests.bench.bench_pretrain --device cuda --autocast --compile

The steps take turns, and the best round of each counts, so that a busy machine slows all alike. ``plain`` is the same
model and loop in bare PyTorch, written down here; ``nanoGPT`` is the model of the checkout in that loop, which is its
own but for evaluation and logging. Ours is all that a step is, with drawing its windows and the note of its loss.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from circuitcli.pretraining.batches import Windows
from circuitcli.pretraining.corpus import Corpus
from circuitcli.pretraining.optimiser import ModelOptimiser, learning_rate, new_model
from circuitcli.settings.pretrain import PretrainSettings
from circuitcli.settings.sources import load

CONFIG = Path(__file__).parents[2] / "configs" / "shakespeare_64x4.toml"
N_IDS, N_TOKENS = 128, 1_000_000
Step = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """Tokens per second of one way, and those of it that ours has."""

    name: str
    tokens_per_s: float
    ratio: float


class Plain(nn.Module):
    """A GPT-2 with tied embeddings as four kinds of layers, without a library."""

    def __init__(self, settings: PretrainSettings) -> None:
        super().__init__()
        d = settings.d_model
        self.settings = settings
        self.tokens, self.positions = nn.Embedding(N_IDS, d), nn.Embedding(settings.context_length, d)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(d),
                    "qkv": nn.Linear(d, 3 * d),
                    "out": nn.Linear(d, d),
                    "norm2": nn.LayerNorm(d),
                    "up": nn.Linear(d, 4 * d),
                    "down": nn.Linear(4 * d, d),
                }
            )
            for _ in range(settings.n_layers)
        )
        self.norm = nn.LayerNorm(d)

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the mean loss."""
        drop, n = self.settings.dropout if self.training else 0.0, ids.shape[1]
        x = functional.dropout(self.tokens(ids) + self.positions(torch.arange(n, device=ids.device)), drop)
        for block in self.blocks:
            heads = block["qkv"](block["norm"](x)).unflatten(-1, (3, self.settings.n_heads, -1))
            q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (batch, head, position, d_head)
            read = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
            x = x + functional.dropout(block["out"](read.transpose(1, 2).flatten(2)), drop)
            hidden = functional.gelu(block["up"](block["norm2"](x)), approximate="tanh")
            x = x + functional.dropout(block["down"](hidden), drop)
        logits = self.norm(x) @ self.tokens.weight.T
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def loop(model: nn.Module, stream: Tensor, settings: PretrainSettings, *, device: torch.device) -> Step:
    """One step of nanoGPT's loop: random windows, mean loss, clipped gradient, AdamW with two groups."""
    model.to(device).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)
    forward = torch.compile(model) if settings.compile else model
    n, length = 0, settings.context_length

    def step() -> float:
        nonlocal n
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step=n)
        n += 1
        for _ in range(settings.accumulation):
            starts = torch.randint(len(stream) - length, (settings.batch_size,))
            x = torch.stack([stream[at : at + length] for at in starts]).long().to(device)
            y = torch.stack([stream[at + 1 : at + 1 + length] for at in starts]).long().to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
                _, loss = forward(x, y)
            (loss / settings.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def ours(stream: Tensor, settings: PretrainSettings, *, device: torch.device) -> Step:
    """A step as `circuit pretrain` takes it."""
    corpus = Corpus(stream, stream, n_ids=N_IDS, end_of_text=None, n_validation_bytes=None)
    windows = Windows(corpus, settings, seed=0)
    optimiser = ModelOptimiser(new_model(settings, n_ids=N_IDS, end_of_text=None, seed=0), settings, device=device)
    n = 0

    def step() -> float:
        nonlocal n
        batches = (windows.batch(n * settings.accumulation + number) for number in range(settings.accumulation))
        learned = optimiser.learn(batches, step=n, seed=0)
        n += 1
        return float(learned.loss)

    return step


def nanogpt(folder: Path, settings: PretrainSettings) -> nn.Module:
    """The model of a checkout."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    size = dict(n_layer=settings.n_layers, n_head=settings.n_heads, n_embd=settings.d_model)
    config = module.GPTConfig(
        block_size=settings.context_length, vocab_size=N_IDS, dropout=settings.dropout, bias=True, **size
    )
    made: nn.Module = module.GPT(config)
    return made


def measure(steps: dict[str, Step], *, tokens: int, rounds: int, n: int) -> list[Row]:
    """The best of some rounds of ``n`` steps each; a first round warms up."""
    best = dict.fromkeys(steps, float("inf"))
    for number in range(rounds + 1):
        for name, step in steps.items():
            # Of several processes on these cores, only ours counts.
            begun = (time.process_time if torch.get_num_threads() == 1 else time.perf_counter)()
            for _ in range(n):
                step()
            now = (time.process_time if torch.get_num_threads() == 1 else time.perf_counter)()
            if number:
                best[name] = min(best[name], (now - begun) / n)
    return [Row(name, tokens / seconds, seconds / best["circuit"]) for name, seconds in best.items()]


def compared(
    settings: PretrainSettings, *, device: torch.device, rounds: int, n: int, checkout: Path | None = None
) -> list[Row]:
    """All ways at one size, on random tokens."""
    stream = torch.randint(N_IDS, (N_TOKENS,), generator=torch.Generator().manual_seed(0)).int()
    steps = {
        "circuit": ours(stream, settings, device=device),
        "plain": loop(Plain(settings), stream, settings, device=device),
    }
    if checkout is not None:
        steps["nanoGPT"] = loop(nanogpt(checkout, settings), stream, settings, device=device)
    tokens = settings.batch_size * settings.accumulation * settings.context_length
    return measure(steps, tokens=tokens, rounds=rounds, n=n)


def table(rows: list[Row]) -> str:
    """For people."""
    lines = [
        f"{row.name:8} {row.tokens_per_s:10,.0f} tokens/s   circuit is {row.ratio:.3f} times as fast" for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    settings = load(config=[chosen.config], environment={}, directory=Path("/")).settings.pretrain
    settings = settings.model_copy(update={"autocast": chosen.autocast, "compile": chosen.compile})
    rows = compared(
        settings,
        device=torch.device(chosen.device),
        rounds=chosen.rounds,
        n=chosen.steps,
        checkout=chosen.nanogpt,
    )
    print(f"{chosen.config.stem} on {chosen.device}, {chosen.threads} threads\n{table(rows)}")


if __name__ == "__main__":
    main()
