"""Effects, edges and ablations against slow, plain definitions in double precision."""

import pytest
import torch
from subjects import (
    log_prob,
    logit_difference,
    panel_of,
    random_baseline,
    random_subject,
    subject_with,
)
from support import D_SAE, adapter_of, random_saes
from zoo import zoo_model

from circuitcli.attribution import baselines
from circuitcli.attribution.ablation import ablate, live_sources, pinned_sources
from circuitcli.attribution.edges import Taken, Target, incoming, sources_of, to_output
from circuitcli.attribution.gradients import attribution_patching, integrated_gradients, node_effects
from circuitcli.attribution.metrics import MinusCrossEntropy, MinusDivergence
from circuitcli.attribution.naive import NaiveSearch
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.selection import find_circuit
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, hook_points
from circuitcli.models import checking
from circuitcli.models.taps import tapped
from circuitcli.records import GraphRecord
from circuitcli.saes.abstopk import AbsTopKSae
from circuitcli.saes.coders import Coders
from circuitcli.settings.graph import GraphSettings

# float64 all through: finite differences mean something here. Llama-like norms compute in float32.
EXACT = ("gpt2", "neox-parallel", "neox-sequential")
# What these SAEs take off an activation before encoding is a constant to derivatives.
CONSTANTS = ("layer-norm", "context")
SPLICES = {
    "full": ("attn", "mlp", "resid"),
    "resid": ("resid",),
    "attn-mlp": ("attn", "mlp"),
    "inner": ("attn_in", "attn", "mlp_in", "mlp"),
    "stream": ("resid_pre", "attn"),
}

HEAD = GraphRecord(
    name="g",
    method="naive",
    metric="log-prob",
    prompt="",
    tokens=(),
    metric_clean=0.0,
    metric_baseline=0.0,
    dtype="float64",
    unit="nats",
    baseline="zero",
    positions="sum",
    model="random",
)


def plain_forward(subject, replaced):
    """Logits of a full forward pass in which hook points take given values: {hook: (1, position, d_model)}."""
    with tapped(subject.adapter, {hook: (lambda x, value=value: value) for hook, value in replaced.items()}):
        return subject.adapter.logits(subject.clean.input_ids)


@pytest.mark.parametrize("normalisation", ["none", "centre", "layer-norm", "context"])
def test_splicing_with_errors_returns_the_same_logits(family, normalisation):
    subject = random_subject(family, normalisation=normalisation)
    parts = {}
    callbacks = {}
    for hook, sae in subject.coders.items():

        def rebuild(x, sae=sae, hook=hook):
            parts[hook] = sae.code(x.to(sae.W_enc.dtype))
            return (sae.decode(parts[hook].codes, parts[hook].frame) + parts[hook].error).to(x.dtype)

        callbacks[hook] = rebuild
    with torch.no_grad(), tapped(subject.adapter, callbacks):
        logits = subject.adapter.logits(subject.clean.input_ids)
    torch.testing.assert_close(logits, subject.clean_logits(), rtol=0, atol=1e-11 if family in EXACT else 1e-3)
    assert all(float(part.codes.count_nonzero()) > 0 and part.error.abs().max() > 1e-3 for part in parts.values())


@pytest.mark.parametrize("family", EXACT)
def test_gradient_of_a_code_is_that_of_the_unmodified_model(family):
    """Finite differences: move one activation along a decoder row and see the metric of the plain model."""
    subject = random_subject(family, normalisation="layer-norm")
    zero = baselines.zero(subject.coders)
    effects = attribution_patching(subject, zero)
    h = 1e-5
    for hook in subject.coders.hooks:
        codes = subject.codes[hook][0]
        position, index = codes.nonzero()[3].tolist()
        frame = subject.coded.frames[hook]
        direction = torch.zeros_like(subject.clean.activations[hook])
        direction[0, position] = subject.coders[hook].W_dec[index] * frame.scale[0, position]
        up, down = (
            subject.metric.value(plain_forward(subject, {hook: subject.clean.activations[hook] + s * h * direction}))
            for s in (1, -1)
        )
        slope = float((up - down) / (2 * h))
        assert float(effects[hook].features[0, position, index]) == pytest.approx(
            slope * float(codes[position, index]), rel=1e-5, abs=1e-9
        )


