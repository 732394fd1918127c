"""Backward rules: the model's numbers stay its own to the last bit, and derivatives are those of a slow definition."""

import copy

import accelerate
import pytest
import torch
from subjects import mixed_subject, random_baseline, random_subject
from support import FAMILIES, VOCAB, adapter_of, random_ids
from tangents import Pair, Tangents
from test_attribution import check_outgoing_edges
from zoo import zoo_model

from circuitcli.attribution.edges import to_output
from circuitcli.attribution.gradients import node_effects
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models import checking
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.rules import RULES, applied
from circuitcli.models.rules.activations import linear
from circuitcli.models.taps import leaf, tapped

# Gemma 2 caps its scores, which torch's own attention cannot.
EAGER_ONLY = {"gemma2"}
WAYS = [(family, way) for family in FAMILIES for way in ("sdpa", "eager") if (family, way) != ("gemma2", "sdpa")]


def adapter(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> ModelAdapter:
    """A random model whose attention is computed in a certain way."""
    made = adapter_of(family, dtype=dtype)
    made.model.set_attn_implementation("eager" if family in EAGER_ONLY else attention)
    return made


def logits_from(model: ModelAdapter, ids: torch.Tensor, mask: torch.Tensor | None = None):
    """Logits, and the input of the first block that they can be derived by."""
    seen = []
    with tapped(model, {HookPoint(0, "resid_pre"): lambda x: seen.append(leaf(x)) or seen[-1]}):
        return model.logits(ids, mask), seen[0]


@pytest.mark.parametrize(("family", "attention"), WAYS)
def test_rules_change_no_bit_of_the_logits(family, attention):
    ids = random_ids(9).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = adapter(family, attention, dtype)
        plain = logits_from(model, ids, mask)[0].detach()
        for rule in RULES:
            with applied(model, rule):
                ruled, entering = logits_from(model, ids, mask)
            assert torch.equal(ruled, plain) and torch.equal(ruled.signbit(), plain.signbit()), (rule, dtype)
            (gradient,) = torch.autograd.grad(ruled[:, 5].float().square().sum(), entering)
            assert gradient.isfinite().all() and gradient.any(), (rule, dtype)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "generic"])
