"""One rule tells, everywhere, which nodes are not at their baseline: beyond rounding, but a zero baseline exactly."""

import torch

from circuitcli.attribution import baselines
from circuitcli.attribution.ablation import live_sources
from circuitcli.attribution.activity import differing
from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.edges import Target
from circuitcli.attribution.exact import live_pairs
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.hookpoints import NodeId
from circuitcli.settings.graph import GraphSettings
from circuitcli.validation.controls import pools_of
from circuitcli.validation.pinned import Activity
from circuitcli.validation.scores import Case
from tests.subjects import panel_of, random_subject


def almost(subject, moved):
    """The subject's own codes as other batches round them, but for one feature of each hook point."""
    codes = {}
    for hook, own in subject.codes.items():
        largest = own.abs().amax(dim=-1, keepdim=True)
        noise = torch.where(torch.arange(own.shape[-1]) % 2 == 0, 3.0, -3.0) * torch.finfo(own.dtype).eps * largest
        codes[hook] = own + noise
        codes[hook][..., moved] += 0.01 * largest[..., 0]
    return Baseline(codes, dict(subject.errors))


def found(subject, baseline):
    """Features that differ, by every place that asks."""
    panel, hook = panel_of(subject, baseline), subject.coders.hooks[0]
    width, groups = subject.coders[hook].d_sae, range(panel.positions.n_groups)
    everything = [Target(index, group) for group in groups for index in range(width)]
    exact = {everything[number].index for _, number in live_pairs(panel, 0, hook, everything)}
    yield "exact effects", exact
    yield "graph-naive", {source.index for source in live_sources(panel, hook) if source.index is not None}
    yield "groups", set(differing(panel, 0, hook).nonzero()[:, -1].tolist())
    yield "gradients", set(PanelEffects(panel, GraphSettings(method="atp"))._live(hook))
    ones = {hook: torch.ones_like(subject.activation(hook))}
    parts = Contributions.of(subject, hook, baseline, ones).sparse()
    yield "edges", {index for part in parts for index in part.feature.tolist()}
    nodes = [NodeId(hook, index) for index in range(width)]
    case = Case(subject, baseline, tuple(nodes))
    activity = Activity(nodes)
    activity.see(case)
    yield "pins", {node.index for node in nodes} - {node.index for node in activity.silent}
    pools = pools_of([Case(subject, baseline, ())], [NodeId(hook, min(exact, default=0))], by_activity=False)
    yield "controls", {index for pool in pools for index in pool.indices}


def test_a_feature_that_differs_by_rounding_alone_is_at_its_baseline_wherever_this_is_asked():
    subject = random_subject("gpt2", sites=("mlp", "resid"), layers=(0, 1), n=4)
    for where, features in found(subject, almost(subject, 3)):
        assert features == {3}, where


def test_a_zero_baseline_is_exact_however_small_a_code_is():
    subject = random_subject("gpt2", sites=("mlp", "resid"), layers=(0, 1), n=4)
    hook = subject.coders.hooks[0]
    codes = subject.codes[hook]
    codes.zero_()
    codes[..., 1], codes[..., 2] = 1.0, 1e-25
    for where, features in found(subject, baselines.zero(subject.coders)):
        assert features == {1, 2}, where
