"""Any other decoder-only model: its parts are guessed from its structure, and the guess is said aloud and checked."""

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

from circuitcli.errors import InputError
from circuitcli.models.layout import Layout
from circuitcli.models.offloading import weights_at_hand

logger = logging.getLogger(__name__)

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn", "ff")


def layout(model: PreTrainedModel) -> Layout:
    """A guess at where the parts are. Raises InputError if the model shows no stack of decoder blocks."""
    blocks = _blocks(model)
    block = next(model.get_submodule(blocks).children())
    parent = model.get_submodule(blocks.rpartition(".")[0]) if "." in blocks else model
    attention, mlp = _child(block, ATTENTION), _child(block, MLP)
    norms = [name for name, child in block.named_children() if _is_norm(child)]
    final = [name for name, child in parent.named_children() if _is_norm(child)]
    if attention is None or mlp is None or not norms or not final:
        raise _unknown(model, f"its block {type(block).__name__} has parts {[n for n, _ in block.named_children()]}")
    prefix = blocks.rpartition(".")[0]
    guess = Layout(
        family="generic",
        embedding=_path(model, model.get_input_embeddings()),
        blocks=blocks,
        final_norm=".".join(part for part in (prefix, final[-1]) if part),
        attn_norm=norms[0],
        attn_out=attention,
        mlp_norm=norms[1] if len(norms) > 1 else norms[0],
        mlp_out=mlp,
        is_parallel=_is_parallel(model, len(norms)),
        norm_offset=_norm_offset(parent.get_submodule(final[-1])),
    )
    logger.warning("model type %s is not known; guessed from its structure: %s", model.config.model_type, guess)
    return guess


def _blocks(model: PreTrainedModel) -> str:
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == getattr(model.config, "num_hidden_layers", -1)
    ]
    if not lists:
        raise _unknown(model, "it has no list of num_hidden_layers blocks")
    return min(lists, key=lambda name: name.count("."))


def _child(block: nn.Module, names: tuple[str, ...]) -> str | None:
    children = dict(block.named_children())
    return next((name for name in names if name in children), None)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _path(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _is_parallel(model: PreTrainedModel, n_norms: int) -> bool:
    for name in ("use_parallel_residual", "parallel_attn", "parallel_attention"):
        if hasattr(model.config, name):
            return bool(getattr(model.config, name))
    return n_norms == 1


def _norm_offset(norm: nn.Module) -> float:
    """1 if the norm multiplies by one plus its weight, 0 if by its weight."""
    weight = getattr(norm, "weight", None)
    if weight is None or isinstance(norm, nn.LayerNorm):
        return 0.0
    with torch.no_grad(), weights_at_hand(norm):
        weight = norm.get_parameter("weight")
        probe = torch.ones_like(weight)
        probe[::2] = -1.0
        gain = norm(probe[None, None])[0, 0].float() / probe.float()
    plain = (gain - weight.float()).abs().max()
    return 1.0 if (gain - 1.0 - weight.float()).abs().max() < plain else 0.0


def _unknown(model: PreTrainedModel, why: str) -> InputError:
    return InputError(
        f"the structure of model type '{model.config.model_type}' is not understood: {why}",
        hint="known are GPT-2, GPT-NeoX, Llama, Mistral, Qwen, Gemma, and decoder-only models that are built like them",
    )
