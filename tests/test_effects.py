"""Node effects: exact ones, steps of integration as they are needed, and what gaps tell."""

from types import SimpleNamespace

import pytest
import torch
from planted.all import planted_circuit
from subjects import mixed_subject, panel_of, random_baseline, random_prompt, random_subject, subject_with
from support import adapter_of, random_saes
from test_attribution import HEAD, exact_effect
from test_coders import PlainRun

from circuitcli.attribution import baselines
from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.exact import ExactEffects, RefinedEffects, effects_of_panel
from circuitcli.attribution.gaps import warn_of_gaps
from circuitcli.attribution.gradients import (
    attribution_patching,
    integrated_gradients,
    measured,
    node_effects,
    tolerated,
)
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.attribution.method import gradient_facts
from circuitcli.attribution.moves import change_to, summed_rows
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.paths import GroupPath, Point, Weighted
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.refining import FIRST_STEPS, MOST_STEPS, integrated
from circuitcli.attribution.selection import find_circuit
from circuitcli.attribution.strongest_edges import edges_into_faint
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, hook_points
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import GraphSettings
from circuitcli.validation.circuits import circuit_metric, kept_nodes

SATURATED = ("saturated-steep", "saturated-blind")


def faithfulness(planted, kind: str, settings: GraphSettings) -> float:
    """Of the circuit that settings find."""
    panel = planted.panel(kind)
    circuit = find_circuit(panel, settings)
    nodes = [node.place for node in circuit.nodes if node.place is not None]
    kept = [kept_nodes(planted.subject, some) for some in (nodes, ())]
    with_circuit, empty = circuit_metric(planted.subject, planted.baseline(kind), kept, batch_size=8)[:, 0].tolist()
    return (with_circuit - empty) / (float(planted.subject.metric_clean) - empty)


@pytest.mark.parametrize("name", SATURATED)
def test_steps_as_they_are_needed_find_saturated_units_which_ten_steps_miss(name):
    planted = planted_circuit(name)
    settings = GraphSettings(down=3, up=3)
    assert faithfulness(planted, "zero", settings) == pytest.approx(1.0, abs=0.01)
    ten = PanelEffects(planted.panel("zero"), settings.model_copy(update={"ig_steps": 10}))
    adaptive = PanelEffects(planted.panel("zero"), settings)
    behaviour = abs(adaptive.panel.behaviour)
    worst = {effects: max(abs(effects.total(hook).gap) for hook in planted.coders) for effects in (ten, adaptive)}
    assert worst[ten] > 0.5 * behaviour and worst[adaptive] <= 0.05 * behaviour
    taken = {adaptive.total(hook).steps for hook in planted.coders}
    assert min(taken) == FIRST_STEPS and max(taken) > 10


