"""Crosscoder: one set of features that reads and writes the same site of several layers (Lindsey et al. 2024, "Sparse
Crosscoders for Cross-Layer Features and Model Diffing").

Its codes are known only when all its layers have been read, which is after the first of them is written: so no circuit
holds one.
"""

from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import Coded, Frame, SaeConfig
from circuitcli.saes.jumprelu import JumpReluSae


class Crosscoder(JumpReluSae):
    """A JumpReLU SAE of the activations of several hook points side by side, from below.

    ``config.hook`` is the first of them, ``config.d_in`` their widths together. ``hooks`` names all, of equal width.
    """

    architecture = "crosscoder"
    option_names = ("hooks",)

    def __init__(self, config: SaeConfig, *, hooks: Sequence[str]) -> None:
        """Raises InputError if the hook points cannot share the width."""
        super().__init__(config)
        self.hooks = list(hooks)
        if config.d_in % len(hooks) or str(config.hook) != hooks[0]:
            raise InputError(
                f"a crosscoder of {' '.join(hooks)} cannot read {config.d_in} numbers from {config.hook} on",
                hint="train or copy the crosscoder again",
            )

    @property
    def reads(self) -> tuple[HookPoint, ...]:
        """See `SparseCoder`."""
        return self.hook_points

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """See `SparseCoder`: all that it reads."""
        return self.hook_points

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """All that it reads and writes, from below."""
        return tuple(map(HookPoint.parse, self.hooks))

    @property
    def d_model(self) -> int:
        """Width of the activations at each hook point."""
        return self.d_in // len(self.hooks)

    def joined(self, x: Mapping[HookPoint, Float[Tensor, "*batch d_model"]]) -> Float[Tensor, "*batch d_in"]:
        """The activations of all hook points side by side, which is what it encodes."""
        return torch.cat([x[hook] for hook in self.hook_points], dim=-1)

    def parts(self, y: Float[Tensor, "*batch d_in"]) -> dict[HookPoint, Float[Tensor, "*batch d_model"]]:
        """What it decoded, hook point by hook point."""
        return dict(zip(self.hook_points, y.split(self.d_model, dim=-1), strict=True))

    def decoder(self, hook: HookPoint) -> Float[Tensor, "d_sae d_model"]:
        """See `SparseCoder`."""
        return self.parts(self.W_dec)[hook]

    def decoder_bias(self, hook: HookPoint) -> Float[Tensor, " d_model"]:
        """See `SparseCoder`."""
        return self.parts(self.b_dec)[hook]

    def decode(
        self, codes: Float[Tensor, "*batch d_sae"], frame: Frame | None = None, *, hook: HookPoint | None = None
    ) -> Float[Tensor, "*batch _"]:
        """See `SparseCoder`; unless a hook point is given, the reconstructions of all side by side."""
        if hook is None:
            return codes @ self.W_dec + self.b_dec
        return codes @ self.decoder(hook) + self.decoder_bias(hook)

    def decoder_norms(self) -> Float[Tensor, "hooks d_sae"]:
        """How long each feature's decoder row is at each hook point: where the feature is at home."""
        return torch.stack([self.decoder(hook).norm(dim=1) for hook in self.hook_points])

    def code(self, x: Float[Tensor, "*batch d_in"]) -> Coded:
        """Not to be had at one hook point. Raises InputError."""
        self._refuse()

    def check_width(self, d_model: int) -> None:
        """Raise InputError: it fits no single hook point."""
        self._refuse()

    def check_reads(self, widths: Mapping[HookPoint, int]) -> None:
        """See `SparseCoder`."""
        for hook in self.hook_points:
            if widths[hook] != self.d_model:
                raise InputError(
                    f"the crosscoder is for width {self.d_model} at {hook}, the model has {widths[hook]}",
                    hint="use coders that were trained on this model",
                )

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"the coder of {' '.join(self.hooks)} is a crosscoder: its codes are known only when all these have been "
            "read, after the first was written, so it cannot stand in a circuit",
            hint="use SAEs, transcoders or a cross-layer transcoder: `circuit train --set sae.architecture=clt`",
        )
