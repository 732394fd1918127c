"""Gradients by our rule of GIM beside those of its authors' package, gim-explain."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

import circuitcli as circuit
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.rules import applied
from circuitcli.models.taps import leaf, tapped

IDS = torch.tensor([[5, 17, 301, 44, 9, 87, 230, 12]])
FIRST = HookPoint(0, "resid_pre")


def compare_with_peer() -> None:
    """A line for each way to run the peer: the relative difference of gradients at the first block's input."""
    import gim

    adapter = circuit.load_model("builtin:tiny").adapter
    adapter.model.double()
    ours = {way: _ours(adapter, way) for way in ("sdpa", "eager")}
    plain = _gradient(adapter)
    print(f"{'':44} {'from our rule':>14} {'from the plain gradient':>24}")

    def row(name: str, theirs: Tensor, of_ours: Tensor) -> None:
        print(f"{name:44} {_difference(theirs, of_ours):14.1e} {_difference(theirs, plain):24.1e}")

    row("our rule, sdpa", ours["sdpa"], ours["eager"])
    row("gim-explain, TransformerLens", _of_lens(adapter.model), ours["eager"])
    for way in ours:
        adapter.model.set_attn_implementation(way)
        with gim.GIM(adapter.model):
            row(f"gim-explain, transformers' GPT-2, {way}", _gradient(adapter), ours[way])


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _ours(adapter: ModelAdapter, way: str) -> Tensor:
    adapter.model.set_attn_implementation(way)
    with applied(adapter, "gim"):
        return _gradient(adapter)


def _gradient(adapter: ModelAdapter) -> Tensor:
    seen: list[Tensor] = []
    with tapped(adapter, {FIRST: lambda x: seen.append(leaf(x)) or seen[-1]}):
        return torch.autograd.grad(_value(adapter.logits(IDS)), seen)[0]


def _value(logits: Tensor) -> Tensor:
    return logits[0, -1, 3] - logits[0, -1, 40]


def _of_lens(model: PreTrainedModel) -> Tensor:
    """The peer's gradient of the same weights in TransformerLens, whose own hooks it uses."""
    import gim
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = model.config
    lens_config = HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_ctx=config.n_positions,
        d_head=config.n_embd // config.n_head,
        n_heads=config.n_head,
        d_vocab=config.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=config.layer_norm_epsilon,
        dtype=torch.float64,
    )
    lens = HookedTransformer(lens_config)
    lens.load_state_dict(convert_gpt2_weights(model, lens_config), strict=False)
    seen: list[Tensor] = []

    def opened(x: Tensor, hook: object) -> Tensor:
        seen.append(leaf(x))
        return seen[-1]

    with gim.GIM(lens), lens.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", opened)]):
        logits = lens(IDS)
        return torch.autograd.grad(_value(logits), seen)[0]
