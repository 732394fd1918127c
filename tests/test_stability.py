"""How stable circuits are: found again on samples of their prompts, through other coders, and without some nodes."""

import random
from statistics import correlation

import pytest
import torch
from subjects import random_prompt
from support import D_SAE, adapter_of, random_saes

from circuitcli.attribution.baselines import Baseline, BaselineRule
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.selection import find_circuit
from circuitcli.errors import InputError
from circuitcli.features.matching import matched
from circuitcli.graphs.cumulative import pruned_by_influence
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.records import GraphRecord
from circuitcli.saes.coders import Coders
from circuitcli.schema import METHODS
from circuitcli.settings.graph import GraphSettings
from circuitcli.validation import stability
from circuitcli.validation.refinding import Refinder, settings_of
from circuitcli.validation.stability import Found, agreement, jaccard, rank_correlation

HOOKS = (HookPoint(1, "attn"), HookPoint(1, "resid"), HookPoint(2, "resid"))


def head(**facts) -> GraphRecord:
    told = dict(name="g", method="grad-ig", metric="log-prob", prompt="p", tokens=(), metric_clean=0.0)
    more = dict(metric_baseline=0.0, dtype="float64", unit="nats", baseline="zero", positions="all", model="m")
    return GraphRecord(**{**told, **more, "steps": 3, "down": 4, "up": 2, **facts})


def panel_of(prompts, *, kind="all", batch_size=64, draws=False) -> Panel:
    """Prompts through random SAEs; with ``draws`` the baseline of each depends on its number, as resampled rows do."""
    coders = Coders(random_saes(HOOKS))
    zero = BaselineRule("zero", coders)

    def drawn(subject, numbers):
        codes = {}
        for hook, coder in coders.items():
            rows = [torch.randn(1, coder.d_sae, generator=torch.Generator().manual_seed(n)).double() for n in numbers]
            codes[hook] = torch.stack(rows).abs() * 0.1
        errors = {hook: value.expand(len(numbers), -1, -1) for hook, value in zero(subject, numbers).errors.items()}
        return Baseline(codes, errors)

    return Panel.of(
        adapter_of("llama"),
        coders,
        prompts,
        metric="log-prob",
        positions=Positions.of(kind, prompts),
        baseline_of=drawn if draws else zero,
        batch_size=batch_size,
    )


def near(one: Found, other: Found) -> bool:
    """Whether two searches kept the same, with the same numbers."""
    return all(
        mine.keys() == its.keys() and all(mine[key] == pytest.approx(its[key], abs=1e-9) for key in mine)
        for mine, its in ((one.nodes, other.nodes), (one.edges, other.edges))
    )


@pytest.mark.parametrize(("kind", "method"), [("all", "ig"), ("sum", "atp")])
def test_a_circuit_on_a_sample_is_that_of_a_panel_of_just_these_prompts(kind, method):
    lengths = (5, 5, 5) if kind == "all" else (5, 6, 4)
    prompts = [random_prompt(n, first=1, seed=seed) for seed, n in enumerate(lengths)]
    numbers = (0, 2, 2)
    refinder = Refinder.of(
        panel_of(prompts, kind="sum"), head(positions=kind, method=f"grad-{method}"), GraphSettings()
    )
    told = (refinder.settings.down, refinder.settings.ig_steps, refinder.settings.method)
    assert told == (4, 3 if method == "ig" else None, method)
    plain = panel_of([prompts[number] for number in numbers], kind=kind)
    slow = Found.of(find_circuit(plain, refinder.settings).graph(head()))
    refinder.on()
    assert near(refinder.on(numbers), slow) and slow.edges
    assert not near(refinder.on(), slow), "another sample gives another circuit, or the test could not fail"


def test_on_a_sample_each_prompt_keeps_the_baseline_that_was_drawn_for_it():
    prompts = [random_prompt(5, first=1, seed=seed) for seed in range(3)]
    refinder = Refinder.of(panel_of(prompts, draws=True), head(), GraphSettings())
    # Only what was forgotten is made again, with numbers of the sample at hand.
    refinder.panel.kept._n_bytes = 1
    once, rule = refinder.on((1, 1, 2)), refinder.panel.baseline_of
    slow = panel_of([prompts[number] for number in (1, 1, 2)])
    object.__setattr__(slow, "baseline_of", lambda subject, own: rule(subject, [(1, 1, 2)[n] for n in own]))
    assert near(once, Found.of(find_circuit(slow, refinder.settings).graph(head())))


def test_no_prompt_is_run_twice_for_samples(monkeypatch):
    from circuitcli.attribution import mean_effects, subject

    counts = {"runs": 0, "effects": 0}
    whole, effects = subject.build, mean_effects.integrated_gradients

    def count(name, work):
        def counted(*given, **named):
            counts[name] += 1
            return work(*given, **named)

        return counted

    monkeypatch.setattr(subject, "build", count("runs", whole))
    monkeypatch.setattr(mean_effects, "integrated_gradients", count("effects", effects))
    prompts = [random_prompt(5, first=1, seed=seed) for seed in range(3)]
    refinder = Refinder.of(panel_of(prompts), head(), GraphSettings())
    refinder.on()
    first = dict(counts)
    for numbers in stability.drawn(3, 4, seed=1):
        refinder.on(numbers)
    assert counts == first == {"runs": 3, "effects": 3 * len(HOOKS)}


