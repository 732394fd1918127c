"""Broken and resumed training against unbroken training, bit for bit."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import nursery
import pytest
import torch
from disk_kills import NAMES, Killed, broken_at
from training_fakes import planted, trainer

from circuitcli import progress
from circuitcli.errors import CircuitError, InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.stages.unfinished import Unfinished
from circuitcli.training import trainer as trainer_module
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.log import MetricsLog
from circuitcli.training.trainer import Trainer

HOOKS = (HookPoint(0, "attn"), HookPoint(1, "resid"))
N_STEPS = 40


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(directory: Path, *, n_steps: int = N_STEPS) -> Trainer:
    rows = {hook: planted(2_000, seed=seed)[0] for seed, hook in enumerate(HOOKS)}
    return trainer(directory, rows, n_steps=n_steps)


def weights(made: Trainer) -> list[torch.Tensor]:
    return [tensor for optimiser in made.optimisers for tensor in optimiser.state().values()]


def lines(directory: Path, hook: HookPoint) -> list[dict[str, float]]:
    text = (directory / str(hook) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same(directory: Path, reference: Path) -> None:
    """Both ended with the same state and the same numbers in the same lines."""
    one, other = make(directory), make(reference)
    assert one.checkpoints.load(one.optimisers) == other.checkpoints.load(other.optimisers) == N_STEPS
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
    for hook in HOOKS:
        pairs = zip(lines(directory, hook), lines(reference, hook), strict=True)
        for line, expected in pairs:
            changing = {"tokens_per_s", "memory_mib"}
            assert {k: v for k, v in line.items() if k not in changing} == {
                k: v for k, v in expected.items() if k not in changing
            }


def child_at_step(directory: Path, step: int) -> nursery.Process:
    """A process that trains and has done so many steps."""
    end, begin = os.pipe()
    with Path(os.devnull).open() as nothing, os.fdopen(begin, "w") as stdout:
        streams = [nothing.fileno(), stdout.fileno(), 2]
        words = nursery.script(__file__, str(directory))
        process = nursery.start(words, cwd=directory.parent, env=dict(os.environ), streams=streams)
    with os.fdopen(end) as lines:
        for line in lines:
            if int(line) >= step:
                break
    return process


def signalled(made: Trainer, number: signal.Signals) -> None:
    """Let the signal come in the tenth step, before any hook point has learned from the batch."""
    learn = made.optimisers[0].step

    def step(batch, *, index):
        if index == 9:
            os.kill(os.getpid(), number)
        return learn(batch, index=index)

    made.optimisers[0].step = step


def test_killed_training_goes_on_to_the_same_bits(tmp_path: Path):
    make(tmp_path / "unbroken").run()
    broken = tmp_path / "broken"
    moments = random.Random(0)
    for step in (3, 20):
        process = child_at_step(broken, step)
        time.sleep(moments.random() * 0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    make(broken).run()
    assert_same(broken, tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_takes_effect_after_the_step_with_a_checkpoint_of_it(tmp_path: Path, number: signal.Signals):
    def terminate(number, frame):
        raise SystemExit(143)

    made = make(tmp_path / "broken")
    signalled(made, number)
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            made.run()
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)
    assert made.checkpoints.step() == 10
    make(tmp_path / "unbroken").run()
    make(tmp_path / "broken").run()
    assert_same(tmp_path / "broken", tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_ignored_signal_stays_ignored(tmp_path: Path, number: signal.Signals):
    """Shells without job control start what is to run in the background so, as to SIGINT."""
    made = make(tmp_path)
    signalled(made, number)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        made.run()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert made.done == N_STEPS


def test_a_training_that_is_stopped_never_looks_finished(tmp_path: Path):
    """Of several processes one may have got the signal; here the handler lets it pass."""
    made = make(tmp_path)
    signalled(made, signal.SIGTERM)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with pytest.raises(SystemExit) as caught:
            made.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143 and made.checkpoints.step() == 10


def test_second_interrupt_takes_effect_at_once(tmp_path: Path):
    made = make(tmp_path)

    def step(batch, *, index):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError

    made.optimisers[1].step = step
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.checkpoints.step() == 0


def test_keyboard_interrupt_between_steps_leaves_a_checkpoint(tmp_path: Path):
    made = make(tmp_path)
    whole = made.batches

    class Interrupted:
        n_steps = N_STEPS

        def from_step(self, step):
            for index, batch in enumerate(whole.from_step(step)):
                if index == 11:
                    raise KeyboardInterrupt
                yield batch

    made.batches = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.checkpoints.step() == 11


@pytest.mark.parametrize("tf32", [True, False])
def test_gpus_multiply_in_tf32_while_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tf32: bool):
    made, seen = make(tmp_path, n_steps=2), []
    learn = made.optimisers[0].step

    def step(batch, *, index):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return learn(batch, index=index)

    made.optimisers[0].step, made.tf32 = step, tf32
    monkeypatch.setattr(Trainer, "_device", torch.device("cuda"))
    monkeypatch.setattr(trainer_module, "on_device", lambda batches, device: batches)
    monkeypatch.setattr(trainer_module, "peak_memory_mib", lambda device: 0.0)
    before = torch.backends.cuda.matmul.allow_tf32
    made.run()
    assert seen == [tf32, tf32] and torch.backends.cuda.matmul.allow_tf32 == before


def test_the_cpu_multiplies_as_always(tmp_path: Path):
    made = make(tmp_path, n_steps=1)
    learn = made.optimisers[0].step
    made.optimisers[0].step = lambda batch, *, index: (
        pytest.fail("changed") if torch.backends.cuda.matmul.allow_tf32 else learn(batch, index=index)
    )
    made.run()


def test_a_slow_training_saves_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = make(tmp_path / "slow")
    made.checkpoint_steps = N_STEPS
    saved = []
    save = made.checkpoints.save
    clock = iter(range(0, 10_000_000, 130))

    class Watched(Checkpoints):
        def save(self, step, optimisers):
            saved.append(step)
            save(step, optimisers)

    made.checkpoints = Watched(made.checkpoints.directory, "test")
    # Two minutes pass between two looks at the clock, of which there are two or three in a step.
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: float(next(clock)))
    made.run()
    monkeypatch.undo()
    assert saved[-1] == N_STEPS and len(saved) > 3
    assert all(0 < later - earlier <= 20 for earlier, later in pairwise([0, *saved]))
    make(tmp_path / "unbroken").run()
    assert_same(tmp_path / "slow", tmp_path / "unbroken")


def test_metrics_after_the_checkpoint_are_forgotten_with_a_half_written_line(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.path.write_text("".join(f'{{"step": {step}, "tokens": {step}}}\n' for step in (1, 2, 3)) + '{"st')
    log.rewind(2)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]
    log.rewind(0)
    assert log.path.read_text() == ""


def test_checkpoint_of_another_run_or_half_written_is_not_used(tmp_path: Path):
    made = make(tmp_path, n_steps=7)
    made.run()
    directory = made.checkpoints.directory
    assert Checkpoints(directory, "test").step() == 7
    assert Checkpoints(directory, "other").step() == 0
    (directory / "step-00000009.partial").mkdir()
    assert Checkpoints(directory, "test").step() == 7
    assert [path.name for path in directory.glob("step-*")].count("step-00000007") == 1


def test_a_kill_at_any_step_of_saving_and_removing_checkpoints_leaves_one_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = make(tmp_path, n_steps=7)
    made.run()
    seen = set()
    for n in range(100):
        before = made.checkpoints.step()
        with monkeypatch.context() as patched:
            done = broken_at(patched, n, changes=(*NAMES, "fsync"))
            with suppress(Killed):
                made.checkpoints.save(before + 1, made.optimisers)
            is_over = len(done) < n
        step = Checkpoints(made.checkpoints.directory, "test").step()
        assert step in (before, before + 1) and made.checkpoints.load(made.optimisers) == step
        seen.add(step - before)
        if is_over:
            break
    assert seen == {0, 1} and [path.name for path in made.checkpoints.directory.iterdir()] == [f"step-{step:08d}"]
    for n in range(100):
        with monkeypatch.context() as patched:
            broken_at(patched, n, changes=(*NAMES, "fsync"))
            try:
                Unfinished(tmp_path, Path(), "test", {}, is_aside=False).remove()
            except Killed:
                assert Checkpoints(made.checkpoints.directory, "test").step() in (0, step)
                assert made.checkpoints.load(made.optimisers) in (0, step)
                continue
        break
    assert not made.checkpoints.directory.exists()


def test_a_checkpoint_that_lost_a_file_counts_as_none(tmp_path: Path):
    made = make(tmp_path, n_steps=14)
    made.run()
    newest = made.checkpoints.directory / "step-00000014"
    older = newest.with_name("step-00000007")
    for gone in ("state.json", "attn.0.safetensors"):
        shutil.copytree(newest, older)
        (older / "state.json").write_text((newest / "state.json").read_text().replace('"step": 14', '"step": 7'))
        shutil.copytree(newest, tmp_path / "kept")
        (newest / gone).unlink()
        assert made.checkpoints.step() == 7
        shutil.rmtree(older)
        assert made.checkpoints.step() == 0
        shutil.rmtree(newest)
        (tmp_path / "kept").rename(newest)
    assert made.checkpoints.step() == 14


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[" * 50_000,
        b"\xff",
        b'{"step": "7", "fingerprint": "x"}',
        b'{"step": -1, "fingerprint": "x"}',
        b'{"step": 1e400}',
        b'{"step": 7}',
        b'{"step": 7, "fingerprint": "x", "files": ["../../x"]}',
    ],
)
def test_a_state_that_cannot_be_read_is_an_input_error_with_its_file(tmp_path: Path, text: bytes):
    folder = tmp_path / "checkpoint" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "state.json").write_bytes(text)
    with pytest.raises(InputError, match=r"step-00000007/state\.json") as caught:
        Checkpoints(tmp_path / "checkpoint", "test").step()
    assert "--force" in caught.value.hint


def test_damaged_checkpoint_is_reported_with_its_file(tmp_path: Path):
    made = make(tmp_path, n_steps=7)
    made.run()
    file = made.checkpoints.directory / "step-00000007" / "attn.0.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"attn\.0\.safetensors"):
        make(tmp_path, n_steps=7).run()


def test_loss_that_is_not_finite_names_the_hook_point_and_keeps_the_good_checkpoint(tmp_path: Path):
    made = make(tmp_path)
    rows = made.batches.rows[HOOKS[1]]
    whole = made.batches

    class Spoilt:
        n_steps = N_STEPS

        def from_step(self, step):
            for index, batch in enumerate(whole.from_step(step)):
                yield batch | ({HOOKS[1]: rows[:64] * torch.nan} if index == 10 else {})

    made.batches = Spoilt()
    with pytest.raises(CircuitError, match=r"resid.1 is nan after 11 steps"):
        made.run()
    assert made.checkpoints.step() == 7


def test_what_is_learned_at_a_hook_point_does_not_depend_on_the_others(tmp_path: Path):
    rows = {hook: planted(2_000, seed=seed)[0] for seed, hook in enumerate(HOOKS)}
    together = trainer(tmp_path / "together", rows, n_steps=8)
    alone = trainer(tmp_path / "alone", {HOOKS[1]: rows[HOOKS[1]]}, n_steps=8)
    together.run()
    alone.run()
    assert torch.equal(together.optimisers[1].trainable.sae.W_enc, alone.optimisers[0].trainable.sae.W_enc)


def _speak() -> None:
    from contextlib import contextmanager

    @contextmanager
    def sink(title, total, unit, done):
        state = [done]

        def advance(amount=1, *, note=""):
            state[0] += amount
            print(int(state[0]) // 64, flush=True)

        yield advance

    progress.set_sink(sink)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _speak()
    make(Path(sys.argv[1])).run()
