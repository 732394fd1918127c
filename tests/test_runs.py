"""A run directory: whole files or none, one process at a time, and work that is kept, continued or refused."""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cli_support import environment
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcli import runs
from circuitcli.cli.jobs import with_model_of
from circuitcli.errors import CircuitError, InputError, ToolError
from circuitcli.records import NodeRecord, Record, RunRecord, Stream
from circuitcli.runs import Fingerprint, Run
from circuitcli.settings.render import RenderSettings
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import load
from circuitcli.stages.naming import GRAPH, chosen_name
from circuitcli.stages.request import Request, fingerprint, resumable

values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
flat = st.dictionaries(st.text(st.characters(categories=["Ll"]), min_size=1, max_size=3), values, max_size=4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of a model, in which no stage has worked."""
    made = Run(tmp_path / "run")
    made.update_manifest(model="some/model", revision="abc", layers="1:2")
    return made


def print_of(**settings: object) -> Fingerprint:
    return Fingerprint(settings, {"text": "sha256:1"})


NODE = NodeRecord(id="resid.0/1")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "deep" / "file"
    with runs.atomic(path) as stream:
        stream.write("old")
    with pytest.raises(ZeroDivisionError), runs.atomic(path) as stream:
        stream.write("new")
        stream.flush()
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert path.read_text() == "old"


def test_a_file_that_cannot_be_written_is_named_with_a_way_out(tmp_path: Path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises((InputError, OSError)), runs.atomic(tmp_path / "file" / "inside"):
        pass
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken") as caught, runs.atomic(tmp_path / "taken") as stream:
        stream.write("x")
    assert "--run" in caught.value.hint


@given(flat)
def test_digests_do_not_depend_on_the_order_of_keys(content: dict):
    assert runs.digest(content) == runs.digest(dict(reversed(content.items())))


@given(flat, flat)
def test_fingerprints_are_equal_exactly_if_settings_and_inputs_are(one: dict, other: dict):
    first, second = Fingerprint(one, {"a": "x"}), Fingerprint(other, {"a": "x"})
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (first.digest == second.digest) == same
    assert first.digest != Fingerprint(one, {"a": "y"}).digest


def test_a_fingerprint_holds_only_the_settings_that_a_stage_reads(tmp_path: Path):
    made = fingerprint(Request(Settings(), Stream(), Run(tmp_path)), ["render.", "seed"], {}, without=["render.output"])
    assert set(made.settings) == {f"render.{name}" for name in RenderSettings.model_fields if name != "output"} | {
        "seed"
    }


def test_the_first_difference_names_the_setting_and_both_values(run: Run):
    run.begin("train", print_of(**{"sae.k": 32, "seed": 0}))
    with pytest.raises(InputError) as caught:
        run.begin("train", print_of(**{"sae.k": 16, "seed": 0}))
    assert "sae.k was 32 and is now 16" in caught.value.message
    assert "--force" in caught.value.hint
    assert "text was 'sha256:1' and is now 'sha256:2'" in Fingerprint({}, {"text": "sha256:2"}).first_difference(
        {"settings": {}, "inputs": {"text": "sha256:1"}}
    )


def test_a_setting_that_is_gone_or_new_is_a_difference_too():
    before = {"settings": {"a": 1, "b": 2}, "inputs": {}}
    assert Fingerprint({"a": 1}, {}).first_difference(before) == "b was 2 and is now None"
    assert Fingerprint({"a": 1, "b": 2, "c": 3}, {}).first_difference(before) == "c was None and is now 3"
    assert "version" in Fingerprint({"a": 1, "b": 2}, {}).first_difference(before)


def test_further_differences_are_named_too():
    before = {"settings": dict.fromkeys("abcdefgh", 1), "inputs": {}}
    told = [
        Fingerprint(dict.fromkeys("abcdefgh", 1) | dict.fromkeys(names, 2), {}) for names in ("cd", "cdefg", "cdefgh")
    ]
    assert [print_.first_difference(before) for print_ in told] == [
        "c was 1 and is now 2; d too",
        "c was 1 and is now 2; d e f g too",
        "c was 1 and is now 2; d e f others too",
    ]


def test_finished_work_is_kept_and_returned_without_working(run: Run):
    request = Request(Settings(), Stream(), run)
    calls: list[bool] = []

    def work(resumes: bool) -> tuple[list[Record], dict]:
        calls.append(resumes)
        return [NODE], {"n_nodes": 1}

    first, second = (resumable(request, "train", print_of(k=1), work) for _ in range(2))
    assert first == second == [NODE]
    assert calls == [False]
    assert run.stage("train")["n_nodes"] == 1
    resumable(Request(Settings(), Stream(), run, force=True), "train", print_of(k=1), work)
    assert calls == [False, False]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_interrupted_work_goes_on_and_adds_up_its_seconds(run: Run, stop: type[BaseException]):
    request = Request(Settings(), Stream(), run)

    def interrupted(resumes: bool) -> tuple[list[Record], dict]:
        time.sleep(0.01)
        raise stop

    with pytest.raises(stop):
        resumable(request, "train", print_of(k=1), interrupted)
    assert run.stage("train")["state"] == "interrupted"
    assert run.finished("train", print_of(k=1)) is None
    before = run.stage("train")["seconds"]
    assert before >= 0.01
    resumed: list[bool] = []
    resumable(request, "train", print_of(k=1), lambda resumes: (resumed.append(resumes) or [NODE], {}))
    assert resumed == [True]
    assert run.stage("train")["seconds"] >= before


def test_force_starts_over(run: Run):
    run.begin("train", print_of(k=1))
    assert run.begin("train", print_of(k=1))
    assert not run.begin("train", print_of(k=2), force=True)
    assert not run.begin("train", print_of(k=2), force=True)


def test_the_stream_of_a_run_is_what_a_pipe_would_have_carried(run: Run):
    for name, index in (("collect", 0), ("train", 1), ("collect", 2)):
        run.begin(name, print_of(k=index), force=True)
        run.finish(name, [NodeRecord(id=f"resid.0/{index}")], seconds=0.0)
    run.begin("interp", print_of())
    stream = run.stream()
    assert stream.last(RunRecord) == run.record()
    assert [record.id for record in stream.of(NodeRecord)] == ["resid.0/1", "resid.0/2"]
    assert (run.record().model, run.record().revision, run.record().layers) == ("some/model", "abc", "1:2")


def test_graphs_of_several_names_are_stages_of_their_own(run: Run):
    for name in ("graph-grad:one", "graph-grad:two"):
        run.begin(name, print_of(name=name))
        run.finish(name, [NodeRecord(id="output", name=name)], seconds=0.0)
    assert [record.name for record in run.stream().of(NodeRecord)] == ["graph-grad:one", "graph-grad:two"]


@pytest.mark.parametrize("text", ["{", '{"format": 99}', "[]"])
def test_a_manifest_that_cannot_be_read_is_refused(run: Run, text: str):
    run.manifest_path.write_text(text)
    with pytest.raises(InputError) as caught:
        run.manifest()
    assert "--run" in caught.value.hint


def test_a_directory_without_a_manifest_is_no_run(tmp_path: Path):
    with pytest.raises(InputError, match="not a run directory") as caught:
        Run(tmp_path).record()
    assert "circuit collect" in caught.value.hint


HOLDER = """
import sys, time
from pathlib import Path
from circuitcli.runs import Run
sys.argv = ["circuit", "train", "--run", "a run"]
with Run(Path(sys.stdin.readline().strip())).lock():
    print("held", flush=True)
    time.sleep(30)
"""


def test_a_second_process_is_refused_at_once_and_told_who_the_first_is(run: Run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    )
    holder.stdin.write(f"{run.path}\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "held\n"
    start = time.monotonic()
    with pytest.raises(InputError) as caught, run.lock():
        pass
    assert time.monotonic() - start < 1
    assert f"process {holder.pid}: circuit train --run 'a run'" in caught.value.message
    holder.kill()
    holder.communicate()
    with run.lock():
        assert f"process {os.getpid()}" in (run.path / "lock").read_text()
    assert (run.path / "lock").read_text() == ""


def test_a_run_that_began_and_came_to_nothing_leaves_no_folder(tmp_path: Path):
    run = Run(tmp_path / "runs/new")
    with pytest.raises(InputError, match="no text"), run.lock():
        raise InputError("no text")
    assert not run.path.exists() and (tmp_path / "runs").exists()
    with run.lock():
        (run.path / "kept").touch()
    assert sorted(path.name for path in run.path.iterdir()) == ["kept", "lock"]
    (run.path / "kept").unlink()
    with run.lock():
        pass
    assert (run.path / "lock").exists()


def test_the_run_used_last_in_a_directory_is_the_current_one(run: Run, tmp_path: Path):
    (other := tmp_path / "other").mkdir()
    assert runs.current(None, other) is None
    runs.remember(run, other)
    assert runs.current(None, other).path == run.path
    assert runs.current("named", other).path == Path("named")
    run.manifest_path.unlink()
    assert runs.current(None, other) is None


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("gpt2", "gpt2"),
        ("EleutherAI/pythia-70m", "EleutherAI-pythia-70m"),
        ("builtin:tiny", "builtin-tiny"),
        ("/models/llama/", "llama"),
        ("./here", "here"),
        ("some/where/model.Q8_0.gguf", "model.Q8_0.gguf"),
        ("..", "model"),
        ("a b/ü", "a-b"),
    ],
)
def test_a_run_is_named_after_its_model(model: str, slug: str):
    assert runs.model_slug(model) == slug


@given(st.text(min_size=1))
def test_any_model_name_makes_one_plain_directory_name(model: str):
    slug = runs.model_slug(model)
    assert slug and "/" not in slug and slug not in (".", "..")
    assert Path(slug).name == slug


@pytest.mark.parametrize("error", [ToolError("no such device"), MemoryError()])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("name", ["train", "graph:new"])
def test_refused_work_leaves_the_manifest_as_it_was_to_the_byte(run: Run, error: Exception, keeps: bool, name: str):
    for stage in ("collect", "train", "interp"):
        run.begin(stage, print_of(k=1))
        run.finish(stage, [NODE], seconds=1.0)
    before = run.manifest_path.read_bytes()

    def refuse(resumes: bool) -> tuple[list[Record], dict]:
        raise error

    with pytest.raises(type(error)):
        request = Request(Settings(), Stream(), run, force=name == "train")
        resumable(request, name, print_of(k=2), refuse, keeps=keeps, partial=run.path / "none")
    assert run.manifest_path.read_bytes() == before
    with pytest.raises(InputError, match="k was 1 and is now 2"):
        resumable(Request(Settings(), Stream(), run), "train", print_of(k=2), refuse, keeps=keeps)
    assert run.manifest_path.read_bytes() == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError, None])
def test_finished_work_counts_until_what_replaces_it_is_finished(run: Run, stop: type[BaseException] | None):
    request, other = Request(Settings(), Stream(), run), NodeRecord(id="resid.0/2")
    forced = Request(Settings(), Stream(), run, force=True)
    calls: list[bool] = []

    def work(resumes: bool) -> tuple[list[Record], dict]:
        calls.append(resumes)
        assert run.stream().of(NodeRecord) == [NODE]
        if stop is not None and len(calls) == 1:
            raise stop
        return [other], {"n": 2}

    resumable(request, "train", print_of(k=1), lambda resumes: ([NODE], {"n": 1}), keeps=True)
    if stop is not None:
        with pytest.raises(stop):
            resumable(forced, "train", print_of(k=2), work, keeps=True)
        assert run.stream().of(NodeRecord) == [NODE] and run.stage("train")["n"] == 1
        assert resumable(request, "train", print_of(k=1), work, keeps=True) == [NODE]
        with pytest.raises(InputError, match="k was 1 and is now 3"):
            resumable(request, "train", print_of(k=3), work, keeps=True)
        assert resumable(request, "train", print_of(k=2), work, keeps=True) == [other]
    else:
        assert resumable(forced, "train", print_of(k=2), work, keeps=True) == [other]
    assert calls == ([False, True] if stop else [False])
    assert run.stream().of(NodeRecord) == [other] and run.stage("train")["n"] == 2 and "next" not in run.stage("train")


def interrupted(resumes: bool) -> tuple[list[Record], dict]:
    raise KeyboardInterrupt


def test_work_that_replaces_a_default_name_is_found_again_by_it(run: Run):
    def name(k: int, *, force: bool = False) -> str:
        return chosen_name(run, GRAPH, asked=None, default="circuit", fingerprint=print_of(k=k), force=force)

    resumable(Request(Settings(), Stream(), run), GRAPH.entry(name(1)), print_of(k=1), lambda _: ([NODE], {}))
    with pytest.raises(KeyboardInterrupt):
        forced = Request(Settings(), Stream(), run, force=True)
        resumable(forced, GRAPH.entry(name(2, force=True)), print_of(k=2), interrupted, keeps=True)
    assert [name(k) for k in (1, 2, 3)] == ["circuit", "circuit", "circuit-2"]


def test_unfinished_work_that_would_make_the_same_again_is_given_up(run: Run):
    request, cleaned = Request(Settings(), Stream(), run), []

    def ask(k: int, work=interrupted, *, force: bool = False) -> list[Record]:
        clean = functools.partial(cleaned.append, k)
        return resumable(replace(request, force=force), "train", print_of(k=k), work, keeps=True, clean=clean)

    ask(1, lambda resumes: ([NODE], {}))
    for k in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            ask(k, force=True)
        cleaned.clear()
        assert ask(1) == [NODE]
        assert (cleaned, "next" in run.stage("train")) == (([1], False) if k == 1 else ([], True))


def test_what_is_measured_otherwise_is_measured_again_and_needs_no_force(run: Run):
    request = Request(Settings(), Stream(), run)
    prints = {n: Fingerprint({"k": 1}, {}, {"train.loss_tokens": n}) for n in (5, 6)}
    calls: list[int] = []
    for n in (5, 5, 6, 6, 5):
        resumable(request, "train", prints[n], lambda resumes, n=n: (calls.append(n) or [NODE], {}), keeps=True)
    assert calls == [5, 6, 5]
    # As a version wrote it that had all settings in one.
    before = Fingerprint({"k": 1, "train.loss_tokens": 5}, {})
    run.update_stage("train", fingerprint=before.digest, settings=dict(before.settings), measuring={})
    assert run.finished("train", prints[5]) == [NODE]
    assert run.finished("train", prints[6]) is None


def test_a_run_that_was_removed_does_not_come_back(run: Run):
    def work(resumes: bool) -> tuple[list[Record], dict]:
        shutil.rmtree(run.path)
        with runs.atomic(run.path / "deep" / "file") as stream:
            stream.write("x")
        raise AssertionError

    for with_error in (work, lambda resumes: (shutil.rmtree(run.path), ([NODE], {}))[1]):
        run.path.mkdir(exist_ok=True)
        run.update_manifest(model="some/model")
        with pytest.raises(InputError, match="was removed while the command was working") as caught:
            resumable(Request(Settings(), Stream(), run), "train", print_of(k=1), with_error)
        assert "circuit collect" in caught.value.hint and not run.path.exists()
    with pytest.raises(InputError, match="is gone"):
        resumable(Request(Settings(), Stream(), run), "train", print_of(k=1), work)
    assert not run.path.exists()


def test_a_run_that_was_replaced_is_not_written_to(run: Run):
    def work(resumes: bool) -> tuple[list[Record], dict]:
        run.path.rename(run.path.with_name("moved"))
        run.path.mkdir()
        (run.path / "lock").touch()
        return [NODE], {}

    with pytest.raises(InputError, match="was removed"):
        resumable(Request(Settings(), Stream(), run), "train", print_of(k=1), work)
    assert [path.name for path in run.path.iterdir()] == ["lock"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
)


def leaves(content: object, path: tuple = ()) -> list[tuple]:
    """The places of all values in a tree of JSON."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in leaves(value, (*path, key)))]


MANIFEST = {
    "format": 1,
    "version": "0.1.0",
    "model": "m",
    "revision": None,
    "layers": ":",
    "model_settings": {"model.name": "m", "model.dtype": "float32"},
    "stages": {
        "collect": {"fingerprint": "x", "settings": {"a": 1}, "inputs": {}, "state": "finished", "seconds": 1.5},
        "train": {"state": "finished", "held_out": 3, "damaged": ["x"], "next": {"seconds": 1, "settings": {}}},
    },
}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_manifest_with_any_value_of_a_wrong_kind_is_an_input_error_or_works(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    content = copy.deepcopy(MANIFEST)
    *above, last = data.draw(st.sampled_from([place for place in leaves(content) if place]))
    holder = content
    for key in above:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[last] = data.draw(json_values)
    else:
        del holder[last]
    run = Run(tmp_path_factory.mktemp("bad"))
    run.manifest_path.write_text(json.dumps(content))
    (run.path / "records").mkdir()
    for name in ("collect", "train"):
        (run.path / "records" / f"{name}.jsonl").write_text("")
    with suppress(CircuitError):
        run.record(), run.stream(), with_model_of(run, load({}))
        for name in run.stages():
            run.finished(name, print_of(k=1)), print_of(k=1).first_difference(run.stage(name))
        run.begin("train", print_of(k=1), force=True, keeps=True)
        run.interrupt("train", seconds=1.0)
        run.finish("train", [NODE], seconds=1.0)


@pytest.mark.parametrize(
    "text",
    [b"\xff", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b'{"format": 1, "model": 1e999}', b""],
)
def test_bytes_that_are_no_manifest_are_refused_by_name(run: Run, text: bytes):
    run.manifest_path.write_bytes(text)
    with pytest.raises(InputError, match=r"run\.json"):
        run.manifest()


def test_a_pointer_that_is_no_text_is_refused_by_name(run: Run, tmp_path: Path):
    (tmp_path / runs.POINTER).write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"\.circuit-run is not UTF-8"):
        runs.current(None, tmp_path)
