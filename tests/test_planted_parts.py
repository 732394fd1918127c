"""What else tells of circuits, held against planted ones: edges kept alone, heads, scores of attention, validation."""

import pytest
from planted.all import planted_circuit
from planted.planted import BASELINES

import circuitcli as circuit
from circuitcli.attribution.attention.gradient_edges import panel_parts
from circuitcli.attribution.attention.scores import AttentionScore, split_score
from circuitcli.attribution.exact import effects_of_panel
from circuitcli.attribution.examples import Example
from circuitcli.attribution.targets import Target
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.ids_only import IdsOnly
from circuitcli.models.loading import LanguageModel
from circuitcli.settings.graph import GraphSettings
from circuitcli.validation.edges import edge_metric


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in ("copying", "boolean", "clt") for kind in BASELINES]
)
def test_planted_edges_alone_do_all_that_the_model_does_and_each_of_them_is_needed(name, kind):
    planted = planted_circuit(name)
    truth, baseline = planted.truth[kind], planted.baseline(kind)
    nodes = [NodeId.parse(node) for node in sorted(truth.nodes)]

    def metric(edges) -> float:
        parsed = [(NodeId.parse(u), None if d == OUTPUT else NodeId.parse(d)) for u, d in sorted(edges)]
        return float(edge_metric(planted.subject, baseline, nodes, parsed, policy="nodes", batch_size=64)[0])

    empty, clean = metric([]), float(planted.subject.metric_clean)
    assert metric(truth.edges) == pytest.approx(clean, abs=1e-3 * (clean - empty))
    for edge in truth.edges:
        assert metric(truth.edges - {edge}) < clean - 0.05 * (clean - empty), edge


def test_an_edge_goes_through_the_head_that_was_wired_for_it_as_value_or_as_key():
    planted = planted_circuit("boolean")
    effects = effects_of_panel(planted.panel("zero"), GraphSettings())
    number = planted.wiring.variables.index

    def key(hook: str, name: str, position: int):
        return HookPoint.parse(hook), Target(number(name), position - planted.prompt.first)

    # Head n gathers bit n: its value moves the bit, its key looks for the slot.
    wired = [("a", 1, 0), ("b", 2, 1)]
    values = [(key("resid_pre.0", name, at), key("attn.0", f"got{name}", 5)) for name, at, _ in wired]
    slots = [(key("resid_pre.0", f"slot{name}", at), key("attn.0", f"got{name}", 5)) for name, at, _ in wired]
    parts = panel_parts(effects, [*values, *slots])
    moved, looked = parts.moved[:, 0], parts.looked[:, 0]
    for row, (_, _, head) in enumerate(wired):
        others = [other for other in range(moved.shape[1]) if other != head]
        for here, elsewhere, at in ((moved, looked, row), (looked, moved, row + len(wired))):
            assert float(here[at, head]) > 0.5
            assert float(elsewhere[at].abs().max()) < 1e-3
            assert float(here[at, others].abs().max()) < 1e-9


def test_the_score_of_induction_is_the_pair_of_what_is_looked_for_and_what_came_before():
    planted = planted_circuit("induction")
    number = planted.wiring.variables.index
    split = split_score(planted.subject, AttentionScore(1, 0, 4, 2))
    (query, key, part), *others = split.strongest(5)
    assert (query, key) == (f"resid.0/{number('A')}@4", f"resid.0/{number('prevA')}@2")
    assert part == pytest.approx(split.score) == pytest.approx(20.0, rel=1e-3)
    assert all(abs(other) < 1e-6 for _, _, other in others)


def test_python_finds_a_planted_circuit_and_a_test_of_it_is_passed():
    planted = planted_circuit("two-hop")
    model = planted.adapter.model
    loaded = LanguageModel(planted.adapter, IdsOnly(model.config, model="planted"), "planted", None)
    prompt = planted.prompt
    example = Example("", prompt.target, prompt.foil, ids=prompt.ids, counterfactual=prompt.counterfactual)
    coders = [*planted.coders.values()]
    graph = circuit.find_circuit(loaded, coders, [example], metric="logit-diff", baseline="counterfactual")
    truth = planted.truth["counterfactual"]
    assert {node.id for node in graph.nodes} == truth.nodes | {OUTPUT}
    assert {(edge.source, edge.target) for edge in graph.edges} == truth.edges
    found = circuit.validate(loaded, coders, graph, samples=20)
    assert found.faithfulness == pytest.approx(1.0, abs=1e-3)
    assert found.completeness == pytest.approx(0.0, abs=1e-3)
    assert found["minimality"].value == pytest.approx(0.5, abs=1e-3)
    assert found["faithfulness-edges"].value == pytest.approx(1.0, abs=1e-3)
