"""Metrics of finished SAEs on cases whose answer is known."""

import pytest
import torch
from support import D_MODEL, VOCAB, adapter_of, random_ids, random_sae
from torch import nn

from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import read, tapped
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae
from circuitcli.training.quality import ReconstructionMeter, Recovered, Texts, cross_entropy, recovered
from circuitcli.training.quality import reconstruction as measured

HOOK = HookPoint(1, "resid")


class Rows:
    """A block of text."""

    def __init__(self, ids: list[int], positions: list[int] | None = None) -> None:
        self.ids = ids
        self.positions = [*range(len(ids))] if positions is None else positions


def texts() -> Texts:
    blocks = [Rows(random_ids(n, seed=n)[0].tolist()) for n in (7, 5, 9, 1)]
    return Texts.of(blocks, pad_id=3, batch_size=2, device=torch.device("cpu"))


def identity_sae() -> TopKSae:
    """Twice as many features as dimensions, one for each sign: reconstructs everything."""
    sae = TopKSae(SaeConfig(HOOK, D_MODEL, 2 * D_MODEL), k=2 * D_MODEL).double()
    both = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)]).double()
    sae.W_dec, sae.W_enc = nn.Parameter(both), nn.Parameter(both.T.clone())
    return sae.requires_grad_(False)


def constant_sae(value: torch.Tensor) -> TopKSae:
    sae = TopKSae(SaeConfig(HOOK, D_MODEL, 9), k=2).double()
    sae.b_dec = nn.Parameter(value)
    return sae.requires_grad_(False)


def activations(n: int = 300, *, offset: float = 3000.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, D_MODEL, generator=generator, dtype=torch.float64) * 10 + offset


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_predicting_the_mean_explains_nothing_and_the_identity_everything(offset: float):
    x = activations(offset=offset)
    assert measured(constant_sae(x.mean(dim=0)), [x]).explained_variance == pytest.approx(0.0, abs=1e-9)
    perfect = measured(identity_sae(), x.split(70))
    assert perfect.explained_variance == pytest.approx(1.0) and perfect.cosine == pytest.approx(1.0)
    assert perfect.mse == pytest.approx(0.0, abs=1e-12) and perfect.l0 == D_MODEL


def test_explained_variance_of_a_known_error_under_a_large_mean():
    x = activations()
    shifted = x + 10.0
    meter = ReconstructionMeter(D_MODEL, 4)
    codes = torch.tensor([1.0, 0.0, 0.0, 2.0]).double().expand(len(x), 4)
    for part, other, code in zip(x.split(37), shifted.split(37), codes.split(37), strict=True):
        meter.update(part, other, code)
    result = meter.result()
    variance = (x - x.mean(dim=0)).square().sum()
    assert result.explained_variance == pytest.approx(1 - float(100.0 * x.numel() / variance), rel=1e-9)
    assert (result.n_tokens, result.l0, result.silent) == (300, 2.0, 0.5)
    assert result.mse == pytest.approx(100.0)


def test_explained_variance_of_activations_that_do_not_vary_is_undefined():
    x = torch.full((10, D_MODEL), 0.1, dtype=torch.float64)
    assert measured(identity_sae(), [x]).explained_variance is None


def test_results_do_not_depend_on_order_or_batches():
    x = activations(offset=1.0)
    sae = random_sae(HOOK)
    one = measured(sae, [x])
    other = measured(sae, x[torch.randperm(300)].split(41))
    assert one.explained_variance == pytest.approx(other.explained_variance)
    assert one.l0 == pytest.approx(other.l0) and one.silent == other.silent


def test_cross_entropy_is_the_mean_over_the_tokens_of_all_blocks():
    adapter, total, n = adapter_of("gpt2"), 0.0, 0
    for length in (7, 5, 9):
        ids = random_ids(length, seed=length)
        logits = adapter.logits(ids)[0, :-1]
        total += float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        n += length - 1
    assert texts().n_predictions == n
    assert cross_entropy(adapter, texts(), {}) == pytest.approx(total / n, rel=1e-6)
    assert VOCAB > 3


@pytest.mark.parametrize("first", [0, 1])
def test_loss_recovered_is_one_for_the_identity_and_zero_for_the_mean(first: int):
    adapter = adapter_of("gpt2")
    mean = read(adapter, random_ids(), None, [HOOK])[HOOK][0].mean(dim=0)
    clean = cross_entropy(adapter, texts(), {})
    perfect = recovered(adapter, texts(), identity_sae(), mean=mean, first=first, ce_clean=clean)
    useless = recovered(adapter, texts(), constant_sae(mean), mean=mean, first=first, ce_clean=clean)
    assert perfect.ce_spliced == pytest.approx(clean, rel=1e-6)
    assert useless.ce_spliced == pytest.approx(useless.ce_mean, rel=1e-6)
    assert perfect.ce_mean == useless.ce_mean and perfect.ce_zero != perfect.ce_mean
    score = Recovered(9, 2.0, ce_spliced=2.5, ce_mean=4.0, ce_zero=9.0)
    assert score.loss_recovered == pytest.approx(0.75)
    assert Recovered(9, 4.0, ce_spliced=2.5, ce_mean=4.0, ce_zero=9.0).loss_recovered is None


def test_bos_position_is_not_touched():
    adapter = adapter_of("gpt2")
    one = Texts.of([Rows([5, 6])], pad_id=0, batch_size=1, device=torch.device("cpu"))
    zero = torch.zeros(D_MODEL, dtype=torch.float64)
    clean = cross_entropy(adapter, one, {})
    assert recovered(adapter, one, constant_sae(zero), mean=zero, first=1, ce_clean=clean).ce_spliced == clean
    assert recovered(adapter, one, constant_sae(zero), mean=zero, first=0, ce_clean=clean).ce_spliced != clean


def test_an_sae_stands_only_where_activations_are_stored():
    adapter, zero = adapter_of("gpt2"), torch.zeros(D_MODEL, dtype=torch.float64)
    ids = random_ids(8, seed=3)

    def zeroed(positions: list[int]):
        def callback(x: torch.Tensor) -> torch.Tensor:
            changed = x.clone()
            changed[:, positions] = 0
            return changed

        with tapped(adapter, {HOOK: callback}):
            logits = adapter.logits(ids)[0, :-1]
        return float(nn.functional.cross_entropy(logits, ids[0, 1:]))

    for positions in ([1, 2, 5], [2, 3, 4, 5, 6, 7], [*range(1, 8)]):
        one = Texts.of([Rows(ids[0].tolist(), positions)], pad_id=0, batch_size=1, device=torch.device("cpu"))
        clean = cross_entropy(adapter, one, {})
        found = recovered(adapter, one, constant_sae(zero), mean=zero, first=1, ce_clean=clean)
        assert found.ce_spliced == found.ce_zero == pytest.approx(zeroed(positions), rel=1e-6)
