"""Where the parts of a decoder-only language model are, as names of modules."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

# For hints.
SUPPORTED = (
    "supported are GPT-2, GPT-NeoX, Llama, Mistral, Qwen, Gemma, and decoder-only models that are built like them"
)


@dataclass(frozen=True)
class MlpLayout:
    """Where the parts of an MLP are, as module paths from a block.

    It is ``down(act(up(x)))``, with a gate ``down(act(gate(x)) * up(x))``; ``norm`` is applied to that where the model
    has one there.
    """

    up: str
    down: str
    activation: str
    gate: str | None = None
    norm: str | None = None


@dataclass(frozen=True)
class AttentionLayout:
    """Where the parts of attention are, as module paths from a block.

    Queries, keys and values come from a projection each, or all from one module (``fused``), which arranges them by
    part (all queries, all keys, all values) or, where it is ``by_head``, head by head. ``query_norm`` and ``key_norm``
    are applied to each head. ``soft_cap`` names the attribute with the limit that scores come near to.
    """

    output: str
    query: str | None = None
    key: str | None = None
    value: str | None = None
    fused: str | None = None
    by_head: bool = False
    query_norm: str | None = None
    key_norm: str | None = None
    soft_cap: str | None = None


SEPARATE_ATTENTION = AttentionLayout(
    "self_attn.o_proj", query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj"
)
NORMED_ATTENTION = replace(SEPARATE_ATTENTION, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
GATED_MLP = MlpLayout("mlp.up_proj", "mlp.down_proj", "mlp.act_fn", gate="mlp.gate_proj")


@dataclass(frozen=True)
class Layout:
    """Module paths: embedding, blocks and final_norm from the model, the others from a block; None where there is none.

    attention and feed_forward name what reads attn_in and mlp_in, attn_norm and mlp_norm the norms whose output that is
    (None where the stream is read as it is), attn_out and mlp_out the modules whose output, times attn_scale and
    mlp_scale, is added to the residual stream (in Gemma 2: the post-norms). norm_offset is what norms add to their
    weight before multiplying (1 in Gemma, else 0). heads and mlp are None where the parts of attention and MLP are not
    known. mixer says what the block has in place of attention, such as mamba.
    """

    family: str
    embedding: str
    blocks: str
    final_norm: str | None
    attn_norm: str | None
    attn_out: str | None
    mlp_norm: str | None
    mlp_out: str | None
    attention: str | None
    feed_forward: str | None
    attn_scale: float = 1.0
    mlp_scale: float = 1.0
    is_parallel: bool = False
    norm_offset: float = 0.0
    mlp: MlpLayout | None = None
    mixer: str | None = None
    heads: AttentionLayout | None = None

    def lacks(self, site: str) -> str | None:
        """Why a block has no such hook point; None if it has."""
        if site in ("attn_in", "attn") and (self.attention is None or self.mixer is not None):
            return f"it has {self.mixer} and no attention" if self.mixer else "no attention was found in its block"
        if site in ("mlp_in", "mlp") and self.feed_forward is None:
            return "no MLP was found in its block"
        if site != "resid_mid":
            return None
        if self.is_parallel:
            return "attention and MLP read the same stream in this model's blocks"
        return None if self.attention and self.feed_forward else "attention and MLP were not both found in its block"


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the language model; models that see or hear too have it inside their own."""
    return model.config.get_text_config(decoder=True)


def decoder_path(model: PreTrainedModel) -> str:
    """Where the stack of decoder blocks is, with its embedding and final norm."""
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "")


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
