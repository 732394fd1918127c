"""Every model type is right or refused: hook points of each, held against what autograd says of whole passes.

Nothing here uses the check that `load_model` makes: what a tap reads and changes is compared with modules' own inputs,
with the model's hidden states, and with exact derivatives, in which a part that is bypassed shows.
"""

from dataclasses import replace

import pytest
import torch
from support import VOCAB
from torch import Tensor
from zoo import CONFIGURATIONS, MULTIMODAL, zoo_model

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import SITES, HookPoint
from circuitcli.models import checking
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import clean_pass, first_block, rerun
from circuitcli.models.taps import attached, leaf, read, tapped

# Models that cannot be used, and why.
REFUSED = {
    "opt-350m": "its unembedding reads 10 numbers",
    "gemma3n_text": "not a residual stream: its shape is 4 x",
    "modernbert-decoder": "miss its logits",
    "mamba": "none of its blocks has attention",
}
SUM, NO_ATTENTION = "misses resid by", "and no attention"
# Sites of single blocks that are not offered, and why; all else that the block has is right.
WITHOUT: dict[str, dict[tuple[int, ...], dict[str, str]]] = {
    # Their norm is applied to the sum of stream and MLP.
    "opt-after": {(0, 1): {"mlp": SUM}},
    "bloom-after": {(0, 1): {"attn": SUM, "mlp": SUM, "resid_mid": "changed by"}},
    "minimax": {(0, 1): {"attn": SUM, "mlp": SUM, "resid_mid": "changed by"}},
    "openai-gpt": {(0, 1): {"mlp": SUM}},
    # The last block adds a bias behind attention.
    "gpt_neox_japanese": {(1,): {"attn": SUM, "mlp": SUM, "resid_mid": "nothing in the block reads"}},
    # One part in each block.
    "nemotron_h": {
        (0,): {"attn": NO_ATTENTION, "attn_in": NO_ATTENTION},
        (2,): {"attn": "no attention", "attn_in": "no attention"},
        (0, 1, 3): {"mlp": "no MLP", "mlp_in": "no MLP"},
        (0, 1, 2, 3): {"resid_mid": "not both found"},
    },
    # They multiply the stream itself.
    "doge": {(0, 1): {"attn": SUM, "mlp": SUM, "resid_mid": "changed by"}},
    # Something is added beside attention and MLP.
    "gemma4_text": {(0, 1): {"mlp": SUM}},
    "granitemoehybrid": {(0,): {"attn": NO_ATTENTION, "attn_in": NO_ATTENTION}, (0, 1): {"mlp": SUM}},
    "qwen3_next": {(0,): {"attn": NO_ATTENTION, "attn_in": NO_ATTENTION}},
    "lfm2": {(0,): {"attn": NO_ATTENTION, "attn_in": NO_ATTENTION}},
    "recurrent_gemma": {(0,): {"attn": NO_ATTENTION, "attn_in": NO_ATTENTION}},
    "jamba": {(0,): {"attn": NO_ATTENTION, "attn_in": NO_ATTENTION}},
    "zamba": {
        (0, 2): {
            **{"attn": NO_ATTENTION, "attn_in": NO_ATTENTION},
            **{"mlp": "no MLP", "mlp_in": "no MLP", "resid_mid": "not both found"},
        },
        (1, 3): {"attn": SUM, "mlp": SUM, "attn_in": "no weight", "mlp_in": "also changes attn", "resid_mid": ""},
    },
}
PARALLEL = {
    *("gpt_neox", "gptj", "codegen", "falcon-7b", "falcon-alibi-parallel", "falcon-40b", "falcon-11b"),
    *("phi", "stablelm-parallel", "cohere", "cohere2"),
}
# First weights of attention and MLPs, as they are called all over the library.
FIRST_WEIGHTS = {
    *("q_proj", "q_a_proj", "query_key_value", "qkv_proj", "Wqkv", "c_attn", "qkv", "query", "q_proj1"),
    *("gate_proj", "up_proj", "c_fc", "dense_h_to_4h", "fc1", "gate_up_proj", "router", "gate", "fc_in", "layer"),
    *("input_linear", "w1", "gate_and_up_proj"),
}
# Their outline names other modules than the check finds.
UNKNOWN_OUTLINES = {"openai-gpt", "opt-after", "dbrx", "zamba"}
WORKING = sorted(set(CONFIGURATIONS) - set(REFUSED))


def texts(n_rows: int = 3, n: int = 7) -> Tensor:
    return torch.randint(3, 79, (n_rows, n), generator=torch.Generator().manual_seed(4))


def expected(name: str, layer: int) -> dict[str, str]:
    """Sites that a block is not to offer, and words of the reason."""
    reasons = [sites for layers, sites in WITHOUT.get(name, {}).items() if layer in layers]
    found = {site: why for sites in reasons for site, why in sites.items()}
    return found | ({"resid_mid": "read the same stream"} if name in PARALLEL else {})


