"""What a training never costs: the finished one that it is to replace, and what it has trained and measured itself."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from disk_kills import Killed, broken_at

from circuitcli.cli.failures import explain
from circuitcli.errors import CircuitError, InputError, ToolError
from circuitcli.evaluation.held_out import HeldOut
from circuitcli.records import SaeRecord, Stream
from circuitcli.render.curves import find_curves
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.folder import is_recorded, read_config
from circuitcli.settings.sources import load
from circuitcli.stages import collect, evaluate, measuring, train
from circuitcli.stages.request import Request
from circuitcli.training import job, memory
from circuitcli.training.optimiser import CoderOptimiser

HOOKS = ("attn.1", "resid.1")
OPTIONS = {
    "data.layers": "1:2",
    "data.sites": "attn,resid",
    "data.tokens": 1200,
    "data.block_length": 64,
    "sae.k": 4,
    "sae.d_sae": 48,
    "train.batch_size": 128,
    "train.tokens": 640,
    "train.eval_tokens": 120,
    "train.loss_tokens": 0,
    "train.checkpoint_tokens": 256,
    "model.device": "cpu",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with SAEs of sae.k=4; tests copy it."""
    path = tmp_path_factory.mktemp("trained") / "run"
    collect.run(request(path, Stream()))
    train.run(request(path))
    return path


@pytest.fixture
def path(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def request(path: Path, records: Stream | None = None, *, force: bool = False, **changes) -> Request:
    flags = OPTIONS | {name.replace("__", "."): value for name, value in changes.items()}
    run = Run(path)
    return Request(load(flags).settings, run.stream() if records is None else records, run, force)


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, n: int) -> Iterator[list[str]]:
    """Let only n more names of files change while this is open."""
    with monkeypatch.context() as patched:
        yield broken_at(patched, n)


def content(path: Path) -> dict[str, object]:
    """All files of a run, but for times, speeds and what was used last."""
    found: dict[str, object] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_dir() or name == "lock":
            continue
        if name == "run.json":
            stages = json.loads(file.read_text())["stages"]
            changing = {"seconds", "started", "command"}
            found[name] = {
                stage: {k: v for k, v in entry.items() if k not in changing} for stage, entry in stages.items()
            }
        elif file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k not in ("tokens_per_s", "memory_mib")} for line in lines]
        else:
            found[name] = file.read_bytes()
    return found


def assert_finished(path: Path, *, k: int) -> None:
    """The run has SAEs of this k, which are what its records say."""
    found = Run(path).stream().of(SaeRecord)
    assert [(record.hook, record.k) for record in found] == [(hook, k) for hook in HOOKS]
    assert all(is_recorded(path / record.path, record.digest) for record in found)


