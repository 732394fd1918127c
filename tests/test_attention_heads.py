"""Edges split into heads: sums, and each part against a slow frozen model in which only one head is open."""

from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from frozen_oracle import NORMED, FrozenOracle, writes_of
from subjects import mixed_subject, panel_of, random_baseline, random_subject

from circuitcli.attribution.attention.gradient_edges import panel_parts
from circuitcli.attribution.attention.parts import OTHERS, STREAM, Parts
from circuitcli.attribution.cells import ERROR
from circuitcli.attribution.edges import Target
from circuitcli.attribution.frozen.heads import parts_of
from circuitcli.attribution.frozen.linear import divisor
from circuitcli.attribution.frozen.search import FrozenSearch
from circuitcli.attribution.mean_edges import PanelEdges
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.graphs import Edge
from circuitcli.hookpoints import HookPoint, NodeId, logit_token
from circuitcli.settings.graph import GraphSettings

CASES = (
    *(("gpt2", mix) for mix in ("clt-skip", "attention", "full", "resid")),
    ("neox-parallel", "attention"),
    ("llama", "clt-skip"),
    ("qwen3", "full"),
    ("gemma2", "full"),
    ("gemma3", "clt-skip"),
)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    """A subject, some edges of its frozen graph of all kinds, their parts, and the slow model."""
    family, mix = request.param
    subject = random_subject(family, sites=("resid",), n=5, first=1) if mix == "resid" else mixed_subject(family, mix)
    subject.adapter.model.set_attn_implementation("eager")
    edges = some_edges(subject)
    return subject, edges, Parts.gathered([*parts_of(subject, edges, batch_size=5)]), FrozenOracle(subject)


def some_edges(subject) -> list[Edge]:
    search = FrozenSearch(subject, GraphSettings(frozen=True), logits=(3, 8))
    rows, nodes = search.rows, search.nodes
    chosen = np.random.default_rng(0).permutation(rows.n_edges)[:24]
    triples = zip(rows.sources[chosen], rows.edge_targets[chosen], rows.values[chosen], strict=True)
    return [Edge(nodes.name(int(s)), nodes.name(int(t)), float(w), "logits") for s, t, w in triples]


def reached(subject, oracle, edges, opens) -> torch.Tensor:
    """How much each edge's target changes when its source writes twice and only some heads are open."""
    moved = oracle.moved(writes_of(subject, [edge.source for edge in edges]), opens)
    return torch.stack([_change(subject, oracle, moved, edge.target, row) for row, edge in enumerate(edges)])


def _change(subject, oracle, moved, target, row) -> torch.Tensor:
    token = logit_token(target)
    if token is not None:
        change = subject.adapter.unembedded(moved[NORMED][row : row + 1])[0, -1]
        return change[token] - change.mean()
    node = NodeId.parse(target)
    coder, at = subject.coders[node.hook], node.position - subject.first
    change = moved[node.hook][row, node.position] @ coder.W_enc[:, node.index]
    divided = divisor(coder, oracle.clean[node.hook][:, subject.first :])
    return change if divided is None else change / divided[0, at, 0]


def close(found, expected, edges):
    # Norms compute in float32 in most families.
    scale = max(abs(edge.weight) for edge in edges)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


def test_parts_and_what_the_stream_carries_sum_to_the_edge(case):
    subject, edges, parts, oracle = case
    stream = reached(subject, oracle, edges, lambda layer: ())
    weights = torch.tensor([edge.weight for edge in edges], dtype=torch.float64)
    close(parts.moved.sum(dim=(1, 2)) + stream, weights, edges)
    assert not parts.looked.any(), "patterns are constant"
    assert parts.moved.any() and stream.any()


def test_a_part_is_what_comes_through_when_its_head_is_the_first_that_is_open(case):
    subject, edges, parts, oracle = case
    n_heads = parts.moved.shape[2]
    for number, layer in enumerate(parts.layers):
        behind = reached(subject, oracle, edges, lambda at, layer=layer: None if at > layer else ())
        for head in range(n_heads) if layer == 1 else (layer % n_heads,):
            opens = {layer: (head,)}
            first = reached(
                subject, oracle, edges, lambda at, o=opens, layer=layer: None if at > layer else o.get(at, ())
            )
            close(parts.moved[:, number, head], first - behind, edges)


