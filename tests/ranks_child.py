"""One of several processes that train together; started by test_training_ranks.py with RANK and so on set."""

from pathlib import Path

import torch
from training_fakes import MemoryBatches, Recipe, moments, optimiser, planted, recipe

from circuitcli import group, processes
from circuitcli.hookpoints import HookPoint
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.log import MetricsLog
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.ranks import ALONE, AllRanks
from circuitcli.training.trainer import Trainer

HOOKS = (HookPoint(0, "attn"), HookPoint(1, "resid"))
# Of coders that write together.
JOINT = tuple(HookPoint(layer, site) for site in ("mlp_in", "mlp") for layer in (0, 1))


N_STEPS = 20


def make(directory: Path, architecture: str, mode: str) -> Trainer:
    """The trainer of this process; mode: data or hooks."""

    is_joint = architecture == "clt"
    hooks = JOINT if is_joint else HOOKS
    # What is written can be told from what is read.
    rows = {hook: planted(2_000, seed=seed % 2)[0] for seed, hook in enumerate(hooks)}
    several = processes.count() > 1
    ranks = AllRanks() if several else ALONE
    optimisers: list[CoderOptimiser] = []
    # With 3 codes a token two pre-activations lie so near to each other that rounding chooses between them.
    told = recipe(N_STEPS, architecture=architecture, k=4 if is_joint else 3, dead_tokens=300)
    for made in [jointly(rows, told)] if is_joint else [optimiser(hook, own, told) for hook, own in rows.items()]:
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
        held_out=lambda: [{hook: planted(200, seed=50)[0] for hook in hooks}],
    )


def jointly(rows: dict[HookPoint, torch.Tensor], told: Recipe) -> CoderOptimiser:
    """One optimiser of coders at all these hook points."""
    first = {hook: own[:256] for hook, own in rows.items()}
    trainable = new_trainable(tuple(rows), first, told.config, {hook: moments(own) for hook, own in rows.items()})
    return CoderOptimiser(trainable, told.optimiser_config)


def run(directory: str, architecture: str, mode: str) -> None:
    torch.set_num_threads(1)
    group.start(torch.device("cpu"))
    make(Path(directory), architecture, mode).run()
    group.barrier()
    group.leave()
