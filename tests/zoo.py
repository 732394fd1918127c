"""Tiny random models of many types, each made from its configuration: two layers, no two axis sizes the same."""

from typing import Any

import torch
import transformers
from support import D_MODEL, VOCAB
from transformers import PreTrainedModel

from circuitcli.models.configuration import auto_class

D_MLP, N_LAYERS, WINDOW = 40, 2, 32

LLAMA: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=D_MODEL,
    intermediate_size=D_MLP,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=WINDOW,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
HEADS = LLAMA | dict(head_dim=6)
# All heads have their own keys and values.
PLAIN = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
MOE = HEADS | dict(num_experts=3, num_local_experts=3, num_experts_per_tok=2, moe_intermediate_size=10)
GPT: dict[str, Any] = dict(
    vocab_size=VOCAB,
    n_embd=D_MODEL,
    n_layer=N_LAYERS,
    n_head=3,
    n_positions=WINDOW,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
DEEPSEEK = LLAMA | dict(
    num_key_value_heads=4,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=10,
    first_k_dense_replace=1,
    q_lora_rank=9,
    kv_lora_rank=11,
    qk_rope_head_dim=4,
    qk_nope_head_dim=6,
    v_head_dim=7,
    n_group=1,
    topk_group=1,
)
FALCON: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=D_MODEL,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=4,
    max_position_embeddings=WINDOW,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


# Each: the name of its configuration's class, and what it is given. Tests add a suffix to tell layouts of one type.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT),
    "gpt_neo": (
        "GPTNeoConfig",
        PLAIN | dict(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=3),
    ),
    "gpt_neox": ("GPTNeoXConfig", PLAIN),
    "gpt_neox-sequential": ("GPTNeoXConfig", PLAIN | dict(use_parallel_residual=False)),
    "gpt_neox_japanese": ("GPTNeoXJapaneseConfig", PLAIN | dict(intermediate_multiple_size=2)),
    "openai-gpt": ("OpenAIGPTConfig", GPT),
    "modernbert-decoder": (
        "ModernBertDecoderConfig",
        PLAIN | dict(layer_types=["sliding_attention", "full_attention"], local_attention=6),
    ),
    "nemotron_h": (
        "NemotronHConfig",
        LLAMA
        | dict(
            layers_block_type=["mamba", "attention", "moe", "attention"],
            mamba_num_heads=4,
            mamba_head_dim=6,
            ssm_state_size=4,
            n_groups=2,
            chunk_size=4,
            head_dim=6,
            n_routed_experts=3,
            num_experts_per_tok=2,
            moe_intermediate_size=10,
            moe_shared_expert_intermediate_size=8,
        ),
    ),
    "gptj": ("GPTJConfig", GPT | dict(rotary_dim=4)),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT),
    "codegen": ("CodeGenConfig", GPT | dict(n_head=4, rotary_dim=4)),
    "opt": ("OPTConfig", PLAIN | dict(ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL)),
    "opt-after": (
        "OPTConfig",
        PLAIN | dict(ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL, do_layer_norm_before=False),
    ),
    "opt-350m": (
        "OPTConfig",
        PLAIN | dict(ffn_dim=D_MLP, word_embed_proj_dim=10, do_layer_norm_before=False),
    ),
    "bloom": ("BloomConfig", dict(vocab_size=VOCAB, hidden_size=D_MODEL, n_layer=2, n_head=3, pad_token_id=0)),
    "bloom-after": (
        "BloomConfig",
        dict(
            vocab_size=VOCAB,
            hidden_size=D_MODEL,
            n_layer=2,
            n_head=3,
            pad_token_id=0,
            apply_residual_connection_post_layernorm=True,
        ),
    ),
    "mpt": ("MptConfig", dict(vocab_size=VOCAB, d_model=D_MODEL, n_layers=2, n_heads=4, max_seq_len=WINDOW)),
    "falcon-7b": ("FalconConfig", FALCON),
    "falcon-sequential": ("FalconConfig", FALCON | dict(parallel_attn=False, multi_query=False)),
    "falcon-alibi": ("FalconConfig", FALCON | dict(alibi=True, multi_query=False, parallel_attn=False)),
    "falcon-alibi-parallel": ("FalconConfig", FALCON | dict(alibi=True)),
    "falcon-40b": ("FalconConfig", FALCON | dict(new_decoder_architecture=True, num_kv_heads=2)),
    "falcon-11b": (
        "FalconConfig",
        FALCON | dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    ),
    "llama": ("LlamaConfig", HEADS),
    "mistral": ("MistralConfig", HEADS | dict(sliding_window=3)),
    "mixtral": ("MixtralConfig", MOE),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen2_moe": ("Qwen2MoeConfig", MOE | dict(shared_expert_intermediate_size=8)),
    "qwen3": ("Qwen3Config", HEADS),
    "qwen3_moe": ("Qwen3MoeConfig", MOE),
    "qwen3_next": (
        "Qwen3NextConfig",
        MOE
        | dict(
            layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=6,
            linear_value_head_dim=6,
            shared_expert_intermediate_size=8,
        ),
    ),
    "gemma": ("GemmaConfig", HEADS),
    "gemma2": ("Gemma2Config", HEADS | dict(sliding_window=3)),
    "gemma3_text": ("Gemma3TextConfig", HEADS | dict(sliding_window=3)),
    "gemma3n_text": (
        "Gemma3nTextConfig",
        HEADS
        | dict(
            vocab_size_per_layer_input=VOCAB,
            hidden_size_per_layer_input=5,
            num_kv_shared_layers=0,
            laurel_rank=3,
            activation_sparsity_pattern=[0.0, 0.0],
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=3,
        ),
    ),
    "gemma4_text": (
        "Gemma4TextConfig",
        HEADS
        | dict(
            vocab_size_per_layer_input=VOCAB,
            hidden_size_per_layer_input=5,
            num_kv_shared_layers=0,
            global_head_dim=6,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=3,
        ),
    ),
    "olmo": ("OlmoConfig", LLAMA),
    "olmo2": ("Olmo2Config", LLAMA),
    "olmo3": ("Olmo3Config", LLAMA | dict(sliding_window=3)),
    "olmoe": ("OlmoeConfig", LLAMA | dict(num_experts=3, num_experts_per_tok=2)),
    "flex_olmo": ("FlexOlmoConfig", LLAMA | dict(num_experts=3, num_experts_per_tok=2)),
    "phi": ("PhiConfig", PLAIN | dict(num_attention_heads=3)),
    "phi3": ("Phi3Config", LLAMA),
    "phimoe": ("PhimoeConfig", LLAMA | dict(num_local_experts=3, num_experts_per_tok=2)),
    "stablelm": ("StableLmConfig", LLAMA),
    "stablelm-parallel": ("StableLmConfig", LLAMA | dict(use_parallel_residual=True)),
    "cohere": ("CohereConfig", LLAMA | dict(logit_scale=0.25)),
    "cohere2": ("Cohere2Config", HEADS | dict(logit_scale=0.25, sliding_window=3)),
    "granite": (
        "GraniteConfig",
        LLAMA | dict(residual_multiplier=0.22, embedding_multiplier=12.0, logits_scaling=8.0, attention_multiplier=0.4),
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        LLAMA
        | dict(
            num_local_experts=3,
            num_experts_per_tok=2,
            residual_multiplier=0.22,
            embedding_multiplier=12.0,
            logits_scaling=8.0,
        ),
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        LLAMA
        | dict(
            num_local_experts=3,
            num_experts_per_tok=2,
            shared_intermediate_size=8,
            residual_multiplier=0.22,
            logits_scaling=8.0,
            layer_types=["mamba", "attention"],
            mamba_n_heads=4,
            mamba_d_head=12,
            mamba_d_state=5,
            mamba_chunk_size=8,
        ),
    ),
    "minimax": (
        "MiniMaxConfig",
        MOE | dict(layer_types=["linear_attention", "full_attention"], block_size=8),
    ),
    "glm": ("GlmConfig", HEADS),
    "glm4": ("Glm4Config", HEADS),
    "glm4_moe": ("Glm4MoeConfig", DEEPSEEK | dict(head_dim=6)),
    "exaone4": ("Exaone4Config", HEADS | dict(sliding_window=3)),
    "starcoder2": ("Starcoder2Config", LLAMA),
    "persimmon": ("PersimmonConfig", PLAIN | dict(num_attention_heads=3)),
    "nemotron": ("NemotronConfig", LLAMA),
    "smollm3": ("SmolLM3Config", LLAMA),
    "ernie4_5": ("Ernie4_5Config", HEADS),
    "hunyuan_v1_dense": ("HunYuanDenseV1Config", HEADS),
    "seed_oss": ("SeedOssConfig", HEADS),
    "arcee": ("ArceeConfig", HEADS),
    "apertus": ("ApertusConfig", LLAMA),
    "helium": ("HeliumConfig", HEADS),
    "dbrx": (
        "DbrxConfig",
        dict(
            vocab_size=VOCAB,
            d_model=D_MODEL,
            n_heads=4,
            n_layers=2,
            max_seq_len=WINDOW,
            attn_config=dict(kv_n_heads=2, clip_qkv=8, rope_theta=1e4),
            ffn_config=dict(ffn_hidden_size=D_MLP, moe_num_experts=3, moe_top_k=2, hidden_size=D_MODEL),
            pad_token_id=0,
        ),
    ),
    "jetmoe": ("JetMoeConfig", LLAMA | dict(num_local_experts=3, num_experts_per_tok=2, kv_channels=6)),
    "deepseek_v2": ("DeepseekV2Config", DEEPSEEK),
    "deepseek_v3": ("DeepseekV3Config", DEEPSEEK),
    "xglm": (
        "XGLMConfig",
        dict(
            vocab_size=VOCAB,
            d_model=D_MODEL,
            ffn_dim=D_MLP,
            num_layers=2,
            attention_heads=4,
            max_position_embeddings=WINDOW,
        ),
    ),
    "biogpt": ("BioGptConfig", PLAIN),
    "bitnet": ("BitNetConfig", LLAMA),
    "gpt_oss": ("GptOssConfig", MOE | dict(sliding_window=3)),
    "lfm2": ("Lfm2Config", LLAMA | dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        LLAMA | dict(block_types=["recurrent", "attention"], lru_width=D_MODEL, attention_window_size=5),
    ),
    "jamba": (
        "JambaConfig",
        LLAMA
        | dict(
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=3,
            num_experts_per_tok=2,
            use_mamba_kernels=False,
            mamba_d_state=4,
        ),
    ),
    "zamba": (
        "ZambaConfig",
        LLAMA
        | dict(
            num_hidden_layers=4,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            n_mamba_heads=2,
            use_mamba_kernels=False,
            mamba_d_state=4,
            mamba_dt_rank=3,
        ),
    ),
    "mamba": ("MambaConfig", dict(vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=2, state_size=4)),
    "diffllama": ("DiffLlamaConfig", HEADS),
    "doge": ("DogeConfig", LLAMA),
    "llama4_text": (
        "Llama4TextConfig",
        HEADS
        | dict(intermediate_size_mlp=30, num_local_experts=3, attention_chunk_size=16, interleave_moe_layer_step=2),
    ),
    "ministral": ("MinistralConfig", HEADS | dict(sliding_window=3)),
    "vaultgemma": ("VaultGemmaConfig", HEADS | dict(sliding_window=3)),
    "nanochat": ("NanoChatConfig", HEADS),
    "cwm": ("CwmConfig", HEADS | dict(sliding_window=3)),
    "minicpm3": (
        "MiniCPM3Config",
        LLAMA
        | dict(
            num_key_value_heads=4, q_lora_rank=9, kv_lora_rank=11, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=7
        ),
    ),
}

