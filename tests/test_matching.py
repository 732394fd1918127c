"""Features of two coders matched: codes compared over tokens, pairs assigned, dead features apart."""

import itertools

import pytest
import torch
from support import D_MODEL, D_SAE, random_sae
from support_collect import write_cache, write_rows

import circuitcli as circuit
from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError
from circuitcli.features import coactivation
from circuitcli.features.coactivation import Codes, codes_of, likeness
from circuitcli.features.pairing import paired
from circuitcli.hookpoints import HookPoint

HOOK = HookPoint(1, "resid")


def codes(dense: torch.Tensor) -> Codes:
    places = dense.nonzero()
    counts = (dense != 0).sum(dim=1)
    edges = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Codes(dense.shape[1], places[:, 1].int(), dense[places[:, 0], places[:, 1]], edges)


def drawn(n: int, d: int, *, density: float = 0.2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, d, generator=generator) * (torch.rand(n, d, generator=generator) < density)
    # Tokens without any code, and features that are dead.
    dense[::7] = 0
    dense[:, ::5] = 0
    return dense


@pytest.mark.parametrize("density", [0.01, 0.2, 0.9])
@pytest.mark.parametrize("pairs_at_once", [3, 2**22])
def test_likeness_from_codes_is_that_of_the_dense_columns(density: float, pairs_at_once: int, monkeypatch):
    monkeypatch.setattr(coactivation, "_PAIRS", pairs_at_once)
    one, other = drawn(60, 17, density=density), drawn(60, 23, density=density, seed=1)
    cosine = torch.nn.functional.cosine_similarity(one.T[:, None].double(), other.T[None].double(), dim=2)
    torch.testing.assert_close(likeness(codes(one), codes(other)), cosine, atol=1e-6, rtol=0)
    stacked = torch.cat([one, other], dim=1).T.double()
    expected = torch.corrcoef(stacked)[:17, 17:].nan_to_num()
    torch.testing.assert_close(likeness(codes(one), codes(other), "correlation"), expected, atol=1e-6, rtol=0)


def test_features_are_compared_over_the_same_tokens_only():
    with pytest.raises(InputError, match="not over 60 and 61"):
        likeness(codes(drawn(60, 17)), codes(drawn(61, 17)))


def test_permuted_tokens_keep_their_codes_together():
    dense = drawn(40, 11)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(codes(dense).permuted(order).dense(), dense[order])
    torch.testing.assert_close(codes(dense).rows(5, 19).dense(), dense[5:19])


def test_codes_of_a_coder_are_those_that_it_encodes(tmp_path):
    write_cache(tmp_path, [30, 25], {HOOK: D_MODEL})
    cache, sae = ActivationCache(tmp_path, [HOOK]), random_sae(HOOK).float()
    found = codes_of(sae, cache, n_tokens=50)
    assert found.n_tokens == 50 and found.d_sae == D_SAE
    torch.testing.assert_close(found.dense(), sae.encode(cache.rows(HOOK, 0, 50)).detach())
    assert codes_of(sae, cache, n_tokens=500).n_tokens == 55


