"""Small random models and SAEs that tests share; all axis sizes differ."""

import torch
import transformers
from transformers import PreTrainedModel

from circuitcli.hookpoints import HookPoint
from circuitcli.models import checking
from circuitcli.models.adapter import ModelAdapter
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.temporal import TemporalSae
from circuitcli.saes.topk import TopKSae

N_LAYERS, D_MODEL, VOCAB, D_SAE, K = 3, 24, 89, 40, 5

_LLAMA_LIKE = dict(
    vocab_size=VOCAB,
    hidden_size=D_MODEL,
    intermediate_size=50,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=64,
)


def _neox(parallel: bool) -> PreTrainedModel:
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=D_MODEL,
            intermediate_size=50,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=64,
            use_parallel_residual=parallel,
        )
    )


FAMILIES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=N_LAYERS, n_embd=D_MODEL, n_head=3, vocab_size=VOCAB, n_positions=64)
    ),
    "neox-parallel": lambda: _neox(True),
    "neox-sequential": lambda: _neox(False),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA_LIKE)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**_LLAMA_LIKE, sliding_window=4)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**{name: value for name, value in _LLAMA_LIKE.items() if name != "head_dim"})
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_LLAMA_LIKE)),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**_LLAMA_LIKE)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**_LLAMA_LIKE, sliding_window=4)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_LLAMA_LIKE, sliding_window=4)),
    "generic": lambda: transformers.StableLmForCausalLM(
        transformers.StableLmConfig(**{name: value for name, value in _LLAMA_LIKE.items() if name != "head_dim"})
    ),
}


def hf_model(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model whose norms and biases are random too, so that no term can hide behind a zero or a one."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(6.0)
    return model.to(dtype).eval()


def adapter_of(family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> ModelAdapter:
    """The adapter of such a model; a guessed one is checked, as it is placed by that."""
    model = hf_model(family, dtype=dtype, seed=seed)
    return checking.adapter_of(model) if family == "generic" else ModelAdapter.of(model)


def random_ids(n: int = 7, *, seed: int = 1) -> torch.Tensor:
    """One row of random tokens."""
    return torch.randint(0, VOCAB, (1, n), generator=torch.Generator().manual_seed(seed))


def random_sae(
    hook: HookPoint, *, normalisation: str = "none", dtype: torch.dtype = torch.float64, seed: int = 0
) -> SparseCoder:
    """A random TopK SAE in double precision; "context" is one that takes off what earlier tokens predict."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * hook.layer + len(hook.site))
    sae: SparseCoder
    if normalisation == "context":
        sae = TemporalSae(SaeConfig(hook, D_MODEL, D_SAE), K, n_heads=2, n_attention_layers=2, bottleneck_factor=5)
    else:
        sae = TopKSae(SaeConfig(hook, D_MODEL, D_SAE, normalisation), k=K)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return sae.to(dtype).eval().requires_grad_(False)


def random_saes(hooks, **options) -> dict[HookPoint, SparseCoder]:
    """One random SAE for each hook point."""
    return {hook: random_sae(hook, **options) for hook in hooks}


# Coders that read one place and write others, by name: (reads, writes, has a skip) of each.
MIXES: dict[str, tuple[tuple[str, tuple[str, ...], bool], ...]] = {
    "transcoders": (("mlp_in.0", ("mlp.0",), False), ("mlp_in.1", ("mlp.1",), True), ("mlp_in.2", ("mlp.2",), False)),
    "clt": (
        ("mlp_in.0", ("mlp.0", "mlp.1", "mlp.2"), False),
        ("mlp_in.1", ("mlp.1", "mlp.2"), False),
        ("mlp_in.2", ("mlp.2",), False),
    ),
    "clt-skip": (
        ("mlp_in.0", ("mlp.0", "mlp.2"), True),
        ("mlp_in.1", ("mlp.1", "mlp.2"), True),
        ("mlp_in.2", ("mlp.2",), False),
    ),
    "clt-resid": (
        ("mlp_in.0", ("mlp.0", "mlp.1", "mlp.2"), True),
        ("resid.0", ("resid.0",), False),
        ("mlp_in.1", ("mlp.1", "mlp.2"), False),
        ("resid.1", ("resid.1",), False),
        ("mlp_in.2", ("mlp.2",), True),
    ),
    "full": (
        ("attn.0", ("attn.0",), False),
        ("mlp_in.0", ("mlp.0",), True),
        ("resid.0", ("resid.0",), False),
        ("attn.1", ("attn.1",), False),
        ("mlp_in.1", ("mlp.1", "mlp.2"), True),
        ("resid.1", ("resid.1",), False),
        ("mlp.0", ("resid_mid.1",), True),
    ),
    "gaps": (("mlp_in.0", ("mlp.1", "mlp.2"), True), ("resid.0", ("resid.0",), False), ("mlp_in.2", ("mlp.2",), False)),
    "attention": (("attn_in.1", ("attn.1",), True), ("mlp_in.1", ("mlp.1",), False), ("attn.2", ("attn.2",), False)),
}


def random_coders(mix: str, *, dtype: torch.dtype = torch.float64) -> list[SparseCoder]:
    """Random TopK coders of a mix, with skips that matter."""
    made: list[SparseCoder] = []
    for number, (read, writes, skip) in enumerate(MIXES[mix]):
        hook, places = HookPoint.parse(read), tuple(HookPoint.parse(name) for name in writes)
        if places == (hook,):
            made.append(random_sae(hook, normalisation="layer-norm", seed=number, dtype=dtype))
            continue
        config = SaeConfig(
            hook, D_MODEL, D_SAE, subtract_decoder_bias=False, target=places[0], further=places[1:], skip=skip
        )
        coder: SparseCoder = TopKSae(config, k=K)
        generator = torch.Generator().manual_seed(7 + number)
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        made.append(coder.to(dtype).eval().requires_grad_(False))
    return made