TEXT = {name: value for name, value in HEADS.items() if not name.endswith("token_id")}
SEES = dict(
    hidden_size=16, num_hidden_layers=1, intermediate_size=16, num_attention_heads=2, image_size=8, patch_size=4
)
QWEN_SEES = dict(depth=1, embed_dim=16, hidden_size=D_MODEL, num_heads=2, intermediate_size=16, out_hidden_size=D_MODEL)
MROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 1]))

# Models that see too: their configuration has that of a language model in it.
MULTIMODAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3Config",
        dict(
            text_config=TEXT | dict(sliding_window=3),
            vision_config=SEES,
            mm_tokens_per_image=4,
            image_token_index=80,
            boi_token_index=81,
            eoi_token_index=82,
        ),
    ),
    "llava": (
        "LlavaConfig",
        dict(text_config=TEXT | dict(model_type="llama"), vision_config=SEES | dict(model_type="siglip_vision_model")),
    ),
    "mistral3": (
        "Mistral3Config",
        dict(
            text_config=TEXT | dict(model_type="mistral", sliding_window=None),
            vision_config=SEES | dict(model_type="pixtral", head_dim=8),
        ),
    ),
    "qwen2_vl": ("Qwen2VLConfig", dict(text_config=TEXT | MROPE, vision_config=QWEN_SEES)),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", dict(text_config=TEXT | MROPE, vision_config=QWEN_SEES)),
    "qwen3_vl": (
        "Qwen3VLConfig",
        dict(text_config=TEXT | MROPE, vision_config=QWEN_SEES | dict(deepstack_visual_indexes=[0])),
    ),
    "llama4": (
        "Llama4Config",
        dict(
            text_config=TEXT | dict(intermediate_size_mlp=30, num_local_experts=3, attention_chunk_size=16),
            vision_config=SEES | dict(vision_output_dim=16, projector_input_dim=16, projector_output_dim=16),
        ),
    ),
    "gemma4": (
        "Gemma4Config",
        dict(text_config=TEXT | dict(global_head_dim=6, hidden_size_per_layer_input=0), vision_config=SEES),
    ),
    "smolvlm": ("SmolVLMConfig", dict(text_config=TEXT | dict(model_type="llama"), vision_config=SEES)),
}
CONFIGURATIONS |= MULTIMODAL


# Their own code casts to float32 or overflows in float64.
SINGLE = frozenset({"xglm", "nemotron_h"})


def zoo_model(name: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model whose norms and biases are random too, so that no term can hide behind a zero or a one.

    changes: of the language model's configuration.
    """
    kind, values = CONFIGURATIONS[name]
    values = values | ({"text_config": values["text_config"] | changes} if name in MULTIMODAL else changes)
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**values)
    # The fused products of experts have no float64.
    model = auto_class(config).from_config(config, experts_implementation="eager")
    return randomised(model, torch.float32 if name in SINGLE else dtype)


def randomised(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with weights that are large enough for every part to matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model.to(dtype).eval()