def offered(adapter: ModelAdapter, layer: int) -> list[str]:
    return [site for site in SITES[1:] if adapter.offers(HookPoint(layer, site))]


def close(one: Tensor, other: Tensor, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.abs().max()))


@pytest.mark.parametrize("name", WORKING)
def test_hook_points_are_right_or_refused_with_the_reason(name):
    adapter = checking.adapter_of(zoo_model(name))
    for layer in range(adapter.n_layers):
        reasons = expected(name, layer)
        assert set(offered(adapter, layer)) == set(SITES[1:]) - set(reasons)
        for site, why in reasons.items():
            with pytest.raises(SettingsError, match=rf"^{site}\.{layer} .*{why}") as caught:
                adapter.check(HookPoint(layer, site))
            assert "--sites resid" in caught.value.hint
    check_values(adapter)
    for layer in range(adapter.n_layers):
        check_derivatives(adapter, layer)
    check_reruns(adapter)
    check_logit_effect(adapter)
    if name not in UNKNOWN_OUTLINES:
        check_outline(adapter)


def check_outline(adapter: ModelAdapter) -> None:
    """Dry runs and exports ask models on the meta device, without numbers; what they name is what the check finds."""
    outline = checking.adapter_of(adapter.model.to("meta"))
    named, found = ([replace(layout, norm_offset=0.0) for layout in one.layouts] for one in (outline, adapter))
    assert named == found


def check_values(adapter: ModelAdapter) -> None:
    """On whole passes of several texts: the stream is the model's own, its parts sum to it, weights read the inputs."""
    ids = texts()
    hooks = [HookPoint(layer, site) for layer in range(adapter.n_layers) for site in offered(adapter, layer)]
    found = read(adapter, ids, None, hooks)
    with torch.no_grad():
        hidden = adapter.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    inputs = inputs_of_weights(adapter, ids)
    for layer in range(adapter.n_layers):
        seen = {hook.site: value for hook, value in found.items() if hook.layer == layer}
        assert torch.equal(seen["resid_pre"], hidden[layer])
        if layer + 1 < adapter.n_layers:
            assert torch.equal(seen["resid"], hidden[layer + 1])
        if {"attn", "mlp"} <= set(seen):
            close(seen["resid_pre"] + seen["attn"] + seen["mlp"], seen["resid"])
        if {"attn", "resid_mid"} <= set(seen):
            close(seen["resid_pre"] + seen["attn"], seen["resid_mid"])
        for site in {"attn_in", "mlp_in"} & set(seen):
            assert any(torch.equal(seen[site].flatten(), one) for one in inputs[layer]), (layer, site)


def inputs_of_weights(adapter: ModelAdapter, ids: Tensor) -> list[list[Tensor]]:
    """What the first weights of each block's parts read."""
    seen: list[list[Tensor]] = [[] for _ in adapter.blocks]
    handles = []
    for layer, block in enumerate(adapter.blocks):
        for path, module in block.named_modules():
            if path.rpartition(".")[2] in FIRST_WEIGHTS:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _, args, kwargs, layer=layer: seen[layer].append([*args, *kwargs.values()][0].flatten()),
                        with_kwargs=True,
                    )
                )
    with torch.no_grad():
        adapter.logits(ids)
    for handle in handles:
        handle.remove()
    return seen


def check_derivatives(adapter: ModelAdapter, layer: int) -> None:
    """With attention, MLP and their inputs cut off in turn, exact derivatives show what reads and adds what."""
    sites = set(offered(adapter, layer))
    weights = torch.randn(2, 5, adapter.d_model, generator=torch.Generator().manual_seed(2), dtype=adapter.dtype)
    # Cut at attn and mlp, the stream is the sum of three parts.
    parts = sorted({"attn", "mlp"} & sites)
    gradients = derivatives(adapter, layer, cut=["resid_pre", *parts], at="resid", weights=weights)
    if parts == ["attn", "mlp"]:
        close(torch.stack([*gradients.values()]), weights.expand(3, -1, -1, -1), rtol=1e-12)
    elif "mlp" in parts:
        close(gradients["mlp"], weights, rtol=1e-12)
    if {"attn", "resid_mid"} <= sites:
        middle = derivatives(adapter, layer, cut=["resid_pre", "attn"], at="resid_mid", weights=weights)
        close(torch.stack([*middle.values()]), weights.expand(2, -1, -1, -1), rtol=1e-12)
    # Cut at their inputs, neither gives anything that depends on the stream.
    for site, gives, other in (("attn_in", "attn", "mlp"), ("mlp_in", "mlp", "attn")):
        if not {site, gives} <= sites:
            continue
        found = derivatives(adapter, layer, cut=["resid_pre", site], at=gives, weights=weights)
        assert depends(found[site]) and not depends(found["resid_pre"])
        if other in sites and (site == "mlp_in" or adapter.layouts[layer].is_parallel):
            beside = derivatives(adapter, layer, cut=[site, f"{other}_in"], at=other, weights=weights)
            assert depends(beside[f"{other}_in"]) and not depends(beside.get(site))
    if {"resid_mid", "mlp_in"} <= sites:
        between = derivatives(adapter, layer, cut=["resid_pre", "resid_mid"], at="mlp_in", weights=weights)
        assert depends(between["resid_mid"]) and not depends(between["resid_pre"])


