"""Attributions from features to features, held against one backward pass for each later feature; their order."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from subjects import random_subject, subject_with
from support import D_MODEL, D_SAE, adapter_of, random_saes

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import tapped
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.training.jacobian import Weights, jacobians
from circuitcli.validation import attribution_files
from circuitcli.validation.between import ByToken, between
from circuitcli.validation.feature_edges import Attributions, Method, attributions, ordered
from circuitcli.validation.interaction import sparse
from circuitcli.validation.pairs import pairs_of

BLOCKS = HookPoint(0, "resid"), HookPoint(1, "resid")
LAYER = HookPoint(1, "mlp_in"), HookPoint(1, "mlp")


def coders_of(pair, kind):
    saes = random_saes(pair)
    if kind == "jumprelu":
        for number, (hook, sae) in enumerate(saes.items()):
            other = saes[hook] = JumpReluSae(SaeConfig(hook, D_MODEL, D_SAE)).double()
            with torch.no_grad():
                for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
                    getattr(other, name).copy_(getattr(sae, name))
                other.threshold.fill_(0.3 + 0.1 * number)
    return saes


def subjects_of(pair, kind="topk"):
    saes = coders_of(pair, kind)
    return [subject_with(adapter_of("gpt2"), saes, n=5 + number, first=1) for number in range(2)]


def arriving(subject, pair, x):
    """By the whole model, with gradients."""
    found = []

    def put(whole):
        return torch.cat([whole[:, :1], x], dim=1)

    def look(whole):
        found.append(whole[:, 1:])

    with tapped(subject.adapter, {pair[0]: put, pair[1]: look}):
        subject.adapter.logits(subject.clean.input_ids)
    return found[0]


def slow_values(subject, pair, method):
    """(feature, position, unit): one backward pass for each later feature and point, by the formulas of the methods."""
    first, second = (subject.coders[hook] for hook in pair)
    codes = subject.codes[pair[0]]
    full = second.encode(arriving(subject, pair, first.decode(codes)))
    base, factor, error = torch.zeros_like(codes), codes, 0.0
    alphas = [(step + 0.5) / method.steps for step in range(method.steps)]
    if method.name == "paper":
        base = (codes != 0) * getattr(first, "threshold", torch.zeros(D_SAE))
        factor = (codes - base).norm(dim=2, keepdim=True).expand_as(codes)
        alphas = torch.linspace(0, 1, method.steps).tolist()
    if method.name == "grad-act":
        alphas = [1.0]
    if method.name == "jacobian":
        alphas, factor, error, full = [1.0], (codes != 0).double(), subject.errors[pair[0]], subject.codes[pair[1]]
    total = torch.zeros(D_SAE, codes.shape[1], D_SAE).double()
    for feature in range(D_SAE):
        for alpha in alphas:
            f = (base + (codes - base) * alpha).detach().requires_grad_()
            x = arriving(subject, pair, first.decode(f) + error)
            if method.name == "paper":
                value = second.encode(x)[0, :, feature].sum()
            else:
                value = (second.pre_activations(x)[0, :, feature] * (full[0, :, feature] != 0)).sum()
            if value.requires_grad:
                total[feature] += torch.autograd.grad(value, f)[0][0] / len(alphas)
    return total * factor[0]


@pytest.mark.parametrize(
    ("pair", "kind", "method"),
    [
        (BLOCKS, "topk", Method("ig", 3)),
        (BLOCKS, "topk", Method("paper", 3)),
        (LAYER, "jumprelu", Method("paper", 2, "absolute")),
        (BLOCKS, "topk", Method("grad-act")),
        (LAYER, "topk", Method("jacobian")),
        (BLOCKS, "jumprelu", Method("jacobian")),
    ],
)
def test_attributions_are_those_of_one_backward_pass_for_each_later_feature(pair, kind, method):
    subjects = subjects_of(pair, kind)
    values = torch.cat([slow_values(subject, pair, method) for subject in subjects], dim=1)
    expected = values.abs().sum(dim=1) if method.measure == "absolute" else values.square().sum(dim=1).sqrt()
    found = attributions([between(subject, *pair, 7) for subject in subjects], method)
    whole = torch.zeros(D_SAE, D_SAE).double()
    whole[found.units[:, None], found.features] = found.values
    torch.testing.assert_close(whole, expected.T, rtol=1e-8, atol=1e-10)
    assert found.n_possible == D_SAE**2 and (whole > 0).any()


def test_on_a_linear_path_attributions_are_weights_times_activations():
    (subject, _) = subjects_of(LAYER)
    one = between(subject, *LAYER, 7)
    assert isinstance(one, ByToken)
    # Without the MLP's nonlinearity what lies between is linear.
    one.mlp = replace(one.mlp, activation=lambda h: h)
    first, second = (subject.coders[hook] for hook in LAYER)
    weight = first.W_dec @ one.mlp.up.weight.T @ one.mlp.down.weight.T @ second.W_enc
    codes = one.codes[:, :, None] * weight * (one.full != 0)[:, None]
    found = attributions([one], Method("ig", 2))
    expected = codes.square().sum(dim=0).sqrt()[found.units][:, found.features]
    torch.testing.assert_close(found.values, expected)


def test_jacobians_are_those_of_the_closed_form():
    (subject, _) = subjects_of(LAYER)
    one = between(subject, *LAYER, 7)
    first, second = (subject.coders[hook] for hook in LAYER)
    weights = Weights(
        first.W_dec,
        second.W_enc.T,
        second.W_enc.T @ one.mlp.down.weight,
        torch.stack([first.W_dec @ branch.weight.T for branch in one.mlp.branches]),
    )
    every = torch.arange(D_SAE).expand(len(one.codes), -1)
    x = subject.activation(LAYER[0])[0, 1:]
    whole = jacobians(x, one.mlp, weights, every, every)
    both = (one.codes != 0)[:, :, None] & (subject.codes[LAYER[1]][0] != 0)[:, None]
    found = attributions([one], Method("jacobian"))
    expected = (whole * both).square().sum(dim=0).sqrt()[found.units][:, found.features]
    torch.testing.assert_close(found.values, expected)


def few(*, live=(3, 2)):
    live_units, live_features = torch.arange(5) < live[0], torch.arange(4) < live[1]
    values = torch.tensor([[0.5, 3.0], [2.0, 0.0], [1.0, 4.0]]).double()
    return Attributions(torch.arange(3), torch.arange(2), values, live_units, live_features)


def test_edges_come_by_attribution_and_controls_at_random_of_all_or_of_the_live_ones():
    order = ordered(few(), "attribution", seed=0)
    assert order.place.tolist() == [[4, 1], [2, 5], [3, 0]] and order.n == 6
    assert order.first(2).tolist() == [[False, True], [False, False], [False, True]]
    # What is never active takes places, as in the published code, and changes nothing.
    wide = ordered(few(live=(2, 2)), "attribution", seed=0)
    assert wide.place.tolist() == [[4, 1], [2, 5]] and wide.units.tolist() == [0, 1]
    live = ordered(few(), "random-live", seed=0).place.flatten().tolist()
    assert sorted(live) == list(range(6))
    drawn = torch.stack([ordered(few(), "random", seed=seed).place.flatten() for seed in range(400)])
    assert all(len(set(places)) == 6 for places in drawn.tolist())
    # Each of 20 possible edges is as likely as any other to be at each place.
    assert drawn.min() == 0 and drawn.max() == 19 and abs(drawn.double().mean() - 9.5) < 0.5


def test_attributions_are_stored_as_a_matrix_or_the_largest_and_kept_to_go_on_with(tmp_path):
    path = tmp_path / "reports" / "a.safetensors"
    assert attribution_files.stored(few(), path, at_most=20) == 20
    whole = load_file(path)["attributions"]
    assert whole.shape == (5, 4) and whole[2, 1] == 4 and whole[4].sum() == 0
    assert attribution_files.stored(few(), path, at_most=3) == 3
    stored = {name: tensor.tolist() for name, tensor in load_file(path).items()}
    assert stored == {"source": [2, 0, 1], "target": [1, 1, 0], "attribution": [4, 3, 2]}
    made = attribution_files.kept(tmp_path / "rest", few, resumes=True)
    again = attribution_files.kept(tmp_path / "rest", lambda: pytest.fail("it was made before"), resumes=True)
    assert torch.equal(again.values, made.values) and torch.equal(again.live_units, made.live_units)
    (tmp_path / "rest").write_bytes(b"cut off")
    assert torch.equal(attribution_files.kept(tmp_path / "rest", few, resumes=True).values, made.values)


def test_pairs_have_names_by_what_lies_between_them():
    there = [HookPoint(0, "resid_pre"), *(HookPoint(layer, "resid") for layer in (0, 1, 3))]
    there += [HookPoint(1, site) for site in ("resid_mid", "mlp_in", "mlp")]
    written = {
        name: [f"{a},{b}" for a, b in pairs_of([name], there)] for name in ("blocks", "mlp-blocks", "mlp-layers")
    }
    assert written == {
        "blocks": ["resid_pre.0,resid.0", "resid.0,resid.1"],
        "mlp-blocks": ["resid_mid.1,resid.1"],
        "mlp-layers": ["mlp_in.1,mlp.1"],
    }
    every = [f"{a},{b}" for a, b in pairs_of(["resid.0,resid.3", "all", "blocks"], there)]
    assert every == ["resid.0,resid.3", *written["blocks"], *written["mlp-blocks"], *written["mlp-layers"]]
    with pytest.raises(InputError, match="no mlp-layers"):
        pairs_of(["mlp-layers"], there[:3])
    with pytest.raises(InputError, match=r"no SAE at resid\.2"):
        pairs_of(["resid.0,resid.2"], there)


def test_codes_of_few_edges_are_those_of_the_sae_and_the_papers_keep_negative_ones():
    subject = random_subject("gpt2", sites=("resid",), layers=(0,))
    coder = subject.coders[HookPoint(0, "resid")]
    pre = -torch.arange(1.0, D_SAE + 1).double()[None]
    pre[0, 7] = 2.0
    own, paper = sparse(coder, pre), sparse(coder, pre, "paper")
    assert own[0].nonzero().flatten().tolist() == [7]
    assert paper[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 7] and paper[0, 3] == -4
    pre[0, 8:] = 0
    assert torch.equal(sparse(coder, pre, "paper"), own), "a feature without an edge is before a negative one"
