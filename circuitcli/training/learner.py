"""A student with its optimiser, one step at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseAutoencoder
from circuitcli.training.architectures.student import Batch, Outcome, Student
from circuitcli.training.schedule import Schedule

# Of Gao et al. 2024: gradients of features that are rarely active are tiny.
ADAM_EPSILON = 6.25e-10
# Short memories suit short runs. Against (0.9, 0.999), at the residual stream of a 135M model, 128 steps of 4,096
# tokens explain 0.776 of the variance instead of 0.763, and 1,200 steps of 512 tokens 0.726 instead of 0.704, with 1 %
# of the features dead instead of 5 % (one seed each, without tokens of more than 5 times the median norm).
ADAM_BETAS = (0.5, 0.95)
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Pace:
    """How fast a learner moves: its learning rate over the run, and the largest norm of its gradient."""

    schedule: Schedule
    clip: float


class Learner:
    """One student and what it needs to move. ``variant`` names it among those of a sweep."""

    def __init__(self, student: Student, pace: Pace, *, variant: str = "") -> None:
        self.student, self.pace, self.variant = student, pace, variant
        self.parameters = dict(student.named_parameters())
        self.device = next(iter(self.parameters.values())).device
        # Fused reads and writes each number once; the other forms take tens of times as long on the CPU.
        is_fused = self.device.type in ("cpu", "cuda")
        groups = [
            {"params": [parameter], "factor": student.rate_factor(name)} for name, parameter in self.parameters.items()
        ]
        self.optimizer = torch.optim.Adam(
            groups, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=is_fused, foreach=None if is_fused else False
        )

    @property
    def name(self) -> str:
        """A name for files, its own among all learners of a run."""
        # Those between the first and the last would make the name too long for a file system.
        hooks = "+".join(map(str, dict.fromkeys((self.student.hooks[0], self.student.hooks[-1]))))
        return f"{self.variant}/{hooks}" if self.variant else hooks

    def place(self, hook: HookPoint) -> str:
        """Where what is kept of the SAE at this hook point belongs, below the folder of all SAEs."""
        return f"{self.variant}/{hook}" if self.variant else str(hook)

    def step(self, batch: Batch, *, index: int) -> dict[HookPoint, Outcome]:
        """Learn from raw activations, as the step with this number."""
        outcomes = self.student.learn(batch, share=index / self.pace.schedule.n_steps)
        loss = torch.stack([part for outcome in outcomes.values() for part in outcome.losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._move(self.pace.schedule.rate(index))
        return outcomes

    @torch.no_grad()
    def _move(self, rate: float) -> None:
        """One step of Adam along the clipped gradient."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        self.student.ranks.average(gradients)
        self.student.turn_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.pace.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.student.settle()

    def finished(self) -> dict[HookPoint, SparseAutoencoder]:
        """The SAEs for raw activations, on the CPU."""
        return self.student.finished()

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, besides the batch and the settings; tensors share memory."""
        state = dict(self.student.state_dict())
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"{name}.{moment}": moments[moment] for moment in (*MOMENTS, "step") if moment in moments}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken. Raises KeyError or RuntimeError if it does not fit."""
        with torch.no_grad():
            for name, tensor in self.student.state_dict().items():
                tensor.copy_(state[name])
        for name, parameter in self.parameters.items():
            if f"{name}.step" in state:
                moments = {key: torch.empty_like(parameter).copy_(state[f"{name}.{key}"]) for key in MOMENTS}
                steps = state[f"{name}.step"].to(self.device, copy=True)
                self.optimizer.state[parameter] = {"step": steps, **moments}