def linear_subject():
    """Residual SAEs at the last layer and no final norm, so that the metric is linear in codes and errors."""
    adapter = adapter_of("gpt2")
    adapter.final_norm.forward = lambda x: x
    saes = random_saes([HookPoint(2, "resid")])
    return subject_with(adapter, saes, metric=logit_difference(3, 8))


def exact_effect(subject, hook, position, index, baseline):
    """m(clean) - m(one node at baseline), by one separate full forward pass."""
    codes, error = subject.codes[hook].clone(), subject.errors[hook].clone()
    places = slice(None) if position is None else position
    if index is None:
        error[0, places] = baseline.errors[hook].expand_as(error)[0, places]
    else:
        codes[0, places, index] = baseline.codes[hook].expand_as(codes)[0, places, index]
    value = subject.clean.activations[hook].clone()
    value[:, subject.first :] = subject.coders[hook].decode(codes, subject.coded.frames[hook]) + error
    with torch.no_grad():
        return float(subject.metric_clean - subject.metric.value(plain_forward(subject, {hook: value})))


def test_attribution_patching_is_exact_for_a_linear_metric():
    subject = linear_subject()
    hook = subject.coders.hooks[0]
    baseline = random_baseline(subject)
    effects = attribution_patching(subject, baseline)[hook]
    for position in range(subject.n_spliced):
        for index in range(D_SAE):
            expected = exact_effect(subject, hook, position, index, baseline)
            assert float(effects.features[0, position, index]) == pytest.approx(expected, rel=1e-9, abs=1e-10)
        assert float(effects.errors[hook][0, position]) == pytest.approx(
            exact_effect(subject, hook, position, None, baseline), rel=1e-9, abs=1e-10
        )


@pytest.mark.parametrize("family", EXACT)
def test_integrated_gradients_sum_to_the_metric_difference(family):
    subject = random_subject(family, normalisation="layer-norm", first=1)
    baseline = random_baseline(subject)
    for hook in subject.coders.hooks:
        coarse = integrated_gradients(subject, hook, baseline, steps=40, batch_size=16)
        fine = integrated_gradients(subject, hook, baseline, steps=400, batch_size=100)
        sae, frame = subject.coders[hook], subject.coded.frames[hook]
        value = subject.clean.activations[hook].clone()
        ends = sae.decode(baseline.codes[hook].expand_as(subject.codes[hook]), frame) + baseline.errors[hook]
        value[:, 1:] = ends
        with torch.no_grad():
            away = float(subject.metric.value(plain_forward(subject, {hook: value})))
        total = float(fine.features.sum() + fine.errors[hook].sum())
        assert total == pytest.approx(float(subject.metric_clean) - away, rel=2e-3, abs=2e-3)
        assert float(fine.gap) == pytest.approx(total - (float(subject.metric_clean) - away), abs=1e-9)
        # The midpoint rule's error falls with the square of the number of steps.
        assert abs(float(fine.gap)) <= abs(float(coarse.gap)) * 0.2 + 1e-7


def test_integrated_gradients_are_exact_for_a_linear_metric_with_one_step():
    subject = linear_subject()
    hook, baseline = subject.coders.hooks[0], random_baseline(subject)
    one = integrated_gradients(subject, hook, baseline, steps=1, batch_size=4)
    patched = attribution_patching(subject, baseline)[hook]
    torch.testing.assert_close(one.features, patched.features)
    torch.testing.assert_close(one.errors, patched.errors)
    assert abs(float(one.gap)) < 1e-10


