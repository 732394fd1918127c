"""`circuit inspect` tells of all that `render` and `interp --html` write what it is, and what is in it."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from cli_support import here
from test_sharing import transcoded
from test_through_page import report

from circuitcli.errors import InputError
from circuitcli.render import feature_pages as pages
from circuitcli.render.modules import carried, safe
from circuitcli.render.recognised import recognised
from circuitcli.render.timeline_page import timeline_page
from circuitcli.render.write import BY_SUFFIX
from circuitcli.settings.render import Form

# What of the formats has no more of a graph than can be seen, or no head.
SEEN = ("dot", "svg", "png", "pdf", "mermaid", "csv")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit in a directory, as a file of records and in each format."""
    folder = tmp_path_factory.mktemp("drawn")
    transcoded().save(folder / "graph.jsonl")
    outputs = [word for suffix in BY_SUFFIX for word in ("-o", f"c{suffix}")]
    assert here("render", "graph.jsonl", *outputs, cwd=folder).status == 0
    assert here("render", "graph.jsonl", "--as", "neuronpedia", "-o", "n.json", cwd=folder).status == 0
    return folder


def test_every_format_of_a_graph_is_told_or_refused_as_what_it_is(drawn: Path) -> None:
    files = {form: f"c{suffix}" for suffix, form in BY_SUFFIX.items()} | {"neuronpedia": "n.json", None: "graph.jsonl"}
    # Of edges between heads, which this graph has not; it is read as another program's.
    assert {*files} == {*get_args(Form), None} - {"eap"}
    for form, name in files.items():
        done = here("inspect", name, "--json", cwd=drawn)
        if form in SEEN:
            assert done.status == 3 and "and no SAE" in done.errors[0] and len(done.errors) == 2, done
            continue
        (record,) = done.records
        parts = (record["kind"], record["name"], record["n_nodes"], record["n_edges"])
        assert parts == ("graph", "circuit", len(transcoded().nodes), len(transcoded().edges)), name


def test_a_page_counts_the_labels_that_it_shows(drawn: Path) -> None:
    content = json.loads((drawn / "c.json").read_text())
    labels = {node["feature"] for node in content["nodes"] if node["details"] and node["details"]["label"]}
    for name in ("c.html", "c.json"):
        (head,) = recognised(drawn / name).graphs
        assert head.n_labels == len(labels)


def site(folder: Path) -> None:
    """Pages of features, of which only what is looked at is there."""
    pages.write_data(folder, "index", {"run": "r", "coders": [{"hook": "resid.1", "n_live": 7, "d_sae": 9}]})
    for name in (pages.INDEX, pages.FEATURE, pages.coder_page("resid.1")):
        pages.write_page(folder, name, pages.html("index", "x", {"hook": "resid.1"} if name[0] == "r" else None))


def test_pages_of_features_and_of_checkpoints_are_told(tmp_path: Path) -> None:
    site(tmp_path / "site")
    (tmp_path / "one.html").write_text(pages.feature_page([{"id": f"resid.1/{n}"} for n in range(7)], run="r"))
    text = {"title": "t", "run": "r", "tokens": ["a"], "features": [{"id": "resid.1/3"}]}
    (tmp_path / "text.html").write_text(pages.text_page(text))
    (tmp_path / "time.html").write_text(timeline_page(report()))
    expected = {
        "one.html": (
            "a page of features",
            {"run": "r", "features": "resid.1/0 resid.1/1 resid.1/2 resid.1/3 resid.1/4 and 2 more"},
        ),
        "text.html": ("the page of a text and its features", {"run": "r", "features": "resid.1/3"}),
        "time.html": ("the page of circuits through training", {"checkpoints": 4}),
    }
    whole = ("pages of features", {"run": "r", "live_features": {"resid.1": "7 of 9"}})
    expected |= {f"site{name}": whole for name in ("", "/index.html", "/feature.html", "/resid.1.html")}
    for name, (what, facts) in expected.items():
        (record,) = here("inspect", name, "--json", cwd=tmp_path).records
        assert record == {"kind": "figure", "path": name, "what": what, **facts}


@pytest.mark.parametrize("part", ["packed", "graph", "nodes", "edges", "details"])
def test_a_damaged_page_is_refused_or_not_known(part: str, drawn: Path, tmp_path: Path) -> None:
    text = (drawn / "c.html").read_text(encoding="utf-8")
    data = safe(json.dumps(content := carried(text)))
    for wrong in (None, 1, "x", [], [1], {}, {"length": "x"}, {"columns": 3}):
        made: dict[str, Any] = {**content, part: wrong}
        if part != "packed":
            made = {**content, "packed": {**content["packed"], part: wrong}}
        path = tmp_path / "x.html"
        path.write_text(text.partition('id="data">')[0] + f'id="data">{safe(json.dumps(made))}</script>')
        try:
            found = recognised(path)
        except InputError as error:
            assert "damaged" in error.message
        else:
            assert found is None or found.tells
    assert len(data) > 1000
