"""`graph-naive --search` on the built-in model, over one small run."""

import json
import shutil
from pathlib import Path

import pytest
from subjects import check_traces

import circuitcli as circuit
from circuitcli import graphs
from circuitcli.attribution.search.circuit import PromptSearch
from circuitcli.attribution.search.codes import TextCodes
from circuitcli.cli.summaries import tables
from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.hookpoints import OUTPUT
from circuitcli.records import ActivationsRecord, ScoreRecord, SearchRecord, Stream, to_line
from circuitcli.runs import Run
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import load
from circuitcli.stages import collect, graph_naive, graph_task, train, validate
from circuitcli.stages.request import Request
from circuitcli.training.plan import n_held_out

SMALL = {
    "model.device": "cpu",
    "data.layers": "0:3",
    "data.sites": "resid",
    "data.tokens": 3000,
    "data.block_length": 64,
    "sae.k": 4,
    "sae.d_sae": 100,
    "train.batch_size": 256,
    "train.eval_tokens": 512,
    "graph.prompt": "import os",
    "graph.baseline_tokens": 512,
    "validate.samples": 2,
    "search.by": "nearest",
    "search.samples": 4,
    "search.drop": 0.4,
    "search.max_kl": 0.3,
    "search.max_positions": 2,
}


def settings(**changes) -> Settings:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return load(SMALL | named, environment={}, directory=Path("/nonexistent")).settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("searched") / "run"
    run = Run(path)
    collect.run(Request(settings(), Stream(), run))
    train.run(Request(settings(), run.stream(), run))
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    shutil.copytree(trained, tmp_path / "run")
    return Run(tmp_path / "run")


def ask(run: Run, force: bool = False, **changes) -> Request:
    return Request(settings(**changes), run.stream(), run, force)


def test_a_searched_circuit_is_a_graph_that_is_kept_validated_and_drawn(run):
    made = graph_naive.run(ask(run))
    [graph], [told] = graphs.from_records(Stream(made)), [one for one in made if isinstance(one, SearchRecord)]
    assert graph.head.method == "search-nearest" and graph.head.metric == "kl" and graph.head.unit == "nats"
    assert len(graph.head.next_tokens) == 10
    assert graph.head.search["max_kl"] == 0.3 and set(graph.head.searched) == {"resid.0", "resid.1", "resid.2"}
    assert told.n_prompts == 1 and told.mean_nodes == len(graph.nodes) - 1 > 0
    assert told.n_edges == len(graph.edges) > 0 and OUTPUT in graph.by_id
    check_traces(graph)
    stored = (run.path / "graphs" / "search.jsonl").read_text(encoding="utf-8").splitlines()
    assert stored == [to_line(record) for record in made]
    hooks, sizes = (table for table in tables(made, run.path) if table.columns[0] in ("hook point", "by"))
    assert [row[0] for row in hooks.rows] == list(graph.head.searched)
    assert sizes.rows[0][:3] == ("nearest", "1", f"{len(graph.nodes) - 1}")
    scores = validate.run(ask(run))
    assert any(isinstance(one, ScoreRecord) and one.graph == "search" for one in scores)


def test_python_finds_what_the_command_finds(run):
    few = {"search__tokens": 2000, "search__by": "random"}
    [expected] = graphs.from_records(Stream(graph_naive.run(ask(run, **few))))
    model, coders = circuit.load_model("builtin:tiny", device="cpu"), circuit.load_coders(run.path)
    cache = circuit.ActivationCache(run.path / "activations", list(coders))
    chosen = {"samples": 4, "drop": 0.4, "max_positions": 2, "tokens": 2000}
    found = circuit.search_circuit(model, coders, "import os", cache, by="random", max_kl=0.3, settings=chosen)
    assert found.nodes == expected.nodes and found.edges == expected.edges
    assert found.head.search == expected.head.search and found.head.searched == expected.head.searched
    with pytest.raises(InputError, match="one prompt, not 2"):
        circuit.search_circuit(model, coders, ["import os", "import sys"], cache)
    with pytest.raises(SettingsError, match="unknown setting: rows"):
        circuit.search_circuit(model, coders, "import os", cache, settings={"rows": 3})


