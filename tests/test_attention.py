"""The attention of every family, head by head, is the model's own."""

import pytest
import torch
from support import D_MODEL, FAMILIES, adapter_of, random_ids

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.attention import attention_of
from circuitcli.models.partial import block_pass

KNOWN = [family for family in FAMILIES if family != "generic"]
# Softmax and RMSNorm compute in float32 in most families, whatever the model's number type.
TOLERANCE = dict(rtol=1e-5, atol=1e-6)


def _attention(adapter, layer, clean):
    like = clean.activations[HookPoint(layer, "attn_in")]
    return attention_of(adapter, layer, clean.arguments[layer][1], device=like.device, dtype=like.dtype)


@pytest.fixture(params=KNOWN, scope="module")
def run(request):
    """An adapter, a pass over two texts with eager attention, and the patterns that the model itself gives."""
    adapter = adapter_of(request.param)
    adapter.model.set_attn_implementation("eager")
    ids = torch.cat([random_ids(7), random_ids(7, seed=2)])
    hooks = tuple(HookPoint(layer, site) for layer in range(adapter.n_layers) for site in ("attn_in", "attn"))
    with torch.no_grad():
        patterns = adapter.model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    return adapter, block_pass(adapter, ids, None, hooks), patterns


def test_recomputed_scores_give_the_models_own_patterns(run):
    adapter, clean, patterns = run
    for layer in range(adapter.n_layers):
        attention = _attention(adapter, layer, clean)
        found = attention.pattern(attention.scores(clean.activations[HookPoint(layer, "attn_in")]))
        torch.testing.assert_close(found, patterns[layer], **TOLERANCE)


def test_what_the_heads_add_and_the_bias_are_the_models_attention(run):
    adapter, clean, _ = run
    for layer in range(adapter.n_layers):
        attention, seen = _attention(adapter, layer, clean), {}
        module = adapter.module(layer, "attention")
        handle = module.register_forward_hook(lambda _, args, output, seen=seen: seen.update(output=output[0]))
        with torch.no_grad():
            adapter.logits(clean.input_ids)
        handle.remove()
        added = attention.added(attention.mixed(clean.activations[HookPoint(layer, "attn_in")]))
        assert added.shape == (2, attention.n_heads, 7, D_MODEL)
        torch.testing.assert_close(added.sum(dim=1) + attention.output.bias, seen["output"], **TOLERANCE)


def test_heads_of_a_group_read_the_same_keys(run):
    adapter, clean, _ = run
    attention = _attention(adapter, 0, clean)
    keys = attention.key(clean.activations[HookPoint(0, "attn_in")])
    for head in range(attention.n_heads):
        assert torch.equal(attention.shared(keys)[:, head], keys[:, attention.group(head)])


def test_a_model_whose_heads_are_not_known_is_refused_by_its_type():
    adapter = adapter_of("generic")
    with pytest.raises(InputError, match="'stablelm'") as caught:
        attention_of(adapter, 0, {}, device=torch.device("cpu"), dtype=torch.float64)
    assert "GPT-NeoX" in caught.value.hint
