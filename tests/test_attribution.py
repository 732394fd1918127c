"""Effects, edges and ablations against slow, plain definitions in double precision."""

import pytest
import torch
from subjects import random_baseline, random_subject, subject_with
from support import D_SAE, adapter_of, random_saes
from zoo import zoo_model

from circuitcli.attribution import baselines
from circuitcli.attribution.ablation import Source, ablate, live_sources, pinned_sources
from circuitcli.attribution.edges import Target, incoming, sources_of, to_output
from circuitcli.attribution.gradients import attribution_patching, integrated_gradients, node_effects
from circuitcli.attribution.metrics import LogitDifference, LogProb, MinusCrossEntropy, MinusDivergence
from circuitcli.attribution.naive import NaiveSearch
from circuitcli.attribution.selection import Search
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, hook_points
from circuitcli.models import checking
from circuitcli.models.taps import tapped
from circuitcli.records import GraphRecord
from circuitcli.saes.abstopk import AbsTopKSae
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
        return subject.adapter.logits(subject.prompt.ids)


@pytest.mark.parametrize("normalisation", ["none", "centre", "layer-norm", "context"])
def test_splicing_with_errors_returns_the_same_logits(family, normalisation):
    subject = random_subject(family, normalisation=normalisation)
    parts = {}
    callbacks = {}
    for hook, sae in subject.saes.items():

        def rebuild(x, sae=sae, hook=hook):
            parts[hook] = sae.code(x.to(sae.W_enc.dtype))
            return (sae.decode(parts[hook].codes, parts[hook].frame) + parts[hook].error).to(x.dtype)

        callbacks[hook] = rebuild
    with torch.no_grad(), tapped(subject.adapter, callbacks):
        logits = subject.adapter.logits(subject.prompt.ids)
    torch.testing.assert_close(logits, subject.clean.logits, rtol=0, atol=1e-11 if family in EXACT else 1e-3)
    assert all(float(part.codes.count_nonzero()) > 0 and part.error.abs().max() > 1e-3 for part in parts.values())


@pytest.mark.parametrize("family", EXACT)
def test_gradient_of_a_code_is_that_of_the_unmodified_model(family):
    """Finite differences: move one activation along a decoder row and see the metric of the plain model."""
    subject = random_subject(family, normalisation="layer-norm")
    zero = baselines.zero(subject.saes)
    effects = attribution_patching(subject, zero)
    h = 1e-5
    for hook in subject.hooks:
        codes = subject.coded[hook].codes[0]
        position, index = codes.nonzero()[3].tolist()
        frame = subject.coded[hook].frame
        direction = torch.zeros_like(subject.clean.activations[hook])
        direction[0, position] = subject.saes[hook].W_dec[index] * frame.scale[0, position]
        up, down = (
            subject.metric.value(plain_forward(subject, {hook: subject.clean.activations[hook] + s * h * direction}))
            for s in (1, -1)
        )
        slope = float((up - down) / (2 * h))
        assert float(effects[hook].features[position, index]) == pytest.approx(
            slope * float(codes[position, index]), rel=1e-5, abs=1e-9
        )


def linear_subject():
    """Residual SAEs at the last layer and no final norm, so that the metric is linear in codes and errors."""
    adapter = adapter_of("gpt2")
    adapter.final_norm.forward = lambda x: x
    saes = random_saes([HookPoint(2, "resid")])
    return subject_with(adapter, saes, metric=LogitDifference("logit-diff", "logits", 3, 8))


def exact_effect(subject, hook, position, index, baseline):
    """m(clean) - m(one node at baseline), by one separate full forward pass."""
    coded, absent = subject.coded[hook], baseline[hook]
    codes, error = coded.codes.clone(), coded.error.clone()
    places = slice(None) if position is None else position
    if index is None:
        error[0, places] = absent.error.expand_as(error)[0, places]
    else:
        codes[0, places, index] = absent.codes.expand_as(codes)[0, places, index]
    value = subject.clean.activations[hook].clone()
    value[:, subject.prompt.first :] = subject.saes[hook].decode(codes, coded.frame) + error
    with torch.no_grad():
        return subject.metric_clean - float(subject.metric.value(plain_forward(subject, {hook: value})))