def test_a_permuted_dictionary_matches_itself_at_distance_zero_for_all_live_features():
    dense = drawn(200, 30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    one, other = codes(dense), codes(dense[:, order])
    for by, how in itertools.product(("activation", "correlation"), ("hungarian", "greedy", "best")):
        pairs = paired(likeness(one, other, by), live_source=one.live, live_target=other.live, assignment=how)
        assert pairs.n_live_source == pairs.n_live_target == len(pairs.cosine) == 24
        assert torch.equal(order[pairs.target], pairs.source)
        assert float((1 - pairs.cosine).abs().max()) < 1e-6
        assert pairs.n_within(1e-6) == 24 and pairs.at_least(0.999) == dict(
            zip(pairs.source.tolist(), pairs.target.tolist(), strict=True)
        )


def test_a_dead_feature_takes_none_of_the_other_coders_feature_of_the_same_number_with_it():
    """Feature 0 of the source and feature 3 of the target are dead; all others have a twin under another number."""
    dense = drawn(100, 8, density=0.5)
    dense[:, [0, 5]] = torch.rand(100, 2, generator=torch.Generator().manual_seed(4))
    order = torch.tensor([1, 2, 3, 0, 5, 6, 7, 4])
    source, target = dense.clone(), dense[:, order]
    source[:, 0] = 0
    target[:, 3] = 0
    one, other = codes(source), codes(target)
    pairs = paired(likeness(one, other), live_source=one.live, live_target=other.live)
    assert pairs.dead_source.tolist() == [0] and pairs.dead_target.tolist() == [3]
    # The target's feature 0 is the source's 1, and the target's 2 the source's 3: both are live, and perfectly matched.
    assert pairs.at_least(0.999) == {int(order[n]): n for n in range(8) if n != 3}
    assert len(pairs.cosine) == 7 and float(pairs.cosine.min()) > 0.999


def test_hungarian_pairs_have_the_largest_sum_and_greedy_ones_the_largest_first():
    scores = torch.rand(5, 7, generator=torch.Generator().manual_seed(5)) / 2
    # The largest entry is no part of the largest sum.
    scores[0, 0], scores[0, 1], scores[1, 0] = 0.9, 0.85, 0.85
    live = {"live_source": torch.ones(5, dtype=torch.bool), "live_target": torch.ones(7, dtype=torch.bool)}
    best = max(sum(scores[range(5), columns]) for columns in map(list, itertools.permutations(range(7), 5)))
    assert float(paired(scores, **live).cosine.sum()) == pytest.approx(float(best))
    wide = paired(scores.T, live_source=live["live_target"], live_target=live["live_source"])
    assert float(wide.cosine.sum()) == pytest.approx(float(best))
    left, taken = scores.clone(), []
    for _ in range(5):
        row, column = divmod(int(left.argmax()), 7)
        taken.append((row, column))
        left[row], left[:, column] = -1, -1
    greedy = paired(scores, **live, assignment="greedy")
    assert sorted(zip(greedy.source.tolist(), greedy.target.tolist(), strict=True)) == sorted(taken)
    assert float(greedy.cosine.sum()) < float(best) - 1e-3


def test_coders_are_matched_from_python_by_what_they_write_and_by_when_they_are_active(tmp_path):
    write_rows(tmp_path, [60], {HOOK: torch.randn(60, D_MODEL, generator=torch.Generator().manual_seed(6))})
    cache, one = ActivationCache(tmp_path, [HOOK]), random_sae(HOOK).float()
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(7))
    other = random_sae(HOOK).float()
    other.W_dec.copy_(one.W_dec[order])
    other.W_enc.copy_(one.W_enc[:, order])
    other.b_enc.copy_(one.b_enc[order])
    everything = circuit.match(one, other)
    assert everything.n_live_target == D_SAE and everything.n_within(1e-4) == D_SAE
    assert torch.equal(order[everything.target], everything.source)
    for by in ("activation", "correlation", "decoder"):
        pairs = circuit.match(one, other, cache, other_cache=cache, by=by, tokens=50)
        assert torch.equal(order[pairs.target], pairs.source) and pairs.n_within(1e-4) == pairs.n_live_target
    assert 0 < pairs.n_live_target < D_SAE
    with pytest.raises(circuit.SettingsError, match="by=activation needs a cache"):
        circuit.match(one, other, by="activation")
    with pytest.raises(circuit.SettingsError, match="assignment='x'"):
        circuit.match(one, other, assignment="x")
    write_rows(tmp_path / "more", [59], {HOOK: torch.zeros(59, D_MODEL)})
    with pytest.raises(InputError, match="has other tokens than"):
        circuit.match(one, other, cache, other_cache=ActivationCache(tmp_path / "more", [HOOK]))


def test_nothing_live_pairs_with_nothing():
    dead, live = torch.zeros(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    pairs = paired(torch.zeros(3, 4), live_source=dead, live_target=live)
    assert len(pairs.cosine) == 0 and pairs.n_live_target == 4 and pairs.n_within(2.0) == 0
