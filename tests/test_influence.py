"""Influence, pruning and scores of frozen graphs against dense definitions, and small cases whose numbers are known."""

import numpy as np
import pytest

from circuitcli.graphs.influence import (
    ERROR,
    FEATURE,
    LOGIT,
    TOKEN,
    Rows,
    at_least,
    influence,
    prune,
    scores,
)


def rows_of(adjacency, kinds, weights, *, orders=None):
    """Sparse rows of a dense matrix whose nodes are in the order of the model."""
    adjacency, kinds = np.asarray(adjacency, dtype=float), np.asarray(kinds, dtype=np.int8)
    orders = np.arange(len(kinds), dtype=np.int32) if orders is None else np.asarray(orders, dtype=np.int32)
    targets = np.flatnonzero(np.isin(kinds, (FEATURE, LOGIT)))
    targets = targets[np.argsort(-orders[targets], kind="stable")]
    picked = adjacency[targets]
    starts = np.concatenate([[0], (picked != 0).sum(axis=1).cumsum()])
    sources = np.nonzero(picked)[1].astype(np.int32)
    return Rows(kinds, orders, np.asarray(weights, dtype=float), targets, starts, sources, picked[picked != 0])


def random_rows(seed, n=24):
    """A random graph of levels, with features that have no inputs and weights of all sizes."""
    rng = np.random.default_rng(seed)
    kinds = np.array([TOKEN] * 3 + list(rng.choice([FEATURE, FEATURE, ERROR], size=n)) + [LOGIT] * 3)
    orders = np.concatenate([np.zeros(3), np.sort(rng.integers(1, 6, size=n)), np.full(3, 9)]).astype(int)
    size = len(kinds)
    dense = rng.normal(size=(size, size)) * 10.0 ** rng.integers(-3, 2, size=(size, size))
    dense *= (rng.random((size, size)) < 0.4) & (orders[None] < orders[:, None])
    dense[(kinds == ERROR) | (kinds == TOKEN)] = 0
    weights = np.where(kinds == LOGIT, [0] * (size - 3) + [0.6, 0.25, 0.1], 0.0)
    return dense, kinds, weights, orders


def dense_influence(adjacency, weights):
    """The definition: w N + w N^2 + ... until nothing is left."""
    sizes = np.abs(adjacency)
    normal = sizes / np.maximum(sizes.sum(axis=1, keepdims=True), 1e-10)
    found, product = np.zeros(len(weights)), weights
    while product.any():
        product = product @ normal
        found = found + product
    return found, normal


@pytest.mark.parametrize("seed", range(5))
def test_influence_and_scores_in_one_pass_over_sparse_rows_are_the_dense_series(seed):
    dense, kinds, weights, orders = random_rows(seed)
    rows = rows_of(dense, kinds, weights, orders=orders)
    expected, normal = dense_influence(dense, weights)
    np.testing.assert_allclose(influence(rows), expected, atol=1e-14)
    explained = 1 - normal[:, kinds == ERROR].sum(axis=1)
    mass, has_inputs = expected + weights, normal.sum(axis=1) > 0
    found = scores(rows)
    tokens, errors = expected[kinds == TOKEN].sum(), expected[kinds == ERROR].sum()
    assert found.replacement == pytest.approx(tokens / (tokens + errors))
    assert found.completeness == pytest.approx((explained * mass).sum() / mass.sum())
    assert found.completeness_of_inputs == pytest.approx((explained * mass)[has_inputs].sum() / mass[has_inputs].sum())


def dense_pruning(dense, kinds, weights, node_threshold, edge_threshold):
    """The definition by loops over sorted lists and whole matrices."""

    def strongest(values, share):
        ranked = sorted((value for value in values if value > 0), reverse=True)
        total, reached = sum(ranked), 0.0
        for value in ranked:
            reached += value
            if share < 1 and reached >= share * total:
                return value
        return ranked[-1] if ranked else np.inf

    found, _ = dense_influence(dense, weights)
    nodes = (found >= strongest(found, node_threshold)) | np.isin(kinds, (TOKEN, LOGIT))
    left = dense * nodes[:, None] * nodes[None]
    after, normal = dense_influence(left, weights)
    ratings = normal * (after + weights)[:, None]
    left = np.where((ratings > 0) & (ratings >= strongest(ratings.flatten(), edge_threshold)), left, 0)
    while True:
        lost = [
            node
            for node in np.flatnonzero(nodes)
            if (kinds[node] in (FEATURE, ERROR) and not left[:, node].any())
            or (kinds[node] == FEATURE and dense[node].any() and not left[node].any())
        ]
        if not lost:
            return nodes, left
        nodes[lost] = False
        left[lost], left[:, lost] = 0, 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("node_threshold", "edge_threshold"), [(0.8, 0.98), (0.5, 0.7), (1.0, 1.0), (0.95, 0.5)])
