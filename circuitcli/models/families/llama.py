"""Llama and the models built like it: SmolLM, Mistral, Qwen 2 and 3."""

from transformers import PreTrainedModel

from circuitcli.models.layout import GATED_MLP, Layout

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def layout(model: PreTrainedModel) -> Layout | None:
    """Where a Llama-like model's parts are; None for other families."""
    if model.config.model_type not in MODEL_TYPES:
        return None
    return Layout(
        family="llama",
        embedding="model.embed_tokens",
        blocks="model.layers",
        final_norm="model.norm",
        attn_norm="input_layernorm",
        attn_out="self_attn",
        mlp_norm="post_attention_layernorm",
        mlp_out="mlp",
        mlp=GATED_MLP,
    )
