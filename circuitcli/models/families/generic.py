"""Any other decoder-only model: its parts are guessed from its structure; `placing` and `checking` run the guess."""

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from circuitcli.errors import InputError
from circuitcli.models.layout import SUPPORTED, Layout, text_config
from circuitcli.models.offloading import weights_at_hand

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn", "ff", "mlp_block", "block_sparse_moe")
# What some models have in place of attention, in some or all of their blocks.
MIXERS = ("mamba", "linear_attn", "conv", "temporal_block", "mixer")
# An MLP whose two projections are parts of the block itself.
PROJECTIONS = ("fc1", "fc2")
# How blocks call what they multiply by before they add it to the stream.
MULTIPLIERS = ("residual_multiplier", "residual_scale")
# Norms behind attention and MLP.
NORMS_BEHIND = (
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_feedforward_layernorm"),
)


def layouts(model: PreTrainedModel) -> tuple[Layout, ...]:
    """A guess at where the parts of each block are.

    Raises InputError if the model shows no stack of decoder blocks, or one without attention.
    """
    path = blocks_path(model)
    stack = list(model.get_submodule(path).children())
    prefix = path.rpartition(".")[0]
    parent, width = model.get_submodule(prefix), text_config(model).hidden_size
    final = [name for name, child in parent.named_children() if is_norm(child) and _width(child) in (None, width)]
    if not any("attention" in type(module).__name__.lower() for block in stack for module in block.modules()):
        parts = " ".join(name for name, _ in stack[0].named_children())
        raise unknown(model, f"none of its blocks has attention; those of {type(stack[0]).__name__} have {parts}")
    whole = Layout(
        family="generic",
        embedding=_path(model, model.get_input_embeddings()),
        blocks=path,
        final_norm=".".join(part for part in (prefix, final[-1]) if part) if final else None,
        attn_norm=None,
        attn_out=None,
        mlp_norm=None,
        mlp_out=None,
        attention=None,
        feed_forward=None,
        norm_offset=norm_offset(parent.get_submodule(final[-1])) if final else 0.0,
    )
    uses = Counter(id(part) for block in stack for part in block.modules())
    return tuple(_block_layout(model, whole, block, uses) for block in stack)


def blocks_path(model: PreTrainedModel) -> str:
    """Where the list of decoder blocks is. Raises InputError if there is none, or an empty one."""
    n_layers = getattr(text_config(model), "num_hidden_layers", -1)
    # Inside the decoder first, as other parts may have as many layers; some call their unembedding that.
    lists = [
        module
        for part in (model.get_decoder() or model, model)
        for _, module in sorted(part.named_modules(), key=lambda named: named[0].count("."))
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists or n_layers < 1:
        raise unknown(model, f"it has no list of num_hidden_layers={n_layers} blocks")
    return _path(model, lists[0])


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm by its class's name, or has norms and others in it, as DBRX's has."""
    return "norm" in type(module).__name__.lower()


def unknown(model: PreTrainedModel, why: str) -> InputError:
    """The error for a model that cannot be used."""
    return InputError(
        f"the structure of model type '{model.config.model_type}' is not understood: {why}",
        hint=SUPPORTED,
    )


def _block_layout(model: PreTrainedModel, whole: Layout, block: nn.Module, uses: Mapping[int, int]) -> Layout:
    """A block's parts by their names and the names of their classes; a part of several blocks is none of one."""
    modules = {
        name: part
        for name, part in block.named_modules()
        if name and uses[id(part)] == 1 and not is_norm(part) and not isinstance(part, nn.Dropout)
    }
    attention = _part(modules, ATTENTION, "attention")
    mixer = None if attention is not None else _part(modules, MIXERS, "mixer")
    mlp = _part(modules, MLP, "mlp", "feedforward", "moe")
    # Nemotron-H calls the one part of every block a mixer.
    mixer = None if mixer == mlp else mixer
    mixing, mlp_out = attention or mixer, mlp
    if mlp is None and all(hasattr(block, name) for name in PROJECTIONS):
        mlp, mlp_out = PROJECTIONS
    scale = next((float(getattr(block, name)) for name in MULTIPLIERS if hasattr(block, name)), 1.0)
    guess = replace(
        whole,
        attn_out=_adding(block, mixing),
        mlp_out=_adding(block, mlp_out),
        attention=mixing,
        feed_forward=mlp,
        attn_scale=scale,
        mlp_scale=scale,
        mixer=None if mixer is None else f"{type(block.get_submodule(mixer)).__name__} '{mixer}'",
    )
    return _with_norms(guess, block, text_config(model))


def _adding(block: nn.Module, part: str | None) -> str | None:
    """What gives a part's output: its last projection, where it is given the residual and adds it itself."""
    if part is None or "residual" not in inspect.signature(block.get_submodule(part).forward).parameters:
        return part
    projections = [name for name, child in block.get_submodule(part).named_children() if isinstance(child, nn.Linear)]
    return f"{part}.{projections[-1]}" if projections else part


def _with_norms(guess: Layout, block: nn.Module, config: Any) -> Layout:
    """The norms before attention and MLP, and those behind them whose output is what they add, by their names."""
    norms = [name for name, child in block.named_children() if is_norm(child)]
    behind = next((pair for pair in NORMS_BEHIND if set(pair) <= set(norms)), None)
    if behind is not None:
        guess = replace(guess, attn_out=behind[0], mlp_out=behind[1])
    before = [name for name in norms if behind is None or name not in behind]
    # As falcons have them, the first comes last.
    before.sort(key=lambda name: name != "input_layernorm")
    return replace(
        guess,
        attn_norm=before[0] if before and guess.attention else None,
        mlp_norm=before[min(1, len(before) - 1)] if before and guess.feed_forward else None,
        is_parallel=bool(guess.attention and guess.feed_forward) and _is_parallel(config, len(norms)),
    )


def _part(parts: Mapping[str, nn.Module], names: tuple[str, ...], *kinds: str) -> str | None:
    """The part with one of these names, else of a class with one of these words in its name; parts of parts come after
    all parts of the block itself."""
    for depth in (0, 1):
        here = {name: part for name, part in parts.items() if name.count(".") == depth}
        named = [name for name in here if name.rpartition(".")[2] in names]
        classed = [name for name, part in here.items() if any(kind in type(part).__name__.lower() for kind in kinds)]
        if named or classed:
            return min(named, key=lambda name: names.index(name.rpartition(".")[2])) if named else classed[0]
    return None


def _width(norm: nn.Module) -> int | None:
    weight = getattr(norm, "weight", None)
    return None if weight is None else len(weight)


def _path(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _is_parallel(config: Any, n_norms: int) -> bool:
    if getattr(config, "new_decoder_architecture", False):
        return True
    for name in ("use_parallel_residual", "parallel_attn", "parallel_attention"):
        if hasattr(config, name):
            return bool(getattr(config, name))
    return n_norms == 1


@torch.no_grad()
def norm_offset(norm: nn.Module) -> float:
    """1 if the norm multiplies by one plus its weight, 0 if by its weight."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        return 0.0
    with weights_at_hand(norm):
        weight = norm.get_parameter("weight")
        if weight.is_meta:
            return 0.0
        probe = torch.ones_like(weight)
        probe[::2] = -1.0
        # Without the bias, if there is one.
        gain = ((norm(probe[None, None]) - norm(-probe[None, None])) / 2)[0, 0].float() / probe.float()
        plain = (gain - weight.float()).abs().max()
        return 1.0 if (gain - 1.0 - weight.float()).abs().max() < plain else 0.0