@pytest.mark.parametrize("normalisation", CONSTANTS)
@pytest.mark.parametrize("splice", sorted(SPLICES))
@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama", "gemma2", "qwen3"])
def test_outgoing_edges_sum_to_the_node_effect(family, splice, normalisation):
    """The identity of attribution-patching gradients: all paths to the metric pass through the edges, each once."""
    subject = random_subject(family, sites=SPLICES[splice], normalisation=normalisation, n=5, first=1)
    check_outgoing_edges(subject, tolerance=1e-9 if family in EXACT else 5e-4)


@pytest.mark.parametrize("splice", ["full", "inner"])
@pytest.mark.parametrize("name", ["bloom", "cohere", "falcon-7b", "gemma3", "granite", "mpt", "olmo2", "opt"])
def test_outgoing_edges_sum_to_the_node_effect_in_guessed_families_and_in_the_text_part_of_others(name, splice):
    adapter = checking.adapter_of(zoo_model(name))
    hooks = hook_points(range(adapter.n_layers), SPLICES[splice])
    subject = subject_with(adapter, random_saes(hooks, normalisation="layer-norm"), n=5, first=1)
    check_outgoing_edges(subject, tolerance=5e-4)


def whole_masks(subject: Subject) -> torch.Tensor:
    """Each spliced position by itself."""
    return Positions.of("all", subject.prompts).masks(subject.prompts, subject.adapter.device)


def all_targets(subject: Subject, hook: HookPoint) -> list[tuple[int, Target]]:
    """Every node of a hook point that can have incoming edges: (text, target)."""
    rows = []
    if hook in subject.coders:
        for text, position, index in subject.codes[hook].nonzero().tolist():
            rows.append((text, Target(index, position)))
    if subject.coders.writers(hook):
        rows += [(text, Target(None, at)) for text in range(subject.n_texts) for at in range(subject.n_spliced)]
    return rows


def check_outgoing_edges(subject: Subject, *, tolerance: float, method: str = "atp") -> None:
    baseline, taken = random_baseline(subject), Taken(method=method)
    effects = attribution_patching(subject, baseline, rule=method)
    features = {hook: torch.zeros_like(one.features) for hook, one in effects.items()}
    errors = {hook: torch.zeros_like(value) for one in effects.values() for hook, value in one.errors.items()}
    assert set(errors) == set(subject.coders.written)
    for hook, edge in to_output(subject, effects, baseline, method=method, steps=1, batch_size=8).items():
        features[hook] += edge.features
        for place, values in edge.errors.items():
            errors[place] += values
    for hook in subject.coders.hooks:
        rows = all_targets(subject, hook)
        texts = torch.tensor([text for text, _ in rows])
        found = incoming(subject, hook, rows, effects, baseline, masks=whole_masks(subject), taken=taken)
        if found is None:
            continue
        for source, edges in found.features.items():
            features[source].index_add_(0, texts, edges.dense())
        for place, values in found.errors.items():
            errors[place].index_add_(0, texts, values)
    for hook, effect in effects.items():
        scale = float(effect.features.abs().max())
        torch.testing.assert_close(features[hook], effect.features, rtol=0, atol=tolerance * (1 + scale))
        for place, values in effect.errors.items():
            torch.testing.assert_close(errors[place], values, rtol=0, atol=tolerance * (1 + scale))


def direct_value(subject, hook, target, effects, held, source, moved):
    """g_d * f_d (or g_x . e) at a target when one source is moved and all other spliced hook points are held."""
    seen = {}
    callbacks = {other: (lambda x, other=other: held[other]) for other in subject.coders.hooks if other < hook}
    callbacks[source] = lambda x: moved
    callbacks[hook] = lambda x: seen.__setitem__("x", x)
    with torch.no_grad(), tapped(subject.adapter, callbacks):
        subject.adapter.logits(subject.clean.input_ids)
    sae, first = subject.coders[hook], subject.first
    x = seen["x"][:, first:]
    # Mean and scale of a normalising SAE, and what the context predicts, are constants, those of the clean run.
    frame = subject.coded.frames[hook]
    z = (x - frame.mean) / (frame.scale + 1e-5 if sae.config.normalisation == "layer-norm" else frame.scale)
    codes = sae.sparsify((z - sae.b_dec) @ sae.W_enc + sae.b_enc)
    if target.index is None:
        error = x - sae.decode(codes, frame)
        return float((effects.gradients[hook][0, target.group] * error[0, target.group]).sum())
    g = effects.gradients[hook][0, target.group] @ sae.W_dec[target.index]
    g = g * frame.scale[0, target.group, 0]
    return float(g * codes[0, target.group, target.index])


