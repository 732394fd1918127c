"""What stands beside SAEs: against closed forms, and at the hook points of a run."""

import pytest
import torch
from support import adapter_of
from torch import Tensor

from circuitcli.evaluation.baselines.linear import ica, identity, moments, pca
from circuitcli.evaluation.baselines.nmf import nmf, parts, weights
from circuitcli.evaluation.baselines.random_model import random_copy
from circuitcli.evaluation.quality import reconstruction
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder

HOOK, D, N = HookPoint(0, "resid"), 7, 600


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Of different variances in all directions, about a mean."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(N, D, generator=generator) * torch.arange(1, D + 1) @ torch.randn(D, D, generator=generator)
    return mixed + 20 * torch.randn(D, generator=generator)


def explained(coder: SparseCoder, rows: Tensor) -> float:
    found = reconstruction(coder, rows.split(100)).explained_variance
    assert found is not None
    return found


def test_moments_of_pieces_are_those_of_all(rows: Tensor):
    mean, covariance = moments(iter(rows.split(90)))
    torch.testing.assert_close(mean, rows.double().mean(dim=0))
    torch.testing.assert_close(covariance, torch.cov(rows.double().T, correction=0))


@pytest.mark.parametrize("n", [1, 3, D])
def test_principal_components_explain_the_sum_of_their_eigenvalues(rows: Tensor, n: int):
    mean, covariance = moments([rows])
    values = torch.linalg.eigvalsh(covariance).flip(0)
    coder = pca(HOOK, mean, covariance, n=n, k=n)
    assert coder.d_sae == n and explained(coder, rows) == pytest.approx(
        float(values[:n].sum() / values.sum()), abs=1e-5
    )


def test_the_largest_codes_explain_at_least_as_much_as_the_first(rows: Tensor):
    mean, covariance = moments([rows])
    chosen, first = pca(HOOK, mean, covariance, k=2), pca(HOOK, mean, covariance, n=2, k=2)
    assert explained(chosen, rows) > explained(first, rows)


def test_all_dimensions_explain_all_and_k_of_them_the_largest_deviations(rows: Tensor):
    mean, _ = moments([rows])
    assert explained(identity(HOOK, mean, k=D), rows) == pytest.approx(1.0, abs=1e-6)
    squares = (rows.double() - mean).square()
    largest = squares.topk(2, dim=1).values.sum()
    assert explained(identity(HOOK, mean, k=2), rows) == pytest.approx(float(largest / squares.sum()), abs=1e-5)


def test_independent_components_are_the_sources_that_were_mixed():
    generator = torch.Generator().manual_seed(1)
    sources = torch.rand(5000, 3, generator=generator).sub(0.5).pow(3)
    mixing = torch.randn(3, 5, generator=generator)
    rows = sources @ mixing + 2
    coder = ica(HOOK, rows, k=3, generator=generator)
    # Two dimensions hold nothing of their own.
    assert coder.d_sae == 3 and explained(coder, rows) == pytest.approx(1.0, abs=1e-5)
    cosines = torch.nn.functional.normalize(mixing, dim=1) @ coder.W_dec.T
    assert torch.allclose(cosines.abs().max(dim=1).values, torch.ones(3), atol=0.01)
    assert sorted(cosines.abs().argmax(dim=1).tolist()) == [0, 1, 2]


def test_factors_of_what_is_a_sum_of_two_are_found_and_none_is_negative():
    generator = torch.Generator().manual_seed(2)
    truth = torch.tensor([[1.0, 0, 0, 2, 0], [0, 3.0, 1, 0, 0]])
    rows = torch.rand(400, 2, generator=generator).pow(3) @ truth
    coder = nmf(HOOK, rows, torch.zeros(5), n=2, k=2, generator=generator)
    codes = coder.encode(rows)
    assert bool((codes >= 0).all()) and bool((coder.factors >= 0).all())
    assert explained(coder, rows) > 0.99
    cosines = torch.nn.functional.normalize(truth, dim=1) @ coder.W_dec.T
    assert float(cosines.max(dim=1).values.min()) > 0.98


def test_codes_of_known_factors_are_those_of_least_squares_where_none_would_be_negative():
    factors = torch.tensor([[1.0, 0.2, 0, 0], [0.1, 1.0, 0.5, 0]])
    codes = torch.tensor([[2.0, 1.0], [0.5, 3.0], [0.0, 1.0]])
    torch.testing.assert_close(weights(codes @ factors, factors, steps=400), codes, atol=1e-3, rtol=1e-3)
    x = torch.tensor([[1.0, -2.0]])
    assert parts(x).tolist() == [[1.0, 0.0, 0.0, 2.0]]


def test_a_random_copy_has_the_same_parts_and_other_numbers_and_draws_from_no_one_else():
    adapter = adapter_of("gpt2", dtype=torch.float32)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    copy, again, other = (random_copy(adapter, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    ids = torch.tensor([[1, 2, 3]])
    logits = [one.logits(ids, None) for one in (copy, again, other, adapter)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2]) and not torch.allclose(logits[0], logits[3])
    shapes = [{name: part.shape for name, part in one.model.state_dict().items()} for one in (copy, adapter)]
    assert shapes[0] == shapes[1]
