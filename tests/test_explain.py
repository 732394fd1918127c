"""`circuit interp --explain` against a server that knows each feature's rule, one that guesses, and ones that fail."""

import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import fake_server
import pytest
import torch
from cli_support import here
from fake_server import SERVICE_KEY, coin, oracle, serving
from support_collect import hf_gpt2, save_model, tokenizer
from test_render import small_graph

import circuitcli as circuit
from circuitcli import records
from circuitcli.errors import InputError, SettingsError, ToolError
from circuitcli.explaining import answer_cache, server
from circuitcli.explaining.asking import Answer, Ask
from circuitcli.explaining.exchange import Secret
from circuitcli.explaining.price import Budget, Prices, expected_in, expected_out
from circuitcli.explaining.server import Limits, Server
from circuitcli.features.label_files import MODEL, LabelBook, read_kept
from circuitcli.graphs import CircuitGraph, Node, to_records
from circuitcli.hookpoints import HookPoint
from circuitcli.records import FeaturesRecord, LabelScoreRecord, SaeRecord, Stream
from circuitcli.runs import Fingerprint, Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.explain import ExplainSettings
from circuitcli.settings.settings import Settings
from circuitcli.stages import collect, explain
from circuitcli.stages.explained_features import chosen
from circuitcli.stages.request import Request

LETTERS = "abcdefghijklmnopqrst"
N_FEATURES, DEAD = 6, 22
EMBED = HookPoint(0, "embed")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A run whose feature n is active, by 1, at the n-th letter of the alphabet alone; 20 to 23 are dead."""
    folder = tmp_path_factory.mktemp("explain")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, len(LETTERS), (4000,), generator=generator)
    (folder / "text.txt").write_text("".join(LETTERS[number] for number in drawn.tolist()), encoding="utf-8")
    data = {"text": str(folder / "text.txt"), "layers": "0", "sites": ["embed"], "block_length": 20, "dtype": "float32"}
    settings = Settings.model_validate({"model": {"name": str(save_model(folder / "model"))}, "data": data})
    request = Request(settings, Stream(), Run(folder / "run"))
    made = collect.run(request)
    rows = hf_gpt2().transformer.wte.weight.detach()[[tokenizer().encode(letter)[0] for letter in LETTERS]]
    sae = TopKSae(SaeConfig(EMBED, 24, 24), k=1).requires_grad_(False)
    sae.W_enc.zero_()
    sae.W_enc[:, : len(LETTERS)] = torch.linalg.pinv(rows)
    sae.W_dec[: len(LETTERS)] = rows
    digest = files.save(sae, request.run.path / "saes" / "embed")
    record = SaeRecord(hook="embed", architecture="topk", d_in=24, d_sae=24, path="saes/embed", digest=digest)
    return replace(request, records=Stream([*made, record]))


@pytest.fixture
def fresh(collected: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """The same run, of which nothing is explained yet; pauses are short."""
    (tmp_path / "run").mkdir()
    for name in ("activations", "saes", "run.json"):
        (tmp_path / "run" / name).symlink_to(collected.run.path / name)
    manifest = (collected.run.path / "run.json").read_text(encoding="utf-8")
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "run.json").write_text(manifest, encoding="utf-8")
    monkeypatch.setattr(server, "FIRST_PAUSE_S", 0.01)
    return replace(collected, run=Run(tmp_path / "run"))


def asking(request: Request, url: str | None, **changes: object) -> Request:
    features = tuple(f"embed/{number}" for number in range(N_FEATURES))
    usual = {"features": features, "model": "fake", "base_url": url, "window": 4, "shown": 6, "scored": 8}
    section = request.settings.explain.model_validate({**usual, **changes})
    return replace(request, settings=request.settings.model_copy(update={"explain": section}))


def scores(made: list[records.Record]) -> dict[tuple[str, str], LabelScoreRecord]:
    return {(one.score, one.labels): one for one in made if isinstance(one, LabelScoreRecord)}


def test_a_model_that_finds_the_rule_scores_1_and_other_labels_nothing(fresh: Request) -> None:
    """Detection, fuzzing and simulation alike; and of so plain features the rules' labels do as well."""
    with serving(oracle) as fake:
        made = explain.run(asking(fresh, fake.url, score="detection,fuzzing,simulation"))
    found = scores(made)
    for name in ("detection", "fuzzing", "simulation"):
        assert found[name, "model"].value == pytest.approx(1) and found[name, "model"].low == pytest.approx(1)
        assert abs(found[name, "random"].value - (0 if name == "simulation" else 0.5)) < 0.15
        assert {found[name, labels].n_features for labels in ("model", "random")} == {N_FEATURES}
        assert found[name, "model"].n_invalid == 0
    assert found["detection", "rules"].value == found["fuzzing", "rules"].value == 1
    assert found["detection", "rules"].judge is None and found["detection", "model"].judge == "fake"
    kept = read_kept(fresh.run.path, "model")
    assert {name: label.label for name, label in kept.items()} == {
        f"embed/{number}": f"the letter {LETTERS[number]}" for number in range(N_FEATURES)
    }
    assert {label.label_score for label in kept.values()} == {1.0}
    assert LabelBook.of(fresh.run.path).of_feature("embed/0").label_source == "model"


