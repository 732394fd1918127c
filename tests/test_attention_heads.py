"""Edges split into heads: sums, and each part against a slow frozen model in which only one head is open."""

import numpy as np
import pytest
import torch
from frozen_oracle import NORMED, FrozenOracle, writes_of
from subjects import mixed_subject, random_subject

from circuitcli.attribution.attention.frozen_edges import frozen_parts
from circuitcli.attribution.attention.heads import OTHERS, STREAM
from circuitcli.attribution.frozen.linear import divisor
from circuitcli.attribution.frozen.search import FrozenSearch
from circuitcli.graphs import Edge
from circuitcli.hookpoints import NodeId, logit_token
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
    return subject, edges, frozen_parts(subject, edges, batch_size=16), FrozenOracle(subject)


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
