"""The MLP of one block as a function whose derivative is known in closed form: its weights, and norms around it.

    y = down(act(up(n)))   or   down(act(gate(n)) * up(n))

with n the input or its norm, the output normed again where the model does that, and the input added to it where the
whole second half of a block is meant.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.projections import Norm, Projection, WeightReader


@dataclass(frozen=True)
class Mlp:
    """What leads from one hook point of a block to a later one."""

    up: Projection
    down: Projection
    activation: Callable[[Tensor], Tensor]
    gate: Projection | None = None
    before: Norm | None = None
    after: Norm | None = None
    skips: bool = False

    @property
    def branches(self) -> tuple[Projection, ...]:
        """The projections that read the input."""
        return (self.up,) if self.gate is None else (self.gate, self.up)

    def __call__(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """The function itself."""
        y = self.inner(x if self.before is None else self.before(x))
        y = y if self.after is None else self.after(y)
        return x + y if self.skips else y

    def inner(self, n: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """The MLP without norms and skip."""
        if self.gate is None:
            return self.down(self.activation(self.up(n)))
        return self.down(self.activation(self.gate(n)) * self.up(n))

    def slopes(self, n: Float[Tensor, "batch d_model"]) -> tuple[Float[Tensor, "batch d_mlp"], ...]:
        """For each branch the derivative of what ``down`` reads by the branch's output, elementwise."""
        if self.gate is None:
            return (self._activation_slope(self.up(n)),)
        gate = self.gate(n)
        return self._activation_slope(gate) * self.up(n), self.activation(gate)

    def _activation_slope(self, h: Tensor) -> Tensor:
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            return torch.autograd.grad(self.activation(h).sum(), h)[0]


def mlp_between(
    adapter: ModelAdapter, reads: HookPoint, writes: HookPoint, *, device: torch.device, dtype: torch.dtype
) -> Mlp:
    """What leads from ``mlp_in`` to ``mlp``, or from ``resid_mid`` to ``resid``, of one block, on a device.

    Raises SettingsError if the model has no such hook point, or if the parts of its MLP are not known.
    """
    adapter.check(reads)
    layout = adapter.layout.mlp
    if layout is None:
        raise SettingsError(
            f"the parts of the MLP are not known for model type '{adapter.model_type}'",
            hint="Jacobian pairs can be trained on GPT-2, GPT-NeoX, Llama, Mistral, Qwen and Gemma models",
        )
    block = adapter.blocks[reads.layer]
    is_block = (reads.site, writes.site) == ("resid_mid", "resid")
    weights = WeightReader(device, dtype, adapter.layout.norm_offset)
    return Mlp(
        up=weights.projection(block.get_submodule(layout.up)),
        down=weights.projection(block.get_submodule(layout.down)),
        activation=block.get_submodule(layout.activation),
        gate=None if layout.gate is None else weights.projection(block.get_submodule(layout.gate)),
        before=weights.norm(adapter.module(reads.layer, "mlp_norm"), adapter.d_model) if is_block else None,
        after=None if layout.norm is None else weights.norm(block.get_submodule(layout.norm), adapter.d_model),
        skips=is_block,
    )
