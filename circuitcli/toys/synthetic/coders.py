"""The coders of the benchmark by name: SAEs of each architecture, and what stands beside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from circuitcli.evaluation.baselines.linear import ica, identity, pca
from circuitcli.evaluation.baselines.nmf import nmf
from circuitcli.saes.base import SparseCoder
from circuitcli.settings.settings import Settings
from circuitcli.toys.synthetic.recipe import Recipe
from circuitcli.toys.synthetic.training import (
    HOOK,
    MOMENT_ROWS,
    Draw,
    Moments,
    batch_rows,
    planted,
    settings_for,
    trained,
)
from circuitcli.toys.synthetic.world import World, stream


@dataclass(frozen=True)
class Bench:
    """The world that settings ask for, and the folder where trainings keep their state."""

    settings: Settings
    folder: Path
    fingerprint: str

    @cached_property
    def world(self) -> World:
        """The planted features."""
        return World.of(Recipe(shrink=self.settings.synthetic.shrink), seed=self.settings.seed)

    @cached_property
    def moments(self) -> Moments:
        """Of the activations."""
        return Moments.of(self._rows)

    def coder(self, name: str) -> SparseCoder:
        """The coder of this name, trained or worked out. Raises CircuitError if a loss stops being finite."""
        made = self._baselines.get(name)
        return self._trained(name, name, self._draw) if made is None else made()

    @property
    def _draw(self) -> Draw:
        return planted(self.world, batch_rows(self.settings))

    @cached_property
    def _rows(self) -> Tensor:
        return self.world.batch("moments", 0, MOMENT_ROWS)[0]

    @property
    def _baselines(self) -> Mapping[str, Callable[[], SparseCoder]]:
        k, seed = settings_for(self.settings, "topk").sae.k, self.settings.seed
        mean, covariance = self.moments.mean, self.moments.covariance
        return {
            "pca": lambda: pca(HOOK, mean, covariance, k=k),
            "identity": lambda: identity(HOOK, mean, k=k),
            "ica": lambda: ica(HOOK, self._rows, k=k, generator=stream(seed, "ica")),
            "nmf": lambda: nmf(
                HOOK, self._rows[: MOMENT_ROWS // 4], mean, n=len(mean), k=k, generator=stream(seed, "nmf")
            ),
            "frozen-decoder": lambda: self._trained("frozen-decoder", "topk", self._draw, is_decoder_frozen=True),
            "random-model": lambda: self._trained(
                "random-model", "topk", self.moments.noise(seed, batch_rows(self.settings))
            ),
        }

    def _trained(self, name: str, architecture: str, draw: Draw, *, is_decoder_frozen: bool = False) -> SparseCoder:
        return trained(
            settings_for(self.settings, architecture),
            draw,
            self.moments,
            folder=self.folder / name,
            fingerprint=f"{self.fingerprint} {name}",
            is_decoder_frozen=is_decoder_frozen,
        )
