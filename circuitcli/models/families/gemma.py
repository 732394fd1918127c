"""Gemma: norms that multiply by one plus their weight; from Gemma 2 on also norms after attention and MLP."""

from dataclasses import replace

from transformers import PreTrainedModel

from circuitcli.models.layout import GATED_MLP, Layout

FIRST = frozenset({"gemma"})
LATER = frozenset({"gemma2", "gemma3_text"})


def layout(model: PreTrainedModel) -> Layout | None:
    """Where Gemma's parts are; None for other families."""
    if model.config.model_type not in FIRST | LATER:
        return None
    first = Layout(
        family="gemma",
        embedding="model.embed_tokens",
        blocks="model.layers",
        final_norm="model.norm",
        attn_norm="input_layernorm",
        attn_out="self_attn",
        mlp_norm="post_attention_layernorm",
        mlp_out="mlp",
        norm_offset=1.0,
        mlp=GATED_MLP,
    )
    if model.config.model_type in FIRST:
        return first
    return replace(
        first,
        attn_out="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
        mlp=replace(GATED_MLP, norm="post_feedforward_layernorm"),
    )
