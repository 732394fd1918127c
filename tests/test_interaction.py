"""SCALAR's interaction curves, held against their slow definition: a run for each later feature with dense masks."""

import pytest
import torch
from subjects import random_subject
from support import D_SAE, K

from circuitcli.attribution.metrics import log_softmax
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import tapped
from circuitcli.validation.between import Between, ByToken, between
from circuitcli.validation.feature_edges import Method, attributions, ordered
from circuitcli.validation.interaction import Curve, check_pair, interaction, points_up_to
from circuitcli.validation.scores import bounded

SOURCE, TARGET = HookPoint(0, "resid"), HookPoint(1, "resid")


def subjects_of(*, source=SOURCE, target=TARGET, normalisation="none", n_texts=2):
    sites, layers = tuple({source.site, target.site}), tuple({source.layer, target.layer})
    options = {"sites": sites, "layers": layers, "first": 1, "normalisation": normalisation}
    return [random_subject("gpt2", n=5 + number, **options) for number in range(n_texts)]


def see(subject, source, x, target):
    """What arrives at a later hook point if an earlier one is x."""
    found = []

    def put(whole):
        return torch.cat([whole[:, :1], x], dim=1)

    def look(whole):
        found.append(whole[:, 1:])

    with torch.no_grad(), tapped(subject.adapter, {source: put, target: look}):
        subject.adapter.logits(subject.clean.input_ids)
    return found[0]


def slow_divergence(subject, source, target, edges):
    """By the definition, with a run of the whole model for each later feature that has an edge."""
    first, second = subject.coders[source], subject.coders[target]
    codes, frames = subject.codes[source], subject.coded.frames
    pre = torch.zeros(1, codes.shape[1], D_SAE).double()
    for feature in {feature for _, feature in edges}:
        masked = torch.zeros_like(codes)
        for unit, other in edges:
            if other == feature:
                masked[..., unit] = codes[..., unit]
        arriving = see(subject, source, first.decode(masked, frames[source]), target)
        pre[..., feature] = second.pre_activations(arriving)[..., feature]
    x = second.decode(second.sparsify(pre), frames[target])

    def put(whole):
        return torch.cat([whole[:, :1], x], dim=1)

    with torch.no_grad(), tapped(subject.adapter, {target: put}):
        run = log_softmax(subject.adapter.logits(subject.clean.input_ids)[:, 1:])
    clean = log_softmax(subject.clean_logits(slice(1, None)))
    return float((clean.exp() * (clean - run)).sum(dim=-1).mean())


def slow_strength(subjects, source, target, unit, feature, steps):
    """sqrt(sum v^2) by finite differences of the later feature's pre-activation, a step of one unit at one position."""
    total = 0.0
    for subject in subjects:
        first, second, codes = subject.coders[source], subject.coders[target], subject.codes[source]
        frame = subject.coded.frames[source]
        where = second.encode(see(subject, source, first.decode(codes, frame), target))[0, :, feature] != 0

        def value(given, first=first, frame=frame, subject=subject, second=second, where=where):
            arriving = see(subject, source, first.decode(given, frame), target)
            return float((second.pre_activations(arriving)[0, :, feature] * where).sum())

        for position in range(codes.shape[1]):
            slope, width = 0.0, 1e-5
            for step in range(steps):
                point = codes * ((step + 0.5) / steps)
                moved = torch.zeros_like(point)
                moved[0, position, unit] = width
                slope += (value(point + moved) - value(point - moved)) / (2 * width) / steps
            total += (slope * float(codes[0, position, unit])) ** 2
    return total**0.5


def curve_of(between, *, steps=3, order="attribution", **options):
    found = attributions(between, Method("ig", steps))
    n_live = int(found.live_units.sum()) * int(found.live_features.sum())
    return interaction(between, ordered(found, order, seed=0), n_live=n_live, n_possible=found.n_possible, **options)