def test_pruning_keeps_what_its_definition_does(seed, node_threshold, edge_threshold):
    dense, kinds, weights, orders = random_rows(seed)
    rows = rows_of(dense, kinds, weights, orders=orders)
    pruned = prune(rows, node_threshold=node_threshold, edge_threshold=edge_threshold)
    nodes, left = dense_pruning(dense, kinds, weights, node_threshold, edge_threshold)
    np.testing.assert_array_equal(pruned.nodes, nodes)
    found = np.zeros_like(dense)
    found[pruned.rows.edge_targets, pruned.rows.sources] = pruned.rows.values
    np.testing.assert_array_equal(found, left)


def test_features_that_nothing_ever_leads_to_are_sources_and_stay():
    dense = np.zeros((4, 4))
    dense[2, 1], dense[3, 2], dense[3, 0] = 1.0, 1.0, 3.0
    rows = rows_of(dense, [FEATURE, ERROR, FEATURE, LOGIT], [0, 0, 0, 1.0])
    assert prune(rows, node_threshold=1.0, edge_threshold=1.0).nodes.tolist() == [True] * 4
    # Of the other feature the edge that leads to it goes, and so it goes itself.
    assert prune(rows, node_threshold=1.0, edge_threshold=0.55).nodes.tolist() == [True, False, False, True]


def test_a_graph_of_errors_alone_is_explained_by_half_in_circuit_tracers_count_and_not_at_all_over_inputs():
    found = scores(rows_of([[0, 0], [2.0, 0]], [ERROR, LOGIT], [0, 1.0]))
    assert (found.replacement, found.completeness, found.completeness_of_inputs) == (0.0, 0.5, 0.0)


def test_a_feature_of_half_error_half_token_has_the_known_scores():
    dense = [[0, 0, 0, 0], [0, 0, 0, 0], [-3.0, 3.0, 0, 0], [0, 0, 5.0, 0]]
    found = scores(rows_of(dense, [TOKEN, ERROR, FEATURE, LOGIT], [0, 0, 0, 1.0]))
    assert found.replacement == 0.5
    assert found.completeness == pytest.approx(2.5 / 3)
    assert found.completeness_of_inputs == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(20))
def test_an_edge_threshold_of_one_keeps_all_edges_that_are_not_zero_and_no_others(seed):
    """In single precision sums may never reach the whole."""
    dense, kinds, weights, orders = random_rows(seed)
    rows = rows_of(dense.astype(np.float32), kinds, weights, orders=orders)
    pruned = prune(rows, node_threshold=1.0, edge_threshold=1.0)
    assert (pruned.rows.values != 0).all()
    alive = influence(rows) + weights > 0
    edges = rows.kept(alive[rows.edge_targets] & pruned.nodes[rows.sources] & pruned.nodes[rows.edge_targets])
    assert pruned.rows.n_edges == edges.n_edges


def test_shares_of_zeros_hold_none_and_ties_at_the_threshold_are_all_kept():
    assert not at_least(np.zeros(3), 0.5).any()
    assert at_least(np.array([1.0, 1.0, 1.0, 0.0]), 0.3).tolist() == [True, True, True, False]


def test_one_node_and_rows_without_edges_are_graphs_too():
    lone = prune(rows_of([[0.0]], [LOGIT], [1.0]), node_threshold=0.8, edge_threshold=0.98)
    assert lone.nodes.tolist() == [True] and lone.rows.n_edges == 0
    found = scores(rows_of([[0.0]], [LOGIT], [1.0]))
    assert found.replacement == 1.0
