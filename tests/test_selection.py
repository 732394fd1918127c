"""Graphs from a search: what is kept follows from effects and edges alone."""

import pytest
import torch
from subjects import panel_of, random_baseline, random_subject, subject_with
from support import D_SAE

from circuitcli.attribution import baselines, contributions
from circuitcli.attribution.edges import Target
from circuitcli.attribution.extremes import Strongest, extremes
from circuitcli.attribution.gradients import node_effects
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.attribution.naive import NaiveSearch
from circuitcli.attribution.selection import find_circuit
from circuitcli.attribution.strongest_edges import FAINT, edges_to_output
from circuitcli.errors import InputError
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import GraphSettings


def head(subject, **facts) -> GraphRecord:
    return GraphRecord(
        name="g",
        method="grad-ig",
        metric=subject.metric.name,
        prompt="random",
        tokens=subject.prompts[0].tokens,
        metric_clean=float(subject.metric_clean),
        metric_baseline=0.0,
        dtype="float64",
        unit=subject.metric.unit,
        baseline="mean",
        positions="all",
        model="random",
        **facts,
    )


def grad_graph(subject, baseline, *, positions="all", **settings):
    chosen = GraphSettings(**{"ig_steps": 4, "down": 3, "up": 2, **settings})
    circuit = find_circuit(panel_of(subject, baseline, positions=positions), chosen)
    effects = node_effects(subject, baseline, method=chosen.method, steps=chosen.ig_steps, batch_size=64)
    return circuit, effects, circuit.graph(head(subject))


def naive_graph(subject, baseline, *, positions="sum", pins=None, seed=0, **settings):
    search = naive_search(subject, baseline, positions=positions, pins=pins, seed=seed, **settings)
    return search.graph(head(subject), [search.part(hook) for hook in subject.coders.hooks])


def naive_search(subject, baseline, *, positions="sum", pins=None, seed=0, **settings):
    return NaiveSearch(panel_of(subject, baseline, positions=positions), GraphSettings(**settings), pins or {}, seed)


def permuted(saes, *, seed=3):
    """The same SAEs with their features in another order; also where each feature went."""
    shuffled, where = {}, {}
    for number, (hook, sae) in enumerate(saes.items()):
        order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(seed + number))
        other = type(sae)(sae.config, k=sae.k).double().requires_grad_(False)
        other.W_enc.data, other.b_enc.data = sae.W_enc[:, order], sae.b_enc[order]
        other.W_dec.data, other.b_dec.data = sae.W_dec[order], sae.b_dec
        shuffled[hook] = other
        where[hook] = {int(old): new for new, old in enumerate(order)}
    return shuffled, where


def renamed(name, where):
    if name == OUTPUT:
        return name
    node = NodeId.parse(name)
    return name if node.index is None else str(NodeId(node.hook, where[node.hook][node.index], node.position))


@pytest.mark.parametrize("make", ["grad", "naive"])
def test_permuting_the_features_permutes_the_graph(make):
    subject = random_subject("gpt2", first=1)
    saes, where = permuted(subject.coders)
    other = subject_with(subject.adapter, saes, first=1)
    found = []
    for each in (subject, other):
        zero = baselines.zero(each.coders)
        found.append(grad_graph(each, zero)[2] if make == "grad" else naive_graph(each, zero, threshold_exp=-6))
    one, two = found
    assert len(one.nodes) > 5 and len(one.edges) > 5
    nodes = {renamed(node.id, where): (node.effect, node.activation) for node in one.nodes}
    assert nodes.keys() == two.by_id.keys()
    for name, (effect, activation) in nodes.items():
        assert two.by_id[name].effect == (effect if effect is None else pytest.approx(effect, abs=1e-9))
        assert two.by_id[name].activation == (activation if activation is None else pytest.approx(activation, abs=1e-9))
    edges = {(renamed(edge.source, where), renamed(edge.target, where)): edge.weight for edge in one.edges}
    others = {(edge.source, edge.target): edge.weight for edge in two.edges}
    assert edges.keys() == others.keys()
    assert all(others[ends] == pytest.approx(weight, abs=1e-9) for ends, weight in edges.items())