@pytest.mark.parametrize(
    ("source", "target", "normalisation", "kind"),
    [
        (SOURCE, TARGET, "none", Between),
        (HookPoint(1, "attn"), HookPoint(2, "mlp"), "layer-norm", Between),
        (HookPoint(1, "resid_mid"), HookPoint(1, "resid"), "none", ByToken),
        (HookPoint(1, "mlp_in"), HookPoint(1, "mlp"), "layer-norm", ByToken),
    ],
)
def test_points_of_the_curve_are_the_runs_of_the_definition(source, target, normalisation, kind):
    subjects = subjects_of(source=source, target=target, normalisation=normalisation)
    between_ = [between(subject, source, target, 7) for subject in subjects]
    assert {type(one) for one in between_} == {kind}
    attributed = attributions(between_, Method("ig", 3))
    order = ordered(attributed, "attribution", seed=0)
    found = curve_of(between_)
    units, features = attributed.units, attributed.features
    pairs = [divmod(edge, len(features)) for edge in order.place.flatten().argsort().tolist()]
    assert [float(attributed.values[pair]) for pair in pairs] == sorted(attributed.values.flatten().tolist())[::-1]
    edges = [(int(units[unit]), int(features[feature])) for unit, feature in pairs]
    assert found.n_live == len(edges) and found.n_possible == D_SAE**2 and found.n_edges[-1] == D_SAE**2
    for at in (0, 3, len(found.n_edges) // 2, -2):
        n = found.n_edges[at]
        expected = [slow_divergence(subject, source, target, edges[:n]) for subject in subjects]
        assert found.divergence[at].tolist() == pytest.approx(expected, abs=1e-9), n
    # With all edges the earlier SAE stands for the activation, and the later one for what then arrives.
    for number, subject in enumerate(subjects):
        first, second = subject.coders[source], subject.coders[target]
        frames = subject.coded.frames
        arriving = see(subject, source, first.decode(subject.codes[source], frames[source]), target)
        full = second.encode(arriving)[0]
        assert torch.equal(between_[number].full != 0, full != 0)
        told = between_[number].divergences(full, full, 0.0)
        assert told == pytest.approx((float(found.divergence[-1, number]), 0.0), abs=1e-9) and K < D_SAE
    assert found.divergence[-1].tolist() == found.divergence[-2].tolist() and found.n_edges[-2] == len(edges)
    assert found.from_all[-1].abs().max() < 1e-12 and found.least.tolist() == found.divergence[-1].tolist()
    # Statistics of normalisation are constants in derivatives, which differences do not know.
    for unit, feature in (pairs[0], pairs[5], pairs[len(pairs) // 2])[: 3 * (normalisation == "none")]:
        names = int(units[unit]), int(features[feature])
        expected = slow_strength(subjects, source, target, *names, 3)
        assert float(attributed.values[unit, feature]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_areas_are_by_trapezoids_over_edges_and_both_scores_say_what_they_divide_by():
    curve = Curve((0, 1, 4, 10), torch.tensor([[4.0, 2.0], [2.0, 1.0], [1.0, 1.0], [1.0, 1.0]]).double(), 4, 10)
    assert curve.areas(curve.divergence).tolist() == [3 + 4.5 + 6, 1.5 + 3 + 6]
    assert curve.areas(curve.above).tolist() == [3.5, 0.5]
    assert points_up_to(5) == [0, 1, 2, 4, 5] and points_up_to(4) == [0, 1, 2, 4] and points_up_to(0) == [0]
    found = bounded(curve.areas(curve.divergence), bootstrap=200, seed=0)
    assert found.value == 12.0 and found.low == 10.5 and found.high == 13.5
    assert bounded(torch.tensor([2.0]).double(), bootstrap=200, seed=0).low is None


def test_pairs_without_edges_between_them_are_refused():
    (subject,) = subjects_of(n_texts=1)
    first, second = subject.coders[SOURCE], subject.coders[TARGET]
    for pair in ((second, first), (first, first)):
        with pytest.raises(InputError, match="does not come before"):
            check_pair(*pair)
    context = random_subject("gpt2", sites=("resid",), layers=(0, 1), normalisation="context")
    with pytest.raises(InputError, match="temporal"):
        check_pair(context.coders[SOURCE], context.coders[TARGET])
