"""Pictures of graphs whose coders read one place and write others, and of behaviours over many prompts."""

import random
import re
import shutil
from dataclasses import replace

import pytest
from test_render import NASTY, details, head

from circuitcli.features.lines import Details
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph
from circuitcli.hookpoints import NodeId
from circuitcli.render.document import document
from circuitcli.render.dot import dot_source
from circuitcli.render.drawing import Drawing, draw
from circuitcli.render.heading import facts
from circuitcli.render.layout import layout
from circuitcli.render.page import embedded, page
from circuitcli.render.picture import picture
from circuitcli.render.sites import ATTENTION, FILL, INK, MLP, RESIDUAL
from circuitcli.settings.render import RenderSettings

SPANS = ("subject", "noun", "verb")
WRITES = {"mlp_in.1": ("mlp.1", "mlp.2"), "mlp_in.2": ("mlp.2",)}
SAES = {"mlp_in.1": "sha256:0", "mlp_in.2": "sha256:1", "attn.2": "sha256:2", "resid.2": "sha256:3"}
MANY = {"n_prompts": 100, "prompts": "pairs.jsonl", "prompts_digest": "sha256:9", "saes": SAES, "writes": WRITES}
IDS = ["resid.2/7@verb", "mlp.2/error@noun", "mlp_in.2/4@verb", "attn.2/5@subject", "mlp.1/error@subject"]


def many_prompts(*ids: str, **changes: object) -> CircuitGraph:
    """Nodes with errors and shares, each with an edge into the output."""
    nodes = [Node(name, 2.0, -0.5, "nats", 0.0625, 0.75) for name in ids]
    edges = tuple(Edge(name, "output", 0.25, "nats", 0.125, 0.5) for name in ids)
    facts_ = {**MANY, "span_names": SPANS, "positions": "spans", **changes}
    return CircuitGraph(head(**facts_), (*nodes, Node("output")), edges)


def random_graph(n_nodes: int, *, positions: str, seed: int) -> CircuitGraph:
    """A graph of a cross-layer transcoder: edges to any later hook point."""
    generator = random.Random(seed)
    at = {"all": ["@2", "@3", "@5"], "sum": [""], "spans": [f"@{name}" for name in SPANS]}[positions]
    sites = ["mlp_in.{}/{}", "mlp.{}/error", "attn.{}/{}", "resid.{}/{}"]
    ids = {
        generator.choice(sites).format(generator.randrange(9), generator.randrange(99)) + generator.choice(at)
        for _ in range(n_nodes)
    }
    hooks = {name: NodeId.parse(name).hook for name in sorted(ids)}
    pairs = {(one, other) for one in hooks for other in hooks if hooks[one] < hooks[other]} | {
        (n, "output") for n in ids
    }
    chosen = generator.sample(sorted(pairs), k=min(3 * n_nodes, len(pairs)))
    edges = tuple(Edge(*pair, generator.gauss(0, 1), "nats") for pair in chosen)
    nodes = (*map(Node, hooks), Node("output"))
    return sorted_graph(CircuitGraph(head(positions=positions, span_names=SPANS), nodes, edges))


def test_rows_are_in_the_order_of_the_model_with_errors_where_they_are_written_and_layers_shaded_in_turn():
    rows = layout(draw(many_prompts(*IDS, "mlp_in.1/331@verb"))).rows
    assert [row.hook for row in rows] == ["mlp_in.1", "mlp.1", "attn.2", "mlp_in.2", "mlp.2", "resid.2", "output"]
    assert [row.kind for row in rows] == [MLP, MLP, ATTENTION, MLP, MLP, RESIDUAL, None]
    shades = [row.shaded for row in rows]
    assert shades[0] == shades[1] != shades[2] == shades[3] == shades[4] == shades[5] != shades[6]


def test_named_spans_are_columns_in_the_order_of_the_head():
    placed = layout(draw(many_prompts(*IDS)))
    assert [(column.position, column.titles) for column in placed.columns] == [(name, (name,)) for name in SPANS]


def test_columns_of_several_prompts_are_headed_by_some_of_their_tokens():
    columns = (("<s>",), (" The",), (" keys", " <pad>", " dogs"))
    graph = many_prompts("resid.2/7@2", span_names=None, positions="all", columns=columns)
    (column,) = layout(draw(graph)).columns
    assert column.titles == ('2 " keys"', '" <pad>"', '" dogs"')
    source = dot_source(draw(graph), RenderSettings())
    assert all(text in source for text in ("&#160;keys", "&#160;&lt;pad&gt;", "&#160;dogs"))
    assert embedded(page(draw(graph)))["document"]["nodes"][0]["token"] == " keys |  <pad> |  dogs"