def test_guesses_score_as_chance(fresh: Request) -> None:
    with serving(coin) as fake:
        found = scores(explain.run(asking(fresh, fake.url)))
    for record in found.values():
        if record.labels != "rules":
            assert abs(record.value - 0.5) < 0.15 and record.low < record.value < record.high


FAILURES = {
    "server errors": [(500, {}, "oops"), (503, {}, "")],
    "silence": [0.6, 0.6],
    "nonsense": [
        (200, {}, "no JSON"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": 4}}]}'),
    ],
    "too many": [(429, {"Retry-After": "0.2"}, '{"error": {"message": "slow down"}}')],
}


@pytest.mark.parametrize("faults", FAILURES.values(), ids=FAILURES)
def test_what_fails_and_may_pass_is_asked_again(fresh: Request, faults: list) -> None:
    with serving(oracle, faults=list(faults)) as fake:
        made = explain.run(asking(fresh, fake.url, timeout_s=0.3, concurrency=1, score="detection", random_label=False))
    assert scores(made)["detection", "model"].value == 1
    assert len(fake.prompts) == len(set(fake.prompts)) + len(faults)
    if faults[0][0] == 429 if isinstance(faults[0], tuple) else False:
        assert fake.times[1] - fake.times[0] >= 0.2


def test_a_server_that_never_recovers_is_told_and_what_it_answered_before_is_kept(fresh: Request) -> None:
    with serving(oracle) as fake:

        def failing(system: str, user: str) -> str:
            if len(fake.prompts) > 10:
                fake.faults += [(502, {}, "bad gateway")] * 100
            return oracle(system, user)

        fake.brain = failing
        with pytest.raises(ToolError, match=r"said 502: bad gateway, 2 times") as raised:
            explain.run(asking(fresh, fake.url, retries=1, concurrency=2))
        assert raised.value.hint.startswith("what was answered is kept")
        n_before = len(read_answers(fresh))
        assert n_before >= 10
        fake.brain, fake.faults, fake.prompts = oracle, [], []
        assert scores(explain.run(asking(fresh, fake.url, retries=1, concurrency=2)))["fuzzing", "model"].value == 1
        assert len(fake.prompts) + n_before == len(read_answers(fresh))


def read_answers(request: Request) -> list[tuple]:
    with sqlite3.connect(explain.cache_path(request)) as base:
        return base.execute("SELECT * FROM answers").fetchall()


def test_after_an_interrupt_nothing_that_was_answered_is_asked_again(fresh: Request) -> None:
    """Questions under way when Ctrl-C comes are answered first; then a finished stage asks nothing, nor does another
    run with the same answers."""
    killed: list[bool] = []
    with serving(oracle, slow_s=0.02) as fake:

        def interrupting(system: str, user: str) -> str:
            if len(fake.prompts) >= 12 and not killed:
                killed.append(True)
                os.kill(os.getpid(), signal.SIGINT)
            return oracle(system, user)

        fake.brain = interrupting
        with pytest.raises(KeyboardInterrupt):
            explain.run(asking(fresh, fake.url, concurrency=4))
        assert 12 <= len(fake.prompts) < 20
        made = explain.run(asking(fresh, fake.url, concurrency=4))
        assert len(fake.prompts) == len(set(fake.prompts)) == len(read_answers(fresh))
        assert explain.run(asking(fresh, fake.url)) == made
        assert explain.run(replace(asking(fresh, fake.url), force=True)) == made
        answers = fresh.run.path.parent / "shared.sqlite"
        answers.write_bytes(explain.cache_path(fresh).read_bytes())
        assert explain.run(replace(asking(fresh, fake.url, cache=str(answers)), force=True)) == made
        assert len(fake.prompts) == len(read_answers(fresh))


@pytest.mark.parametrize(
    "said", ["I cannot say.", "[1, 0]", "", "[2, 0, 1, 1, 0]", "[0.5, 0, 1, 1, 0]", '["1", "0", "1", "1", "0"]']
)
def test_answers_without_a_judgement_count_neither_way(fresh: Request, said: str) -> None:
    brain = lambda system, user: oracle(system, user) if "LABEL:" in system else said  # noqa: E731
    with serving(brain) as fake:
        made = explain.run(
            asking(fresh, fake.url, score="detection", random_label=False, scored=5, features=("embed/1",))
        )
    record = scores(made)["detection", "model"]
    assert record.value is None and record.n_features == 0
    assert record.n_invalid == record.n_examples == 10
    assert read_kept(fresh.run.path, "model")["embed/1"].label_score is None


def test_labels_that_score_too_little_are_not_shown(fresh: Request, caplog: pytest.LogCaptureFixture) -> None:
    with serving(coin) as fake:
        made = explain.run(asking(fresh, fake.url, least_score=1.0, score="detection", scored=4))
    assert read_kept(fresh.run.path, "model") == {} and scores(made)["detection", "model"].n_features == N_FEATURES
    assert "6 of 6 labels score less" in caplog.text


@pytest.mark.parametrize(
    "said", ["", "Here is\nmy answer", "LABEL:\n", "LABEL: " + "x" * 1000, "<think>LABEL: no</think>"]
)
def test_an_answer_without_a_label_leaves_the_rules_own(fresh: Request, said: str, caplog) -> None:
    with serving(lambda *_: said) as fake:
        made = explain.run(asking(fresh, fake.url, features=("embed/1",)))
    assert made == [] and read_kept(fresh.run.path, "model") == {} and "1 of 1 answers hold no label" in caplog.text


def test_a_key_is_sent_and_neither_shown_nor_kept(fresh: Request, monkeypatch, caplog) -> None:
    """Whatever the server does with it: errors that repeat it come without."""
    monkeypatch.setenv("OPENAI_API_KEY", SERVICE_KEY)
    refusal = json.dumps({"error": {"message": f"Incorrect API key provided: {SERVICE_KEY}"}})
    caplog.set_level(0)
    with serving(oracle, faults=[(500, {}, f"{SERVICE_KEY} failed"), (401, {}, refusal)]) as fake:
        with pytest.raises(ToolError, match=r"refuses the key \(401\): Incorrect API key provided: \*\*\*") as raised:
            explain.run(asking(fresh, fake.url, concurrency=1))
        explain.run(asking(fresh, fake.url))
    assert set(fake.keys) == {f"Bearer {SERVICE_KEY}"}
    shown = str(raised.value) + raised.value.hint + caplog.text
    kept = b"".join(path.read_bytes() for path in fresh.run.path.rglob("*") if path.is_file())
    assert SERVICE_KEY not in shown and SERVICE_KEY.encode() not in kept
    assert "sk-proj" not in shown and b"sk-proj" not in kept


def test_a_key_comes_from_a_file_and_is_one_line(fresh: Request, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(SERVICE_KEY + "\n", encoding="utf-8")
    with serving(oracle) as fake:
        explain.run(asking(fresh, fake.url, key_file=str(file), features=("embed/1",)))
        assert set(fake.keys) == {f"Bearer {SERVICE_KEY}"}
        for bad in ("", f"{SERVICE_KEY}\nX-Other: 1", "a b", "\u00e9"):
            file.write_text(bad, encoding="utf-8")
            with pytest.raises(InputError) as raised:
                explain.run(asking(fresh, fake.url, key_file=str(file), features=("embed/2",)))
            assert SERVICE_KEY not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["https://me:pass@host/v1", "https://host/v1?key=pass", "ftp://host", "host:80", "http://", "http://[x"]
)
def test_an_address_is_only_an_address_and_shows_no_password(fresh: Request, url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        explain.run(asking(fresh, url))
    assert "pass" not in str(raised.value).replace("password", "")


def test_nothing_is_asked_before_price_and_limit_are_known(fresh: Request) -> None:
    with pytest.raises(SettingsError, match=r"the price of fake at https://example.com/v1 is not known"):
        explain.run(asking(fresh, "https://example.com/v1"))
    with serving(oracle) as fake:
        with pytest.raises(SettingsError, match=r"would cost about \$[\d.]+, more than --max-usd 0.01") as raised:
            explain.run(asking(fresh, fake.url, price_in=1.0, price_out=10.0, max_usd=0.01))
        plan = dict(explain.plan(asking(fresh, fake.url, price_in=1.0, price_out=10.0, max_usd=0.01)))
        assert not fake.prompts and not read_answers(fresh)
        asked_for = float(raised.value.hint.split("--max-usd ")[1].split(",")[0])
        explain.run(asking(fresh, fake.url, price_in=1.0, price_out=10.0, max_usd=asked_for, max_tokens=60))
    assert int(plan["questions to ask"]) == pytest.approx(len(fake.prompts), rel=0.05)
    n_tokens = sum(len("".join(prompt)) // 4 for prompt in fake.prompts)
    assert 0.7 < int(plan["tokens of questions"].split()[1].replace(",", "")) / n_tokens < 1.6


def test_no_more_is_spent_than_allowed_whatever_the_estimate_was(fresh: Request, monkeypatch) -> None:
    """Each answer costs a hundred times what it was expected to."""
    with serving(oracle, usage=False) as fake:
        limits = {"price_in": 0.0, "price_out": 100.0, "max_usd": 0.35, "max_tokens": 500, "concurrency": 4}
        said = lambda system, user: oracle(system, user)  # noqa: E731
        fake.brain = said
        monkeypatch.setattr("circuitcli.explaining.price.expected_out", lambda ask: 1)
        monkeypatch.setattr(fake_server, "_answer", _costly)
        with pytest.raises(ToolError, match=r"\$0\.\d+ of --max-usd 0.35 is spent"):
            explain.run(asking(fresh, fake.url, **limits))
    assert 0 < 0.05 * len(fake.prompts) < 0.35 + 1e-9
    assert len(read_answers(fresh)) == len(fake.prompts)


def _costly(fake: fake_server.Fake, body: dict, prompt: tuple[str, str]) -> str:
    usage = {"prompt_tokens": 10, "completion_tokens": 500}
    return json.dumps({"choices": [{"message": {"content": fake.brain(*prompt)}}], "usage": usage})


def test_servers_are_asked_by_no_more_at_once_than_allowed(fresh: Request) -> None:
    with serving(oracle, slow_s=0.02) as fake:
        explain.run(asking(fresh, fake.url, concurrency=3, features=("embed/1",)))
    assert 1 < fake.most_at_once <= 3


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute"])
def test_rates_are_kept(limit: str) -> None:
    """Two seconds' worth may come at once, here 8 questions; then 4 a second."""
    asks = [Ask("text", "s", f"question {number:2}", 10) for number in range(11)]
    each = expected_in(asks[0]) + expected_out(asks[0]) if limit == "tokens_per_minute" else 1
    rates = {"requests_per_minute": None, "tokens_per_minute": None, limit: 240 * each}
    found: dict[int, Answer] = {}
    with serving(lambda *_: "answer") as fake:
        limits = Limits(concurrency=11, timeout_s=9.0, retries=0, **rates)
        there = Server(fake.url, "m", Secret(), limits, Budget(Prices(0.0, 0.0), 1.0))
        there.answer(asks, found.__setitem__)
    assert len(found) == 11 and fake.times[-1] - fake.times[0] > 0.9 * 3 / 4


def test_a_request_is_put_in_the_words_that_a_server_takes(fresh: Request) -> None:
    refusals = [
        (400, {}, '{"error": {"message": "Unsupported parameter: use max_completion_tokens", "param": "max_tokens"}}'),
        (400, {}, '{"error": {"message": "Only the default is supported.", "param": "temperature"}}'),
    ]
    with serving(oracle, faults=refusals) as fake:
        made = explain.run(asking(fresh, fake.url, concurrency=1, features=("embed/1",)))
    assert scores(made)["detection", "model"].value == 1
    assert [set(body) & {"max_tokens", "max_completion_tokens", "temperature"} for body in fake.bodies[:3]] == [
        {"max_tokens", "temperature"}, {"max_completion_tokens", "temperature"}, {"max_completion_tokens"}
    ]  # fmt: skip
    assert all("max_completion_tokens" in body for body in fake.bodies[2:])


def test_a_text_that_is_refused_counts_as_unanswered_and_other_refusals_end_the_command(fresh: Request) -> None:
    refusal = (400, {}, '{"error": {"message": "maximum context length is 4096 tokens"}}')
    with serving(oracle) as fake:
        fake.faults = [None, refusal]
        made = explain.run(asking(fresh, fake.url, concurrency=1, features=("embed/1",), score="detection"))
        assert scores(made)["detection", "model"].n_invalid == 5
        fake.faults = [(422, {}, '{"error": {"message": "no such field: messages"}}')]
        with pytest.raises(ToolError, match="refuses the question: no such field"):
            explain.run(asking(fresh, fake.url, features=("embed/2",)))
        fake.faults = [(404, {}, "not found")]
        with pytest.raises(ToolError, match="has no model 'fake'"):
            explain.run(asking(fresh, fake.url, features=("embed/2",)))
        fake.faults = [(302, {"Location": "http://127.0.0.1:1/"}, "")]
        with pytest.raises(ToolError, match="sends elsewhere"):
            explain.run(asking(fresh, fake.url, features=("embed/2",)))
    with pytest.raises(ToolError, match="cannot be reached"):
        explain.run(asking(fresh, fake.url, features=("embed/2",), retries=0))


def test_without_log_probabilities_there_is_no_simulation(fresh: Request) -> None:
    with serving(oracle, logprobs=False) as fake:
        made = explain.run(asking(fresh, fake.url, score="simulation", features=("embed/1", "embed/2")))
    record = scores(made)["simulation", "model"]
    assert record.value is None and record.n_invalid == record.n_examples == 16


def test_questions_that_another_process_is_asking_are_waited_for(tmp_path: Path) -> None:
    """Unless it is gone."""
    asks = [Ask("text", "", f"question {number}", 8) for number in range(3)]
    asked: list[str] = []

    class Client:
        name, judges_singly = "m", False

        def answer(self, asks, keep) -> None:
            asked.extend(ask.user for ask in asks)
            for number, ask in enumerate(asks):
                keep(number, Answer(text=ask.user))

    with answer_cache.AnswerCache(tmp_path / "a.sqlite") as cache:
        claim(tmp_path / "a.sqlite", asks[0].key("m"), os.getppid())
        claim(tmp_path / "a.sqlite", asks[1].key("m"), 2**22 + 1)
        other = threading.Timer(0.3, lambda: later(tmp_path / "a.sqlite", asks[0]))
        other.start()
        answers = cache.answers(asks, Client())
    assert asked == ["question 1", "question 2"] and answers[0].text == "from elsewhere"


def later(path: Path, ask: Ask) -> None:
    with answer_cache.AnswerCache(path) as cache:
        cache.keep(ask, "m", Answer(text="from elsewhere"))


def claim(path: Path, key: str, process: int) -> None:
    with sqlite3.connect(path) as base:
        base.execute("INSERT INTO claims VALUES (?, ?, ?)", (key, process, time.time()))


def test_python_explains_as_the_command_does(fresh: Request, tmp_path: Path) -> None:
    """On two copies of a run: the same labels, kept in the same file."""
    of_run(fresh)
    settings = {"window": 4, "scored": 4, "shown": 4, "cache": str(tmp_path / "answers.sqlite")}
    words = [word for name, value in settings.items() for word in ("--set", f"explain.{name}={value}")]
    twin = Path(shutil.copytree(fresh.run.path, tmp_path / "twin", symlinks=True))
    with serving(oracle) as fake:
        asking = ["interp", "--explain", "--base-url", fake.url, "--explainer", "m", "--features", "embed/3,embed/4"]
        assert here(*asking, *words, "--run", str(twin), cwd=tmp_path).status == 0
        n_asked = len(fake.prompts)
        path = fresh.run.path
        labels = circuit.explain(path, "m", ["embed/3", "embed/4"], base_url=fake.url, device="cpu", settings=settings)
        assert 0 < n_asked == len(fake.prompts)
    assert labels == read_kept(twin, MODEL) == read_kept(path, MODEL)
    assert labels["embed/3"].label == "the letter d"
    for bad in ({"run": tmp_path}, {"settings": {"windo": 3}}, {"settings": {"window": -1}}, {"base_url": "x"}):
        with pytest.raises(circuit.CircuitError) as caught:
            circuit.explain(**{"run": path, "explainer": "m", **bad})
        assert caught.value.hint


def of_run(request: Request) -> None:
    """Keep the records of a request in its run, as the commands that make them do."""
    for name, emitted in (("collect", request.records), ("train", request.records.of(SaeRecord))):
        kept = [record for record in emitted if (record.kind == "sae") == (name == "train")]
        request.run.begin(name, Fingerprint({}, {}), force=True)
        request.run.finish(name, kept, seconds=0.0)


@pytest.mark.parametrize("content", [b"no database", None])
def test_an_unusable_file_of_answers_is_told(fresh: Request, content: bytes | None, tmp_path: Path) -> None:
    place = tmp_path / "answers"
    place.mkdir() if content is None else place.write_bytes(content)
    with serving(oracle) as fake, pytest.raises(InputError, match=r"cannot use .*answers"):
        explain.run(asking(fresh, fake.url, cache=str(place)))
    assert not fake.prompts


def test_the_command_explains_and_every_view_shows_the_labels(fresh: Request, monkeypatch) -> None:
    """From a pipe of records to the table, the single feature and the picture; with a key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", SERVICE_KEY)
    run = fresh.run.path
    of_run(fresh)
    words = ["--run", str(run), "--set", "explain.window=4", "--set", "explain.scored=4", "--set", "explain.shown=4"]
    with serving(oracle) as fake:
        asking = ["interp", "--explain", "--base-url", fake.url, "--explainer", "m", "--features", "embed/3,embed/4"]
        planned = here(*asking, "--dry-run", *words, cwd=run.parent)
        assert planned.status == 0 and not fake.prompts and not (run / "features").exists()
        done = here(*asking, *words, cwd=run.parent)
    assert done.status == 0, done.stderr
    assert [record["kind"] for record in done.records if record["kind"] in ("features", "labels", "label-score")] == [
        "features", "labels", *["label-score"] * 6
    ]  # fmt: skip
    shown = here("interp", "--feature", "embed/3", "--run", str(run), cwd=run.parent).records[0]
    assert (shown["label"], shown["label_source"], shown["label_score"]) == ("the letter d", "model", 1.0)
    told = (done, planned, here("interp", "--print-settings", *words, cwd=run.parent))
    assert not any(SERVICE_KEY in outcome.stdout + outcome.stderr for outcome in told)
    assert SERVICE_KEY not in (run / "run.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--dry-run"], 2),
        (["--max-usd", "3"], 2),
        (["--labels", "/nowhere/mine.tsv"], 3),
        (["--explain"], 2),
        (["--explain", "--explainer", "m", "--base-url", "http://127.0.0.1:9", "--features", "resid.7/1"], 3),
        (["--explain", "--explainer", "m", "--base-url", "http://127.0.0.1:9", "--features", "graph:none"], 3),
        (["--explain", "--explainer", "m", "--base-url", "http://127.0.0.1:9", "--features", "embed/22"], 3),
        (["--explain", "--explainer", "m", "--base-url", "http://127.0.0.1:9", "--features", "embed/24"], 3),
        (["--explain", "--explainer", "/nowhere/model", "--features", "embed/1"], 3),
        (["--explain", "--features", "random:0"], 2),
        (["--explain", "--features", "best:x"], 2),
    ],
)
def test_what_cannot_be_explained_is_two_lines(fresh: Request, words: list[str], status: int) -> None:
    for name, kind in (("collect", "activations"), ("train", "sae"), ("interp", "features")):
        kept = [record for record in fresh.records if record.kind == kind]
        if kind == "features":
            (fresh.run.path / "features").mkdir()
            (fresh.run.path / "features" / "embed.jsonl").write_text("", encoding="utf-8")
            kept = [FeaturesRecord(hook="embed", n_live=20, n_dead=4, path="features/embed.jsonl", digest="sha256:0")]
        fresh.run.begin(name, Fingerprint({}, {}), force=True)
        fresh.run.finish(name, kept, seconds=0.0)
    done = here("interp", *words, "--run", str(fresh.run.path), cwd=fresh.run.path.parent)
    assert done.status == status and len(done.errors) == 2, done.stderr
    # The model that is described is not the one that was asked for wrongly.
    assert "--model" not in done.stderr


def test_a_model_in_this_process_is_asked_without_a_server(fresh: Request, tmp_path: Path) -> None:
    """A random one: its labels mean nothing, and its judgements are as good as chance."""
    request = asking(fresh, None, model=str(save_model(tmp_path / "judge")), shown=1, scored=3, window=2)
    made = explain.run(request)
    if not made:
        # A random model may say nothing that could be a label.
        assert read_kept(fresh.run.path, "model") == {}
        return
    record = scores(made)["detection", "model"]
    assert record.auc is not None and record.n_invalid == 0 and record.low <= record.value <= record.high


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("graph", {"resid.0": [7], "mlp.1": [12]}),
        ("graph:other", {"resid.0": [3]}),
        ("best:2", {"mlp.1": [12], "resid.0": [3]}),
        ("random:1", {"resid.0": [5]}),
        ("all", {"resid.0": [5]}),
        ("mlp.1/4,resid.0/2,resid.0/1", {"mlp.1": [4], "resid.0": [1, 2]}),
        ("", {"resid.0": [7], "mlp.1": [12]}),
    ],
)
def test_features_are_chosen_by_name_graph_effect_or_chance(fresh: Request, text: str, expected: dict) -> None:
    other = small_graph(name="other")
    other = CircuitGraph(other.head, (Node("output"), Node("resid.0/3@1", 1.0, -9.0, "nats")), ())
    path = fresh.run.path / "features" / "resid.0.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"id": "resid.0/5"}) + "\n", encoding="utf-8")
    described = FeaturesRecord(hook="resid.0", n_live=1, n_dead=0, path="features/resid.0.jsonl", digest="sha256:0")
    emitted = Stream([*to_records(other), *to_records(small_graph()), described])
    section = ExplainSettings.model_validate({"features": text})
    settings = fresh.settings.model_copy(update={"explain": section})
    hooks = [HookPoint(0, "resid"), HookPoint(1, "mlp")]
    found = chosen(replace(fresh, settings=settings, records=emitted), hooks)
    assert {str(hook): indices for hook, indices in found.items()} == expected