def test_attribution_patching_is_exact_for_a_linear_metric():
    subject = linear_subject()
    hook = subject.hooks[0]
    baseline = random_baseline(subject)
    effects = attribution_patching(subject, baseline)[hook]
    for position in range(subject.prompt.n_spliced):
        for index in range(D_SAE):
            expected = exact_effect(subject, hook, position, index, baseline)
            assert float(effects.features[position, index]) == pytest.approx(expected, rel=1e-9, abs=1e-10)
        assert float(effects.error[position]) == pytest.approx(
            exact_effect(subject, hook, position, None, baseline), rel=1e-9, abs=1e-10
        )


@pytest.mark.parametrize("family", EXACT)
def test_integrated_gradients_sum_to_the_metric_difference(family):
    subject = random_subject(family, normalisation="layer-norm", first=1)
    baseline = random_baseline(subject)
    for hook in subject.hooks:
        coarse = integrated_gradients(subject, hook, baseline[hook], steps=40, batch_size=16)
        fine = integrated_gradients(subject, hook, baseline[hook], steps=400, batch_size=100)
        coded, absent, sae = subject.coded[hook], baseline[hook], subject.saes[hook]
        value = subject.clean.activations[hook].clone()
        ends = sae.decode(absent.codes.expand_as(coded.codes), coded.frame) + absent.error
        value[:, 1:] = ends
        with torch.no_grad():
            away = float(subject.metric.value(plain_forward(subject, {hook: value})))
        total = float(fine.features.sum() + fine.error.sum())
        assert total == pytest.approx(subject.metric_clean - away, rel=2e-3, abs=2e-3)
        assert fine.gap == pytest.approx(total - (subject.metric_clean - away), abs=1e-9)
        # The midpoint rule's error falls with the square of the number of steps.
        assert abs(fine.gap) <= abs(coarse.gap) * 0.2 + 1e-7


def test_integrated_gradients_are_exact_for_a_linear_metric_with_one_step():
    subject = linear_subject()
    hook, baseline = subject.hooks[0], random_baseline(subject)
    one = integrated_gradients(subject, hook, baseline[hook], steps=1, batch_size=4)
    patched = attribution_patching(subject, baseline)[hook]
    torch.testing.assert_close(one.features, patched.features)
    torch.testing.assert_close(one.error, patched.error)
    assert abs(one.gap) < 1e-10


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


def check_outgoing_edges(subject: Subject, *, tolerance: float) -> None:
    baseline = random_baseline(subject)
    effects = attribution_patching(subject, baseline)
    sums = {hook: [torch.zeros_like(e.features), torch.zeros_like(e.error)] for hook, e in effects.items()}
    for hook, edge in to_output(subject, effects, baseline, method="atp", steps=1, batch_size=8).items():
        sums[hook][0] += edge.features
        sums[hook][1] += edge.error
    for hook in subject.hooks:
        active = subject.coded[hook].codes[0].nonzero().tolist()
        targets = [Target(index, position) for position, index in active]
        targets += [Target(None, position) for position in range(subject.prompt.n_spliced)]
        for _, sources in incoming(subject, hook, targets, effects[hook], baseline, batch_size=16):
            for source, edges in sources.items():
                sums[source][0] += edges.features.sum(dim=0)
                sums[source][1] += edges.error.sum(dim=0)
    for hook, effect in effects.items():
        scale = float(effect.features.abs().max())
        torch.testing.assert_close(sums[hook][0], effect.features, rtol=0, atol=tolerance * (1 + scale))
        torch.testing.assert_close(sums[hook][1], effect.error, rtol=0, atol=tolerance * (1 + scale))