@pytest.mark.parametrize("positions", ["all", "last", "sum"])
def test_a_gradient_graph_keeps_at_most_down_nodes_of_a_sign_and_up_edges_of_a_sign(positions):
    subject = random_subject("gpt2", first=1)
    _, _, graph = grad_graph(subject, random_baseline(subject), positions=positions, down=3, up=2)
    for hook in subject.coders.hooks:
        here = [node for node in graph.nodes if node.place is not None and node.place.hook == hook]
        assert sum(node.effect > 0 for node in here) <= 3 and sum(node.effect < 0 for node in here) <= 3
    for node in graph.nodes:
        into = [edge.weight for edge in graph.edges if edge.target == node.id]
        if not node.is_output:
            assert len(into) <= 4
            # Where a node's own effects cancel, edges into it are chosen by what they bring to the largest of these.
            largest = max((abs(edge.weight) for edge in graph.edges if edge.source == node.id), default=0.0)
            if abs(node.effect) >= FAINT * largest:
                assert sum(w > 0 for w in into) <= 2 and sum(w < 0 for w in into) <= 2
    assert {node.place.position is None for node in graph.nodes if node.place} == {positions == "sum"}
    if positions == "last":
        assert {node.place.position for node in graph.nodes if node.place} == {subject.prompts[0].last}


def test_nodes_at_the_last_hook_point_are_those_with_the_largest_effects():
    subject = random_subject("gpt2")
    _, effects, graph = grad_graph(subject, random_baseline(subject), down=4)
    last = subject.coders.hooks[-1]
    values = torch.cat([effects[last].features, effects[last].errors[last][..., None]], dim=-1).flatten()
    expected = sorted(values.tolist())
    kept = sorted(n.effect for n in graph.nodes if n.place and n.place.hook == last)
    assert kept == pytest.approx([*[v for v in expected[:4] if v < 0], *[v for v in expected[-4:] if v > 0]])


def test_output_edges_of_a_complete_slice_are_the_node_effects():
    subject = random_subject("gpt2")
    _, _, graph = grad_graph(subject, random_baseline(subject))
    into = [edge for edge in graph.edges if edge.target == OUTPUT]
    assert into and all(edge.weight == pytest.approx(graph.by_id[edge.source].effect) for edge in into)


def test_summed_nodes_carry_the_sum_of_their_effects_and_the_largest_activation():
    subject = random_subject("gpt2")
    _, effects, graph = grad_graph(subject, random_baseline(subject), positions="sum")
    for node in graph.nodes:
        if node.place is not None and node.place.index is not None:
            hook, index = node.place.hook, node.place.index
            assert node.effect == pytest.approx(float(effects[hook].features[..., index].sum()))
            assert node.activation == pytest.approx(float(subject.codes[hook][0, :, index].max()))


@pytest.mark.parametrize("make", ["grad", "naive"])
def test_batch_size_changes_nothing(make):
    subject = random_subject("neox-parallel", first=1)
    baseline = random_baseline(subject)
    graphs = []
    for size in (1, 5, 64):
        if make == "grad":
            graphs.append(grad_graph(subject, baseline, batch_size=size)[2])
        else:
            graphs.append(naive_graph(subject, baseline, batch_size=size, threshold_exp=-7))
    for other in graphs[1:]:
        assert [n.id for n in other.nodes] == [n.id for n in graphs[0].nodes]
        weights, expected = ({(e.source, e.target): e.weight for e in g.edges} for g in (other, graphs[0]))
        assert weights == pytest.approx(expected, abs=1e-10)


