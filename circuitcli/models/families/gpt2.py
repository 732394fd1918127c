"""GPT-2."""

from transformers import PreTrainedModel

from circuitcli.models.layout import Layout, MlpLayout


def layout(model: PreTrainedModel) -> Layout | None:
    """Where GPT-2's parts are; None for other families."""
    if model.config.model_type != "gpt2":
        return None
    return Layout(
        family="gpt2",
        embedding="transformer.wte",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        attn_norm="ln_1",
        attn_out="attn",
        mlp_norm="ln_2",
        mlp_out="mlp",
        mlp=MlpLayout("mlp.c_fc", "mlp.c_proj", "mlp.act"),
    )
