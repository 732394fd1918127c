"""A crosscoder over checkpoints, trained as any other on their caches side by side (arXiv:2509.05291).

The caches stand as layers of one site, so that the crosscoder of several layers is what learns: BatchTopK among codes
times the norms of their decoder rows, summed over the checkpoints, so that a feature pays for each that it writes.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.aligned import AlignedCache, stand_in
from circuitcli.errors import CircuitError
from circuitcli.evaluation.quality import Reconstruction
from circuitcli.evaluation.together import reconstruction_of_crosscoder
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.checkpoint_crosscoder import CheckpointCrosscoder
from circuitcli.saes.crosscoder import Crosscoder
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed
from circuitcli.training.architectures.crosscoder import TrainableCrosscoder
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.job import Job
from circuitcli.training.plan import Plan, training_plan

C = TypeVar("C", Crosscoder, CheckpointCrosscoder)

# Rows that are encoded at once.
_ROWS = 1024


@dataclass(frozen=True)
class Crosscoding:
    """One training: the caches side by side, the checkpoints' names, and where its state is.

    settings: those of an SAE; their architecture does not matter. folder: of the state and the metrics, which
    ``fingerprint`` tells from those of another training.
    """

    cache: AlignedCache
    names: tuple[str, ...]
    settings: Settings
    folder: Path
    fingerprint: str
    device: torch.device

    @property
    def plan(self) -> Plan:
        """How much is trained on what."""
        return training_plan(self.settings, n_rows=self.cache.n_tokens)

    def trained(self) -> tuple[CheckpointCrosscoder, float]:
        """The crosscoder, from a checkpoint of its own training if there is one, and the share of dead features.

        Raises CircuitError if a loss is not finite.
        """
        settings = changed(self.settings, {"sae.architecture": "crosscoder"}, origin="develop")
        job = Job(
            settings=settings,
            variants={"": settings},
            cache=self.cache,
            plan=self.plan,
            device=self.device,
            checkpoints=Checkpoints(self.folder / "checkpoint", self.fingerprint),
            model=_no_model,
            logs=self.folder,
        )
        (optimiser,) = job.trained()
        trainable = optimiser.trainable
        assert isinstance(trainable, TrainableCrosscoder)
        (coder,) = optimiser.finished().values()
        assert isinstance(coder, Crosscoder)
        whole = over_checkpoints(coder, self.cache.hook, self.names, scales=trainable.scales)
        return whole, trainable.dead_share(self.cache.hooks[0])

    def forget(self) -> None:
        """Remove the state of the training, when what it made is kept."""
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    def quality(self, coder: CheckpointCrosscoder) -> list[Reconstruction]:
        """How well the crosscoder reconstructs each checkpoint's held-out activations."""
        plain = over_layers(coder).to(self.device)
        found = reconstruction_of_crosscoder(plain, self.held_out())
        return [found[hook] for hook in plain.hook_points]

    def held_out(self) -> Iterator[Mapping[HookPoint, Float[Tensor, "row d_model"]]]:
        """The rows that training does not see, by the checkpoints' stand-ins."""
        rows = self.plan.held_out_rows
        for piece in self.cache.pieces(rows.start, rows.stop, size=_ROWS):
            yield {hook: self.cache.finite_rows(hook, *piece).to(self.device) for hook in self.cache.hooks}

    def densities(self, coder: CheckpointCrosscoder) -> Float[Tensor, " d_sae"]:
        """In which share of the held-out rows each feature is active."""
        placed = coder.to(self.device)
        active = torch.zeros(coder.d_sae, dtype=torch.float64)
        for rows in self.held_out():
            active += (placed.encode(placed.side_by_side(list(rows.values()))) != 0).sum(dim=0).cpu()
        return active / self.plan.held_out


def _no_model() -> Any:
    raise CircuitError("a crosscoder learns from activations alone")


@torch.no_grad()
def over_checkpoints(
    coder: Crosscoder, hook: HookPoint, names: Sequence[str], *, scales: Sequence[float]
) -> CheckpointCrosscoder:
    """The crosscoder of the stand-ins as that of the checkpoints that they stand for."""
    config = SaeConfig(hook, coder.d_in, coder.d_sae, subtract_decoder_bias=False)
    whole = CheckpointCrosscoder(config, checkpoints=names, scales=scales)
    return _with_weights(whole, coder)


@torch.no_grad()
def over_layers(coder: CheckpointCrosscoder) -> Crosscoder:
    """The crosscoder of checkpoints as one of layers, by which it is measured."""
    hooks = [stand_in(number, coder.hook) for number in range(len(coder.checkpoints))]
    config = SaeConfig(hooks[0], coder.d_in, coder.d_sae, subtract_decoder_bias=False)
    return _with_weights(Crosscoder(config, hooks=[str(one) for one in hooks]), coder)


def _with_weights(made: C, source: torch.nn.Module) -> C:
    made.load_state_dict(source.state_dict())
    return made.eval().requires_grad_(False)
