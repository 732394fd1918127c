"""The search by resampling, against its slow definition: a whole forward pass for each choice and each sample."""

import itertools
import math

import pytest
import torch
from subjects import random_subject
from support import D_SAE

from circuitcli.attribution.search import nodes
from circuitcli.attribution.search.circuit import PromptSearch, search_circuit
from circuitcli.attribution.search.codes import TextCodes
from circuitcli.attribution.search.edges import kept_links, links
from circuitcli.attribution.search.nodes import Ranked, divergences, ranked, walked_back
from circuitcli.attribution.search.patching import Layer, Place
from circuitcli.hookpoints import OUTPUT
from circuitcli.models.taps import tapped
from circuitcli.records import GraphRecord
from circuitcli.settings.search import SearchSettings

N_ROWS, LENGTH, N = 90, 9, 4
KINDS = ("nearest", "random", "zero", "mean")


def dense_codes(hook) -> torch.Tensor:
    """Codes of a text at a hook point."""
    generator = torch.Generator().manual_seed(7 + hook.layer)
    codes = torch.rand(N_ROWS, D_SAE, generator=generator) * 2
    return codes * (torch.rand(N_ROWS, D_SAE, generator=generator) < 0.15)


def text_codes(hook) -> TextCodes:
    return TextCodes.of(dense_codes(hook), torch.arange(N_ROWS) % LENGTH)


def prompt_search(seed=0, *, subject=None, **changes) -> PromptSearch:
    subject = subject or random_subject("gpt2", sites=("resid",), layers=(1, 2), n=N, first=1)
    changes = {"by": "nearest", "samples": 3, "nearest": 8, "max_kl": 0.02, "drop": 0.2} | changes
    codes = {hook: text_codes(hook) for hook in subject.coders.hooks}
    return PromptSearch(subject, SearchSettings(**changes), codes, LENGTH, seed)


def clean_logs(subject) -> torch.Tensor:
    return subject.adapter.logits(subject.clean.input_ids)[0, -1].log_softmax(-1)


def slow_rows(layer: Layer, position: int, kept: list[Place], n: int, purpose: str) -> torch.Tensor:
    """Codes of everything else at a position, by brute force over the dense text; draws are the sampler's."""
    sampler, text = layer.sampler, dense_codes(layer.hook)
    own = layer.subject.codes[layer.hook][0, position]
    if sampler.settings.by == "zero":
        return torch.zeros(n, D_SAE)
    if sampler.settings.by == "mean":
        return text.mean(dim=0, keepdim=True).expand(n, -1)
    at = [row % LENGTH for row in range(N_ROWS)]
    position += layer.subject.first
    among = [row for row in range(N_ROWS) if sampler.weight == 0 or at[row] == position]
    if sampler.settings.by == "nearest" and kept:

        def distance(row: int) -> float:
            found = 0.0
            for place in kept:
                scale = max(float(text[:, place.feature].max()), float(own[place.feature]))
                found += ((float(text[row, place.feature]) - float(own[place.feature])) / scale) ** 2
            return found + (sampler.weight * (at[row] - position) / LENGTH) ** 2

        fit = [row for row in range(N_ROWS) if any(text[row, place.feature] != 0 for place in kept)]
        among = sorted(fit, key=lambda row: (round(distance(row), 12), row))[: sampler.settings.nearest] or among
    generator = sampler._generator(position, purpose)
    drawn = torch.randperm(len(among), generator=generator)[:n]
    if len(drawn) < n:
        drawn = torch.cat([drawn, torch.randint(len(among), (n - len(drawn),), generator=generator)])
    return text[[among[number] for number in drawn.tolist()]]