@pytest.mark.parametrize("normalisation", CONSTANTS)
@pytest.mark.parametrize("splice", sorted(SPLICES))
@pytest.mark.parametrize("family", EXACT)
def test_every_edge_is_the_derivative_along_the_direct_path(family, splice, normalisation):
    """Finite differences through full forward passes, for each pair of hook points, features and errors."""
    subject = random_subject(family, sites=SPLICES[splice], layers=(0, 1), normalisation=normalisation, n=5, first=1)
    baseline = random_baseline(subject)
    effects = attribution_patching(subject, baseline)
    held, h, compared = subject.clean.activations, 1e-5, 0
    for hook in subject.coders.hooks:
        position, index = subject.codes[hook][0].nonzero()[-1].tolist()
        targets = [Target(index, position), Target(None, position)]
        rows = [(0, target) for target in targets]
        found = incoming(subject, hook, rows, effects, baseline, masks=whole_masks(subject))
        for source in (other for other in subject.coders.hooks if other < hook):
            at, feature = subject.codes[source][0].nonzero()[1].tolist()
            direction = torch.zeros_like(held[source])
            frame = subject.coded.frames[source]
            direction[0, at + 1] = subject.coders[source].W_dec[feature] * frame.scale[0, at]
            amount = float(subject.codes[source][0, at, feature] - baseline.codes[source][0, 0, feature])
            towards = torch.zeros_like(held[source])
            towards[0, at + 1] = (subject.errors[source] - baseline.errors[source])[0, at]
            for row, target in enumerate(targets):

                def slope(along, target=target, source=source, hook=hook):
                    values = [
                        direct_value(subject, hook, target, effects[hook], held, source, held[source] + s * h * along)
                        for s in (1, -1)
                    ]
                    return (values[0] - values[1]) / (2 * h)

                got = (0.0, 0.0)
                if found is not None and source in found.features:
                    got = (found.features[source].dense()[row, at, feature], found.errors[source][row, at])
                assert float(got[0]) == pytest.approx(slope(direction) * amount, rel=1e-4, abs=1e-7)
                assert float(got[1]) == pytest.approx(slope(towards), rel=1e-4, abs=1e-7)
                compared += 1
    assert compared > 0


