"""What a model writes with features scaled: against whole runs with an explicit change, in every family."""

import pytest
import torch
from support import MIXES, adapter_of, random_coders, random_ids, random_sae

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, parse_scales
from circuitcli.models import generation
from circuitcli.models.generation import continued, greedy, sampled
from circuitcli.models.taps import tapped
from circuitcli.saes.coders import Coders
from circuitcli.validation.steering import Steering, steer

HOOK, LATER = HookPoint(1, "resid"), HookPoint(2, "mlp")
IDS = tuple(random_ids(6, seed=3)[0].tolist())


def slow_logits(adapter, sae, ids, factors, *, first=1):
    """The definition: one whole run in which ``factor * f`` stands for ``f`` in what is decoded, the error kept."""

    def change(x):
        codes = sae.encode(x)
        edited = codes.clone()
        for index, factor in factors.items():
            edited[..., index] *= factor
        frame = sae.frame(x)
        changed = x + sae.decode(edited, frame) - sae.decode(codes, frame)
        return torch.cat([x[:, :first], changed[:, first:]], dim=1)

    with torch.no_grad(), tapped(adapter, {sae.hook: change}):
        return adapter.logits(torch.tensor([ids]))[0]


def active(adapter, sae, ids, count=3):
    """Features that are active in a text, the strongest first."""
    found = Steering(adapter, Coders.of([sae]), {sae.hook: {}}, first=1).codes(ids, clean=True)[sae.hook]
    return found.amax(dim=0).topk(count).indices.tolist()


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama", "gemma3"])
@pytest.mark.parametrize("normalisation", ["none", "layer-norm"])
def test_steered_text_is_what_whole_runs_with_the_scaled_codes_write(family, normalisation):
    adapter, sae = adapter_of(family), random_sae(HOOK, normalisation=normalisation)
    factors = dict.fromkeys(active(adapter, sae, IDS), 4.0)
    found = steer(adapter, Coders.of([sae]), IDS, {HOOK: factors}, first=1, n_tokens=5)
    ids = list(IDS)
    for token in found.steered.ids:
        assert token == int(slow_logits(adapter, sae, ids, factors)[-1].argmax())
        ids.append(token)
    for written in (found.clean, found.steered):
        whole = [*IDS, *written.ids]
        with torch.no_grad():
            clean = adapter.logits(torch.tensor([whole]))[0].log_softmax(dim=-1)
        steered = slow_logits(adapter, sae, whole, factors).log_softmax(dim=-1)
        expected = (clean.exp() * (clean - steered)).sum(dim=-1)[len(IDS) - 1 : -1]
        # Families that compute norms in single precision agree to that.
        assert written.divergence == pytest.approx(expected.tolist(), abs=1e-5) and written.mean > 1e-4
    assert len(found.clean.ids) == len(found.steered.ids) == 5


@pytest.mark.parametrize("mix", ["clt-skip", "attention"])
def test_coders_of_every_kind_steer_with_a_cache_as_without(mix):
    adapter, coders = adapter_of("llama"), Coders.of(random_coders(mix))
    hooks = [*coders]
    codes = Steering(adapter, coders, {hook: {} for hook in hooks}, first=1).codes(IDS, clean=True)
    factors = {hook: {int(codes[hook].amax(dim=0).argmax()): 5.0} for hook in hooks}
    with_cache, without = (
        steer(adapter, coders, IDS, factors, first=1, n_tokens=4, cached=cached) for cached in (True, False)
    )
    assert with_cache.steered.ids == without.steered.ids and with_cache.clean.ids == without.clean.ids
    assert with_cache.steered.divergence == pytest.approx(without.steered.divergence, abs=1e-6)
    assert with_cache.features == without.features and MIXES[mix]