def test_edges_tell_their_strongest_heads_and_the_parts_sum_to_the_weight(case):
    _, edges, parts, _ = case
    for count in (2, 1000):
        for row, edge in enumerate(parts.told(edges, count=count)):
            assert sum(edge.heads.values()) == pytest.approx(edge.weight, abs=1e-9)
            named = [name for name in edge.heads if name not in (OTHERS, STREAM)]
            assert len(named) == min(count, int(parts.moved[row].count_nonzero()))
            sizes = parts.moved[row].abs().flatten().sort(descending=True).values.tolist()
            assert [abs(edge.heads[name]) for name in named] == pytest.approx(sizes[: len(named)])
            for name in named:
                layer, head = map(int, name.split("."))
                assert edge.heads[name] == float(parts.moved[row, parts.layers.index(layer), head])


@contextmanager
def only(subject, opens):
    """While this is open, derivatives pass some heads only: of each block those that are named, None for all."""
    n_heads = subject.adapter.text_config.num_attention_heads

    def cut(module, args, layer):
        if (chosen := opens(layer)) is None:
            return args
        z = args[0].unflatten(-1, (n_heads, -1))
        is_open = torch.tensor([head in chosen for head in range(n_heads)])[:, None]
        return (torch.where(is_open, z, z.detach()).flatten(-2),)

    with ExitStack() as stack:
        for layer, layout in enumerate(subject.adapter.layouts):
            module = subject.adapter.blocks[layer].get_submodule(layout.heads.output)
            stack.callback(module.register_forward_pre_hook(partial(cut, layer=layer)).remove)
        yield


def weights(effects, between) -> torch.Tensor:
    """The edges as the search takes them."""
    found, edges = torch.zeros(len(between), dtype=torch.float64), PanelEdges(effects)
    for hook, target in dict.fromkeys(target for _, target in between):
        for place, cells in edges.into(hook, [target]):
            for number, (source, into) in enumerate(between):
                if place == source[0] and into == (hook, target):
                    node = ERROR if source[1].index is None else source[1].index
                    found[number] += cells.total[(cells.node == node) & (cells.group == source[1].group)].sum()
    return found / effects.panel.n_prompts


def drawn_edges(effects, hooks):
    """Some edges that are not zero into a node of each of some hook points."""
    panel, found, generator = effects.panel, [], np.random.default_rng(1)
    for hook in hooks:
        index = None if hook not in panel.coders else int(panel.subject(0)[0].codes[hook][0, -1].nonzero()[0])
        target = Target(index, panel.positions.n_groups - 1)
        for place, cells in PanelEdges(effects).into(hook, [target]):
            for one in generator.permutation(len(cells))[:3]:
                node = int(cells.node[one])
                found.append(((place, Target(None if node == ERROR else node, int(cells.group[one]))), (hook, target)))
    return found


# Family, coders, method, positions and hook points whose nodes are targets.
GRADIENTS = (
    ("gpt2", "clt-skip", "ig", "all", "mlp_in.2 mlp.2"),
    ("gpt2", "clt-resid", "atp", "sum", "resid.1"),
    ("neox-parallel", "attention", "ig", "sum", "attn.2"),
    ("llama", "clt-skip", "atp", "all", "mlp_in.2"),
    ("qwen3", "full", "ig", "all", "attn.1"),
    ("gemma2", "clt-skip", "atp", "all", "mlp_in.2"),
    ("gemma3", "attention", "relp", "all", "attn.2"),
)


@pytest.mark.parametrize(("family", "mix", "method", "positions", "hooks"), GRADIENTS)
def test_parts_of_gradient_edges_are_derivatives_by_way_of_one_head_first(family, mix, method, positions, hooks):
    subject = mixed_subject(family, mix, n=4, n_texts=2 if mix == "clt-resid" else 1)
    panel = panel_of(subject, random_baseline(subject), positions=positions)
    effects = PanelEffects(panel, GraphSettings(method=method, ig_steps=1, edge_points=2))
    between = drawn_edges(effects, [HookPoint.parse(hook) for hook in hooks.split()])
    parts, whole = panel_parts(effects, between), weights(effects, between)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5 * float(whole.abs().max()))
    both = parts.moved + parts.looked
    with only(subject, lambda layer: ()):
        close(both.sum(dim=(1, 2)) + weights(effects, between), whole)
    number, head = len(parts.layers) // 2, 1
    layer = parts.layers[number]
    with only(subject, lambda at: None if at > layer else ()):
        behind = weights(effects, between)
    with only(subject, lambda at: None if at > layer else (head,) if at == layer else ()):
        close(both[:, number, head], weights(effects, between) - behind)
    assert parts.moved.any() and bool(parts.looked.any()) == (method != "relp")