def test_excluded_nodes_are_in_no_circuit_and_leave_all_others_their_numbers():
    prompts = [random_prompt(5, first=1, seed=seed) for seed in range(2)]
    # So many that none is cut off: a search finds all that is there.
    refinder = Refinder.of(panel_of(prompts), head(down=1000, up=1000, method="grad-atp"), GraphSettings())
    whole = refinder.on()
    gone = [*stability.strongest(whole, 5), next(name for name in whole.nodes if "error" in name)]
    left = Found.of(refinder.without([NodeId.parse(name) for name in gone]))
    assert not set(gone) & set(left.nodes)
    assert not any(set(gone) & set(ends) for ends in left.edges)
    for name, effect in left.nodes.items():
        assert effect == pytest.approx(whole.nodes[name], abs=1e-9), "of attribution patching all others keep theirs"
    assert len(left.nodes) > len(whole.nodes) / 2


def rank_of(values, keys, key):
    """The slow definition of a rank: how many are smaller, and half of those that are equal."""
    own = values.get(key, 0.0)
    return sum(values.get(k, 0.0) < own for k in keys) + sum(values.get(k, 0.0) == own for k in keys) / 2


def test_rank_correlations_are_spearmans_over_all_that_either_has():
    generator = random.Random(3)
    for _ in range(20):
        one = {name: generator.choice([-2.0, -1.0, 0.5, 3.0]) for name in generator.sample("abcdefgh", 5)}
        other = {name: generator.choice([-2.0, -1.0, 0.5, 3.0]) for name in generator.sample("abcdefgh", 4)}
        keys = sorted({*one, *other})
        expected = correlation(*([rank_of(side, keys, key) for key in keys] for side in (one, other)))
        assert rank_correlation(one, other) == pytest.approx(expected)
        assert rank_correlation(one, other) == pytest.approx(rank_correlation(other, one))
        assert jaccard(one.keys(), other.keys()) == len({*one} & {*other}) / len(keys)
    assert rank_correlation({}, {}) is None and rank_correlation({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}) is None
    assert jaccard(set(), set()) == 1.0 and jaccard({1}, set()) == 0.0
    found = Found({"a": 1.0, "b": -2.0}, {("a", "b"): 0.5})
    assert agreement(found, found) == stability.Agreement(1.0, 1.0, 1.0, None)
    assert Found.read(found.content()) == found


def test_bootstrap_samples_repeat_prompts_and_halves_share_none():
    for n in (2, 3, 8):
        samples = stability.drawn(n, 30, seed=5)
        assert all(len(sample) == n and {*sample} <= {*range(n)} for sample in samples)
        assert samples == stability.drawn(n, 30, seed=5) != stability.drawn(n, 30, seed=6)
        for one, other in stability.halves(n, 10, seed=5):
            assert len(one) == len(other) == n // 2 and not {*one} & {*other}
    assert any(len({*sample}) < 8 for sample in samples)


def test_features_of_another_seed_are_matched_by_their_directions_one_to_one():
    hook = HookPoint(1, "resid")
    coder, other = (random_saes([hook], seed=seed)[hook] for seed in (0, 9))
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        other.W_dec.copy_(coder.W_dec[order] * 3)
        # Two features that are like the same one, one of them less.
        other.W_dec[7] = coder.W_dec[order[6]] + 0.1
        other.W_dec[9] = -coder.W_dec[order[9]]
    found = matched(coder, other, range(D_SAE))
    assert {feature: own for feature, (own, _) in found.items()} == {
        feature: int(order[feature]) for feature in range(D_SAE) if feature not in (7, 9)
    }
    assert all(cosine == pytest.approx(1.0, abs=1e-5) for _, cosine in found.values())
    assert matched(coder, other, []) == {} and list(matched(coder, other, [3])) == [3]


def test_a_refined_graph_is_refined_again():
    told = settings_of(head(method="grad-atp-refined", refined=7, min_share=0.25), GraphSettings(refine=3))
    assert (told.method, told.refine, told.min_share, told.down) == ("atp", 7, 0.25, 4)
    assert settings_of(head(), GraphSettings(refine=3)).refine == 0


def test_settings_at_hand_do_not_change_how_a_graph_is_found_again():
    other = GraphSettings(strongest=3, ig_steps=7, down=1, node_threshold=0.1, heads=True, edges_exact=2)
    for facts in ({}, {"steps": None}, {"strongest": 9, "steps": None}):
        assert settings_of(head(**facts), other) == settings_of(head(**facts), GraphSettings())


def test_a_graph_that_was_pruned_by_influence_is_pruned_again():
    prompts = [random_prompt(5, first=1, seed=seed) for seed in range(2)]
    shares = {"node_threshold": 0.5, "edge_threshold": 0.9}
    pruned = Refinder.of(panel_of(prompts), head(method="grad-atp", **shares), GraphSettings())
    whole = Refinder.of(panel_of(prompts), head(method="grad-atp"), GraphSettings())
    found = Found.of(pruned_by_influence(find_circuit(whole.panel, whole.settings).graph(head()), **shares))
    assert near(pruned.on(), found) and 0 < len(found.nodes) < len(whole.on().nodes)


def test_what_was_found_before_changes_nothing(monkeypatch):
    """The steps that each prompt takes are kept, so that they must not follow from the sample that came first."""
    monkeypatch.setattr("circuitcli.attribution.gradients.TOLERANCE", 1e-4)
    prompts = [random_prompt(5, first=1, seed=seed) for seed in range(3)]
    one, other = (Refinder.of(panel_of(prompts), head(steps=None, baseline="zero"), GraphSettings()) for _ in range(2))
    other.on((0, 0, 1))
    assert near(one.on((2, 2, 2)), other.on((2, 2, 2)))
    assert near(one.on(), other.on())


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("grad-")])
def test_graphs_of_other_methods_are_not_found_again(method):
    with pytest.raises(InputError, match=rf"another method \({method}\)"):
        stability.check_gradient(head(method=method))
    for other in METHODS:
        if other.startswith("grad-"):
            stability.check_gradient(head(method=other))
