"""Coders of the same hook points that a circuit's own are held against: with a shuffled decoder, and without any.

In a shuffled decoder each feature has the direction of another one of its coder: codes are the same, what they mean is
not. Neurons are features that nobody had to find: those of the MLP where a hook point is its output, else the
dimensions of the activation. Both leave an error, of neurons nothing but rounding, so that splicing stays exact.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.mlp import Mlp, mlp_between
from circuitcli.saes.base import Frame, SaeConfig, SparseCoder
from circuitcli.saes.coders import Coders


def shuffled(coders: Coders, *, seed: int) -> Coders:
    """The coders with the rows of their decoders exchanged, those of one feature together."""
    generator = torch.Generator().manual_seed(seed)
    return Coders.of(_Shuffled(coder, torch.randperm(coder.d_sae, generator=generator)) for coder in coders.values())


def neurons(adapter: ModelAdapter, coders: Coders) -> Coders:
    """Neurons, or dimensions, of every hook point that the coders write, on their device and in their number type."""
    like = next(iter(coders.values())).W_enc
    read = {place for place in coders.written if place.site != "mlp"}
    made: list[SparseCoder] = []
    for place in coders.written:
        reads = HookPoint(place.layer, "mlp_in")
        mlp = _mlp(adapter, reads, place, like) if place.site == "mlp" and reads not in read else None
        one = _Dimensions(place, adapter.d_model, like) if mlp is None else _Neurons(reads, place, mlp)
        # Activations that were collected for the coders are theirs too.
        one.origin = coders.writers(place)[0].origin
        made.append(one)
    return Coders.of(made)


def _mlp(adapter: ModelAdapter, reads: HookPoint, writes: HookPoint, like: Tensor) -> Mlp | None:
    """The MLP of a block as a sum over its neurons; None where it is not known, or its output is normed as a whole."""
    try:
        mlp = mlp_between(adapter, reads, writes, device=like.device, dtype=like.dtype)
    except SettingsError:
        return None
    return mlp if mlp.after is None else None


class _Borrowed(SparseCoder):
    """A coder whose weights are others', so that no memory is taken for them."""

    def __init__(self, config: SaeConfig, **weights: Tensor) -> None:
        nn.Module.__init__(self)
        self.config = config
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))

    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """See `SparseCoder`."""
        return pre


class _Shuffled(_Borrowed):
    """A coder that decodes each feature as another one, and encodes as its own."""

    architecture = "shuffled"

    def __init__(self, coder: SparseCoder, order: Tensor) -> None:
        rows = order.to(coder.W_enc.device)
        decoders = {coder.writing_names(number)[0] for number in range(len(coder.writes))}
        weights = coder.named_parameters(recurse=False)
        super().__init__(coder.config, **{n: value[rows] if n in decoders else value for n, value in weights})
        # Not as a module of this one, whose parameters it would then have too.
        object.__setattr__(self, "_own", coder)
        self.origin = coder.origin
        self.reads_context = coder.reads_context  # type: ignore[misc]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """See `SparseCoder`."""
        return self._own.encode(x)

    def frame(self, x: Float[Tensor, "*batch d_in"]) -> Frame | None:
        """See `SparseCoder`."""
        return self._own.frame(x)

    def encode_framed(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_sae"], Frame | None]:
        """See `SparseCoder`."""
        return self._own.encode_framed(x)

    _own: SparseCoder


class _Dimensions(_Borrowed):
    """Each number of an activation as a feature."""

    architecture = "dimensions"

    def __init__(self, hook: HookPoint, d_model: int, like: Tensor) -> None:
        one, none = torch.eye(d_model).to(like), torch.zeros(d_model).to(like)
        config = SaeConfig(hook, d_model, d_model, subtract_decoder_bias=False)
        super().__init__(config, W_enc=one, b_enc=none, W_dec=one, b_dec=none)


class _Neurons(_Borrowed):
    """Each neuron of an MLP as a feature: what it reads makes it active, and its output is the sum over them."""

    architecture = "neurons"

    def __init__(self, reads: HookPoint, writes: HookPoint, mlp: Mlp) -> None:
        d_mlp, d_model = mlp.up.weight.shape
        config = SaeConfig(reads, d_model, d_mlp, subtract_decoder_bias=False, target=writes, d_out=d_model)
        up, down = mlp.up, mlp.down
        super().__init__(config, W_enc=up.weight.T, b_enc=up.bias, W_dec=down.weight.T, b_dec=down.bias)
        self._mlp = mlp

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """See `SparseCoder`."""
        mlp = self._mlp
        if mlp.gate is None:
            return mlp.activation(mlp.up(x))
        return mlp.activation(mlp.gate(x)) * mlp.up(x)
