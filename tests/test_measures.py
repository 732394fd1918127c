"""Densities, cosines between weights and standard errors, each against its slow definition."""

import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from support import D_SAE, random_sae
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from circuitcli import progress
from circuitcli.evaluation import geometry, health
from circuitcli.evaluation.density import density_facts
from circuitcli.evaluation.geometry import geometry_facts, nearest_cosines
from circuitcli.evaluation.jackknife import merged, standard_errors
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.relu import ReluSae

HOOK = HookPoint(1, "resid")


def test_density_histogram_counts_each_feature_in_its_bin() -> None:
    n_tokens = 1000
    counts = torch.tensor([0, 0, 1, 2, 5, 100, 101, 1000, 999, 10])
    facts = density_facts(counts, n_tokens=n_tokens)
    edges, found = facts["log10_edges"], facts["n_features"]
    assert edges[0] == -3.0 and edges[-1] == 0.0 and len(edges) == len(found) + 1
    for index, n in enumerate(found):
        low, high = edges[index], edges[index + 1]
        logs = [math.log10(count / n_tokens) for count in counts.tolist() if count]
        is_last = index == len(found) - 1
        assert n == sum(low - 1e-9 <= log and (log < high - 1e-9 or is_last) for log in logs)
    assert sum(found) + facts["n_never"] == len(counts) and facts["n_never"] == 2 and facts["n_tokens"] == n_tokens


def test_density_shares_are_of_all_features() -> None:
    facts = density_facts(torch.tensor([0, 5, 50, 20_000, 150_000, 2_000_000]), n_tokens=10_000_000)
    assert facts["below_1e-06"] == pytest.approx(2 / 6) and facts["below_1e-05"] == pytest.approx(3 / 6)
    assert facts["above_0.01"] == pytest.approx(2 / 6) and facts["above_0.1"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("n_tokens", [1, 3, 10])
def test_few_tokens_make_a_histogram_too(n_tokens: int) -> None:
    facts = density_facts(torch.tensor([0, 1, n_tokens]), n_tokens=n_tokens)
    assert sum(facts["n_features"]) == 2 and facts["n_never"] == 1


def test_cosines_are_those_of_all_pairs() -> None:
    sae = random_sae(HOOK)
    facts = geometry_facts(sae)
    own = [float(F.cosine_similarity(sae.W_enc[:, i], sae.W_dec[i], dim=0)) for i in range(D_SAE)]
    nearest = [
        max(float(F.cosine_similarity(sae.W_dec[i], sae.W_dec[j], dim=0)) for j in range(D_SAE) if j != i)
        for i in range(D_SAE)
    ]
    assert facts["encoder_decoder_cosine_mean"] == pytest.approx(sum(own) / D_SAE, abs=1e-6)
    assert facts["encoder_decoder_cosine_max"] == pytest.approx(max(own), abs=1e-6)
    assert facts["decoder_cosine_mean"] == pytest.approx(sum(nearest) / D_SAE, abs=1e-6)
    assert facts["decoder_cosine_max"] == pytest.approx(max(nearest), abs=1e-6) and facts["n_compared"] == D_SAE


def test_pieces_change_nothing_and_a_wide_sae_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = F.normalize(random_sae(HOOK).W_dec, dim=1)
    whole = nearest_cosines(unit)
    monkeypatch.setattr(geometry, "PIECE", 3 * D_SAE)
    assert torch.allclose(nearest_cosines(unit), whole)
    monkeypatch.setattr(geometry, "MOST_COMPARED", D_SAE - 1)
    monkeypatch.setattr(geometry, "SAMPLE", 4)
    assert torch.allclose(nearest_cosines(unit), whole[torch.tensor([0, 10, 20, 30])])


def test_looking_at_weights_makes_no_copy_of_them_and_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = random_sae(HOOK)
    monkeypatch.setattr(geometry, "PIECE", 2 * sae.d_in)
    monkeypatch.setattr(health, "PIECE", 2 * sae.d_in)
    monkeypatch.setattr(geometry, "MOST_COMPARED", 3)
    monkeypatch.setattr(geometry, "SAMPLE", 4)
    monkeypatch.setattr(geometry, "MANY", D_SAE)
    own, sizes, told = {tensor.data_ptr() for tensor in sae.state_dict().values()}, [], []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            found = [one for one in (made if isinstance(made, tuple | list) else [made]) if isinstance(one, Tensor)]
            sizes.extend(one.numel() for one in found if one.untyped_storage().data_ptr() not in own)
            return made

    @contextmanager
    def sink(title, total, unit, done):
        told.append((title, total))
        yield lambda amount=1, note="": None

    progress.set_sink(sink)
    try:
        with Sizes():
            health.weight_facts(sae)
    finally:
        progress.set_sink(None)
    # Numbers of one feature each are no copy of weights.
    assert max(sizes) <= max(D_SAE, 4 * sae.d_in) < sae.W_dec.numel() // 3
    (bar,) = told
    assert bar[0] == "compare features" and bar[1] > 3


def test_a_dead_row_and_a_single_feature_have_no_nan() -> None:
    sae = random_sae(HOOK)
    sae.W_dec[3] = 0
    assert all(math.isfinite(value) for value in geometry_facts(sae).values())
    single = ReluSae(SaeConfig(HOOK, 4, 1)).requires_grad_(False)
    assert set(geometry_facts(single)) == {"encoder_decoder_cosine_mean", "encoder_decoder_cosine_max"}


def test_the_two_sides_of_a_transcoder_are_not_compared() -> None:
    config = SaeConfig(HookPoint(1, "mlp_in"), 6, 9, target=HookPoint(1, "mlp"), d_out=4)
    assert not any(name.startswith("encoder") for name in geometry_facts(ReluSae(config)))


def test_standard_error_of_a_mean_is_the_usual_one() -> None:
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = torch.stack([torch.ones(20, dtype=torch.float64), values], dim=1)
    found = standard_errors(sums, lambda total: {"mean": float(total[1] / total[0])})
    assert found["mean"] == pytest.approx(float(values.std() / math.sqrt(20)))


def test_numbers_that_are_undefined_without_some_part_have_no_standard_error() -> None:
    sums = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 5.0]], dtype=torch.float64)

    def statistics(total: torch.Tensor) -> dict[str, float | None]:
        return {"n": float(total[0]), "ratio": float(total[0] / total[1]) if total[1] > 0 else None}

    assert set(standard_errors(sums, statistics)) == {"n"}
    assert standard_errors(sums[:1], statistics) == {}


def test_many_parts_are_put_together_without_losing_any() -> None:
    sums = torch.arange(2 * 71, dtype=torch.float64).reshape(71, 2)
    fewer = merged(sums, n_parts=8)
    assert fewer.shape == (8, 2) and torch.equal(fewer.sum(dim=0), sums.sum(dim=0))
    assert torch.equal(fewer[3], sums[3::8].sum(dim=0))
