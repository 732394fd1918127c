"""How long it takes to measure what SAEs do to the model's loss, beside whole forward passes for every number.

    python -m tests.bench.bench_eval [--tokens 4096] [--rounds 2]

Runs builtin:tiny and, if CIRCUIT_TEST_MODEL names a model, that one too, at an early, a middle and the last residual
stream. For one SAE four numbers are asked for: the loss untouched, with the SAE, with the mean and with zero. The plain
way runs the whole model for each and takes the cross-entropy from its logits, 8 texts at a time; circuit works out the
divergences from the untouched run too.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F

from circuitcli.allocator import keep_freed_memory
from circuitcli.evaluation.spliced import MISSED_TARGET, SplicedLoss, Texts, constant
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.loading import load_model
from circuitcli.models.taps import tapped
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.splice import replaced
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.model import ModelSettings
from circuitcli.text import files as text
from circuitcli.text.blocks import token_blocks
from tests.bench.bench_collect import seconds

BATCH, LENGTH, K = 8, 128, 32


@torch.no_grad()
def plain(adapter: ModelAdapter, texts: Texts, sae: TopKSae, mean: torch.Tensor) -> list[float]:
    """Cross-entropy untouched, with the SAE, with the mean and with zero."""
    edits = [{}, replaced(sae, first=0), {sae.hook: constant(mean)}, {sae.hook: constant(torch.zeros_like(mean))}]
    found = []
    for edit in edits:
        total = 0.0
        for ids, mask, target, _ in texts:
            with tapped(adapter, edit):
                logits = adapter.logits(ids, mask)
            total += float(
                F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=MISSED_TARGET, reduction="sum")
            )
        found.append(total / texts.n_predictions)
    return found


def listened(adapter: ModelAdapter, texts: Texts, sae: TopKSae, mean: torch.Tensor) -> list[float]:
    loss = SplicedLoss(adapter, texts, [sae.hook]).measure(sae, mean=mean)
    return [loss.ce_clean, loss.ce_spliced, loss.ce_mean, loss.ce_zero]


def random_sae(hook: HookPoint, d_model: int, device: torch.device) -> TopKSae:
    torch.manual_seed(0)
    sae = TopKSae(SaeConfig(hook, d_model, 8 * d_model), k=K).requires_grad_(False)
    sae.W_dec.normal_(std=d_model**-0.5)
    sae.W_enc.copy_(sae.W_dec.T)
    return sae.to(device)


def compare(name: str, *, n_tokens: int, rounds: int) -> None:
    """A line for each hook point."""
    model = load_model(ModelSettings(name=name))
    adapter, device = model.adapter, model.adapter.device
    blocks = token_blocks(
        lambda start: text.documents(text.BUILTIN, start=start), model.tokenizer, block_length=LENGTH, pack=True
    )
    chosen = [_Block(block.ids.tolist()) for block in islice(blocks, n_tokens // LENGTH)]
    texts = Texts.of(chosen, pad_id=model.tokenizer.pad_id, batch_size=BATCH, device=device)
    last = adapter.n_layers - 1
    for layer in sorted({last // 6, last // 2, last}):
        sae = random_sae(HookPoint(layer, "resid"), adapter.d_model, device)
        mean = torch.ones(adapter.d_model, device=device)
        ways = {way: partial(way, adapter, texts, sae, mean) for way in (plain, listened)}
        times = {way: min(timed) for way, timed in alternated(ways, rounds).items()}
        gap = max(abs(one - other) for one, other in zip(ways[plain](), ways[listened](), strict=True))
        print(
            f"{name[-20:]:20} {sae.hook!s:>10} {times[plain]:16.2f} {times[listened]:17.2f} "
            f"{times[plain] / times[listened]:6.2f} {gap:12.1e}",
            flush=True,
        )


def alternated(ways: Mapping[Callable, Callable], rounds: int) -> dict[Callable, list[float]]:
    times: dict[Callable, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            times[way].append(seconds(work))
    return times


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(
        f"{torch.get_num_threads()} threads, {options.tokens:,} tokens in texts of {LENGTH}; best of {options.rounds}"
    )
    print(f"{'model':20} {'hook point':>10} {'whole passes, s':>16} {'from the hook, s':>17} {'ratio':>6} {'gap':>12}")
    for name in ["builtin:tiny", *filter(None, [os.environ.get("CIRCUIT_TEST_MODEL")])]:
        compare(name, n_tokens=options.tokens, rounds=options.rounds)


class _Block:
    """A text, all of whose tokens an SAE stands at."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.positions = ids, [*range(len(ids))]


if __name__ == "__main__":
    main()
