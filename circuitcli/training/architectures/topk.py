"""TopK with AuxK (Gao et al. 2024, arXiv:2406.04093), by sparse sums; an autoencoder or a transcoder."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from circuitcli.saes.base import SparseCoder
from circuitcli.saes.fast.selection import Selection, TopK
from circuitcli.saes.fast.sparse import Codes, decode, encode
from circuitcli.saes.topk import TopKSae
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.trainable import BuildInputs, ForwardResult, TrainableCoder


class TrainableTopK(TrainableCoder):
    """Its codes are the k largest pre-activations of each token."""

    def taken(self, coder: SparseCoder) -> SparseCoder:
        """See `TrainableCoder`: with as many codes as the settings say."""
        if isinstance(coder, TopKSae):
            coder.k = self.config.sae.k
        return coder

    def selection(self) -> Selection:
        """Which pre-activations become codes."""
        return TopK(self.config.sae.k)

    def forward_pass(
        self,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        *,
        share: float,
    ) -> ForwardResult:
        """See `TrainableCoder`."""
        result = self.decoded(encode(x, self.encoder, self.selection()), y)
        if self.sae.config.skip:
            result = replace(result, reconstruction=result.reconstruction + x @ self.sae.W_skip.T)
        return result

    def decoded(self, codes: Codes, y: Float[Tensor, "batch d_out"]) -> ForwardResult:
        """The reconstruction from codes, and what it costs."""
        reconstruction = decode(codes, self.sae.W_dec, self.sae.b_dec)
        return ForwardResult(reconstruction, codes.active())


def build(inputs: BuildInputs) -> TrainableTopK:
    """Untrained, from settings and first activations."""
    return build_single(TrainableTopK, TopKSae, inputs)
