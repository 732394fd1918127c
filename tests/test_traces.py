"""Features along the prompt, and bytes that are joined to the characters that they make."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from subjects import subject_with
from support import adapter_of, random_saes
from test_graphs import head

from circuitcli import pieces
from circuitcli.attribution.traces import with_traces
from circuitcli.graphs import CircuitGraph, Edge, Node, Trace, from_records, merged, restricted, to_records
from circuitcli.hookpoints import HookPoint
from circuitcli.records import Stream
from circuitcli.render.boxes import box
from circuitcli.render.document import document
from circuitcli.render.drawing import draw
from circuitcli.settings.render import RenderSettings

HOOKS = (HookPoint(0, "resid"), HookPoint(1, "mlp"))


def bytes_of(text: str, *, split: int) -> list[str]:
    """The text as tokens of so many bytes, as tokenizers show bytes that are no whole character."""
    raw = text.encode()
    return ["".join(f"<0x{byte:02X}>" for byte in raw[at : at + split]) for at in range(0, len(raw), split)]


@given(st.lists(st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), min_size=1)), st.integers(1, 5))
def test_bytes_are_joined_to_the_text_that_they_are(texts, split):
    tokens = [token for text in texts for token in (*bytes_of(text, split=split), " and ")]
    found = pieces.joined(tokens)
    assert "".join(piece.text for piece in found) == "".join(text + " and " for text in texts)
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found)][: len(found)]
    # No shorter run of tokens would have been text.
    for piece in found:
        for stop in range(piece.start + 1, piece.stop):
            with pytest.raises(UnicodeDecodeError):
                bytes.fromhex("".join(tokens[piece.start : stop]).replace("<0x", "").replace(">", "")).decode()


def test_bytes_that_make_no_character_stay_bytes_and_text_stays_text():
    broken = ["<0x96>", "<0xE6>", "a", "<0xE6>", "<0xE6><0x96>", "<0x87>", "<0xFF>", "<0xe6>", "<0xE6>"]
    assert pieces.texts(broken) == ["<0x96>", "<0xE6>", "a", "<0xE6>", "文", "<0xFF>", "<0xe6>", "<0xE6>"]
    assert pieces.each(["<", *bytes_of("é", split=1)]) == ["<", "é 1/2", "é 2/2"]
    parts = pieces.joined(["a", *bytes_of("文", split=1), "b"])
    assert pieces.furthest([1.0, 0.5, -2.0, 1.0, 0.0], parts) == [1.0, -2.0, 0.0]
    assert [pieces.place_of(index, parts) for index in range(5)] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("first", [0, 1])
def test_traces_are_the_codes_of_the_prompt_in_which_a_feature_is_furthest_from_zero(first):
    saes, adapter = random_saes(HOOKS), adapter_of("llama")
    subject = subject_with(adapter, saes, n=6, first=first, n_texts=3)
    ids = torch.tensor([prompt.ids for prompt in subject.prompts])
    plain = adapter.model(ids, output_hidden_states=True).hidden_states[1]
    codes = saes[HOOKS[0]].encode(plain)
    codes[:, :first] = 0
    strongest = codes.amax(dim=(0, 1)).topk(5).indices.tolist()
    silent = int(codes.amax(dim=(0, 1)).argmin())
    nodes = [Node(f"resid.0/{index}@{at}") for index in strongest for at in (2, 4)]
    nodes += [Node(f"resid.0/{silent}"), Node("mlp.1/3@2"), Node("mlp.1/error@2"), Node("mlp.2/0@2"), Node("output")]
    several = CircuitGraph(head(n_prompts=3), tuple(nodes))
    # The second batch first, as prompts of one length come together.
    parts = [((2,), replace_texts(subject, 2)), ((0, 1), replace_texts(subject, 0, 1))]
    found = with_traces(several, parts)
    assert [trace.feature for trace in found.traces] == sorted(
        {node.id.split("@")[0] for node in nodes[:-3]}, key=order
    )
    for index in {*strongest, silent}:
        sizes = codes[:, :, index].amax(dim=1)
        text, trace = int(sizes.argmax()), found.trace(f"resid.0/{index}")
        assert trace.activations == pytest.approx(codes[text, :, index].tolist(), rel=1e-5)
        assert (trace.prompt, trace.tokens) == (text + 1, subject.prompts[text].tokens)
    one = with_traces(replace(several, head=head()), [((0,), replace_texts(subject, 0))])
    assert one.traces[0].prompt is None and len(one.traces[0].activations) == 6


def order(feature: str) -> tuple[int, str, int]:
    hook, _, index = feature.partition("/")
    return int(hook[-1]), hook, int(index)


def replace_texts(subject, *texts):
    """The subject of some of its prompts."""
    chosen = torch.tensor(texts)
    codes, errors = (
        {hook: values[chosen] for hook, values in part.items()} for part in (subject.codes, subject.errors)
    )
    prompts = tuple(subject.prompts[text] for text in texts)
    return replace(subject, prompts=prompts, coded=replace(subject.coded, codes=codes, errors=errors))


def traced() -> CircuitGraph:
    tokens = ("<s>", "a", *bytes_of("文", split=1), " <b>")
    nodes = (Node("resid.0/1@4", 1.0, 0.5, "nats"), Node("resid.0/2@5", 1.0, 0.5, "nats"), Node("output"))
    edges = (Edge("resid.0/1@4", "output", 0.5, "nats"), Edge("resid.0/2@5", "output", 0.5, "nats"))
    traces = (Trace("resid.0/1", (0.0, 0.0, 0.5, 0.0, 2.0, 1.0)), Trace("resid.0/2", (0.0,) * 6))
    return CircuitGraph(head(tokens=tokens, bos=True), nodes, edges, traces)


def test_traces_pass_through_pipes_and_go_with_their_nodes(tmp_path):
    graph = traced()
    assert from_records(Stream(to_records(graph))) == [graph]
    graph.save(tmp_path / "graph.jsonl")
    assert CircuitGraph.load(tmp_path / "graph.jsonl") == graph
    left = restricted(graph, ["resid.0/2@5", "output"])
    assert left.traces == graph.traces[1:]
    newer = replace(left, traces=(replace(graph.traces[1], activations=(0.0,) * 5 + (3.0,)),))
    assert merged(graph, newer).traces == (graph.traces[0], *newer.traces)
    filtered = [record for record in to_records(graph) if getattr(record, "id", "") != "resid.0/1@4"]
    assert from_records(Stream(filtered)) == [left]


def test_pictures_show_the_prompt_with_its_characters_whole():
    drawing = draw(traced())
    shown = document(drawing)["traces"]["resid.0/1"]
    assert shown["tokens"] == ["<s>", "a", "文", " <b>"] and shown["positions"] == [0, 1, 2, 5]
    assert shown["activations"] == [0.0, 0.0, 2.0, 1.0] and (shown["peak"], shown["prompt"]) == (2, None)
    assert [node["token"] for node in document(drawing)["nodes"]] == ["文 3/3", " <b>", None]
    first, second = (box(node, drawing, RenderSettings()) for node in drawing.nodes[:2])
    # The token's background is darkest where the feature is furthest from zero, and a silent prompt says nothing.
    assert "▸" in first and first.index("文</FONT>") < first.index("b&gt;</FONT>") and "&lt;s&gt;" not in first
    assert "▸" not in second


def test_a_trace_that_does_not_fit_its_prompt_is_left_out_of_pictures():
    graph = replace(traced(), traces=(Trace("resid.0/1", (1.0, 2.0)), Trace("resid.0/2", (), 2, ())))
    drawing = draw(graph)
    assert document(drawing)["traces"].keys() <= {"resid.0/2"} and "▸" not in box(
        drawing.nodes[0], drawing, RenderSettings()
    )
