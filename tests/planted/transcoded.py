"""Planted circuits with transcoders in the place of the SAEs at MLPs: a feature for each neuron. The truth is what the
oracle finds."""

from dataclasses import replace

import torch

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.relu import ReluSae

from .oracle import behind, direct_edges
from .planted import BASELINES, Planted, Truth
from .wiring import Weighted


def transcoded(planted: Planted) -> Planted:
    """The same model, read through its own neurons."""
    weighted = Weighted(planted.wiring)
    others = [coder for hook, coder in planted.coders.items() if hook.site != "mlp"]
    neurons = [_neurons(weighted, layer) for layer in range(planted.adapter.n_layers)]
    made = replace(planted, coders=Coders.of([*others, *neurons]), truth={})
    found = {kind: behind(direct_edges(made, made.baseline(kind))) for kind in BASELINES}
    return replace(
        made, truth={kind: Truth(frozenset(nodes), frozenset(edges)) for kind, (nodes, edges) in found.items()}
    )


def _neurons(weighted: Weighted, layer: int) -> SparseCoder:
    reads, writes = weighted.mlp(weighted.wiring.blocks[layer])
    config = SaeConfig(
        HookPoint(layer, "mlp_in"),
        weighted.d_model,
        weighted.n_neurons,
        subtract_decoder_bias=False,
        target=HookPoint(layer, "mlp"),
    )
    coder = ReluSae(config).to(torch.float64)
    with torch.no_grad():
        coder.W_enc.copy_(reads.T)
        coder.W_dec.copy_(writes.T)
    return coder.eval().requires_grad_(False)
