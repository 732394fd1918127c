"""`circuit interp --neuronpedia` against a stand-in for the site: what is fetched, what is kept, what is told."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cli_support import Outcome, here
from test_hand_labels import run  # noqa: F401
from test_render import feature

from circuitcli.explaining import server
from circuitcli.features.label_files import Label, LabelBook, keep
from circuitcli.runs import Run

PLACE = "gpt2-small/0-res-jb"
SERVICE_KEY = "np-secret-0123456789"


class Site:
    """What the stand-in answers, by index, and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.keys: list[str | None] = []
        self.failures: list[tuple[int, str]] = []
        self.url = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(server, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", SERVICE_KEY)
    made = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            made.keys.append(self.headers["x-api-key"])
            status, text = made.failures.pop(0) if made.failures else made.answers.get(self.path, (404, "{}"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            return

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    found.shutdown()
    found.server_close()


def explained(*descriptions: object) -> tuple[int, str]:
    listed = [{"description": text, "explanationModelName": "gpt-4o"} for text in descriptions]
    return 200, json.dumps({"modelId": "gpt2-small", "explanations": listed})


def ask(run: Run, site: Site, *words: str, place: str | None = PLACE) -> Outcome:  # noqa: F811
    named = [] if place is None else ["--set", f"explain.neuronpedia_source={place}"]
    url = ["--set", f"explain.neuronpedia_url={site.url}", "--set", "explain.retries=1"]
    return here("interp", "--neuronpedia", *url, *named, "--run", str(run.path), *words, cwd=run.path.parent)


def test_labels_are_fetched_once_and_lose_against_a_model_and_a_hand(run: Run, site: Site) -> None:  # noqa: F811
    site.answers = {
        f"/api/feature/{PLACE}/7": explained("names of people ", "second"),
        f"/api/feature/{PLACE}/8": explained(),
    }
    both = ("--features", "resid.0/7,resid.0/8")
    done = ask(run, site, *both, place="gpt2-small/{layer}-res-jb")
    assert done.status == 0, done.stderr
    assert [(record["source"], record["n_new"]) for record in done.records if record["kind"] == "labels"] == [
        ("neuronpedia", 1)
    ]
    assert "no label of 1 of 2" in done.stderr and set(site.keys) == {SERVICE_KEY}

    def shown() -> dict:
        return here("interp", "--feature", "resid.0/7", "--run", str(run.path), cwd=run.path.parent).records[0]

    assert (shown()["label"], shown()["label_source"]) == ("names of people", "neuronpedia")
    assert ask(run, site, *both).status == 0 and len(site.asked) == 2
    for source in ("model", "hand"):
        keep(run.path, source, [Label(id="resid.0/7", label=source, label_source=source)])
        assert shown()["label"] == source
    kept = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert SERVICE_KEY.encode() not in kept


def test_nothing_is_fetched_unless_asked_for(run: Run, site: Site) -> None:  # noqa: F811
    for words in (("interp", "--feature", "resid.0/7"), ("render", "-o", "a.json")):
        assert here(*words, "--run", str(run.path), cwd=run.path.parent).status == 0
    assert site.asked == [] and not any(LabelBook.of(run.path).labels)
    assert feature()["label"]


@pytest.mark.parametrize(
    ("failures", "answer", "status", "told"),
    [
        ([(500, "oops"), (429, "")], explained("x"), 4, "said 429"),
        ([(503, "")], explained("x"), 0, ""),
        ([(200, "no JSON")] * 2, explained("x"), 4, "not those of Neuronpedia"),
        ([(403, SERVICE_KEY)], explained("x"), 4, "said 403: ***"),
        ([], (404, "{}"), 4, "is not there"),
        ([], (200, '{"explanations": 5}'), 0, "no label of 1"),
        ([], (200, '{"explanations": [5, {"description": 4}, {"description": "  "}]}'), 0, "no label of 1"),
        ([], explained("\ud800".encode("utf-16", "surrogatepass").hex()), 0, ""),
    ],
)
def test_what_goes_wrong_is_told_in_two_lines(
    run: Run,  # noqa: F811
    site: Site,
    failures: list,
    answer: tuple[int, str],
    status: int,
    told: str,
) -> None:
    site.failures, site.answers = list(failures), {f"/api/feature/{PLACE}/7": answer}
    done = ask(run, site, "--features", "resid.0/7")
    assert done.status == status and told in done.stderr and SERVICE_KEY not in done.stderr
    assert len(done.errors) == (2 if status else 0)


@pytest.mark.parametrize(("place", "status"), [(None, 3), ("no place", 2), ("../../x/y", 2)])
def test_coders_that_are_not_known_to_be_there_are_an_error(
    run: Run,  # noqa: F811
    site: Site,
    place: str | None,
    status: int,
) -> None:
    done = ask(run, site, place=place)
    assert done.status == status and len(done.errors) == 2 and not site.asked


def test_a_graph_of_a_release_says_where_its_coders_are(tmp_path: Path, site: Site) -> None:
    from test_render import small_graph

    from circuitcli import runs
    from circuitcli.graphs import to_records

    made = Run(tmp_path / "run")
    graph = small_graph(saes={"resid.0": "sha256:a"}, neuronpedia={"resid.0": PLACE})
    made.begin("graph:circuit", runs.Fingerprint({}, {}))
    made.finish("graph:circuit", [*to_records(graph)], seconds=0.0)
    site.answers = {f"/api/feature/{PLACE}/7": explained("from the release")}
    assert ask(made, site, place=None).status == 0
    assert LabelBook.of(made.path).of_feature("resid.0/7", sae="sha256:a").label == "from the release"
