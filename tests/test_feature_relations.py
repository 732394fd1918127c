"""What features are like others and what they do, against slow definitions: all pairs, one edited run at a time."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support_collect import language_model, texts
from torch import Tensor

import circuitcli as circuit
from circuitcli.activations.cache import ActivationCache
from circuitcli.features import ablated, neighbours
from circuitcli.features.cards import cards
from circuitcli.features.coactivation import codes_of
from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import tapped
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.topk import TopKSae

D_MODEL, D_SAE = 24, 30
DEAD = 3


@cache
def coder(hook: str, *writes: str, seed: int = 0, d_sae: int = D_SAE) -> SparseCoder:
    """Random weights; feature DEAD is never active."""
    at = [HookPoint.parse(name) for name in (hook, *writes)]
    target, further = (at[1], tuple(at[2:])) if writes else (None, ())
    made = TopKSae(SaeConfig(at[0], D_MODEL, d_sae, target=target, further=further), k=4).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        if name.startswith("W_"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    made.b_enc[DEAD] = -1e6
    return made


@cache
def cached() -> ActivationCache:
    return circuit.collect(
        language_model(), texts(30, 7, 50, 41), hooks=["resid.0", "resid.1", "mlp_in.1"], block_length=16
    )


def brute_force(similarity: Tensor, row: int, among: list[int], *, own: int | None) -> list[tuple[int, float]]:
    found = [(feature, float(similarity[row, feature])) for feature in among if feature != own]
    return sorted(found, key=lambda pair: -pair[1])


def check_rows(found: neighbours.Nearest, similarity: Tensor, wanted: list[int], among: list[int], *, same: bool):
    for number, feature in enumerate(wanted):
        expected = brute_force(similarity, feature, among, own=feature if same else None)
        kept = found.row(number)
        assert [value for _, value in kept] == pytest.approx([value for _, value in expected[: len(kept)]], abs=1e-5)
        assert all(similarity[feature, other] == pytest.approx(value, abs=1e-5) for other, value in kept)
        assert not same or feature not in [other for other, _ in kept]


@pytest.mark.parametrize("at_once", [2**23, 70])
@pytest.mark.parametrize("other", [("resid.1",), ("resid.0",), ("mlp_in.1", "mlp.1", "mlp.2")])
def test_neighbours_have_the_largest_cosines_of_all_pairs(
    other: tuple[str, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", at_once)
    one, two = (
        coder("resid.1"),
        coder(*other, seed=len(other), d_sae=D_SAE) if other != ("resid.1",) else coder("resid.1"),
    )
    wanted, among = [0, 4, 7, 29], [index for index in range(D_SAE) if index != 5]
    found = neighbours.nearest_decoders(one, two, torch.tensor(wanted), n_top=6, among=torch.tensor(among))
    total = sum(two.decoder(hook) for hook in two.writes)
    similarity = F.cosine_similarity(one.W_dec[:, None], total[None], dim=-1)
    assert all(len(found.row(number)) == 6 for number in range(len(wanted)))
    check_rows(found, similarity, wanted, among, same=one is two)


@pytest.mark.parametrize("at_once", [2**23, 70])
@pytest.mark.parametrize("other", ["resid.1", "resid.0"])
def test_correlated_features_have_the_largest_correlations_of_codes(
    other: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", at_once)
    n_tokens = cached().n_tokens
    one, two = (codes_of(coder(hook), cached(), n_tokens=n_tokens) for hook in ("resid.1", other))
    wanted = list(range(D_SAE))
    same = other == "resid.1"
    found = neighbours.most_correlated(one, two, torch.tensor(wanted), n_top=5, is_same=same)
    dense = [
        coder(hook).encode(cached().rows(HookPoint.parse(hook), 0, n_tokens)).double().numpy()
        for hook in ("resid.1", other)
    ]
    often = [(codes != 0).sum(axis=0) >= neighbours.LEAST_ACTIVE for codes in dense]
    assert not often[0].all() and often[0].sum() > 10
    with np.errstate(invalid="ignore"):
        similarity = torch.tensor(np.corrcoef(dense[0].T, dense[1].T)[:D_SAE, D_SAE:])
    among = np.flatnonzero(often[1]).tolist()
    check_rows(found, similarity, wanted, among, same=same)
    assert [len(found.row(index)) for index in wanted] == [5 if one else 0 for one in often[0]]


def test_coders_that_write_other_widths_have_no_neighbours_in_each_other() -> None:
    narrow = TopKSae(SaeConfig(HookPoint(1, "resid"), 8, 12), k=2)
    found = neighbours.nearest_decoders(coder("resid.1"), narrow, torch.arange(3), n_top=4, among=torch.arange(12))
    assert [found.row(number) for number in range(3)] == [[], [], []]


@pytest.mark.parametrize("places", [("resid.1",), ("mlp_in.1", "mlp.1", "mlp.2")])
def test_ablating_equals_a_run_from_which_the_feature_is_taken_at_every_place_that_it_writes(places: tuple[str, ...]):
    model, made = language_model(), coder(*places)
    one = next(card for card in cards(made, cached(), model=model) if len(card.contexts) > 2)
    feature = int(one.id.partition("/")[2])
    passages = [passage for context in one.contexts if (passage := ablated.Passages(cached()).of(context))]
    assert len(passages) == len(one.contexts)
    found = ablated.ablation(model.adapter, made, feature, passages, n_top=4)
    assert found is not None and len(found.changes) == len(passages)
    moved = torch.zeros(260, dtype=torch.float64)
    for passage, change, context in zip(passages, found.changes, one.contexts, strict=True):
        clean, edited, codes = by_hand(made, feature, passage)
        assert codes[passage.peak] == pytest.approx(context.activations[context.peak], rel=1e-3)
        expected = float((clean[passage.peak].exp() * (clean - edited)[passage.peak]).sum())
        assert change.divergence == pytest.approx(expected, abs=1e-5) and expected > 0
        following = passage.ids[passage.peak + 1 :]
        worse = [float((clean - edited)[passage.peak + n, token]) for n, token in enumerate(following)]
        assert change.following == (following[0] if following else None)
        assert change.loss is None if not worse else change.loss == pytest.approx(np.mean(worse), abs=1e-5)
        moved += (edited.double().exp() - clean.double().exp())[passage.peak] / len(passages)
    order = moved.argsort().tolist()
    assert [token for token, _ in found.lowered] == order[:4] and [t for t, _ in found.raised] == order[:-5:-1]
    assert [value for _, value in found.raised] == pytest.approx(moved[order[:-5:-1]].tolist(), abs=1e-6)
    assert found.divergence == pytest.approx(np.mean([change.divergence for change in found.changes]))


def by_hand(made: SparseCoder, feature: int, passage: ablated.Passage) -> tuple[Tensor, Tensor, list[float]]:
    """Log-probabilities of the model and of the model without the feature, and its codes."""
    model, ids, codes = language_model(), torch.tensor([passage.ids]), torch.zeros(len(passage.ids))

    def look(x: Tensor) -> None:
        codes[passage.first :] = made.encode(x)[0, passage.first :, feature]

    def without(hook: HookPoint):
        return lambda x: x - codes[None, :, None] * made.decoder(hook)[feature]

    def both(x: Tensor) -> Tensor:
        look(x)
        return without(made.hook)(x)

    taps = (
        {made.hook: look, **{hook: without(hook) for hook in made.writes}} if made.is_transcoder else {made.hook: both}
    )
    with torch.no_grad():
        clean = model.adapter.logits(ids)[0].log_softmax(-1)
        with tapped(model.adapter, taps):
            edited = model.adapter.logits(ids)[0].log_softmax(-1)
    return clean, edited, codes.tolist()


def test_what_cannot_be_found_in_the_cache_makes_no_passage() -> None:
    one = next(iter(cards(coder("resid.1"), cached(), model=language_model())))
    found = ablated.Passages(cached())
    unplaced = one.contexts[0].model_copy(update={"block": None})
    elsewhere = one.contexts[0].model_copy(update={"block": 10**6})
    beyond = one.contexts[0].model_copy(update={"position": 10**6})
    assert [found.of(context) for context in (unplaced, elsewhere, beyond)] == [None] * 3
    assert ablated.ablation(language_model().adapter, coder("resid.1"), 0, []) is None