@pytest.mark.parametrize("family", EXACT)
def test_edges_to_the_output_are_derivatives_with_all_other_hook_points_held(family):
    subject = random_subject(family, sites=("attn", "mlp"), layers=(1, 2), n=5)
    baseline = random_baseline(subject)
    effects = attribution_patching(subject, baseline)
    edges = to_output(subject, effects, baseline, method="atp", steps=1, batch_size=4)
    h = 1e-5
    for hook in subject.coders.hooks:
        position, index = subject.codes[hook][0].nonzero()[-1].tolist()
        direction = torch.zeros_like(subject.clean.activations[hook])
        direction[0, position] = subject.coders[hook].W_dec[index]
        values = []
        for s in (1, -1):
            replaced = {other: subject.clean.activations[other] for other in subject.coders.hooks}
            replaced[hook] = replaced[hook] + s * h * direction
            with torch.no_grad():
                values.append(float(subject.metric.value(plain_forward(subject, replaced))))
        amount = float(subject.codes[hook][0, position, index] - baseline.codes[hook][0, 0, index])
        expected = (values[0] - values[1]) / (2 * h) * amount
        assert float(edges[hook].features[0, position, index]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("splice", sorted(SPLICES))
def test_integrated_edges_from_the_last_hook_point_are_its_node_effects(splice):
    subject = random_subject("gpt2", sites=SPLICES[splice])
    baseline = random_baseline(subject)
    effects = node_effects(subject, baseline, method="ig", steps=6, batch_size=4)
    edges = to_output(subject, effects, baseline, method="ig", steps=6, batch_size=4)
    last = subject.coders.hooks[-1]
    torch.testing.assert_close(edges[last].features, effects[last].features)


def test_which_hook_points_can_reach_which():
    def names(hooks, end):
        return [str(hook) for hook in sources_of(Coders(random_saes(hooks)), None if end is None else [end])]

    full = hook_points((3, 4), ("attn", "mlp", "resid"))
    assert names(full, HookPoint(4, "attn")) == ["resid.3"]
    assert names(full, HookPoint(4, "mlp")) == ["resid.3", "attn.4"]
    assert names(full, HookPoint(4, "resid")) == ["resid.3", "attn.4", "mlp.4"]
    assert names(full, None) == ["resid.4"]
    assert names(hook_points((3, 4), ("attn",)), None) == ["attn.3", "attn.4"]
    assert names(full, HookPoint(3, "attn")) == []


def test_parallel_blocks_have_no_edge_from_attention_to_mlp():
    subject = random_subject("neox-parallel")
    baseline = baselines.zero(subject.coders)
    effects = attribution_patching(subject, baseline)
    hook = HookPoint(1, "mlp")
    position, index = subject.codes[hook][0].nonzero()[0].tolist()
    found = incoming(subject, hook, [(0, Target(index, position))], effects, baseline, masks=whole_masks(subject))
    assert HookPoint(1, "attn") not in found.features and HookPoint(0, "resid") in found.features


@pytest.mark.parametrize("normalisation", CONSTANTS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama"])
def test_naive_effects_equal_one_separate_forward_pass_each(family, batch_size, normalisation):
    subject = random_subject(family, normalisation=normalisation, n=5, first=1)
    baseline = random_baseline(subject)
    tolerance = 1e-9 if family in EXACT else 2e-3
    for hook in (HookPoint(0, "attn"), HookPoint(0, "resid"), HookPoint(1, "mlp")):
        measured = [other for other in subject.coders.hooks if other.layer > hook.layer]
        sources = [(4, None), (7, 2), (None, None), (None, 1), (11, None)]
        rows = [(0, Target(index, subject.n_spliced if position is None else position)) for index, position in sources]
        masks = torch.cat([whole_masks(subject), torch.ones(1, 1, subject.n_spliced, dtype=torch.bool)], dim=1)
        batches = [
            ablate(subject, hook, rows[begin : begin + batch_size], baseline, measured=measured, masks=masks)
            for begin in range(0, len(rows), batch_size)
        ]
        effects = torch.cat([batch.effect for batch in batches])
        for row, (index, position) in enumerate(sources):
            expected = exact_effect(subject, hook, position, index, baseline)
            assert float(effects[row]) == pytest.approx(expected, abs=tolerance)
            for other in measured:
                codes = subject.coders[other].encode(torch.cat([batch.read[other] for batch in batches]))[row]
                separate = codes_of_separate_pass(subject, hook, index, position, baseline, other)
                torch.testing.assert_close(codes, separate, rtol=0, atol=tolerance)


def codes_of_separate_pass(subject, hook, index, position, baseline, other):
    codes, error = subject.codes[hook].clone(), subject.errors[hook].clone()
    places = slice(None) if position is None else position
    if index is None:
        error[0, places] = baseline.errors[hook].expand_as(error)[0, places]
    else:
        codes[0, places, index] = baseline.codes[hook][0, 0, index]
    value = subject.clean.activations[hook].clone()
    value[:, subject.first :] = subject.coders[hook].decode(codes, subject.coded.frames[hook]) + error
    seen = {}
    with torch.no_grad():
        with tapped(subject.adapter, {hook: lambda x: value, other: lambda x: seen.__setitem__("x", x)}):
            subject.adapter.logits(subject.clean.input_ids)
        return subject.coders[other].encode(seen["x"][:, subject.first :])[0]


def test_live_sources_are_the_features_that_differ_from_the_baseline():
    subject = random_subject("gpt2")
    hook = HookPoint(1, "resid")
    zero = baselines.zero(subject.coders)
    live = live_sources(panel_of(subject, zero), hook)
    active = subject.codes[hook][0].nonzero().tolist()
    assert live == [Target(i, p) for p, i in active] + [Target(None, p) for p in range(6)]
    silent = next(i for i in range(D_SAE) if not subject.codes[hook][0, :, i].any())
    with pytest.raises(InputError, match="silent in this prompt"):
        pinned_sources(subject.coders, hook, [silent], live)
    with pytest.raises(InputError, match=f"has no feature {D_SAE}"):
        pinned_sources(subject.coders, hook, [D_SAE], live)


def test_an_activation_summed_over_positions_is_that_furthest_from_zero_with_its_sign():
    hooks = hook_points((0, 1), ("resid",))
    saes = {}
    for hook, sae in random_saes(hooks).items():
        saes[hook] = AbsTopKSae(sae.config, k=sae.k).double().requires_grad_(False)
        saes[hook].load_state_dict(sae.state_dict())
    subject = subject_with(adapter_of("gpt2"), saes, first=1)
    settings = GraphSettings(threshold_exp=-1000, down=200, up=200)
    zero = baselines.zero(subject.coders)
    panel = panel_of(subject, zero, positions="sum")
    naive = NaiveSearch(panel, settings, {}, 0)
    found = [
        naive.graph(HEAD, [naive.part(hook) for hook in subject.coders.hooks]),
        find_circuit(panel, settings.model_copy(update={"method": "atp"})).graph(HEAD),
    ]
    for graph in found:
        signs = set()
        for node in (node for node in graph.nodes if node.place and node.place.index is not None):
            values = subject.codes[node.place.hook][0, :, node.place.index].tolist()
            assert node.activation == max(values, key=abs), node
            signs.add(node.activation > 0)
        assert signs == {True, False}


def test_attribution_patching_refuses_the_divergence_and_integrated_gradients_take_it():
    subject = random_subject("gpt2")
    divergence = MinusDivergence("kl", "nats", subject.clean_logits()[:, -1])
    flat = subject_with(subject.adapter, subject.coders, metric=divergence)
    with pytest.raises(SettingsError, match="no gradient at the clean run") as caught:
        node_effects(flat, baselines.zero(flat.coders), method="atp", steps=1, batch_size=4)
    assert "--method ig" in caught.value.hint
    effects = integrated_gradients(flat, flat.coders.hooks[0], random_baseline(flat), steps=200, batch_size=50)
    assert abs(float(effects.gap)) < 5e-3 and effects.features.abs().max() > 0


def test_metrics_are_their_definitions():
    logits = torch.randn(2, 5, 11, dtype=torch.float64)
    ids = torch.tensor([[1, 4, 2, 9, 3]])
    p = logits.softmax(-1)
    torch.testing.assert_close(log_prob(7).value(logits), p[:, -1, 7].log())
    torch.testing.assert_close(logit_difference(7, 2).value(logits), logits[:, -1, 7] - logits[:, -1, 2])
    nexts = torch.stack([p[:, i, ids[0, i + 1]].log() for i in range(4)], 1).mean(1)
    torch.testing.assert_close(MinusCrossEntropy("cross-entropy", "nats", ids).value(logits[:, :-1]), nexts)
    divergence = MinusDivergence("kl", "nats", logits[:1, -1]).value(logits)
    assert float(divergence[0]) == pytest.approx(0, abs=1e-12)
    expected = -(p[0, -1] * (p[0, -1] / p[1, -1]).log()).sum()
    torch.testing.assert_close(divergence[1], expected)
