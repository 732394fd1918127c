"""One of several processes that train together; started by test_training_ranks.py with RANK and so on set."""

from pathlib import Path

import torch
from training_fakes import MemoryBatches, optimiser, planted, recipe

from circuitcli import group, processes
from circuitcli.hookpoints import HookPoint
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.log import MetricsLog
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.ranks import ALONE, AllRanks
from circuitcli.training.trainer import Trainer

HOOKS = (HookPoint(0, "attn"), HookPoint(1, "resid"))


N_STEPS = 20


def make(directory: Path, architecture: str, mode: str) -> Trainer:
    """The trainer of this process; mode: data or hooks."""

    rows = {hook: planted(2_000, seed=seed)[0] for seed, hook in enumerate(HOOKS)}
    several = processes.count() > 1
    ranks = AllRanks() if several else ALONE
    optimisers: list[CoderOptimiser] = []
    for hook, own in rows.items():
        made = optimiser(hook, own, recipe(N_STEPS, architecture=architecture, k=3, dead_tokens=300))
        if several and mode == "data":
            made.trainable.ranks = ranks
        optimisers.append(made)
    if several and mode == "hooks":
        optimisers = optimisers[ranks.rank :: ranks.n]
    places = [one.name_of(hook) for one in optimisers for hook in one.trainable.sae_hooks]
    if several and mode == "data" and ranks.rank:
        places = []
    return Trainer(
        optimisers,
        MemoryBatches(rows, 64, N_STEPS),
        batch_size=64,
        checkpoints=Checkpoints(directory / "checkpoint", "test"),
        checkpoint_steps=3,
        logs={place: MetricsLog(directory / place / "metrics.jsonl") for place in places},
        ranks=ranks,
        shares_rows=several and mode == "data",
        held_out=lambda: [{hook: planted(200, seed=50)[0] for hook in HOOKS}],
    )


def run(directory: str, architecture: str, mode: str) -> None:
    torch.set_num_threads(1)
    group.start(torch.device("cpu"))
    make(Path(directory), architecture, mode).run()
    group.barrier()
    group.leave()
