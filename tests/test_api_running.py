"""Running models with features changed: against hooks by hand, and circuits that keep everything else."""

import copy

import pytest
import torch
from support import random_sae
from support_collect import language_model
from test_cards import coder_of

import circuitcli as circuit
from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import tapped
from circuitcli.saes.files import content_digest
from circuitcli.saes.topk import TopKSae

TEXT = "a plain text"


@pytest.fixture(scope="module")
def model() -> circuit.LanguageModel:
    return language_model()


@pytest.fixture(scope="module")
def coders():
    """An SAE, and a transcoder before it that it sees."""
    sae = random_sae(HookPoint(1, "resid"), dtype=torch.float32)
    transcoder = coder_of(TopKSae, "mlp_in.0", ("mlp.0", "mlp.1"), k=4)
    return [sae, transcoder]


def test_without_a_change_the_logits_are_the_models_own(model, coders):
    found = circuit.run(model, coders, TEXT)
    ids = torch.tensor([model.tokenizer.with_bos(model.tokenizer.encode(TEXT))])
    own = model.adapter.logits(ids)[0].detach()
    assert torch.equal(found.logits, found.clean_logits) and torch.allclose(found.logits, own, atol=1e-5)
    assert found.effect == 0 and found.metric_clean == pytest.approx(float(own[-1].log_softmax(0).max()), abs=1e-5)


def by_hand(model, sae, edit) -> torch.Tensor:
    """Logits with the autoencoder's codes changed by hand, its error kept."""
    ids = torch.tensor([model.tokenizer.with_bos(model.tokenizer.encode(TEXT))])

    def change(x):
        codes = sae.encode(x[:, 1:])
        y = x.clone()
        y[:, 1:] += (edit(codes.clone()) - codes) @ sae.W_dec
        return y

    with torch.no_grad(), tapped(model.adapter, {sae.hook: change}):
        return model.adapter.logits(ids)[0]


def strongest(model, coder) -> tuple[int, int]:
    """Feature and position of the largest activation."""
    codes = next(iter(circuit.encode(model, coder, TEXT).codes.values()))
    position, feature = divmod(int(codes.argmax()), codes.shape[1])
    return feature, position


def test_features_are_ablated_scaled_and_set_as_by_hand(model, coders):
    sae = coders[0]
    feature, position = strongest(model, sae)

    def scaled(codes):
        codes[..., feature] *= 2.5
        return codes

    def placed(codes):
        codes[0, position - 1, feature] = 7.0
        return codes

    def gone(codes):
        codes[..., feature] = 0
        return codes

    name = f"resid.1/{feature}"
    for found, edit in (
        (circuit.run(model, sae, TEXT, ablate=name), gone),
        (circuit.run(model, sae, TEXT, scale={name: 2.5}), scaled),
        (circuit.run(model, sae, TEXT, values={f"{name}@{position}": 7.0}), placed),
        (circuit.run(model, sae, TEXT, scale={f"{name}@{place}": 0.0 for place in range(1, 13)}), gone),
    ):
        expected = by_hand(model, sae, edit)
        assert not torch.allclose(expected, found.clean_logits, atol=1e-3)
        assert torch.allclose(found.logits, expected, atol=1e-4)
        assert found.effect == pytest.approx(found.metric_clean - found.metric)
        best = found.top(1)[0]
        assert best.probability == pytest.approx(float(expected[-1].softmax(0).max()), abs=1e-5)


def test_all_nodes_ablated_are_the_empty_circuit_and_scaled_errors_go_on(model, coders):
    nodes = [f"{coder.hook}/{index}" for coder in coders for index in range(coder.d_sae)]
    errors = ["resid.1/error", "mlp.0/error", "mlp.1/error"]
    everything = circuit.run(model, coders, TEXT, ablate=[*nodes, *errors])
    graph = circuit.find_circuit(model, coders, TEXT, baseline="zero", method="atp", down=1)
    assert everything.metric == pytest.approx(graph.head.metric_baseline, abs=1e-4)
    halves = circuit.run(model, coders, TEXT, scale=dict.fromkeys(errors, 0.0))
    assert torch.allclose(halves.logits, circuit.run(model, coders, TEXT, ablate=errors).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(ablate=["resid.1/99"]), "99"),
        (dict(ablate=["resid.2/1"]), "resid.2"),
        (dict(ablate=["resid.1/1@77"]), "77"),
        (dict(ablate=["resid.1"]), "resid.1"),
        (dict(ablate=["resid.1/1"], scale={"resid.1/1@3": 2.0}), "twice"),
        (dict(values={"resid.1/error": 1.0}), "vector"),
        (dict(scale={"resid.1/1": float("nan")}), "nan"),
    ],
)
def test_nodes_that_are_none_are_refused_with_a_hint(model, coders, changes: dict, said: str):
    with pytest.raises(circuit.CircuitError) as raised:
        circuit.run(model, coders, TEXT, **changes)
    assert said in raised.value.message and raised.value.hint


def test_what_tells_coders_apart_is_what_they_hold_not_the_type_in_which_they_lie(coders):
    sae = coders[0]
    before = content_digest(sae)
    assert content_digest(copy.deepcopy(sae).double()) == before
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.b_dec[3] += 1e-3
    assert content_digest(other) != before


def test_steering_writes_what_runs_with_the_scaled_feature_predict_token_by_token(model, coders):
    feature, _ = strongest(model, coders[0])
    found = circuit.steer(model, coders, TEXT, {f"resid.1/{feature}": 6.0}, n_tokens=3)
    ids = model.tokenizer.with_bos(model.tokenizer.encode(TEXT))
    for token, divergence in zip(found.tokens_steered, found.kl_steered, strict=True):
        step = circuit.run(model, coders, ids, scale={f"resid.1/{feature}": 6.0})
        steered, clean = (each[-1].log_softmax(0) for each in (step.logits, step.clean_logits))
        assert step.top(1)[0].token == token
        assert divergence == pytest.approx(float((clean.exp() * (clean - steered)).sum()), abs=1e-4)
        ids = [*ids, int(steered.argmax())]
    assert len(found.tokens_clean) == 3 and found.clean and "nats a token" in repr(found)
    for wrong in ({}, {"resid.1/error": 2.0}, {"resid.1/3@2": 2.0}, {"resid.1/3": float("nan")}):
        with pytest.raises(circuit.SettingsError):
            circuit.steer(model, coders, TEXT, wrong)
    for wrong in ({"n_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(circuit.SettingsError):
            circuit.steer(model, coders, TEXT, {"resid.1/3": 2.0}, **wrong)
    with pytest.raises(circuit.SettingsError, match="2 prompts"):
        circuit.steer(model, coders, [TEXT, TEXT], {"resid.1/3": 2.0})
    with pytest.raises(circuit.InputError, match=r"no SAE at resid\.0"):
        circuit.steer(model, coders, TEXT, {"resid.0/3": 2.0})
