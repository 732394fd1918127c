"""Hook points mean the same in every family, and running a part of a model is running the model."""

import copy

import pytest
import torch
from support import FAMILIES, N_LAYERS, adapter_of, hf_model, random_ids

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, hook_points
from circuitcli.models import checking
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import clean_pass, first_block, rerun, run_blocks
from circuitcli.models.taps import read, tapped

# Hugging Face norms and eager softmax compute in float32 in these families; GPT-2 and GPT-NeoX do not.
EXACT = {"gpt2", "neox-parallel", "neox-sequential", "generic"}


def tolerance(family: str) -> float:
    return 1e-11 if family in EXACT else 2e-4


def all_hooks(adapter: ModelAdapter) -> tuple[HookPoint, ...]:
    sites = ["embed", "resid_pre", "attn_in", "attn", "mlp_in", "mlp", "resid"]
    if not adapter.layout.is_parallel:
        sites.append("resid_mid")
    return tuple(hook_points(range(adapter.n_layers), sites))


def test_residual_hook_points_equal_the_models_own_hidden_states(family):
    adapter, ids = adapter_of(family), random_ids()
    hidden = adapter.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    clean = clean_pass(adapter, ids, all_hooks(adapter))
    for layer in range(N_LAYERS):
        assert torch.equal(clean.activations[HookPoint(layer, "resid_pre")], hidden[layer])
        if layer + 1 < N_LAYERS:
            assert torch.equal(clean.activations[HookPoint(layer, "resid")], hidden[layer + 1])


def test_attention_and_mlp_are_what_they_add_to_the_stream(family):
    adapter, ids = adapter_of(family), random_ids()
    seen = clean_pass(adapter, ids, all_hooks(adapter)).activations
    for layer in range(N_LAYERS):
        before, attn, mlp, after = (seen[HookPoint(layer, site)] for site in ("resid_pre", "attn", "mlp", "resid"))
        torch.testing.assert_close(before + attn + mlp, after, rtol=1e-6, atol=1e-6)
        if not adapter.layout.is_parallel:
            torch.testing.assert_close(seen[HookPoint(layer, "resid_mid")], before + attn, rtol=1e-6, atol=1e-6)


def test_norm_outputs_are_what_attention_and_mlp_read(family):
    adapter, ids = adapter_of(family), random_ids()
    seen = clean_pass(adapter, ids, all_hooks(adapter)).activations
    for layer in range(N_LAYERS):
        block, layout = adapter.blocks[layer], adapter.layout
        before = seen[HookPoint(layer, "resid_pre")]
        middle = before if layout.is_parallel else seen[HookPoint(layer, "resid_mid")]
        with torch.no_grad():
            torch.testing.assert_close(block.get_submodule(layout.attn_norm)(before), seen[HookPoint(layer, "attn_in")])
            torch.testing.assert_close(block.get_submodule(layout.mlp_norm)(middle), seen[HookPoint(layer, "mlp_in")])


def test_embed_is_the_embedding_before_positions_are_added(adapter):
    ids = random_ids()
    seen = clean_pass(adapter, ids, (HookPoint(0, "embed"),)).activations
    assert torch.equal(seen[HookPoint(0, "embed")], adapter.embedding(ids))


def test_blocks_and_head_run_alone_give_the_models_logits(family):
    adapter, ids = adapter_of(family), random_ids()
    clean = clean_pass(adapter, ids)
    for start in range(N_LAYERS + 1):
        with torch.no_grad():
            last = run_blocks(adapter, clean, clean.residuals[start].expand(3, -1, -1), start=start)
            logits = adapter.head(last)
        torch.testing.assert_close(logits, clean.logits.expand(3, -1, -1), rtol=0, atol=tolerance(family))


def test_a_change_at_any_hook_point_has_the_same_effect_in_a_full_and_in_a_partial_run(family):
    adapter, ids = adapter_of(family), random_ids()
    clean = clean_pass(adapter, ids, all_hooks(adapter))
    for hook in all_hooks(adapter):
        shift = torch.randn_like(clean.activations[hook][:, :, :])
        callbacks = {hook: lambda x, shift=shift: x + shift}
        with torch.no_grad():
            with tapped(adapter, callbacks):
                full = adapter.logits(ids)
            last = rerun(adapter, clean, callbacks, rows=1, start=first_block(hook))
            torch.testing.assert_close(adapter.head(last), full, rtol=0, atol=tolerance(family))
        assert not torch.allclose(full, clean.logits, atol=1e-3), hook


