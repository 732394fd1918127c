"""What running a model on a few tokens showed about it, and its names do not tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from circuitcli.hookpoints import HookPoint


@dataclass(frozen=True)
class Findings:
    """What `checking` found; as it stands, what holds for a model that was not run.

    refused: hook points that are not what their names say, and why. edited: sites whose tensor the model changes in
    place after it has passed. flat: sites whose activation has batch and position in one axis. axes: for each block the
    axis of each argument (by its path) that grows with the number of rows.
    """

    refused: Mapping[HookPoint, str] = field(default_factory=dict)
    edited: frozenset[str] = frozenset()
    flat: frozenset[str] = frozenset()
    axes: tuple[Mapping[str, int], ...] = ()
    logit_scale: float = 1.0

    def axes_of(self, layer: int) -> Mapping[str, int]:
        """Axes of one block's arguments."""
        return self.axes[layer] if self.axes else {}