def test_derivatives_are_those_of_a_decoder_that_carries_changes_by_the_rule(family):
    model, ids = adapter(family, "eager"), random_ids(9)
    _, entering = logits_from(model, ids)
    change = torch.randn(entering.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = torch.randn(1, 9, VOCAB, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for rule in RULES:
        expected = Tangents(model, rule).logits(ids, Pair(entering.detach(), change))
        with applied(model, rule):
            logits, entering = logits_from(model, ids)
        assert torch.allclose(logits, expected.value, rtol=1e-5, atol=1e-5), rule
        (gradient,) = torch.autograd.grad((logits * weights).sum(), entering)
        found, wanted = (gradient * change).sum(), (expected.change * weights).sum()
        assert float(found) == pytest.approx(float(wanted), rel=1e-4), rule


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_to_compute_attention_have_the_same_ruled_derivative(family):
    ids = random_ids(9)
    gradients = {}
    for attention in ("sdpa", "eager"):
        model = adapter(family, attention)
        for rule in RULES:
            with applied(model, rule):
                logits, entering = logits_from(model, ids)
            gradients[rule, attention] = torch.autograd.grad(logits[0, -1, 3], entering)[0]
    for rule in RULES:
        assert torch.allclose(gradients[rule, "sdpa"], gradients[rule, "eager"], rtol=1e-5, atol=1e-6)


# Layouts in which parts are named, joined, shared or ordered otherwise.
LAYOUTS = ["gpt_neo", "gptj", "openai-gpt", "opt", "bloom", "mpt", "falcon-40b", "phi3", "stablelm-parallel", "olmo2"]
LAYOUTS += ["cohere2", "granite", "diffllama", "apertus"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_shares_of_the_input_by_relp_add_up_to_the_logits_in_other_layouts(name):
    # Without biases, for RelP has made the model linear. A norm, pattern, activation or gate that it missed is seen.
    model = zoo_model(name)
    with torch.no_grad():
        for called, parameter in model.named_parameters():
            parameter.mul_(0.0 if called.endswith("bias") else 1.0)
    unbiased = checking.adapter_of(model)
    with applied(unbiased, "relp"):
        logits, entering = logits_from(unbiased, random_ids(9))
    (gradient,) = torch.autograd.grad((logits * logits.detach()).sum(), entering)
    assert (gradient * entering).sum().item() == pytest.approx(logits.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "rules", "said"),
    [
        ("jamba", ("frozen", "relp", "gim"), "block 0 .* JambaMambaMixer 'mamba'"),
        ("minimax", ("frozen", "relp", "gim"), "'model.layers.0.self_attn' .MiniMaxLightningAttention."),
        ("gpt_oss", ("relp",), "the MLP of block 0 .GptOssDecoderLayer. has no activation function"),
    ],
)
def test_a_part_without_a_known_rule_is_refused_by_name(name, rules, said):
    model = checking.adapter_of(zoo_model(name))
    for rule in rules:
        with pytest.raises(InputError, match=said) as refused, applied(model, rule):
            model.logits(random_ids())
        assert "--method ig" in refused.value.hint
        assert torch.overrides._len_torch_function_stack() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_where_an_activation_function_is_fed_zero_its_factor_is_the_slope_there(dtype):
    x = torch.tensor([0.0, -0.0, 1.5, -2.0], dtype=dtype, requires_grad=True)
    for function, slope in ((torch.nn.functional.gelu, 0.5), (torch.nn.functional.silu, 0.5), (torch.tanh, 1.0)):
        value = linear(function, x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert torch.equal(value, function(x)) and torch.equal(value.signbit(), function(x).signbit())
        expected = torch.cat([torch.full((2,), slope, dtype=dtype), (value / x)[2:].detach()])
        torch.testing.assert_close(gradient, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_modules_that_blocks_share_are_ruled_once(rule):
    shared, apart = adapter("llama", "eager"), adapter("llama", "eager")
    for model, first in ((shared, shared.blocks[0]), (apart, copy.deepcopy(apart.blocks[0]))):
        for name in ("self_attn", "mlp", "input_layernorm"):
            setattr(model.blocks[1], name, getattr(first, name))
    gradients = []
    for model in (shared, apart):
        with applied(model, rule):
            logits, entering = logits_from(model, random_ids())
        gradients.append(torch.autograd.grad(logits[0, -1, 3], entering)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("rule", RULES)
def test_weights_that_are_on_disk_until_a_module_runs_are_ruled_alike(tmp_path, rule):
    here, away = adapter("llama"), adapter("llama")
    accelerate.disk_offload(away.model, str(tmp_path), execution_device=torch.device("cpu"))
    found = []
    for model in (here, away):
        with applied(model, rule):
            logits, entering = logits_from(model, random_ids())
        found.append((logits, *torch.autograd.grad(logits[0, -1, 3], entering)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class StandardNorm(torch.nn.Module):
    """A norm that is none: it has no denominator."""

    def forward(self, x):
        return 2 * x


def test_a_norm_without_a_denominator_is_refused_by_name():
    model = adapter("llama")
    model.blocks[1].input_layernorm = StandardNorm()
    for rule in RULES:
        with pytest.raises(InputError, match=r"'model.layers.1.input_layernorm' \(Stand"), applied(model, rule):
            model.logits(random_ids())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_many_derivatives_at_once_are_those_of_one_after_the_other(attention):
    for rule in RULES:
        with applied(model := adapter("qwen3", attention), rule):
            logits, entering = logits_from(model, random_ids(5))
        rows = torch.eye(VOCAB, dtype=logits.dtype)[:4, None]  # (row, text, vocab)
        (several,) = torch.autograd.grad(logits[:, -1], entering, rows, is_grads_batched=True, retain_graph=True)
        single = [torch.autograd.grad(logits[:, -1], entering, row, retain_graph=True)[0] for row in rows]
        assert torch.allclose(several, torch.stack(single), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_leaves_nothing_behind(rule):
    model = adapter("llama")
    before = {name: dict(module.__dict__) for name, module in model.model.named_modules()}
    with pytest.raises(RuntimeError), applied(model, rule):
        logits_from(model, random_ids())
        raise RuntimeError
    with pytest.raises(IndexError), applied(model, rule):
        # Fails inside the model: such a token is unknown.
        model.logits(torch.tensor([[10_000]]))
    assert {name: dict(module.__dict__) for name, module in model.model.named_modules()} == before
    assert torch.overrides._len_torch_function_stack() == 0


def test_methods_without_a_rule_leave_the_model_alone():
    model = adapter("gpt2")
    for method in ("ig", "atp", "exact"):
        with applied(model, method):
            assert not any("forward" in module.__dict__ for module in model.model.modules())


@pytest.mark.parametrize("rule", ["relp", "gim"])
def test_effects_by_a_rule_are_the_ruled_gradients_times_what_is_taken_away(rule):
    subject = random_subject("llama", layers=(0, 2))
    baseline = random_baseline(subject)
    effects = node_effects(subject, baseline, method=rule, steps=1, batch_size=4)
    seen = {}

    def opened(hook):
        return lambda x: seen.setdefault(hook, x.view_as(x) if x.requires_grad else leaf(x))

    taps = {hook: opened(hook) for hook in subject.coders}
    with applied(subject.adapter, rule), tapped(subject.adapter, taps):
        value = subject.metric.value(subject.adapter.logits(subject.clean.input_ids)[:, -1:])
    for hook, gradient in zip(seen, torch.autograd.grad(value.sum(), list(seen.values())), strict=True):
        coder = subject.coders[hook]
        expected = (gradient @ coder.W_dec.T) * (subject.codes[hook] - baseline.codes[hook])
        assert torch.allclose(effects[hook].features, expected, rtol=1e-6, atol=1e-9)
        expected = (gradient * (subject.errors[hook] - baseline.errors[hook])).sum(dim=-1)
        assert torch.allclose(effects[hook].errors[hook], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", ["relp", "gim"])
def test_edges_to_the_output_go_by_the_rule(rule):
    # Last of all writers, resid.2 has no path but the direct one; that of mlp.2 is direct where resid.2 is not spliced.
    subject = random_subject("llama", sites=("attn", "mlp"))
    baseline = random_baseline(subject)
    effects = node_effects(subject, baseline, method=rule, steps=1, batch_size=4)
    edges = to_output(subject, effects, baseline, method=rule, steps=1, batch_size=4)
    own = to_output(subject, effects, baseline, method="atp", steps=1, batch_size=4)
    last, before = subject.coders.hooks[-1], subject.coders.hooks[0]
    assert torch.allclose(edges[last].features, effects[last].features)
    # The stream alone leads from the first attention on: only the final norm is passed, which is held.
    with applied(subject.adapter, rule):
        residual = subject.clean.final_residual.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(subject.metric.value(subject.adapter.head(residual)[:, -1:]).sum(), residual)
    expected = (gradient @ subject.coders[before].W_dec.T) * (subject.codes[before] - baseline.codes[before])
    assert torch.allclose(edges[before].features, expected, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(own[before].features, expected, rtol=1e-2)


@pytest.mark.parametrize("rule", ["relp", "gim"])
@pytest.mark.parametrize(("family", "mix"), [("gpt2", "full"), ("llama", "clt-resid")])
def test_outgoing_edges_by_a_rule_sum_to_the_node_effects_by_it(family, mix, rule):
    tolerance = 1e-9 if family == "gpt2" else 5e-4
    check_outgoing_edges(mixed_subject(family, mix), tolerance=tolerance, method=rule)
