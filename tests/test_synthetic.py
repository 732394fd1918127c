"""Planted features with the moments of SynthSAEBench: against the recipe's own formulas and against sae-lens."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from circuitcli.toys.synthetic.normals import coarse_normals, exact_normals
from circuitcli.toys.synthetic.orthogonal import gradient, spread_out
from circuitcli.toys.synthetic.recipe import FULL_FEATURES, Recipe
from circuitcli.toys.synthetic.world import World

SMALL = Recipe(shrink=32)
N = 40_000


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(SMALL, seed=3)


@pytest.fixture(scope="module")
def strengths(world: World) -> Tensor:
    """Of many rows, (row, feature)."""
    _, sample = world.batch("test", 0, N)
    found = torch.zeros(N, SMALL.n_features)
    found[sample.rows, sample.features] = sample.strengths
    return found


def test_at_full_size_the_recipe_is_the_published_one():
    full = Recipe()
    rates, law = full.rates(), 1 / torch.arange(1, FULL_FEATURES + 1, dtype=torch.float64).sqrt()
    expected = 5e-4 + (0.4 - 5e-4) * (law - law.min()) / (law.max() - law.min())
    assert torch.allclose(rates, expected)
    assert [len(level) for level in full.levels] == [128, 512, 2048, 8192] and full.n_in_trees == 10_880


@pytest.mark.parametrize("shrink", [2, 4, 32])
def test_a_smaller_recipe_has_the_same_rates_and_fewer_features(shrink: int):
    full, small = Recipe(), Recipe(shrink=shrink)
    assert small.n_features * shrink == full.n_features and small.n_in_trees * shrink == full.n_in_trees
    # Each stands for as many ranks: what the most frequent one lacks is the top of the law.
    ranks = full.rates().reshape(-1, shrink)
    assert ((small.rates() <= ranks[:, 0]) & (small.rates() >= ranks[:, -1])).all()
    assert float(small.rates()[64:].sum()) == pytest.approx(float(ranks[64:].sum()) / shrink, rel=1e-3)


def test_children_are_active_beside_their_parents_alone_and_one_of_siblings(strengths: Tensor):
    parents, is_active = SMALL.parents(), strengths > 0
    has_parent = parents >= 0
    assert not (is_active[:, has_parent] & ~is_active[:, parents[has_parent]]).any()
    for parent in parents[has_parent].unique().tolist():
        assert is_active[:, parents == parent].sum(dim=1).max() <= 1
    assert SMALL.n_in_trees > 0 and (parents >= 0).sum() == SMALL.n_in_trees - SMALL.trees


def test_roots_and_free_features_are_active_at_their_rates(world: World, strengths: Tensor):
    free = torch.cat([torch.arange(SMALL.trees), torch.arange(SMALL.n_in_trees, SMALL.n_features)])
    # A draw of a strength below zero is none.
    drawn = torch.special.ndtr(world.mean / world.spread)
    expected = (SMALL.rates() * drawn)[free]
    seen = (strengths[:, free] > 0).double().mean(dim=0)
    deviations = (seen - expected) / (expected * (1 - expected) / N).sqrt()
    assert abs(float(deviations.mean())) < 4 / math.sqrt(len(free)) and float(deviations.abs().max()) < 5


def test_pairs_come_together_as_their_common_factors_say():
    recipe = replace(SMALL, rank=1, orthogonal_steps=0)
    drawn_at_random, roots = World.of(recipe, seed=5), torch.arange(recipe.trees)
    # Half of what makes them active is one number.
    half = torch.full((recipe.n_features,), 0.5**0.5)
    world = replace(drawn_at_random, factors=half[:, None], own=half)
    factors, own, threshold = world.factors[roots], world.own[roots], world.threshold[roots]
    generator = torch.Generator().manual_seed(1)
    normals = torch.randn(400_000, recipe.rank, generator=generator) @ factors.T
    drawn = normals + own * torch.randn(normals.shape, generator=generator) > threshold
    expected = drawn.float().T @ drawn.float() / len(drawn)
    is_active = world.batch("test", 0, N)[1].is_active(recipe.n_features)[:, roots].float()
    seen = is_active.T @ is_active / N
    error = (expected / N).sqrt() + 1e-3
    assert ((seen - expected).abs() < 5 * error).all()
    rates = recipe.rates()[roots].float()
    assert float(((torch.outer(rates, rates) - expected).fill_diagonal_(0).abs() / error).max()) > 5


def test_strengths_have_their_moments_and_children_scale_with_their_parents(world: World, strengths: Tensor):
    root = 0
    seen = strengths[:, root][strengths[:, root] > 0]
    assert float(seen.mean()) == pytest.approx(
        float(world.mean[root]), abs=5 * float(world.spread[root] / len(seen) ** 0.5)
    )
    assert float(seen.std()) == pytest.approx(float(world.spread[root]), rel=0.1)
    child = SMALL.trees
    rows = strengths[:, child] > 0
    ratio = strengths[rows, child] / (strengths[rows, root] / world.mean[root])
    error = float(world.spread[child]) / int(rows.sum()) ** 0.5
    assert float(ratio.mean()) == pytest.approx(float(world.mean[child]), abs=5 * error)


def test_activations_are_the_sums_of_their_parts(world: World):
    x, sample = world.batch("test", 1, 300)
    dense = torch.zeros(300, SMALL.n_features, dtype=torch.float64)
    dense[sample.rows, sample.features] = sample.strengths.double()
    torch.testing.assert_close(
        x.double(), dense @ world.directions.double() + world.bias.double(), rtol=1e-5, atol=1e-5
    )
    assert (sample.rows.diff() >= 0).all() and torch.equal(sample.is_active(SMALL.n_features), dense > 0)


def test_a_batch_follows_from_seed_name_and_number(world: World):
    again = World.of(SMALL, seed=3)
    assert torch.equal(world.batch("a", 7, 50)[0], again.batch("a", 7, 50)[0])
    others = [world.batch("a", 8, 50)[0], world.batch("b", 7, 50)[0], World.of(SMALL, seed=4).batch("a", 7, 50)[0]]
    assert all(not torch.equal(world.batch("a", 7, 50)[0], other) for other in others)


def test_directions_move_apart_by_the_gradient_of_all_pairs():
    rows = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    products = rows @ rows.T
    off = products - torch.diag(products.diagonal())
    (off.square().sum() + len(rows) * (products.diagonal() - 1).square().sum()).backward()
    torch.testing.assert_close(gradient(rows.detach()), rows.grad)
    apart = [spread_out(rows.detach(), steps=steps, rate=0.01) for steps in (0, 20, 100)]
    squares = [float((one @ one.T).square().sum()) for one in apart]
    assert all(later < earlier for earlier, later in pairwise(squares))
    assert torch.allclose(apart[-1].norm(dim=1), torch.ones(9, dtype=torch.float64))


def test_moments_are_those_of_sae_lens(world: World):
    """Their generator is given our rates, strengths and factors, and draws by the full size's rules."""
    synthetic = pytest.importorskip("sae_lens.synthetic")
    hierarchy = synthetic.generate_hierarchy(
        SMALL.n_features,
        synthetic.HierarchyConfig(
            total_root_nodes=SMALL.trees,
            branching_factor=SMALL.branching,
            max_depth=SMALL.depth,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
    )
    rates = SMALL.rates().float()
    beside = (rates * hierarchy.compute_probability_correction_factors(rates)).clamp(max=1.0)
    torch.testing.assert_close(beside, SMALL.rates_beside_parents().float(), rtol=1e-4, atol=1e-6)
    theirs = synthetic.ActivationGenerator(
        SMALL.n_features,
        beside,
        world.spread,
        world.mean,
        modify_activations=hierarchy.modifier,
        correlation_matrix=(world.factors, world.own.square()),
    )
    torch.manual_seed(0)
    n = 6000
    drawn = theirs.sample(n)
    _, sample = world.batch("sae-lens", 0, n)
    ours = torch.zeros(n, SMALL.n_features)
    ours[sample.rows, sample.features] = sample.strengths
    for one in (lambda x: (x > 0).float(), lambda x: x):
        a, b = one(drawn), one(ours)
        error = ((a.var(dim=0) + b.var(dim=0)) / n).sqrt() + 1e-3
        assert float(((a.mean(dim=0) - b.mean(dim=0)) / error).abs().max()) < 5
        total = (a.sum(dim=1), b.sum(dim=1))
        spread = (sum(float(part.var()) for part in total) / n) ** 0.5
        assert abs(float(total[0].mean() - total[1].mean())) < 4 * spread


def test_rows_that_are_drawn_in_parts_are_numbered_through(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("circuitcli.toys.synthetic.world._AT_ONCE", 10_000)
    _, sample = world.batch("test", 2, 500)
    assert sample.n_rows == 500 and int(sample.rows.max()) > 450
    assert (sample.rows.diff() >= 0).all()
    assert len(sample.rows) / 500 == pytest.approx(
        float(replace(world).batch("test", 0, N)[1].rows.numel()) / N, rel=0.3
    )


def test_normal_numbers_lie_in_their_intervals_and_are_normal():
    generator = torch.Generator().manual_seed(0)
    most, intervals = coarse_normals((400, 301), generator)
    exact = exact_normals(intervals, generator).double()
    assert bool((exact.reshape(400, 301) <= most).all())
    # Of one width in probability: none is further from its upper end than that.
    shares = torch.special.ndtr(-exact)
    middle = torch.from_numpy(intervals.astype(float)) + 0.5
    assert float((shares * 2**16 - middle).abs().max()) < 0.51
    uniform = shares.sort().values
    gap = (uniform - (torch.arange(len(uniform)) + 0.5) / len(uniform)).abs().max()
    # Kolmogorov's distance, at a chance of one in a million.
    assert float(gap) < 2.7 / len(uniform) ** 0.5