class Curve(GroupPath):
    """A path of some texts along which the metric is a known function of the share, whose slope is its own gradient."""

    def __init__(self, *curves) -> None:
        clean = torch.tensor([float(curve(torch.zeros(()))) for curve in curves])
        told = {"curves": curves, "points": [], "subject": SimpleNamespace(n_texts=len(curves), metric_clean=clean)}
        for name, value in told.items():
            object.__setattr__(self, name, value)

    def weighted(self, points, *, batch_size):
        self.points.extend(points)
        slopes = [self._slope(point) for point in points]
        total = torch.zeros(len(self.curves), 1, 1, dtype=torch.float64)
        for point, slope in zip(points, slopes, strict=True):
            total[point.text] += point.weight * slope
        return Weighted({HookPoint(0, "resid"): total}, slopes)

    def _slope(self, point) -> float:
        share = torch.tensor(point.share, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            return -float(torch.autograd.grad(self.curves[point.text](share), share)[0])

    def metrics(self, points, *, batch_size):
        return [float(self.curves[point.text](torch.tensor(point.share).double())) for point in points]

    def change(self):
        ends = self.metrics([Point(text, 1.0) for text in range(len(self.curves))], batch_size=1)
        return self.subject.metric_clean - torch.tensor(ends)

    def total(self, totals):
        return totals[HookPoint(0, "resid")][:, 0, 0]


def test_steps_are_added_where_the_metric_turns_and_nowhere_else():
    bent = Curve(lambda s: torch.tanh((0.9993 - s) * 3000), lambda s: 2 - s + 0.01 * s**2)
    found = integrated(bent, steps=FIRST_STEPS, tolerance=0.1, batch_size=8)
    assert float(found.gap.abs().max()) <= 0.1
    assert found.steps[1] == FIRST_STEPS and FIRST_STEPS < found.steps[0] < 60
    uneven = list(bent.points)
    # An equal division of the path needs hundreds of steps for that.
    equal = integrated(bent, steps=135, tolerance=None, batch_size=8)
    assert float(equal.gap.abs()[0]) > 0.5
    for text in (0, 1):
        # Each part of the path counts once, however it was parted.
        assert sum(point.weight for point in uneven if point.text == text) == pytest.approx(1.0)


def test_steps_of_a_path_that_never_settles_end():
    wild = Curve(lambda s: torch.sin(4000 * s))
    found = integrated(wild, steps=FIRST_STEPS, tolerance=1e-9, batch_size=8)
    assert max(found.steps) <= MOST_STEPS and len(wild.points) < 2 * MOST_STEPS


def test_integrals_in_uneven_steps_are_those_of_many_equal_ones():
    subject = mixed_subject("gpt2", "clt-skip", n_texts=2)
    baseline, hook = random_baseline(subject), next(iter(subject.coders))
    found = integrated_gradients(subject, hook, baseline, steps=None, batch_size=7, tolerance=1e-4)
    equal = integrated_gradients(subject, hook, baseline, steps=1000, batch_size=200)
    assert found.steps < 150 and float(found.gap.abs().max()) <= 1e-4
    assert found.steps % 2 == 1
    for place, mean in equal.gradients.items():
        torch.testing.assert_close(found.gradients[place], mean, rtol=0, atol=2e-3 * float(mean.abs().max()))


def test_each_text_takes_steps_until_its_own_gap_is_small():
    subject = mixed_subject("gpt2", "full", n_texts=3)
    baseline = random_baseline(subject)
    behaviour = float((subject.metric_clean - baselines.metric_at(subject, baseline)).mean())
    tolerance = tolerated(subject, behaviour)
    assert tolerance == pytest.approx(0.05 * abs(behaviour))
    for hook, found in node_effects(subject, baseline, method="ig", steps=None, batch_size=16).items():
        assert bool((found.gap.abs() <= tolerance).all()) or found.steps > MOST_STEPS - 3
        one = integrated_gradients(subject, hook, baseline, steps=FIRST_STEPS, batch_size=16)
        is_done = one.gap.abs() <= tolerance
        for place, mean in one.gradients.items():
            torch.testing.assert_close(found.gradients[place][is_done], mean[is_done], rtol=1e-9, atol=1e-12)


def panel_with(subject, kind: str, *, batch_size: int) -> Panel:
    return Panel.of(
        subject.adapter,
        subject.coders,
        subject.prompts,
        metric="log-prob",
        positions=Positions.of("all", subject.prompts),
        baseline_of=BaselineRule(kind, subject.coders),
        batch_size=batch_size,
    )


def test_steps_as_they_are_needed_do_not_depend_on_the_prompts_beside(monkeypatch):
    monkeypatch.setattr("circuitcli.attribution.gradients.TOLERANCE", 1e-3)
    subject = mixed_subject("llama", "clt-resid", n_texts=3)
    one, other = (
        find_circuit(panel_with(subject, "zero", batch_size=size), GraphSettings(down=3, up=2)) for size in (1, 64)
    )
    assert {total.steps for total in one.totals.values()} != {FIRST_STEPS}
    weights = {(edge.source, edge.target): edge.weight for edge in other.edges}
    assert {(edge.source, edge.target): edge.weight for edge in one.edges} == pytest.approx(weights, rel=1e-8)


def test_prompts_that_do_not_fit_are_not_all_run_again_for_each(monkeypatch):
    """What there is to explain, which tells how many steps are needed, is of all of them."""
    from circuitcli.attribution import subject as subjects

    build, counts = subjects.build, []
    monkeypatch.setattr(subjects, "build", lambda *given, **named: counts.append(1) or build(*given, **named))
    runs = []
    for n_texts in (3, 6):
        panel = panel_with(mixed_subject("gpt2", "transcoders", n_texts=n_texts), "zero", batch_size=1)
        panel.kept._n_bytes = 1
        counts.clear()
        effects = PanelEffects(panel, GraphSettings())
        for hook in panel.coders.hooks:
            effects.total(hook)
        runs.append(len(counts))
    assert runs[1] <= 2.2 * runs[0]


def test_nodes_that_differ_both_ways_over_prompts_are_followed_no_further_for_that(monkeypatch):
    """Over the prompts that a mean is taken of, differences from it add up to nothing."""
    followed = []

    def seen(*given, **named):
        found = edges_into_faint(*given, **named)
        followed.extend(size for _, _, _, size in found)
        return found

    monkeypatch.setattr("circuitcli.attribution.selection.edges_into_faint", seen)
    subject = subject_with(adapter_of("llama"), random_saes(hook_points((1, 2), ("attn", "resid"))), n=5, n_texts=4)
    circuit = find_circuit(panel_with(subject, "mean-position", batch_size=64), GraphSettings(down=4, up=2))
    assert followed and max(followed) < 10 * max(abs(edge.weight) for edge in circuit.edges)


@pytest.mark.parametrize("mix", ["clt-resid", "full"])
def test_the_gap_of_attribution_patching_is_what_its_effects_miss_of_ablating_the_group(mix):
    subject = mixed_subject("neox-parallel", mix) if mix != "full" else mixed_subject("gpt2", mix)
    baseline = random_baseline(subject)
    for hook, effects in attribution_patching(subject, baseline).items():
        total = float(effects.features.sum()) + sum(float(values.sum()) for values in effects.errors.values())
        whole = integrated_gradients(subject, hook, baseline, steps=3, batch_size=8)
        change = float(whole.features.sum() + sum(values.sum() for values in whole.errors.values()) - whole.gap)
        assert float(measured(subject, hook, effects, baseline).gap) == pytest.approx(total - change, abs=1e-9)
        assert abs(total - change) > 1e-6


@pytest.mark.parametrize("absent", ["zero", "one row", "by position", "by text"])
def test_what_is_taken_off_is_what_the_coder_says_of_the_difference(absent):
    subject = mixed_subject("gpt2", "full", n_texts=3)
    for hook, coder in subject.coders.items():
        codes, frame = subject.codes[hook], subject.coded.frames[hook]
        other = {
            "zero": torch.zeros_like(codes[:1, :1]),
            "one row": torch.randn(1, 1, coder.d_sae, dtype=codes.dtype),
            "by position": codes.mean(dim=0, keepdim=True),
            "by text": codes.roll(1, dims=0),
        }[absent]
        for place in coder.writes:
            expected = coder.change(codes - other, frame, hook=place)
            torch.testing.assert_close(change_to(coder, codes, other, frame, hook=place), expected)
    assert float((subject.codes[hook] != 0).double().mean()) < 1 / 7


def test_rows_are_added_up_from_the_weights_that_are_not_zero_where_these_are_few():
    rows = torch.randn(200, 7, dtype=torch.float64)
    for active in (0, 3, 100):
        weights = torch.zeros(2, 5, 200, dtype=torch.float64)
        weights[..., torch.randperm(200)[:active]] = torch.randn(2, 5, active, dtype=torch.float64)
        weights[1, 2] = 0.0
        torch.testing.assert_close(summed_rows(weights, rows), weights @ rows)


def test_what_all_features_add_up_to_is_known_without_each_of_them():
    subject = mixed_subject("gpt2", "clt-skip", n_texts=2)
    baseline = random_baseline(subject)
    of_one = attribution_patching(subject, baseline)
    for hook in subject.coders:
        integrated = integrated_gradients(subject, hook, baseline, steps=2, batch_size=8)
        for effects in (integrated, measured(subject, hook, of_one[hook], baseline)):
            torch.testing.assert_close(effects.sums, effects.features.sum(dim=(1, 2)))


@pytest.mark.parametrize("few", [0.0, 1.0])
def test_mean_effects_of_features_that_differ_are_those_of_all(few, monkeypatch):
    subject = mixed_subject("gpt2", "full", n_texts=3)
    baseline = random_baseline(subject)
    monkeypatch.setattr("circuitcli.attribution.mean_effects.AT_ONCE", 70)
    monkeypatch.setattr("circuitcli.attribution.mean_effects._FEW", few)
    panel = panel_of(subject, baseline, positions="all")
    effects = PanelEffects(panel, GraphSettings(method="atp"))
    for hook in subject.coders:
        expected = effects.of(0, hook).features
        found = torch.zeros_like(expected[0])
        spread = torch.zeros(2, *found.shape, dtype=found.dtype)
        pieces = list(effects.of_features(hook))
        for means in pieces:
            indices = list(means.piece.indices)
            assert [means.piece.target(flat).index for flat in range(len(indices))] == indices
            found[:, indices], spread[:, :, indices] = means.values[0], means.spread[:, 0]
        assert (pieces[0].piece.features is not None) == bool(few)
        torch.testing.assert_close(found, expected.mean(dim=0))
        torch.testing.assert_close(spread[0], expected.std(dim=0) / 3**0.5, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(spread[1], (expected != 0).double().mean(dim=0))


@pytest.mark.parametrize("positions", ["all", "sum", "last"])
def test_exact_effects_are_those_of_one_separate_ablated_pass_each(positions):
    subject = random_subject("gpt2", sites=("mlp", "resid"), layers=(0, 1), n=4, normalisation="layer-norm")
    baseline = random_baseline(subject)
    panel = panel_of(subject, baseline, positions=positions)
    effects = ExactEffects(panel, GraphSettings(method="exact", batch_size=7))
    for hook in subject.coders:
        table = effects.table(hook)
        assert len(table.targets) > 20
        for column in range(0, len(table.targets), 9 if positions == "all" else 5):
            target = table.targets[column]
            position = None if positions == "sum" else 3 if positions == "last" else target.group
            assert float(table.values[0, column]) == pytest.approx(
                exact_effect(subject, hook, position, target.index, baseline), rel=1e-8, abs=1e-10
            )


def test_exact_effects_of_several_prompts_are_means_with_standard_errors():
    subject = mixed_subject("gpt2", "clt-resid", n_texts=3)
    baseline = baselines.zero(subject.coders)
    effects = ExactEffects(panel_of(subject, baseline, positions="sum"), GraphSettings(method="exact", batch_size=5))
    for hook in subject.coders.hooks:
        targets = [*effects.table(hook).targets[::9], *effects.table(hook).targets[-1:]]
        for target, found in zip(targets, effects.averages(hook, targets), strict=True):
            changes = without(subject, hook, target.index)
            assert found.value == pytest.approx(float(changes.mean()), abs=1e-9)
            assert found.standard_error == pytest.approx(float(changes.std() / 3**0.5), abs=1e-9)
        for means in (*(effects.of_features(hook) if hook in subject.coders else ()),):
            assert float(means.values.sum()) == pytest.approx(effects.total(hook).features)
            one = next(target for target in targets if target.index is not None)
            exact = effects.averages(hook, [one])[0]
            told = (means.values[0, 0, one.index], means.spread[0, 0, 0, one.index], means.spread[1, 0, 0, one.index])
            assert [float(value) for value in told] == pytest.approx([exact.value, exact.standard_error, exact.active])


def without(subject, hook, index):
    """What the metric of each prompt loses with a node at zero at all positions, by one pass of the slow definition."""

    def cut(place, values):
        changed = values.clone()
        if place == hook:
            changed[..., slice(None) if index is None else index] = 0.0
        return changed

    run = PlainRun(subject, errors=cut) if index is None else PlainRun(subject, codes=cut)
    return subject.metric_clean - run.metric()


def test_refining_puts_exact_effects_in_the_place_of_the_strongest_of_each_hook_point_alone():
    subject = mixed_subject("gpt2", "full", n_texts=2)
    panel = panel_of(subject, random_baseline(subject), positions="sum")
    base = GraphSettings(method="atp", batch_size=16)
    plain, exact = PanelEffects(panel, base), ExactEffects(panel, base)
    refined = RefinedEffects(panel, base.model_copy(update={"refine": 4}))
    for hook in panel.hooks:
        targets = list(exact.table(hook).targets)
        by_plain = dict(zip(targets, plain.averages(hook, targets), strict=True))
        strongest = sorted(targets, key=lambda target: -abs(by_plain[target].value))[:4]
        assert set(refined.table(hook).targets) == set(strongest)
        found = dict(zip(targets, refined.averages(hook, targets), strict=True))
        by_ablation = dict(zip(targets, exact.averages(hook, targets), strict=True))
        for target in targets:
            expected = (by_ablation if target in strongest else by_plain)[target]
            assert found[target].value == pytest.approx(expected.value, abs=1e-12)
            assert found[target].standard_error == pytest.approx(expected.standard_error, abs=1e-12)
        pieces = [*(refined.of_features(hook) if hook in panel.coders else ())]
        pieces += [*(refined.of_error(hook) if panel.coders.writers(hook) else ())]
        listed = {
            means.piece.target(flat): value
            for means in pieces
            for flat, value in enumerate(means.values.flatten().tolist())
        }
        for target in targets:
            assert listed[target] == pytest.approx(found[target].value, abs=1e-12)


def test_settings_choose_how_effects_are_taken():
    subject = random_subject(layers=(2,), sites=("resid",))
    panel = panel_of(subject, random_baseline(subject))
    kinds = {
        PanelEffects: GraphSettings(),
        RefinedEffects: GraphSettings(refine=3),
        ExactEffects: GraphSettings(method="exact", refine=3),
    }
    assert all(type(effects_of_panel(panel, settings)) is kind for kind, settings in kinds.items())


def test_a_circuit_of_exact_effects_selects_by_them_and_has_edges_of_integrated_gradients():
    planted = planted_circuit("saturated-steep")
    settings = GraphSettings(method="exact", down=3, up=3)
    assert faithfulness(planted, "zero", settings) == pytest.approx(1.0, abs=0.01)
    panel = planted.panel("zero")
    exact = find_circuit(panel, settings)
    effects = ExactEffects(panel, settings)
    for node in exact.nodes:
        if node.place is not None:
            target = next(t for t in effects.table(node.place.hook).targets if _named(panel, node, t))
            assert node.effect == effects.averages(node.place.hook, [target])[0].value
    integrated = {(edge.source, edge.target): edge.weight for edge in find_circuit(panel, GraphSettings()).edges}
    shared = [edge for edge in exact.edges if (edge.source, edge.target) in integrated]
    assert len(shared) > 3
    for edge in shared:
        assert edge.weight == pytest.approx(integrated[edge.source, edge.target], abs=1e-9)


@pytest.mark.parametrize(
    ("method", "refine", "told"),
    [
        ("ig", 0, ("grad-ig", None, None)),
        ("relp", 5, ("grad-relp-refined", 5, 1)),
        ("exact", 5, ("grad-exact", None, None)),
    ],
)
def test_the_head_says_how_effects_were_found(method, refine, told):
    facts = gradient_facts(GraphSettings(method=method, refine=refine))
    head = GraphRecord.model_validate({**HEAD.model_dump(), **facts})
    assert (head.method, head.refined, head.steps) == told


def gaps_told(caplog, method: str, gap: float, *, clean: float = 2.0) -> str:
    caplog.clear()
    sums = {"resid.1": {"gap": gap, "steps": 405}, "mlp.0": {"gap": 0.01, "steps": 5}, "attn.0": {"errors": 1.0}}
    warn_of_gaps(HEAD.model_copy(update={"method": method, "metric_clean": clean, "effects": sums}))
    return caplog.text


def test_a_gap_is_warned_of_only_where_it_is_much_of_the_behaviour_and_with_what_it_means(caplog):
    assert gaps_told(caplog, "grad-ig", 0.09) == ""
    of_ig = gaps_told(caplog, "grad-ig", -0.3)
    assert "resid.1 add up to 0.3 nats less" in of_ig and "15 % of the behaviour, after 405 steps" in of_ig
    assert "saturates" not in of_ig and "--steps" in of_ig
    of_one = gaps_told(caplog, "grad-atp-refined", 3.0)
    assert "3 nats more" in of_one and "150 %" in of_one and "saturates" in of_one and "--method ig" in of_one
    assert "nothing to explain" in gaps_told(caplog, "grad-ig", 0.0, clean=1e-9)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_means_by_position_are_those_of_all_prompts_however_they_are_batched(batch_size):
    subject = mixed_subject("gpt2", "clt-skip", n_texts=5)
    made = Panel.of(
        subject.adapter,
        subject.coders,
        subject.prompts,
        metric="log-prob",
        positions=Positions.of("all", subject.prompts),
        baseline_of=BaselineRule("mean-position", subject.coders),
        batch_size=batch_size,
    )
    absent = [baseline for _, baseline in made.subjects()]
    assert len(absent) == (5 if batch_size == 1 else 2)
    for baseline in absent:
        for part, own in ((baseline.codes, subject.codes), (baseline.errors, subject.errors)):
            for hook, values in own.items():
                torch.testing.assert_close(part[hook], values.mean(dim=0, keepdim=True))


def test_means_by_position_need_several_prompts_of_one_length():
    rule = BaselineRule("mean-position", mixed_subject("gpt2", "gaps").coders)
    with pytest.raises(SettingsError, match="4 to 6 tokens, so their positions do not correspond"):
        rule.over([random_prompt(4), random_prompt(6)])
    with pytest.raises(SettingsError, match="the mean over one prompt is the prompt itself"):
        rule.over([random_prompt(4)])
    bound = rule.over([random_prompt(6), random_prompt(6, seed=2)])
    assert bound.over([random_prompt(4), random_prompt(5)]) is bound
    with pytest.raises(InputError, match="over prompts of 6 tokens, this one has 5"):
        bound(mixed_subject("gpt2", "gaps", n=5, first=0), (0,))


def _named(panel, node, target):
    return panel.node_id(node.place.hook, target.index, target.group) == node.id