def test_replacing_the_middle_of_a_block_replaces_what_the_rest_of_it_reads():
    adapter, ids = adapter_of("gpt2"), random_ids()
    hooks = tuple(HookPoint(1, site) for site in ("resid_mid", "mlp", "resid"))
    wanted = torch.randn(1, ids.shape[1], adapter.d_model, dtype=torch.float64)
    seen = {}
    with (
        torch.no_grad(),
        tapped(
            adapter,
            {
                hooks[0]: lambda x: wanted,
                hooks[1]: lambda x: seen.__setitem__("mlp", x),
                hooks[2]: lambda x: seen.__setitem__("resid", x),
            },
        ),
    ):
        adapter.logits(ids)
    with torch.no_grad():
        block = adapter.blocks[1]
        mlp = block.mlp(block.ln_2(wanted))
    torch.testing.assert_close(seen["mlp"], mlp)
    torch.testing.assert_close(seen["resid"], wanted + mlp)


def test_reading_stops_after_the_deepest_block_and_agrees_with_a_full_pass():
    adapter, ids = adapter_of("llama"), random_ids()
    ran = []
    handle = adapter.blocks[2].register_forward_hook(lambda *_: ran.append(1))
    hooks = (HookPoint(1, "attn"), HookPoint(0, "resid"), HookPoint(1, "resid"))
    found = read(adapter, ids, None, hooks)
    assert not ran
    handle.remove()
    clean = clean_pass(adapter, ids, hooks)
    assert all(torch.equal(found[hook], clean.activations[hook]) for hook in hooks)


def test_no_hook_is_left_behind_after_an_error():
    adapter = adapter_of("gpt2")

    def fail(x):
        raise ValueError

    with pytest.raises(ValueError), tapped(adapter, {HookPoint(1, "resid_mid"): fail}):
        adapter.logits(random_ids())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in adapter.model.modules())


def test_hook_points_that_a_model_lacks_are_refused():
    with pytest.raises(SettingsError, match="this model has 3 layers"):
        adapter_of("gpt2").check(HookPoint(3, "resid"))
    with pytest.raises(SettingsError, match=r"resid_mid\.0 does not exist"):
        adapter_of("neox-parallel").check(HookPoint(0, "resid_mid"))


def test_logit_effect_is_the_derivative_of_the_logits_at_constant_norm_scale(family):
    """Finite differences of the real final norm and unembedding; its statistics do not move to first order."""
    adapter = adapter_of(family, dtype=torch.float32)
    # Mean 0 and root mean square 1: the norm divides by 1 there, and a direction orthogonal to it keeps that so.
    residual = torch.ones(1, adapter.d_model, dtype=torch.float64)
    residual[:, ::2] = -1.0
    direction = torch.randn(4, adapter.d_model, dtype=torch.float64)
    direction = direction - (direction @ residual.T / adapter.d_model) * residual
    norm, table = copy.deepcopy(adapter.final_norm).double(), adapter.unembedding.weight.double()
    with torch.no_grad():
        moved = (norm(residual + 1e-2 * direction) - norm(residual - 1e-2 * direction)) / 2e-2 @ table.T
    moved = moved - moved.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(adapter.logit_effect(direction.float()).double(), moved, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_norm_offset_matches_what_the_final_norm_does(family):
    adapter = adapter_of(family, dtype=torch.float32)
    # Mean 0 and root mean square 1: the norm multiplies by its gain and nothing else.
    x = torch.ones(1, 1, adapter.d_model)
    x[..., ::2] = -1.0
    with torch.no_grad():
        bias = getattr(adapter.final_norm, "bias", None)
        out = adapter.final_norm(x) - (0 if bias is None else bias)
    torch.testing.assert_close(
        out / x, (adapter.final_norm.weight + adapter.layout.norm_offset).expand_as(x), rtol=1e-4, atol=1e-4
    )


def test_an_unknown_family_is_guessed_and_said_aloud(caplog):
    adapter = adapter_of("generic")
    assert adapter.family == "generic" and "guessed" in caplog.text
    assert adapter.layout.attn_out == "self_attn" and adapter.layout.mlp_norm == "post_attention_layernorm"


def test_a_guess_that_does_not_rebuild_the_logits_is_refused():
    model = hf_model("generic")
    head = model.lm_head.forward
    model.lm_head.forward = lambda x: head(x)
    original = type(model).forward

    def scaled(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = output.logits.abs()
        return output

    model.forward = scaled.__get__(model)
    with pytest.raises(InputError, match="miss its logits"):
        checking.adapter_of(model)
