"""Llama and the models built like it: SmolLM, Mistral, Qwen 2 and 3."""

from transformers import PreTrainedModel

from circuitcli.models.layout import GATED_MLP, NORMED_ATTENTION, SEPARATE_ATTENTION, Layout, decoder_path, text_config

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def layout(model: PreTrainedModel) -> Layout | None:
    """Where a Llama-like model's parts are; None for other families."""
    kind, decoder = text_config(model).model_type, decoder_path(model)
    if kind not in MODEL_TYPES:
        return None
    return Layout(
        family="llama",
        embedding=f"{decoder}.embed_tokens",
        blocks=f"{decoder}.layers",
        final_norm=f"{decoder}.norm",
        attn_norm="input_layernorm",
        attn_out="self_attn",
        mlp_norm="post_attention_layernorm",
        mlp_out="mlp",
        attention="self_attn",
        feed_forward="mlp",
        mlp=GATED_MLP,
        heads=NORMED_ATTENTION if kind == "qwen3" else SEPARATE_ATTENTION,
    )
