"""Crosscoder over checkpoints: one set of features that reads and writes one hook point of several checkpoints of a
model at once (arXiv:2509.05291).

No single model has all that it reads, so it stands in no circuit: it tells how a feature's direction and effect grow
and fade from one checkpoint to the next.
"""

from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import Coded, SaeConfig
from circuitcli.saes.jumprelu import JumpReluSae


class CheckpointCrosscoder(JumpReluSae):
    """A JumpReLU SAE of the activations of several checkpoints at ``config.hook`` side by side, the first one first.

    ``config.d_in`` is their widths together; ``checkpoints`` names them. ``scales``: by what activations of each are
    multiplied so that their mean squared norm is their width; weights are for raw activations.
    """

    architecture = "checkpoint_crosscoder"
    option_names = ("checkpoints", "scales")

    def __init__(self, config: SaeConfig, *, checkpoints: Sequence[str], scales: Sequence[float]) -> None:
        """Raises InputError if the checkpoints cannot share the width."""
        super().__init__(config)
        self.checkpoints, self.scales = list(checkpoints), list(scales)
        if config.d_in % len(checkpoints) or len(scales) != len(checkpoints):
            raise InputError(
                f"a crosscoder of {len(checkpoints)} checkpoints cannot read {config.d_in} numbers, scaled by "
                f"{len(scales)}",
                hint="train the crosscoder again",
            )

    @property
    def d_model(self) -> int:
        """Width of the activations of each checkpoint."""
        return self.d_in // len(self.checkpoints)

    def side_by_side(self, x: Sequence[Float[Tensor, "*batch d_model"]]) -> Float[Tensor, "*batch d_in"]:
        """The activations of all checkpoints side by side, which is what it encodes."""
        return torch.cat(list(x), dim=-1)

    def parts(self, y: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_model"], ...]:
        """What it decoded, checkpoint by checkpoint."""
        return y.split(self.d_model, dim=-1)

    def decoders(self) -> Float[Tensor, "checkpoint d_sae d_model"]:
        """Of each checkpoint the directions that features write, in its raw activations."""
        return torch.stack(self.parts(self.W_dec))

    def decoder_norms(self) -> Float[Tensor, "checkpoint d_sae"]:
        """How long each feature's direction is, in units of the checkpoint's own activations: they grow while a model
        learns, whatever a feature does."""
        scales = torch.tensor(self.scales).to(self.W_dec)
        return self.decoders().norm(dim=2) * scales[:, None]

    def code(self, x: Float[Tensor, "*batch d_in"]) -> Coded:
        """Not to be had of one model. Raises InputError."""
        self._refuse()

    def check_width(self, d_model: int) -> None:
        """Raise InputError: it fits no single model."""
        self._refuse()

    def check_reads(self, widths: Mapping[HookPoint, int]) -> None:
        """Raise InputError: it fits no single model."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"the coder of {self.hook} at {' '.join(self.checkpoints)} is a crosscoder over checkpoints: no single "
            "model has all that it reads",
            hint="use an SAE of one checkpoint: `circuit train`",
        )
