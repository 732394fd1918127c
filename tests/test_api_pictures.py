"""Cards and pictures from Python: their numbers are those of the values that they show, in every form."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from support_collect import language_model, texts
from test_cards import CODERS, coder_of
from test_graphs import graph

import circuitcli as circuit
from circuitcli.features.cards import card
from circuitcli.render.page import embedded
from circuitcli.render.text import quoted

TEXTS = texts(19, 1, 40, 7, 33)


@pytest.fixture(scope="module")
def model() -> circuit.LanguageModel:
    return language_model()


@pytest.mark.parametrize("kind", CODERS)
def test_a_card_is_that_of_the_feature_and_shows_each_of_its_numbers(model, kind: str):
    *places, options = CODERS[kind]
    coder = coder_of(*places, **options)
    name = circuit.encode(model, coder, TEXTS[2]).strongest(1)[0].id
    index = int(name.partition("/")[2].partition("@")[0])
    found = circuit.describe(model, [coder], name, TEXTS, contexts=3, window=2, logits=4)
    assert found.contexts or (found.negative and found.negative.contexts)
    assert dict(found) == dict(card(coder, TEXTS, model=model, feature=index, n_contexts=3, window=2, n_logits=4))
    text, html = str(found), found._repr_html_()
    assert text.startswith(found.id) and len(re.findall("«", text)) == sum(
        len(side.contexts) for side in (found, found.negative) if side is not None
    )
    for context in found.contexts:
        assert context.tokens[context.peak].strip() in text
    for token, _ in found.promoted:
        assert quoted(token) in text and quoted(token) in unescape(html)
    assert html.count("<div") == html.count("</div>") and "<script" not in html


def test_a_card_from_a_cache_is_that_from_its_texts(model):
    coder = coder_of(*CODERS["sae"][:3], k=4)
    cache = circuit.collect(model, TEXTS, hooks="resid.1", dtype="float32")
    name = circuit.encode(model, coder, TEXTS[2]).strongest(1)[0].id
    from_cache = circuit.describe(model, coder, name, cache)
    from_texts = circuit.describe(model, coder, name, TEXTS)
    assert from_cache.n_active == from_texts.n_active > 0
    assert from_cache.max == pytest.approx(from_texts.max, rel=1e-3)


@pytest.mark.parametrize(
    ("feature", "text", "said"),
    [
        ("resid.1/30", TEXTS, "resid.1/30"),
        ("resid.2/3", TEXTS, "resid.2"),
        ("resid.1/error", TEXTS, "error term"),
        ("resid.1", TEXTS, "resid.1"),
        ("resid.1/3", [""], "no token"),
    ],
)
def test_features_that_are_none_are_refused_with_a_hint(model, feature: str, text: list[str], said: str):
    with pytest.raises(circuit.CircuitError) as raised:
        circuit.describe(model, coder_of(*CODERS["sae"][:3], k=4), feature, text)
    assert said in raised.value.message and raised.value.hint


SOME = graph("resid.0/1>resid.1/2", "resid.1/2>output", "resid.0/1>output")


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is missing")
def test_a_graph_is_drawn_by_the_suffix_of_its_file(tmp_path: Path):
    for suffix, beginning in {".svg": "<?xml", ".png": "\x89PNG", ".pdf": "%PDF", ".dot": "digraph"}.items():
        drawn = circuit.draw(SOME, tmp_path / f"graph{suffix}")
        assert (tmp_path / f"graph{suffix}").read_bytes().decode("latin1").lstrip("/ ").startswith(beginning), suffix
    assert "resid.1/2" in drawn._repr_svg_() and "<svg" in drawn.svg


def test_a_picture_holds_the_graph_and_what_its_features_mean(model, tmp_path: Path):
    coder = coder_of(*CODERS["sae"][:3], k=4)
    known = circuit.describe(model, coder, "resid.1/2", TEXTS)
    drawn = circuit.draw(SOME, tmp_path / "graph.html", cards=[known])
    content = embedded((tmp_path / "graph.html").read_text())["document"]
    assert content == json.loads(drawn.json)
    details = {node["id"]: node["details"] for node in content["nodes"]}
    assert details["resid.1/2"]["label"] == known.label and details["resid.0/1"] is None
    assert embedded(unescape(drawn._repr_html_()))["document"] == content
    assert len(circuit.draw(SOME, max_edges=1).drawing.edges) == 1


def test_files_that_nothing_draws_are_refused(tmp_path: Path):
    for name in ("graph.gif", "graph", "-"):
        with pytest.raises(circuit.SettingsError, match="cannot draw") as raised:
            circuit.draw(SOME, tmp_path / name)
        assert ".pdf" in raised.value.hint
    assert not list(tmp_path.iterdir())