def test_features_that_are_silent_in_the_clean_run_have_no_incoming_edges_by_its_gradients():
    subject = random_subject("gpt2")
    _, _, graph = grad_graph(subject, random_baseline(subject), down=20, up=3, method="atp")
    silent = [n for n in graph.nodes if n.place and n.place.index is not None and n.activation == 0]
    assert silent, "with a baseline above zero, silent features are nodes too"
    assert not any(edge.target in {node.id for node in silent} for edge in graph.edges)


def test_threshold_thin_and_pins_choose_what_a_naive_graph_shows():
    subject = random_subject("gpt2")
    zero = baselines.zero(subject.coders)
    everything = naive_graph(subject, zero, threshold_exp=-30)
    some = naive_graph(subject, zero, threshold_exp=-3)
    strong = {(e.source, e.target) for e in everything.edges if abs(e.weight) > 2**-3}
    assert {(e.source, e.target) for e in some.edges} == strong and 0 < len(strong) < len(everything.edges)
    hook = HookPoint(0, "resid")
    active = subject.codes[hook][0].any(0).nonzero()[:, 0].tolist()
    pinned = naive_graph(subject, zero, threshold_exp=-30, pins={hook: active[:2]})
    sources = {NodeId.parse(e.source) for e in pinned.edges if NodeId.parse(e.source).hook == hook}
    assert {node.index for node in sources} == set(active[:2])
    thin = naive_search(subject, zero, thin=0.25)
    live = naive_search(subject, zero)
    assert len(thin.sources(hook)) == len(live.sources(hook)) // 4
    assert thin.sources(hook) == naive_search(subject, zero, thin=0.25).sources(hook)
    assert thin.sources(HookPoint(1, "resid")) == live.sources(HookPoint(1, "resid"))
    with pytest.raises(InputError, match=r"pinned hook point resid\.9 is not in the circuit"):
        naive_search(subject, zero, pins={HookPoint(9, "resid"): [1]})


def test_naive_edges_go_to_the_next_layer_or_to_all_later_ones():
    subject = random_subject("gpt2")
    zero = baselines.zero(subject.coders)
    for to, steps in (("next", {1}), ("all", {1, 2})):
        graph = naive_graph(subject, zero, threshold_exp=-30, to=to)
        pairs = [(NodeId.parse(e.source), NodeId.parse(e.target)) for e in graph.edges if e.target != OUTPUT]
        assert {target.hook.layer - source.hook.layer for source, target in pairs} == steps
    last = [NodeId.parse(e.source).hook.layer for e in graph.edges if e.target == OUTPUT]
    assert set(last) == {2}


def test_positional_naive_nodes_are_ablated_at_their_position_alone():
    subject = random_subject("gpt2", first=1, n=5)
    zero = baselines.zero(subject.coders)
    graph = naive_graph(subject, zero, positions="all", threshold_exp=-30)
    pairs = [(NodeId.parse(e.source), NodeId.parse(e.target)) for e in graph.edges if e.target != OUTPUT]
    assert pairs and all(source.position <= target.position for source, target in pairs)
    assert {source.position for source, _ in pairs} == {1, 2, 3, 4}
    sources = naive_search(subject, zero, positions="all").sources(subject.coders.hooks[0])
    assert [source.group for source in sources if source.index is None] == [0, 1, 2, 3]
    assert all(isinstance(source, Target) for source in sources)


def test_extremes_are_the_largest_of_each_sign():
    values = torch.tensor([0.0, -3.0, 2.0, 5.0, -1.0, 0.5])
    assert list(extremes(values, 2)) == [(3, 5.0), (2, 2.0), (1, -3.0), (4, -1.0)]
    assert list(extremes(torch.zeros(3), 2)) == []
    assert list(extremes(values, 99))[-1] == (4, -1.0)