def slow_divergence(layer: Layer, kept: set[Place], *, purpose="search", n=3) -> float:
    """One forward pass of the whole model for each sample."""
    subject, hook = layer.subject, layer.hook
    coder, own = subject.coders[hook], subject.codes[hook][0]
    samples = torch.stack([own.clone() for _ in range(n)])
    for position in range(subject.n_spliced):
        active = [place for place in layer.places if place.position == position]
        here = [place for place in active if place in kept]
        if len(here) < len(active):
            samples[:, position] = slow_rows(layer, position, here, n, purpose).to(own)
            for place in here:
                samples[:, position, place.feature] = own[place]
    shares = []
    for sample in samples:
        x = coder.decode(sample)
        if layer.sampler.settings.errors == "kept":
            x = x + subject.errors[hook][0]

        def put(arriving, x=x):
            return torch.cat([arriving[:, : subject.first], x[None].to(arriving)], dim=1)

        with tapped(subject.adapter, {hook: put}):
            shares.append(subject.adapter.logits(subject.clean.input_ids)[0, -1].softmax(-1))
    clean, mean = clean_logs(subject), torch.stack(shares).mean(dim=0)
    return float((clean.exp() * (clean - mean.log())).sum())


@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_divergences_of_many_choices_are_those_of_one_whole_pass_for_each_sample(by, weight):
    search = prompt_search(by=by, position_weight=weight)
    layer = search.layer(search.hooks[0])
    generator = torch.Generator().manual_seed(1)
    choices = [torch.rand(len(layer.places), generator=generator) < share for share in (0.0, 0.3, 0.6, 0.9, 1.0)]
    for choice, found in zip(choices, divergences(layer, choices), strict=True):
        kept = {place for place, is_kept in zip(layer.places, choice.tolist(), strict=True) if is_kept}
        assert found == pytest.approx(slow_divergence(layer, kept), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("normalisation", ["none", "layer-norm"])
def test_a_circuit_of_everything_is_the_model_with_its_reconstruction_or_the_model_itself(by, normalisation):
    subject = random_subject("gpt2", sites=("resid",), layers=(0, 1), n=N, first=1, normalisation=normalisation)
    for hook in subject.coders.hooks:
        kept = prompt_search(by=by, errors="kept", subject=subject).layer(hook)
        assert divergences(kept, [torch.ones(len(kept.places), dtype=torch.bool)])[0] == pytest.approx(0.0, abs=1e-9)
        removed = prompt_search(by=by, errors="removed", subject=subject).layer(hook)
        found = divergences(removed, [torch.ones(len(removed.places), dtype=torch.bool)])[0]
        x = subject.activation(hook)[0, 1:] - subject.errors[hook][0]
        with tapped(subject.adapter, {hook: lambda there, x=x: torch.cat([there[:, :1], x[None].to(there)], dim=1)}):
            logs = subject.adapter.logits(subject.clean.input_ids)[0, -1].log_softmax(-1)
        clean = clean_logs(subject)
        assert found == pytest.approx(float((clean.exp() * (clean - logs)).sum()), rel=1e-6, abs=1e-9)
        assert found > 1e-4


@pytest.mark.parametrize("by", KINDS)
def test_many_choices_in_one_pass_and_one_after_the_other_rank_the_same(by, monkeypatch):
    search = prompt_search(by=by)
    hook = search.hooks[1]
    together = ranked(search.layer(hook), torch.ones(len(search.layer(hook).places), dtype=torch.bool))
    monkeypatch.setattr(nodes, "_CHOICES", 1)
    layer = search.layer(hook)
    single = ranked(layer, torch.ones(len(layer.places), dtype=torch.bool))
    assert [each.place for each in single] == [each.place for each in together]
    assert [each.kl for each in single] == pytest.approx([each.kl for each in together], rel=1e-9, abs=1e-12)


def test_features_are_dropped_in_the_order_of_the_slow_definition():
    search = prompt_search(drop=0.01)
    layer = search.layer(search.hooks[1])
    candidates = [place for place in layer.places if place.position >= 1]
    left, expected = set(candidates), []
    while left:
        worst = min((round(slow_divergence(layer, left - {place}), 7), place) for place in left)[1]
        expected.append(worst)
        left.remove(worst)
    assert [each.place for each in ranked(layer, layer.mask(candidates))] == expected


def test_walking_back_stops_at_the_threshold_and_where_the_divergence_has_not_fallen_for_a_while():
    ranks = [Ranked(Place(0, number), 9 - number, kl) for number, kl in enumerate([0.0, 0.1, 0.5, 0.2, 0.6, 0.9])]

    def kept(**changes) -> list[int]:
        return [each.place.feature for each in walked_back(ranks, **({"max_kl": 0.15, "patience": 0} | changes))]

    assert kept() == [5, 4, 3, 2, 1]
    assert kept(max_kl=0.2) == [5, 4, 3], "what is not above the threshold is small enough"
    assert kept(max_kl=0.0) == [5, 4, 3, 2, 1, 0], "0 is a threshold, not the lack of one"
    assert kept(patience=2) == [5, 4, 3], "0.5 is above the mean of 0.2 and 0.6"
    assert kept(max_kl=1.0) == [5]


def test_what_was_dropped_in_one_step_is_taken_back_in_one():
    steps = [(6, 0.0), (6, 0.0), (4, 0.1), (4, 0.1), (4, 0.1), (1, 0.9)]
    ranks = [Ranked(Place(0, number), left, kl) for number, (left, kl) in enumerate(steps)]
    for max_kl, expected in ((0.9, 1), (0.1, 4), (0.05, 6)):
        kept = walked_back(ranks, max_kl=max_kl, patience=0)
        assert len(kept) == expected == kept[-1].left, "the divergence is that of all that were left"


@pytest.mark.parametrize("by", KINDS)
def test_the_same_seed_finds_the_same_circuit_and_another_draws_others(by):
    head = GraphRecord.model_validate(HEAD)
    first, second = (search_circuit(prompt_search(3, by=by), head) for _ in range(2))
    assert first == second
    assert (search_circuit(prompt_search(4, by=by), head) == first) == (by in ("zero", "mean"))


HEAD = {
    "kind": "graph",
    "name": "search",
    "method": "search-nearest",
    "metric": "kl",
    "prompt": "",
    "tokens": ["a"],
    "metric_clean": 0.0,
    "metric_baseline": -1.0,
    "dtype": "float64",
    "unit": "nats",
    "baseline": "mean",
    "positions": "all",
    "model": "tiny",
}


def test_a_graph_has_edges_into_all_but_the_first_hook_points_features_and_into_the_output():
    search = prompt_search(errors="kept")
    graph = search_circuit(search, GraphRecord.model_validate(HEAD))
    nodes_of = {hook: [n for n in graph.nodes if n.place and n.place.hook == hook] for hook in search.hooks}
    assert all(nodes_of.values())
    targets = {edge.target for edge in graph.edges}
    assert {node.id for node in nodes_of[search.hooks[1]]} <= targets and OUTPUT in targets
    assert all(node.place.position == N - 1 for node in nodes_of[search.hooks[1]]), "the last reads its own"
    for edge in graph.edges:
        if edge.target != OUTPUT:
            source, target = graph.by_id[edge.source].place, graph.by_id[edge.target].place
            assert source.hook < target.hook and source.position <= target.position
    for node in itertools.chain(*nodes_of.values()):
        assert node.activation == pytest.approx(
            float(search.subject.codes[node.place.hook][0, node.place.position - 1, node.place.index])
        )
    for hook, told in graph.head.searched.items():
        assert told["kl"] <= told["kl_none"] and told["n_nodes"] <= told["n_active"], hook


@pytest.mark.parametrize("by", ["nearest", "zero"])
def test_edges_are_what_later_features_lose_in_one_whole_pass_for_each_earlier_one(by):
    search = prompt_search(by=by)
    hook, other = search.hooks
    layer, subject = search.layer(hook), search.subject
    sources = list(layer.places[::5])
    targets = [place for place in search.layer(other).places if place.position in (1, 2)]
    n = 1 if by == "zero" else 3

    def later(kept: set[Place], purpose: str, count: int) -> torch.Tensor:
        coder, own = subject.coders[hook], subject.codes[hook][0]
        samples = torch.stack([own.clone() for _ in range(count)])
        for position in range(subject.n_spliced):
            active = [place for place in layer.places if place.position == position]
            here = [place for place in active if place in kept]
            if len(here) < len(active):
                samples[:, position] = slow_rows(layer, position, here, count, purpose).to(own)
                for place in here:
                    samples[:, position, place.feature] = own[place]
        found = []
        for sample in samples:
            seen = {}

            made = coder.decode(sample)

            def put(there, x=made):
                return torch.cat([there[:, :1], x[None].to(there)], dim=1)

            with tapped(subject.adapter, {hook: put, other: lambda x, seen=seen: seen.update(x=x)}):
                subject.adapter.logits(subject.clean.input_ids)
            codes = subject.coders[other].encode(seen["x"][0, 1:])
            found.append([float(codes[target]) for target in targets])
        return torch.tensor(found, dtype=torch.float64)

    wanted = later(set(sources), "edge-means", 1 if by == "zero" else min(12, 8)).mean(dim=0)
    whole = later(set(sources), "edges", n)
    found = {(link.source, link.target): link for link in links(layer, sources, other, targets)}
    rises = {}
    for source in sources:
        without = later(set(sources) - {source}, "edges", n)
        rise = (without - wanted).square().mean(dim=0) - (whole - wanted).square().mean(dim=0)
        for number, target in enumerate(targets):
            assert ((source, target) in found) == (source.position <= target.position)
            if (source, target) in found:
                lost = float((whole - without).mean(dim=0)[number])
                assert found[source, target].weight == pytest.approx(lost, rel=1e-6, abs=1e-9)
                rises[source, target] = max(0.0, float(rise[number]))
    for target in targets:
        most = max(rise for (_, end), rise in rises.items() if end == target)
        for (source, end), rise in rises.items():
            if end == target and most > 1e-9:
                assert found[source, end].importance == pytest.approx(rise / most, rel=1e-5, abs=1e-6)


def test_edges_below_a_share_go_but_the_best_of_each_feature_stays():
    search = prompt_search(by="zero")
    hook, other = search.hooks
    layer = search.layer(hook)
    found = links(layer, layer.places, other, search.layer(other).places)
    kept = kept_links(found, least=1.0)
    assert {link.target for link in kept} == {link.target for link in found}
    assert len(kept) < len(kept_links(found, least=0.5)) < len(kept_links(found, least=0.0)) <= len(found)


def test_text_codes_are_their_table_whichever_way_they_are_asked(tmp_path):
    search = prompt_search()
    hook = search.hooks[0]
    table = dense_codes(hook)
    text_codes(hook).write(tmp_path / "codes")
    kept = TextCodes.read(tmp_path / "codes")
    rows = torch.tensor([5, 5, 80, 0])
    torch.testing.assert_close(kept.dense(rows), table[rows])
    torch.testing.assert_close(kept.largest, table.amax(dim=0))
    torch.testing.assert_close(kept.mean, table.mean(dim=0))
    for feature in range(D_SAE):
        column = torch.zeros(N_ROWS)
        column[kept.column(feature)[0]] = kept.column(feature)[1]
        torch.testing.assert_close(column, table[:, feature])
    (tmp_path / "codes").write_bytes(b"not one")
    assert TextCodes.read(tmp_path / "codes") is None and TextCodes.read(tmp_path / "nothing") is None


def test_of_fewer_rows_than_samples_all_are_drawn_and_some_again():
    search = prompt_search(by="random", samples=64)
    layer = search.layer(search.hooks[0])
    made = layer.sampler.samples(2, [], torch.zeros(0), n=64, purpose="search")
    rows = {tuple(row.tolist()) for row in dense_codes(search.hooks[0])[2::LENGTH]}
    assert len(made) == 64 and {tuple(row.tolist()) for row in made} == rows and len(rows) == math.ceil(N_ROWS / LENGTH)
