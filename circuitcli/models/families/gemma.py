"""Gemma: norms that multiply by one plus their weight; from Gemma 2 on also norms after attention and MLP."""

from dataclasses import replace

from transformers import PreTrainedModel

from circuitcli.models.layout import (
    GATED_MLP,
    NORMED_ATTENTION,
    SEPARATE_ATTENTION,
    Layout,
    decoder_path,
    text_config,
)

FIRST = frozenset({"gemma"})
LATER = frozenset({"gemma2", "gemma3_text"})
CAPPED_ATTENTION = replace(SEPARATE_ATTENTION, soft_cap="attn_logit_softcapping")


def layout(model: PreTrainedModel) -> Layout | None:
    """Where Gemma's parts are; None for other families."""
    kind, decoder = text_config(model).model_type, decoder_path(model)
    if kind not in FIRST | LATER:
        return None
    first = Layout(
        family="gemma",
        embedding=f"{decoder}.embed_tokens",
        blocks=f"{decoder}.layers",
        final_norm=f"{decoder}.norm",
        attn_norm="input_layernorm",
        attn_out="self_attn",
        mlp_norm="post_attention_layernorm",
        mlp_out="mlp",
        attention="self_attn",
        feed_forward="mlp",
        norm_offset=1.0,
        mlp=GATED_MLP,
        heads=SEPARATE_ATTENTION,
    )
    if kind in FIRST:
        return first
    return replace(
        first,
        attn_out="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
        mlp=replace(GATED_MLP, norm="post_feedforward_layernorm"),
        heads=CAPPED_ATTENTION if kind == "gemma2" else NORMED_ATTENTION,
    )
