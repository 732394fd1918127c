"""Single ablations: what they change is found without making all codes, and is what the dense definition says."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from subjects import random_baseline, subject_with
from support import D_MODEL, D_SAE, adapter_of, random_sae

from circuitcli.attribution.edges import Target
from circuitcli.attribution.naive import NaiveSearch
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.taps import tapped
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, nonzero
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.graph import GraphSettings


def random_coder(make, *, dtype=torch.float64, d_sae=D_SAE):
    """A coder of an architecture with random weights."""
    coder = make(SaeConfig(HookPoint(0, "resid"), D_MODEL, d_sae, "layer-norm"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return coder.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "crosscoder" not in name])
def test_active_codes_of_every_architecture_are_those_of_its_matrix(name):
    make, known = ARCHITECTURES[name], {"k": 5, "n_heads": 2, "bottleneck_factor": 5}
    options = {option: value for option, value in known.items() if option in make.option_names}
    coder = random_coder(lambda config: make(config, **options))
    x = torch.randn(9, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, expected = coder.active(x), nonzero(coder.encode(x))
    codes = torch.zeros(9, D_SAE, dtype=torch.float64)
    codes[found.tokens, found.features] = found.values
    torch.testing.assert_close(codes, coder.encode(x), rtol=0, atol=1e-12)
    assert len(found.values) == len(expected.values) and bool((found.tokens.diff() >= 0).all())


@pytest.mark.parametrize("name", ["topk", "jumprelu"])
def test_active_codes_of_many_features_are_those_of_the_matrix(name):
    """Wide enough for the search through bfloat16, where the processor has it, and with few active of many."""
    make = {"topk": lambda config: TopKSae(config, k=4), "jumprelu": JumpReluSae}[name]
    coder = random_coder(make, dtype=torch.float32, d_sae=2048)
    if name == "jumprelu":
        coder.threshold.fill_(4.0)
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    found, codes = coder.active(x), torch.zeros(50, 2048)
    codes[found.tokens, found.features] = found.values
    torch.testing.assert_close(codes, coder.encode(x), rtol=1e-5, atol=1e-5)
    assert 50 < len(found.values) < 50 * 2048 / 24


def search(subjects, baseline, positions, **settings):
    prompts = [prompt for subject in subjects for prompt in subject.prompts]
    panel = Panel.of(
        subjects[0].adapter,
        subjects[0].coders,
        prompts,
        metric="log-prob",
        positions=Positions.of(positions, prompts),
        baseline_of=lambda subject, numbers: baseline,
        batch_size=64,
    )
    return NaiveSearch(panel, GraphSettings(**settings), {}, 0)


def expected_weights(panel, source, target):
    """One whole pass for each prompt, and dense codes: sums over the positions of each group."""
    total = 0.0
    subject, baseline = panel.subject(0)
    masks = panel.masks(subject)
    for text in range(subject.n_texts):
        node = Target(source.index, panel.positions.names.index(source.position))
        where = masks[text, node.group]
        if source.index is None:
            move = (baseline.errors[source.hook] - subject.errors[source.hook])[text] * where[:, None]
        else:
            codes = baseline.codes[source.hook] - subject.codes[source.hook][text]
            amount = codes[0, :, source.index] * where
            move = amount[:, None] * subject.coders[source.hook].W_dec[source.index]
        seen = {}

        def moved(x, move=move):
            changed = x.clone()
            changed[:, subject.first :] += move
            return changed

        with (
            torch.no_grad(),
            tapped(subject.adapter, {source.hook: moved, target.hook: lambda x, seen=seen: seen.update(x=x)}),
        ):
            subject.adapter.logits(subject.clean.input_ids[text : text + 1])
        codes = subject.coders[target.hook].encode(seen["x"][:, subject.first :])[0]
        group = panel.positions.names.index(target.position)
        total += float((subject.codes[target.hook][text] - codes)[masks[text, group], target.index].sum())
    return total / subject.n_texts


def coder_of(kind, hook):
    if kind in ("none", "context"):
        return random_sae(hook, normalisation=kind)
    make = JumpReluSae if kind == "jumprelu" else partial(ARCHITECTURES["abstopk"], k=5)
    return random_coder(lambda config: make(replace(config, hook=hook, normalisation="none")))


CASES = [("spans", "none"), ("spans", "context"), ("spans", "jumprelu"), ("sum", "abstopk"), ("last", "none")]


@pytest.mark.parametrize(("positions", "kind"), CASES)
@pytest.mark.parametrize("n_texts", [1, 2])
def test_naive_edges_are_those_of_a_whole_pass_and_dense_codes(positions, kind, n_texts):
    """Spans may share a position; coders may read context, have negative codes, or many active ones."""
    hooks = [HookPoint(0, "resid"), HookPoint(1, "resid")]
    saes = {hook: coder_of(kind, hook) for hook in hooks}
    subject = subject_with(adapter_of("gpt2"), saes, n=5, first=1, n_texts=n_texts)
    spans = (("noun", (1, 2)), ("late", (2, 4)))
    prompts = tuple(replace(prompt, spans=spans) for prompt in subject.prompts)
    baseline = random_baseline(subject)
    made = search([replace(subject, prompts=prompts)], baseline, positions, threshold_exp=-20)
    part = made.part(hooks[0])
    edges = [edge for edge in part.edges if edge.target != OUTPUT]
    assert len(edges) > 20
    for edge in edges[:: max(1, len(edges) // 12)]:
        source, target = NodeId.parse(edge.source), NodeId.parse(edge.target)
        assert edge.weight == pytest.approx(expected_weights(made.panel, source, target), abs=1e-9)