@pytest.mark.parametrize(
    ("positions", "normalisation"), [("all", "layer-norm"), ("all", "context"), ("last", "none"), ("sum", "none")]
)
def test_taken_in_small_pieces_graphs_are_the_same(monkeypatch, positions, normalisation):
    """As for SAEs whose codes at all positions would not fit into memory a few times over."""
    subject = random_subject("gpt2", sites=("resid",), layers=(1, 2), n=4, first=1, normalisation=normalisation)
    baseline, zero = random_baseline(subject), baselines.zero(subject.coders)
    whole = grad_graph(subject, baseline, positions=positions)
    naive = naive_graph(subject, zero, positions=positions)
    largest = []
    original = contributions.Contributions._of

    def seen(self, features):
        values = original(self, features)
        if isinstance(features, slice):
            largest.append(values)
        return values

    monkeypatch.setattr(contributions, "AT_ONCE", 9 * subject.n_spliced)
    monkeypatch.setattr(contributions.Contributions, "_of", seen)
    monkeypatch.setattr("circuitcli.attribution.memory.BUDGET_BYTES", 1)
    pieces = grad_graph(subject, baseline, positions=positions)
    assert max(values.numel() for values in largest) <= 9 * subject.n_spliced
    for one, other in ((whole[2], pieces[2]), (naive, naive_graph(subject, zero, positions=positions))):
        assert [node.id for node in one.nodes] == [node.id for node in other.nodes] and len(one.nodes) > 5
        effects = {node.id: node.effect or 0.0 for node in other.nodes}
        assert {node.id: node.effect or 0.0 for node in one.nodes} == pytest.approx(effects, rel=1e-9, abs=1e-12)
        weights = {(edge.source, edge.target): edge.weight for edge in other.edges}
        assert {(edge.source, edge.target): edge.weight for edge in one.edges} == pytest.approx(weights, rel=1e-9)
    for hook in subject.coders.hooks:
        assert whole[0].totals[hook].gap == pytest.approx(pieces[0].totals[hook].gap, abs=1e-9)


def test_edges_that_are_sums_over_positions_are_whole_whatever_is_left_out():
    subject = random_subject("gpt2", sites=("attn", "resid"), layers=(1, 2), n=12, first=1)
    baseline = random_baseline(subject)
    options = {"positions": "sum", "method": "atp", "down": 30, "up": 30}
    every, some = (
        {(edge.source, edge.target): edge.weight for edge in grad_graph(subject, baseline, **options, **more)[0].edges}
        for more in ({"min_share": 0.0}, {"min_share": 0.05})
    )
    least = 0.05 * abs(panel_of(subject, baseline, positions="sum").behaviour)
    both = {ends: weight for ends, weight in some.items() if ends in every}
    assert len(both) > 100
    assert both == pytest.approx({ends: every[ends] for ends in both}, abs=0.02 * least)


def test_the_strongest_of_pieces_are_those_of_the_whole():
    values = torch.randn(60, generator=torch.Generator().manual_seed(2))
    best = Strongest[int](4)
    for start in range(0, 60, 7):
        best.add(start, values[start : start + 7])
    assert [(start + index, value) for start, index, value in best.found()] == list(extremes(values, 4))


@pytest.mark.parametrize("positions", ["all", "sum"])
def test_the_largest_edges_to_the_output_are_those_of_all_nodes(positions):
    subject = random_subject("gpt2", sites=("attn", "mlp"), layers=(1, 2), n=5, first=1)
    panel = panel_of(subject, random_baseline(subject), positions=positions)
    effects, compared = PanelEffects(panel, GraphSettings(method="atp")), 0
    for hook in subject.coders.hooks:
        found = edges_to_output(effects, hook, 3, least=0.0)
        if hook == subject.coders.written[-1]:
            assert found == {}, "there they are the effects"
            continue
        edges = effects.to_output(0, hook)
        values = torch.cat([edges.features, edges.errors[hook][..., None]], dim=-1)[0]  # (spliced, d_sae + 1)
        values = (values if positions == "all" else values.sum(dim=0, keepdim=True)).flatten()
        largest = [*values.topk(3).values.tolist(), *(-values).topk(3).values.tolist()]
        assert sorted(found.values()) == pytest.approx(sorted(largest), rel=1e-9)
        compared += 1
    assert compared == 3
