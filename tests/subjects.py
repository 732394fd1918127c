"""Random subjects: a model, coders, prompts, a metric and baselines, in double precision."""

from collections.abc import Mapping

import pytest
import torch
from support import D_MODEL, D_SAE, adapter_of, random_coders, random_ids, random_saes

from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.metrics import LogitDifference, LogProb, Metric
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject, subject_of
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import hook_points
from circuitcli.models.partial import block_pass
from circuitcli.saes.coders import Coders

FULL = ("attn", "mlp", "resid")


def log_prob(*targets: int) -> LogProb:
    return LogProb("log-prob", "nats", torch.tensor(targets or (3,)))


def logit_difference(target: int, foil: int) -> LogitDifference:
    return LogitDifference("logit-diff", "logits", torch.tensor([target]), torch.tensor([foil]))


def random_subject(
    family: str = "gpt2",
    *,
    sites=FULL,
    layers=(0, 1, 2),
    n: int = 6,
    first: int = 0,
    metric: Metric | None = None,
    normalisation: str = "none",
    seed: int = 0,
) -> Subject:
    adapter = adapter_of(family, seed=seed)
    hooks = hook_points(layers, sites)
    return subject_with(adapter, random_saes(hooks, normalisation=normalisation), n=n, first=first, metric=metric)


def mixed_subject(family: str, mix: str, *, n: int = 5, first: int = 1, n_texts: int = 1) -> Subject:
    """A subject through the coders of a mix, as `support.MIXES` names them."""
    return subject_with(adapter_of(family), random_coders(mix), n=n, first=first, n_texts=n_texts)


def random_prompt(n: int, *, first: int = 0, seed: int = 1) -> Prompt:
    ids = random_ids(n, seed=seed)[0].tolist()
    return Prompt("random", tuple(ids), tuple(f"t{i}" for i in ids), first)


def subject_with(
    adapter, saes, *, n: int = 6, first: int = 0, metric: Metric | None = None, n_texts: int = 1
) -> Subject:
    coders = Coders(saes) if isinstance(saes, Mapping) else Coders.of(saes)
    prompts = [random_prompt(n, first=first, seed=1 + text) for text in range(n_texts)]
    ids = torch.tensor([prompt.ids for prompt in prompts])
    clean = block_pass(adapter, ids, None, coders.hooks, for_copies=True)
    return subject_of(adapter, coders, prompts, clean, metric or log_prob(*range(3, 3 + n_texts)))


def random_baseline(subject: Subject, *, seed: int = 5, scale: float = 0.3) -> Baseline:
    """Codes and errors that are neither zero nor those of the run."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> torch.Tensor:
        return torch.randn(1, 1, width, generator=generator, dtype=torch.float64) * scale

    codes, errors = {}, {}
    for hook in subject.coders.hooks:
        if hook in subject.coders:
            codes[hook] = draw(D_SAE).relu()
        if subject.coders.writers(hook):
            errors[hook] = draw(D_MODEL)
    return Baseline(codes, errors)


def panel_of(subject: Subject, baseline: Baseline, *, positions: str = "all") -> Panel:
    return Panel.of_subject(subject, baseline, positions=positions)


def check_traces(graph: CircuitGraph) -> None:
    """Each feature of a graph of one prompt is traced along it, as active at a node's position as the node is."""
    features = [place for node in graph.nodes if (place := node.place) is not None and place.index is not None]
    assert {trace.feature for trace in graph.traces} == {place.feature for place in features} != set()
    for place in features:
        values = graph.trace(place.feature).activations
        assert len(values) == len(graph.head.tokens) and not (graph.head.bos and values[0])
        active = values[place.position] if isinstance(place.position, int) else max(values, key=abs)
        assert active == pytest.approx(graph.by_id[str(place)].activation, rel=1e-4, abs=1e-6)