def test_codes_of_the_text_are_made_once_and_no_held_out_token_is_among_them(run, monkeypatch):
    first = graph_naive.run(ask(run))
    n_rows = run.stream().of(ActivationsRecord)[0].n_tokens
    files = {path: path.stat().st_mtime_ns for path in (run.path / "codes").iterdir()}
    assert len(files) == 3
    graph_naive.run(ask(run, search__by="random"))
    assert files == {path: path.stat().st_mtime_ns for path in (run.path / "codes").iterdir()}
    assert {TextCodes.read(path).n_rows for path in files} == {n_rows - n_held_out(settings(), n_rows=n_rows)}
    # What was damaged is made again, and the same.
    next(iter(files)).write_bytes(b"nothing")
    again = graph_naive.run(ask(run, force=True))
    assert [to_line(one) for one in again] == [to_line(one) for one in first]


def test_a_search_that_would_draw_from_other_tokens_is_another_search(run):
    def print_of(**changes):
        request = ask(run, **changes)
        return graph_task.task_of(request, "graph-naive", name="search", positions="all", baseline="mean", foreign=())

    own = print_of().fingerprint()
    assert print_of(train__eval_tokens=100).fingerprint() != own, "more tokens are left to draw from"
    assert print_of(search__samples=5).fingerprint() != own
    few = {"search__tokens": 1000}
    assert print_of(**few, train__eval_tokens=100).fingerprint() == print_of(**few).fingerprint()


def test_a_killed_search_goes_on_at_the_next_hook_point_and_finds_the_same(run, monkeypatch, tmp_path):
    usual = PromptSearch.nodes
    looked = []

    def nodes(self, hook, before):
        looked.append(str(hook))
        if len(looked) == 2:
            raise KeyboardInterrupt
        return usual(self, hook, before)

    monkeypatch.setattr(PromptSearch, "nodes", nodes)
    with pytest.raises(KeyboardInterrupt):
        graph_naive.run(ask(run))
    made = graph_naive.run(ask(run))
    assert looked == ["resid.0", "resid.1", "resid.1", "resid.2"]
    assert not (run.path / "graphs" / "search.parts").exists()
    unbroken = graph_naive.run(ask(run, force=True))
    assert [to_line(one) for one in made] == [to_line(one) for one in unbroken]


def test_several_prompts_have_a_circuit_each_and_a_table(run, tmp_path):
    lines = [{"prompt": "import os"}, {"prompt": "def main(self"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"graph__prompt": None, "graph__prompts": str(tmp_path / "prompts.jsonl"), "search__by": "zero"}
    made = graph_naive.run(ask(run, **changes))
    found = graphs.from_records(Stream(made))
    assert [(graph.head.name, graph.head.prompt) for graph in found] == [
        ("search-1", "import os"),
        ("search-2", "def main(self"),
    ]
    sizes = [len(graph.nodes) - 1 for graph in found]
    told = made[-1]
    assert told.n_prompts == 2 and told.median_nodes == told.mean_nodes == sum(sizes) / 2
    single = graphs.from_records(Stream(graph_naive.run(ask(run, search__by="zero"))))[-1]
    assert (single.nodes, single.edges) == (found[0].nodes, found[0].edges), "each prompt by itself"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"graph__metric": "log-prob"}, "it has the metric kl"),
        ({"graph__pin": "1:3"}, "--pin does not go with --search"),
        ({"graph__extend": "x.jsonl"}, "--extend does not go with --search"),
        ({"graph__target": "a"}, "--target does not go with --search"),
        ({"graph__positions": "sum"}, "--positions sum does not go with --search"),
        ({"graph__prompt": "a " * 700}, "the model's window"),
    ],
)
def test_what_a_search_cannot_go_with_is_refused_in_a_line_with_a_hint(run, changes, said):
    with pytest.raises(CircuitError) as caught:
        graph_naive.run(ask(run, **changes))
    assert said in str(caught.value) and caught.value.hint


def test_a_run_without_text_is_refused(run):
    without = Stream(one for one in run.stream() if not isinstance(one, ActivationsRecord))
    with pytest.raises(CircuitError, match="the run has none"):
        graph_naive.run(Request(settings(), without, run))


def test_a_threshold_that_even_all_features_miss_is_said(run, caplog):
    made = graph_naive.run(ask(run, search__max_kl=0.0, search__by="zero"))
    assert made[-1].reached == 0 and "--errors kept" in caplog.text
