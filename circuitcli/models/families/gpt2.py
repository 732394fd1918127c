"""GPT-2."""

from transformers import PreTrainedModel

from circuitcli.models.layout import AttentionLayout, Layout, MlpLayout, decoder_path, text_config


def layout(model: PreTrainedModel) -> Layout | None:
    """Where GPT-2's parts are; None for other families."""
    kind, decoder = text_config(model).model_type, decoder_path(model)
    if kind != "gpt2":
        return None
    return Layout(
        family="gpt2",
        embedding=f"{decoder}.wte",
        blocks=f"{decoder}.h",
        final_norm=f"{decoder}.ln_f",
        attn_norm="ln_1",
        attn_out="attn",
        mlp_norm="ln_2",
        mlp_out="mlp",
        attention="attn",
        feed_forward="mlp",
        mlp=MlpLayout("mlp.c_fc", "mlp.c_proj", "mlp.act"),
        heads=AttentionLayout("attn.c_proj", fused="attn.c_attn"),
    )