def direct_value(subject, hook, target, effects, held, source, moved):
    """g_d * f_d (or g_x . e) at a target when one source is moved and all other spliced hook points are held."""
    seen = {}
    callbacks = {other: (lambda x, other=other: held[other]) for other in subject.hooks if other < hook}
    callbacks[source] = lambda x: moved
    callbacks[hook] = lambda x: seen.__setitem__("x", x)
    with torch.no_grad(), tapped(subject.adapter, callbacks):
        subject.adapter.logits(subject.prompt.ids)
    sae, first = subject.saes[hook], subject.prompt.first
    coded_clean = subject.coded[hook]
    x = seen["x"][:, first:]
    # Mean and scale of a normalising SAE, and what the context predicts, are constants, those of the clean run.
    frame = coded_clean.frame
    z = (x - frame.mean) / (frame.scale + 1e-5 if sae.config.normalisation == "layer-norm" else frame.scale)
    codes = sae.sparsify((z - sae.b_dec) @ sae.W_enc + sae.b_enc)
    if target.index is None:
        error = x - sae.decode(codes, frame)
        return float((effects.gradient[target.position] * error[0, target.position]).sum())
    g = effects.gradient[target.position] @ sae.W_dec[target.index]
    g = g * frame.scale[0, target.position, 0]
    return float(g * codes[0, target.position, target.index])