def test_a_cache_that_is_not_right_is_not_used(monkeypatch):
    adapter, sae = adapter_of("gpt2"), random_sae(HOOK)
    factors = {HOOK: {active(adapter, sae, IDS)[0]: 3.0}}
    right = steer(adapter, Coders.of([sae]), IDS, factors, first=1, n_tokens=4)
    whole = generation._next

    def forgetful(adapter, ids, callbacks, past, *, cached):
        return whole(adapter, ids[-1:] if cached else ids, callbacks, past, cached=cached)

    monkeypatch.setattr(generation, "_next", forgetful)
    assert steer(adapter, Coders.of([sae]), IDS, factors, first=1, n_tokens=4) == right
    # A coder that looks at earlier positions has no use for a cache.
    calls = []

    def counted(*given, cached):
        calls.append(cached)
        return whole(*given, cached=cached)

    monkeypatch.setattr(generation, "_next", counted)
    context = random_sae(HOOK, normalisation="context")
    factors = {HOOK: dict.fromkeys(active(adapter, context, IDS), 3.0)}
    steer(adapter, Coders.of([context]), IDS, factors, first=1, n_tokens=2)
    assert calls == [True, True, False, False]


def test_factor_one_changes_nothing_and_an_end_of_text_is_the_last_token():
    adapter, sae = adapter_of("gpt2"), random_sae(HOOK)
    feature = active(adapter, sae, IDS)[0]
    found = steer(adapter, Coders.of([sae]), IDS, {HOOK: {feature: 1.0}}, first=1, n_tokens=6)
    assert found.clean.ids == found.steered.ids and max(found.steered.divergence) < 1e-12
    assert found.features[0].largest_clean == found.features[0].largest_steered != 0
    end = found.clean.ids[2]
    cut = steer(adapter, Coders.of([sae]), IDS, {HOOK: {feature: 1.0}}, first=1, n_tokens=6, ends=(end,))
    assert cut.clean.ids == found.clean.ids[: found.clean.ids.index(end) + 1]


def test_sampling_draws_the_models_own_shares_and_the_same_again_with_the_same_seed():
    adapter = adapter_of("gpt2")
    draws = [continued(adapter, IDS, 4, choose=sampled(1.0, seed=seed)).ids for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1]))
    choose = sampled(1.0, seed=0)
    counts = torch.bincount(torch.tensor([choose(logits) for _ in range(2000)]), minlength=3) / 2000
    assert counts.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.04)
    assert sampled(1e-4, seed=0)(logits) == greedy(logits) == 0


def test_features_that_are_silent_or_not_there_are_told():
    adapter, sae = adapter_of("gpt2"), random_sae(HOOK)
    with torch.no_grad():
        sae.b_enc[:2] = -1e6
    alive = active(adapter, sae, IDS)
    with pytest.raises(InputError, match=f"nothing to steer: {HOOK}/0 {HOOK}/1 are active nowhere") as refused:
        steer(adapter, Coders.of([sae]), IDS, {HOOK: {0: 3.0, 1: 2.0}}, first=1, n_tokens=3)
    assert f"{HOOK}/{alive[0]}" in refused.value.hint and refused.value.exit_status == 3
    found = steer(adapter, Coders.of([sae]), IDS, {HOOK: {0: 3.0, alive[0]: 2.0}}, first=1, n_tokens=3)
    assert [one.is_silent for one in found.features] == [True, False]
    with pytest.raises(InputError, match="has no feature 40"):
        steer(adapter, Coders.of([sae]), IDS, {HOOK: {40: 3.0}}, first=1)
    with pytest.raises(InputError, match="window ends there"):
        steer(adapter, Coders.of([sae]), random_ids(64)[0].tolist(), {HOOK: {0: 3.0}}, first=1)


def test_scales_are_read_as_pins_with_a_factor():
    read = parse_scales(["6:8339,14104=3", "attn.6:12=0", "6:7=-1.5"])
    assert read == {HookPoint(6, "attn"): {12: 0.0}, HookPoint(6, "resid"): {8339: 3.0, 14104: 3.0, 7: -1.5}}
    for wrong in ("6:1", "6:1=", "6:1=x", "6:1=nan", "6:1=inf", "6=3", "=3", "6:1=2=3", "", "6:-1=2"):
        with pytest.raises(SettingsError):
            parse_scales([wrong])
    with pytest.raises(SettingsError, match="twice"):
        parse_scales(["6:1=2", "6:1=3"])