def test_heading_says_how_many_prompts_of_which_file_and_one_prompt_says_nothing_of_it():
    told = facts(many_prompts().head)[1]
    assert told.startswith("means over 100 prompts of pairs.jsonl ± standard error") and '"When' in told
    assert not any("prompts" in line for line in facts(head()))
    each = facts(many_prompts(metric="logit-diff", target=None).head)[0]
    assert each.startswith("logit-diff of each prompt's target against its foil: ")
    assert facts(many_prompts(target=None, metric="kl").head)[0].startswith("kl: ")
    assert embedded(page(draw(many_prompts(target=" Bob"))))["metric"] == 'log-prob of " Bob"'
    assert "prompts of" not in dot_source(draw(CircuitGraph(head())), RenderSettings())


def test_boxes_tooltips_and_documents_say_mean_standard_error_and_share_of_prompts():
    drawing = draw(many_prompts("mlp_in.1/331@verb"))
    source, content = dot_source(drawing, RenderSettings()), document(drawing)
    assert "-0.5&#160;±&#160;0.062&#160;nats" in source and "in&#160;75&#160;%&#160;of&#160;prompts" in source
    assert "effect -0.5 ± 0.062 nats, in 75 % of prompts" in source
    assert "mlp_in.1/331@verb → output: +0.25 ± 0.12 nats, in 50 % of prompts" in source
    node, edge = content["nodes"][0], content["edges"][0]
    assert (node["standard_error"], node["active"], node["position"]) == (0.0625, 0.75, "verb")
    assert (edge["standard_error"], edge["active"]) == (0.125, 0.5)
    assert content["graph"]["writes"] == {"mlp_in.1": ["mlp.1", "mlp.2"], "mlp_in.2": ["mlp.2"]}


def test_kinds_of_sites_have_colours_that_the_legend_names_where_there_are_several():
    source = dot_source(draw(many_prompts(*IDS)), RenderSettings())
    boxes = dict(re.findall(r'"([\w./@]+)" \[.*fillcolor="(#\w+)".*\]', source))
    assert {FILL[kind] for kind in (ATTENTION, MLP, RESIDUAL)} == set(boxes.values())
    assert boxes["attn.2/5@subject"] == FILL[ATTENTION] and boxes["mlp.2/error@noun"] == FILL[MLP]
    assert all(f'COLOR="{INK[kind]}"' in source for kind in (ATTENTION, MLP, RESIDUAL))
    assert embedded(page(draw(many_prompts(*IDS))))["kinds"][MLP] == [FILL[MLP], INK[MLP]]
    alone = dot_source(draw(many_prompts("resid.2/7@verb")), RenderSettings())
    assert "colours" not in alone and "colours" in source


def test_a_feature_with_a_code_below_zero_shows_where_it_is_and_so_does_one_that_has_no_other():
    below = {"contexts": [{"tokens": [" a", " odd"], "activations": [0.0, -2.0], "peak": 1}], "min": -2.0}
    (known,) = details(contexts=[], max=0.0, negative=below).values()
    drawing = replace(draw(many_prompts("resid.0/7@verb")), details={"resid.0/7": known})
    assert "odd</FONT>" in dot_source(drawing, RenderSettings()) and "#ffb07d" in dot_source(drawing, RenderSettings())
    (both,) = details(negative=below).values()
    graph = many_prompts("resid.0/7@verb")
    for activation, is_below in ((-1.0, True), (1.0, False), (None, False)):
        node = replace(graph.nodes[0], activation=activation)
        some = draw(replace(graph, nodes=(node, graph.nodes[1])), details={"resid.0/7": both})
        assert ("odd</FONT>" in dot_source(some, RenderSettings())) == is_below
    shown = embedded(page(drawing))["document"]["nodes"][0]["details"]
    assert Details.model_validate({"id": "resid.0/7", **shown}).negative == known.negative


def nasty() -> Drawing:
    columns = tuple(NASTY[start : start + 3] for start in range(0, len(NASTY), 3))
    graph = many_prompts("resid.2/7@2", span_names=None, positions="all", columns=columns)
    return draw(replace(graph, head=graph.head.model_copy(update={"prompts": "".join(NASTY)})))


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program 'dot' is missing: install graphviz")
def test_nasty_tokens_and_file_names_survive_the_real_dot():
    assert b"<svg" in picture(dot_source(nasty(), RenderSettings()), form="svg")
    assert embedded(page(nasty()))["document"]["graph"]["prompts"] == "".join(NASTY)
