"""GPT-NeoX: Pythia and its kin, with attention and MLP side by side unless the configuration says otherwise."""

from transformers import PreTrainedModel

from circuitcli.models.layout import Layout, MlpLayout


def layout(model: PreTrainedModel) -> Layout | None:
    """Where GPT-NeoX's parts are; None for other families."""
    if model.config.model_type != "gpt_neox":
        return None
    return Layout(
        family="gpt_neox",
        embedding="gpt_neox.embed_in",
        blocks="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attn_norm="input_layernorm",
        attn_out="attention",
        mlp_norm="post_attention_layernorm",
        mlp_out="mlp",
        mlp=MlpLayout("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "mlp.act"),
        is_parallel=bool(model.config.use_parallel_residual),
    )
