"""Matching pursuit: features are taken one after the other, each for what those before it left over.

Source: Costa et al. 2025, arXiv:2506.03093, as SAELens has it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import SettingsError
from circuitcli.saes.base import SaeConfig, SparseCoder


class MatchingPursuitSae(SparseCoder):
    """Each round takes the feature with the largest pre-activation, and its decoder row times that off the activation.

    A token is done after ``max_iterations`` rounds (by default its width); when less than ``residual_threshold`` of it
    is left in length, in the scale that the encoder sees (0: never); and, with ``stop_on_duplicate_support``, when a
    round brings no feature that was not there. ``W_enc`` is the decoder's transpose, up to a scale of the input.
    """

    architecture = "matching_pursuit"
    elementwise = False
    option_names = ("max_iterations", "residual_threshold", "stop_on_duplicate_support")

    def __init__(
        self,
        config: SaeConfig,
        max_iterations: int | None = None,
        residual_threshold: float = 0.01,
        stop_on_duplicate_support: bool = True,
    ) -> None:
        if config.target is not None:
            raise SettingsError("matching pursuit subtracts its features from what it reads: it cannot be a transcoder")
        super().__init__(config)
        self.max_iterations = max_iterations
        self.residual_threshold = residual_threshold
        self.stop_on_duplicate_support = stop_on_duplicate_support

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Raises TypeError: later rounds need the activation."""
        raise TypeError("codes of matching pursuit do not follow from pre-activations alone")

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Codes of activations. Which features are taken is a constant to gradients."""
        left = self.centred(x).flatten(0, -2)  # (token, d_in)
        codes = left.new_zeros(len(left), self.d_sae)
        # Tokens that are not done; what is left is of these alone.
        live = torch.arange(len(left), device=left.device)
        for _ in range(self.max_iterations or self.d_in):
            with torch.no_grad():
                chosen = (left @ self.W_enc + self.b_enc).argmax(dim=1)
            values = ((left * self.W_enc.T[chosen]).sum(dim=1) + self.b_enc[chosen]).relu()
            brings_none = (codes.detach()[live, chosen] != 0) | (values.detach() == 0)
            codes = codes.index_put((live, chosen), values, accumulate=True)
            left = left - values[:, None] * self.W_dec[chosen]
            is_done = left.detach().norm(dim=1) < self.residual_threshold
            if self.stop_on_duplicate_support:
                is_done |= brings_none
            left, live = left[~is_done], live[~is_done]
            if not len(live):
                break
        return codes.unflatten(0, x.shape[:-1])
