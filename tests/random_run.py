"""A run of the built-in model with random autoencoders, for stages that need no training; nothing is collected."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from circuitcli.hookpoints import HookPoint
from circuitcli.records import Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import load
from circuitcli.stages.request import Request

PROMPT, D_MODEL, D_SAE = "for i in range(", 128, 300
HOOKS = tuple(HookPoint.parse(name) for name in ("resid.1", "mlp.2", "resid.2"))
SMALL = {
    "model.device": "cpu",
    "model.name": "builtin:tiny",
    "graph.prompt": PROMPT,
    "graph.baseline": "zero",
    "graph.ig_steps": 2,
    "graph.down": 3,
    "graph.up": 2,
    "graph.threshold_exp": -3,
    "validate.samples": 2,
    "validate.bootstrap": 20,
}


def random_saes(folder: Path, *, seed: int = 0, hooks: Sequence[HookPoint] = HOOKS, idle: int | None = None) -> Path:
    """Writes TopK autoencoders whose encoder is the decoder's transpose; feature ``idle`` writes nothing."""
    for number, hook in enumerate(hooks):
        sae = TopKSae(SaeConfig(hook, D_MODEL, D_SAE), k=8).requires_grad_(False)
        generator = torch.Generator().manual_seed(10 * seed + number)
        decoder = torch.randn(D_SAE, D_MODEL, generator=generator)
        sae.W_dec.copy_(decoder / decoder.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
        if idle is not None:
            sae.W_dec[idle] = 0
        files.save(sae, folder / str(hook))
    return folder


def settings_of(saes: Path, **changes: Any) -> Settings:
    """Settings with these changes, written as graph__metric."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    told = SMALL | {"sae_path": str(saes)} | named
    # None takes a setting back to its default.
    kept = {name: value for name, value in told.items() if value is not None}
    return load(kept, environment={}, directory=Path("/nonexistent")).settings


def asking(saes: Path, folder: Path) -> Callable[..., Request]:
    """Requests about a run in a new folder."""
    (folder / "run").mkdir()
    run = Run(folder / "run")
    return lambda **changes: Request(settings_of(saes, **changes), run.stream() if run.manifest() else Stream(), run)