def test_a_kill_at_any_change_of_the_disk_costs_neither_the_old_nor_the_new_training(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = Path(shutil.copytree(path, tmp_path / "unbroken"))
    train.run(request(unbroken, force=True, sae__k=5))
    # Kills of the training itself are tested elsewhere: here it ends, and one SAE of two is measured.
    with pytest.raises(RuntimeError), monkeypatch.context() as patched:
        patched.setattr(measuring.HeldOut, "facts", failing_at(2))
        train.run(request(path, force=True, sae__k=5))
    monkeypatch.setattr(CoderOptimiser, "step", lambda *_, **__: pytest.fail("what was trained is trained again"))
    with monkeypatch.context() as patched:
        patched.setattr(Run, "promote", lambda *_: (_ for _ in ()).throw(Killed))
        n_measuring = kills_until_over(path, tmp_path / "broken", unbroken, patched, ends=Killed)
        with pytest.raises(Killed):
            train.run(request(path, sae__k=5))
    assert_finished(path, k=4)
    n_replacing = kills_until_over(path, tmp_path / "broken", unbroken, monkeypatch, ends=type(None))
    assert n_measuring > 3 and n_replacing > 20


def kills_until_over(path: Path, broken: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, *, ends: type) -> int:
    """How many changes of the disk a command makes until it ``ends``; a kill at each was made up for."""
    for n in range(200):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(path, broken)
        error = None
        with killed_at(monkeypatch, n) as done:
            try:
                train.run(request(broken, sae__k=5))
            except Killed as killed:
                error = killed
        if Run(broken).stage("train")["state"] == "finished":
            assert_finished(broken, k=Run(broken).stage("train")["settings"]["sae.k"])
        if ends is type(None):
            assert_made(train.run(request(broken, sae__k=5)), k=5)
            assert content(broken) == content(unbroken)
        if len(done) < n:
            assert isinstance(error, ends)
            return n
    raise AssertionError


def assert_made(records: list, *, k: int) -> None:
    assert [(record.hook, record.k) for record in records] == [(hook, k) for hook in HOOKS]


def failing_at(n: int, error: BaseException | None = None):
    """Measuring that fails with the n-th SAE."""
    facts, calls = HeldOut.facts, []

    def wrapped(self, sae, **asked):
        calls.append(sae)
        if len(calls) == n:
            raise error or RuntimeError("the machine fails")
        return facts(self, sae, **asked)

    return wrapped


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (RuntimeError("fault"), {"sae__k": 5}),
        (MemoryError(), {}),
        (CircuitError("no"), {"sae__k": 5}),
        (KeyboardInterrupt(), {"sae__k": 5, "train__sweep": "train.clip=1,2"}),
    ],
    ids=repr,
)
def test_force_that_fails_while_training_gives_the_finished_training_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, changes: dict
) -> None:
    if "train__sweep" in changes:
        train.run(request(path, train__sweep="train.clip=1,2"))
    before = content(path)
    for step in (0, 4):
        learn = CoderOptimiser.step

        def failing(self, batch, *, index, step=step, learn=learn):
            if index == step:
                raise error
            return learn(self, batch, index=index)

        with monkeypatch.context() as patched:
            patched.setattr(CoderOptimiser, "step", failing)
            with pytest.raises(type(error)):
                train.run(request(path, force=True, **changes))
        assert_finished(path, k=4)
        after = content(path)
        kept = {name: value for name, value in after.items() if "checkpoint" not in name and name != "run.json"}
        assert kept == {name: value for name, value in before.items() if name != "run.json"}
        if step == 0 and isinstance(error, MemoryError | CircuitError):
            assert after == before


def too_wide(*_, **__) -> None:
    """As weights of such a width are asked for."""
    torch.zeros(2**48)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_width_that_fits_into_no_memory_leaves_all_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    if is_first:
        shutil.rmtree(path / "saes")
        Run(path).forget(["train"])
    before = content(path)
    with pytest.raises(ToolError, match=r"16,777,216 features need 137 GB or more.* has \d") as caught:
        monkeypatch.setattr(memory, "total_bytes", lambda device: 2**30)
        train.run(request(path, force=not is_first, sae__d_sae=2**24))
    assert "sae.d_sae" in caught.value.hint and content(path) == before
    monkeypatch.undo()
    monkeypatch.setattr(job, "new_optimisers", too_wide)
    with pytest.raises((RuntimeError, MemoryError)) as unforeseen:
        train.run(request(path, force=not is_first, sae__k=5))
    failure = explain(unforeseen.value, "circuit train")
    assert failure.status == 4 and "sae.d_sae" in failure.hint and content(path) == before


def test_what_was_measured_before_a_signal_is_not_measured_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    facts = HeldOut.facts

    def stopped(self, sae, **asked):
        seen.append(str(sae.hook))
        if len(seen) == 2:
            raise SystemExit(143)
        return facts(self, sae, **asked)

    monkeypatch.setattr(measuring.HeldOut, "facts", stopped)
    shutil.rmtree(path / "saes")
    Run(path).forget(["train"])
    with pytest.raises(SystemExit):
        train.run(request(path, sae__k=6))
    assert Run(path).stage("train")["state"] == "interrupted"
    monkeypatch.setattr(CoderOptimiser, "step", lambda *_, **__: pytest.fail("trained again"))
    assert_made(train.run(request(path, sae__k=6)), k=6)
    assert seen == ["attn.1", "resid.1", "resid.1"]
    assert not (path / "saes" / "checkpoint").exists()


