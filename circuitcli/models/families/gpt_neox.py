"""GPT-NeoX: Pythia and its kin, with attention and MLP side by side unless the configuration says otherwise."""

from transformers import PreTrainedModel

from circuitcli.models.layout import AttentionLayout, Layout, MlpLayout, decoder_path, text_config


def layout(model: PreTrainedModel) -> Layout | None:
    """Where GPT-NeoX's parts are; None for other families."""
    kind, decoder = text_config(model).model_type, decoder_path(model)
    if kind != "gpt_neox":
        return None
    return Layout(
        family="gpt_neox",
        embedding=f"{decoder}.embed_in",
        blocks=f"{decoder}.layers",
        final_norm=f"{decoder}.final_layer_norm",
        attn_norm="input_layernorm",
        attn_out="attention",
        mlp_norm="post_attention_layernorm",
        mlp_out="mlp",
        attention="attention",
        feed_forward="mlp",
        mlp=MlpLayout("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "mlp.act"),
        heads=AttentionLayout("attention.dense", fused="attention.query_key_value", by_head=True),
        is_parallel=bool(text_config(model).use_parallel_residual),
    )
