"""SAEs of every architecture with no parameter at zero, and comparisons, shared by the tests of foreign formats."""

from pathlib import Path

import torch
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.exchange import formats
from circuitcli.saes.exchange.place import About, Changes
from circuitcli.saes.exchange.tensors import Foreign

D_IN, D_OUT, D_SAE, K = 6, 5, 17, 4
HOOK, MLP_IN, MLP = HookPoint(2, "resid"), HookPoint(2, "mlp_in"), HookPoint(2, "mlp")
OPTIONS = {"topk": {"k": K}, "abstopk": {"k": K}, "signed_topk": {"k": K}}


def random_sae(architecture: str, *, seed: int = 0, hook: HookPoint = HOOK, **config) -> SparseCoder:
    """An SAE in float32; thresholds are positive."""
    sae = ARCHITECTURES[architecture](SaeConfig(hook, D_IN, D_SAE, **config), **OPTIONS.get(architecture, {}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        if name == "threshold":
            parameter.data = parameter.data.abs()
    if architecture == "matching_pursuit":
        sae.W_dec.data = torch.nn.functional.normalize(sae.W_dec.data, dim=1)
        sae.W_enc.data = sae.W_dec.data.T.clone()
        sae.b_enc.data.zero_()
        sae.b_dec.data *= sae.config.subtract_decoder_bias
    return sae.eval().requires_grad_(False)


def random_transcoder(architecture: str, *, layer: int = 2, **config) -> SparseCoder:
    chosen = {"subtract_decoder_bias": False, "target": HookPoint(layer, "mlp"), "d_out": D_OUT, **config}
    return random_sae(architecture, hook=HookPoint(layer, "mlp_in"), **chosen)


def inputs(n: int = 50, *, d_in: int = D_IN) -> Tensor:
    return 2 * torch.randn(n, d_in, generator=torch.Generator().manual_seed(7)) + 1


def only(path: Path, name: str | None = None, changes: Changes | None = None) -> Foreign:
    """The one SAE at a path."""
    (place,) = formats.find(path, name)
    return formats.read(place if changes is None else place.changed(changes))


def written(sae: SparseCoder, name: str, directory: Path, **about) -> Path:
    """Where an SAE was written in another format."""
    (path,) = formats.WRITABLE[name].write([Foreign(sae, About(**about))], directory)
    return path


def assert_same(sae: SparseCoder, codes: Tensor, reconstruction: Tensor, x: Tensor) -> None:
    """Codes and reconstructions are the expected ones, and some features fire and some do not."""
    assert (codes != 0).any() and (codes == 0).any()
    assert torch.allclose(sae.encode(x), codes, rtol=1e-4, atol=1e-4)
    assert torch.allclose(sae.reconstruct(x), reconstruction, rtol=1e-4, atol=1e-4)