def test_other_loss_tokens_measure_again_and_train_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {record.hook: record for record in Run(path).stream().of(SaeRecord)}
    weights = {hook: (path / "saes" / hook / "weights.safetensors").read_bytes() for hook in HOOKS}
    evaluate.run(request(path))
    monkeypatch.setattr(CoderOptimiser, "step", lambda *_, **__: pytest.fail("trained again"))
    with pytest.raises(RuntimeError), monkeypatch.context() as patched:
        patched.setattr(measuring.HeldOut, "facts", failing_at(2))
        train.run(request(path, train__loss_tokens=120))
    assert Run(path).stream().of(SaeRecord) == [*before.values()]
    made = train.run(request(path, train__loss_tokens=120))
    assert [(record.digest, record.explained_variance, record.dead) for record in made] == [
        (old.digest, old.explained_variance, old.dead) for old in before.values()
    ]
    for hook in HOOKS:
        assert (path / "saes" / hook / "weights.safetensors").read_bytes() == weights[hook]
        assert "ce_spliced" in read_config(path / "saes" / hook) and "trained_tokens" in read_config(
            path / "saes" / hook
        )
        assert (path / "saes" / hook / "metrics.jsonl").is_file()
    assert "evaluate" in Run(path).stages()
    assert train.run(request(path)) == [*before.values()]
    assert "ce_spliced" not in read_config(path / "saes" / HOOKS[0])
    with pytest.raises(InputError, match=r"train\.eval_tokens was 120 and is now 65"):
        train.run(request(path, train__eval_tokens=65))


def test_curves_show_a_forced_training_beside_the_finished_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError), monkeypatch.context() as patched:
        patched.setattr(measuring.HeldOut, "facts", failing_at(1))
        train.run(request(path, force=True, sae__k=5))
    found = [(curve.hook, curve.label, len(curve.lines)) for curve in find_curves(path / "saes")]
    assert found == [(hook, label, 5) for hook in HOOKS for label in ("", "in training")]


def test_a_training_that_came_to_nothing_says_so_and_is_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = train.run(request(path, force=True, train__learning_rate=10.0, train__warmup=0.0))
    assert all(record.explained_variance < 0 and "diverged" in record.problems[0] for record in made)
    assert "attn.1: the training diverged: it explains -" in caplog.text and "train.learning_rate" in caplog.text
    assert Run(path).stream().of(SaeRecord)[0].problems == made[0].problems
    caplog.clear()
    assert train.run(request(path, train__learning_rate=10.0, train__warmup=0.0)) == made
    assert "diverged" in caplog.text


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"explained_variance": 0.5, "dead": 0.4}, []),
        ({"explained_variance": 0.5, "dead": 0.91}, ["91% of the features are dead"]),
        ({"explained_variance": None}, ["not a number"]),
        ({"explained_variance": float("nan"), "dead": None}, ["not a number"]),
        ({"explained_variance": float("-inf"), "dead": 1.0}, ["not a number", "100%"]),
        ({"explained_variance": -3e9, "dead": 0.0}, ["-3e+09"]),
    ],
)
def test_what_looks_wrong_is_told_in_words(facts: dict, expected: list[str]) -> None:
    found = measuring.problems(facts)
    assert len(found) == len(expected) and all(text in line for text, line in zip(expected, found, strict=True))


def test_scores_that_are_no_numbers_can_be_written_and_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    facts = HeldOut.facts
    broken = {"explained_variance": float("-inf"), "mse": float("nan"), "density": {"x": [float("inf"), 1.0]}}
    monkeypatch.setattr(measuring.HeldOut, "facts", lambda self, sae, **asked: facts(self, sae, **asked) | broken)
    made = train.run(request(path, force=True, sae__k=7))
    assert [record.explained_variance for record in made] == [None, None] and "not a number" in made[0].problems[0]
    config = read_config(path / "saes" / "resid.1")
    assert (config["explained_variance"], config["mse"], config["density"]) == (None, None, {"x": [None, 1.0]})
    assert torch.equal(files.load(path / "saes" / "resid.1").W_enc, files.load(path / "saes" / "resid.1").W_enc)
    assert request(path).records.of(SaeRecord) == made