@pytest.mark.parametrize("normalisation", CONSTANTS)
@pytest.mark.parametrize("splice", sorted(SPLICES))
@pytest.mark.parametrize("family", EXACT)
def test_every_edge_is_the_derivative_along_the_direct_path(family, splice, normalisation):
    """Finite differences through full forward passes, for each pair of hook points, features and errors."""
    subject = random_subject(family, sites=SPLICES[splice], layers=(0, 1), normalisation=normalisation, n=5, first=1)
    baseline = random_baseline(subject)
    effects = attribution_patching(subject, baseline)
    held, h, compared = subject.clean.activations, 1e-5, 0
    for hook in subject.hooks:
        position, index = subject.coded[hook].codes[0].nonzero()[-1].tolist()
        targets = [Target(index, position), Target(None, position)]
        batches = list(incoming(subject, hook, targets, effects[hook], baseline, batch_size=2))
        found = batches[0][1] if batches else {}
        for source in (other for other in subject.hooks if other < hook):
            at, feature = subject.coded[source].codes[0].nonzero()[1].tolist()
            direction = torch.zeros_like(held[source])
            frame = subject.coded[source].frame
            direction[0, at + 1] = subject.saes[source].W_dec[feature] * frame.scale[0, at]
            amount = float(subject.coded[source].codes[0, at, feature] - baseline[source].codes[0, 0, feature])
            towards = torch.zeros_like(held[source])
            towards[0, at + 1] = (subject.coded[source].error - baseline[source].error)[0, at]
            for row, target in enumerate(targets):

                def slope(along, target=target, source=source, hook=hook):
                    values = [
                        direct_value(subject, hook, target, effects[hook], held, source, held[source] + s * h * along)
                        for s in (1, -1)
                    ]
                    return (values[0] - values[1]) / (2 * h)

                edge = found.get(source)
                got = (0.0, 0.0) if edge is None else (edge.features[row, at, feature], edge.error[row, at])
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
    for hook in subject.hooks:
        position, index = subject.coded[hook].codes[0].nonzero()[-1].tolist()
        direction = torch.zeros_like(subject.clean.activations[hook])
        direction[0, position] = subject.saes[hook].W_dec[index]
        values = []
        for s in (1, -1):
            replaced = {other: subject.clean.activations[other] for other in subject.hooks}
            replaced[hook] = replaced[hook] + s * h * direction
            with torch.no_grad():
                values.append(float(subject.metric.value(plain_forward(subject, replaced))))
        amount = float(subject.coded[hook].codes[0, position, index] - baseline[hook].codes[0, 0, index])
        expected = (values[0] - values[1]) / (2 * h) * amount
        assert float(edges[hook].features[position, index]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("splice", sorted(SPLICES))
def test_integrated_edges_from_the_last_hook_point_are_its_node_effects(splice):
    subject = random_subject("gpt2", sites=SPLICES[splice])
    baseline = random_baseline(subject)
    effects = node_effects(subject, baseline, method="ig", steps=6, batch_size=4)
    edges = to_output(subject, effects, baseline, method="ig", steps=6, batch_size=4)
    last = subject.hooks[-1]
    torch.testing.assert_close(edges[last].features, effects[last].features)


def test_which_hook_points_can_reach_which():
    def names(hooks):
        return [str(hook) for hook in hooks]

    full = hook_points((3, 4), ("attn", "mlp", "resid"))
    assert names(sources_of(full, HookPoint(4, "attn"))) == ["resid.3"]
    assert names(sources_of(full, HookPoint(4, "mlp"))) == ["resid.3", "attn.4"]
    assert names(sources_of(full, HookPoint(4, "resid"))) == ["resid.3", "attn.4", "mlp.4"]
    assert names(sources_of(full, None)) == ["resid.4"]
    assert names(sources_of(hook_points((3, 4), ("attn",)), None)) == ["attn.3", "attn.4"]
    assert sources_of(full, HookPoint(3, "attn")) == []


def test_parallel_blocks_have_no_edge_from_attention_to_mlp():
    subject = random_subject("neox-parallel")
    baseline = baselines.zero(subject.saes)
    effects = attribution_patching(subject, baseline)
    hook = HookPoint(1, "mlp")
    position, index = subject.coded[hook].codes[0].nonzero()[0].tolist()
    ((_, found),) = incoming(subject, hook, [Target(index, position)], effects[hook], baseline, batch_size=4)
    assert HookPoint(1, "attn") not in found and HookPoint(0, "resid") in found


@pytest.mark.parametrize("normalisation", CONSTANTS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama"])
def test_naive_effects_equal_one_separate_forward_pass_each(family, batch_size, normalisation):
    subject = random_subject(family, normalisation=normalisation, n=5, first=1)
    baseline = random_baseline(subject)
    tolerance = 1e-9 if family in EXACT else 2e-3
    for hook in (HookPoint(0, "attn"), HookPoint(0, "resid"), HookPoint(1, "mlp")):
        measured = [other for other in subject.hooks if other.layer > hook.layer]
        sources = [Source(4, None), Source(7, 2), Source(None, None), Source(None, 1), Source(11, None)]
        batches = list(ablate(subject, hook, sources, baseline, measured=measured, batch_size=batch_size))
        effects = torch.cat([batch.effect for batch in batches])
        for row, source in enumerate(sources):
            expected = exact_effect(subject, hook, source.position, source.index, baseline)
            assert float(effects[row]) == pytest.approx(expected, abs=tolerance)
            for other in measured:
                codes = torch.cat([batch.codes[other] for batch in batches])[row]
                torch.testing.assert_close(
                    codes, codes_of_separate_pass(subject, hook, source, baseline, other), rtol=0, atol=tolerance
                )


def codes_of_separate_pass(subject, hook, source, baseline, other):
    coded, absent = subject.coded[hook], baseline[hook]
    codes, error = coded.codes.clone(), coded.error.clone()
    places = slice(None) if source.position is None else source.position
    if source.index is None:
        error[0, places] = absent.error.expand_as(error)[0, places]
    else:
        codes[0, places, source.index] = absent.codes[0, 0, source.index]
    value = subject.clean.activations[hook].clone()
    value[:, subject.prompt.first :] = subject.saes[hook].decode(codes, coded.frame) + error
    seen = {}
    with torch.no_grad():
        with tapped(subject.adapter, {hook: lambda x: value, other: lambda x: seen.__setitem__("x", x)}):
            subject.adapter.logits(subject.prompt.ids)
        return subject.saes[other].encode(seen["x"][:, subject.prompt.first :])[0]


def test_live_sources_are_the_features_that_differ_from_the_baseline():
    subject = random_subject("gpt2")
    hook = HookPoint(1, "resid")
    zero = baselines.zero(subject.saes)
    live = live_sources(subject, hook, zero, positions="all")
    active = subject.coded[hook].codes[0].nonzero().tolist()
    assert live == [Source(i, p) for p, i in active] + [Source(None, p) for p in range(6)]
    silent = next(i for i in range(D_SAE) if not subject.coded[hook].codes[0, :, i].any())
    with pytest.raises(InputError, match="silent in this prompt"):
        pinned_sources(subject, hook, [silent], live)
    with pytest.raises(InputError, match=f"has no feature {D_SAE}"):
        pinned_sources(subject, hook, [D_SAE], live)


def test_an_activation_summed_over_positions_is_that_furthest_from_zero_with_its_sign():
    hooks = hook_points((0, 1), ("resid",))
    saes = {}
    for hook, sae in random_saes(hooks).items():
        saes[hook] = AbsTopKSae(sae.config, k=sae.k).double().requires_grad_(False)
        saes[hook].load_state_dict(sae.state_dict())
    subject = subject_with(adapter_of("gpt2"), saes, first=1)
    settings = GraphSettings(threshold_exp=-1000, down=200, up=200)
    zero = baselines.zero(subject.saes)
    naive = NaiveSearch(subject, zero, settings, "sum", {}, 0)
    search = Search(subject, zero, settings.model_copy(update={"method": "atp"}), "sum")
    found = [
        naive.graph(HEAD, [naive.part(hook) for hook in subject.hooks]),
        search.graph(HEAD, search.effects()),
    ]
    for graph in found:
        signs = set()
        for node in (node for node in graph.nodes if node.place and node.place.index is not None):
            values = subject.coded[node.place.hook].codes[0, :, node.place.index].tolist()
            assert node.activation == max(values, key=abs), node
            signs.add(node.activation > 0)
        assert signs == {True, False}


def test_attribution_patching_refuses_the_divergence_and_integrated_gradients_take_it():
    subject = random_subject("gpt2")
    divergence = MinusDivergence("kl", "nats", subject.clean.logits[0, -1])
    flat = subject_with(subject.adapter, subject.saes, metric=divergence)
    with pytest.raises(SettingsError, match="no gradient at the clean run") as caught:
        node_effects(flat, baselines.zero(flat.saes), method="atp", steps=1, batch_size=4)
    assert "--method ig" in caught.value.hint
    effects = integrated_gradients(flat, flat.hooks[0], random_baseline(flat)[flat.hooks[0]], steps=200, batch_size=50)
    assert abs(effects.gap) < 5e-3 and effects.features.abs().max() > 0


def test_metrics_are_their_definitions():
    logits = torch.randn(2, 5, 11, dtype=torch.float64)
    ids = torch.tensor([[1, 4, 2, 9, 3]])
    p = logits.softmax(-1)
    torch.testing.assert_close(LogProb("log-prob", "nats", 7).value(logits), p[:, -1, 7].log())
    torch.testing.assert_close(
        LogitDifference("logit-diff", "logits", 7, 2).value(logits), logits[:, -1, 7] - logits[:, -1, 2]
    )
    nexts = torch.stack([p[:, i, ids[0, i + 1]].log() for i in range(4)], 1).mean(1)
    torch.testing.assert_close(MinusCrossEntropy("cross-entropy", "nats", ids).value(logits), nexts)
    divergence = MinusDivergence("kl", "nats", logits[0, -1]).value(logits)
    assert float(divergence[0]) == pytest.approx(0, abs=1e-12)
    expected = -(p[0, -1] * (p[0, -1] / p[1, -1]).log()).sum()
    torch.testing.assert_close(divergence[1], expected)
