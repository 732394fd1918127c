"""Circuits that are known because every weight is set by hand: that they are what they are said to be, and that they
are found."""

import pytest
from planted.all import BUILDERS, planted_circuit
from planted.oracle import behind, direct_edges
from planted.planted import BASELINES

PAIRS = [(name, kind) for name in BUILDERS for kind in BASELINES]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_planted_model_prefers_its_target_and_the_counterfactual_does_not(name):
    planted = planted_circuit(name)
    clean, other = float(planted.subject.metric_clean), float(planted.other.metric_clean)
    assert clean > 2.9
    assert other < 0.01
    assert planted.name == name
    # The coders explain all, but for what norms take off what two layers do at once.
    assert all(float(error.abs().max()) < 1e-3 for error in planted.subject.errors.values())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_planted_circuit_is_what_moving_one_node_at_a_time_along_direct_paths_shows(name, kind):
    planted = planted_circuit(name)
    truth = planted.truth[kind]
    nodes, edges = behind(direct_edges(planted, planted.baseline(kind)))
    assert nodes == truth.nodes
    assert edges == truth.edges
