"""Several SAEs that learn together, as they share weights or a loss."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder
from circuitcli.training.architectures.trainable import Batch, StepResult, Trainable, TrainableCoder


class TrainableCoders(Trainable):
    """Several SAEs that learn from one batch, each as a `TrainableCoder`."""

    @property
    @abstractmethod
    def coders(self) -> Sequence[TrainableCoder]:
        """One for each SAE, in the order of the model."""

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """See `Trainable`."""
        return self.sae_hooks

    @property
    def sae_hooks(self) -> tuple[HookPoint, ...]:
        """See `Trainable`."""
        return tuple(coder.sae.hook for coder in self.coders)

    def begin_from(self, coders: Mapping[HookPoint, SparseCoder], rows: Batch) -> None:
        """See `Trainable`."""
        for coder in self.coders:
            coder.begin_from(coders, rows)

    def training_forward(self, batch: Batch, *, share: float) -> dict[HookPoint, StepResult]:
        """See `Trainable`."""
        results: dict[HookPoint, StepResult] = {}
        for coder in self.coders:
            coder.ranks = self.ranks
            results |= coder.training_forward(batch, share=share)
        return results

    def project_gradients(self) -> None:
        """See `Trainable`."""
        for coder in self.coders:
            coder.project_gradients()

    def project_parameters(self) -> None:
        """See `Trainable`."""
        for coder in self.coders:
            coder.project_parameters()

    def finished(self) -> dict[HookPoint, SparseCoder]:
        """See `Trainable`."""
        return {hook: sae for coder in self.coders for hook, sae in coder.finished().items()}

    def dead_share(self, hook: HookPoint) -> float:
        """See `Trainable`."""
        return next(coder.dead_share(hook) for coder in self.coders if coder.sae.hook == hook)

    def chunk_of(self, hook: HookPoint) -> int | None:
        """See `Trainable`."""
        return next(coder.chunk_features for coder in self.coders if coder.sae.hook == hook)