def depends(gradient: Tensor | None) -> bool:
    return gradient is not None and float(gradient.abs().max()) > 1e-12


def derivatives(adapter: ModelAdapter, layer: int, *, cut: list[str], at: str, weights: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of one site by others, each a place of its own, in a whole pass."""
    leaves: dict[str, Tensor] = {}
    value: list[Tensor] = []

    def cut_off(site):
        def callback(x):
            leaves[site] = leaf(x)
            return leaves[site]

        return callback

    callbacks = {HookPoint(layer, site): cut_off(site) for site in cut}
    callbacks[HookPoint(layer, at)] = lambda x: value.append((x * weights).sum())
    with torch.enable_grad(), tapped(adapter, callbacks):
        adapter.logits(texts(2, 5))
    reached = [site for site in cut if site in leaves]
    if not value[0].requires_grad:
        return {site: torch.zeros_like(leaves[site]) for site in reached}
    gradients = torch.autograd.grad(value[0], [leaves[site] for site in reached], allow_unused=True)
    return {
        site: torch.zeros_like(leaves[site]) if gradient is None else gradient
        for site, gradient in zip(reached, gradients, strict=True)
    }


def check_logit_effect(adapter: ModelAdapter) -> None:
    """Finite differences of the real head where the norm multiplies by its gain alone and does not move."""
    if getattr(adapter.text_config, "final_logit_softcapping", None):
        return
    residual = torch.ones(1, adapter.d_model, dtype=adapter.dtype)
    residual[:, ::2] = -1.0
    direction = torch.randn(4, adapter.d_model, generator=torch.Generator().manual_seed(3)).to(adapter.dtype)
    direction = direction - (direction @ residual.T / adapter.d_model) * residual
    with torch.no_grad():
        up, down = (adapter.head((residual + step * direction)[None])[0] for step in (1e-2, -1e-2))
    moved = (up - down - (up - down).mean(dim=-1, keepdim=True)) / 2e-2
    close(adapter.logit_effect(direction).to(moved.dtype), moved, rtol=2e-2)


def check_reruns(adapter: ModelAdapter) -> None:
    """Rows that are changed in different ways, run from any block on, give what a whole pass gives."""
    ids = texts(1, 6)
    hooks = [HookPoint(0, "embed"), *(HookPoint(layer, "resid_pre") for layer in range(adapter.n_layers))]
    last = [HookPoint(adapter.n_layers - 1, site) for site in ("attn", "mlp_in", "mlp", "resid")]
    hooks += [hook for hook in last if adapter.offers(hook)]
    clean = clean_pass(adapter, ids, tuple(hooks))
    for hook in hooks:
        moved = clean.activations[hook].expand(3, -1, -1)
        noise = torch.randn(moved.shape, generator=torch.Generator().manual_seed(hook.layer)).to(moved)
        moved = moved + 0.5 * moved.std() * noise
        callbacks = {hook: lambda x, moved=moved: moved}
        with torch.no_grad():
            logits = adapter.head(rerun(adapter, clean, callbacks, rows=3, start=first_block(hook)))
            with tapped(adapter, callbacks):
                # Norms, rotations and softmax are float32 in many families, whatever the number type.
                close(logits, adapter.logits(ids.expand(3, -1)), rtol=2e-4)
        assert not torch.allclose(logits[0], logits[1], rtol=1e-3)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_models_without_a_residual_stream_of_attention_are_refused_with_the_reason(name):
    with pytest.raises(InputError, match=REFUSED[name]):
        checking.adapter_of(zoo_model(name))


@pytest.mark.parametrize("name", ["opt-after", "minimax", "doge", "granitemoehybrid"])
def test_what_is_refused_would_not_have_been_what_its_name_says(name):
    """Unchecked taps at the refused places do not sum to the stream."""
    adapter = checking.adapter_of(zoo_model(name))
    seen: dict[str, Tensor] = {}
    sites = ("resid_pre", "attn", "mlp", "resid")
    with torch.no_grad(), attached(adapter, {HookPoint(1, site): keeping(seen, site) for site in sites}):
        adapter.logits(texts())
    missed = seen["resid_pre"] + seen["attn"] + seen["mlp"] - seen["resid"]
    assert float(missed.norm() / (seen["attn"].norm() + seen["mlp"].norm())) > 0.05


def keeping(seen: dict[str, Tensor], site: str):
    return lambda x: seen.__setitem__(site, x.clone())


def test_forty_types_and_more_are_known_to_be_right():
    types = {name.partition("-")[0] for name in WORKING if name not in WITHOUT}
    assert len(types) >= 60 and set(MULTIMODAL) <= types and VOCAB > 79
