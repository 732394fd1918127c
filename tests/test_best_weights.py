"""Keeping the weights that do best on held-out tokens: looks change nothing, and the kept weights are those of the
smallest of them."""

import json
import os
import signal
import sys
from pathlib import Path

import nursery
import pytest
import torch
from test_staircase import layers, staircase
from test_train_stage import collected, request, run_path  # noqa: F401
from test_trainable import HOOK, PREDICTS, READS
from torch import Tensor
from training_fakes import SINGLE, MemoryBatches, optimiser, planted, recipe

from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import SettingsError
from circuitcli.evaluation.quality import reconstruction
from circuitcli.hookpoints import HookPoint
from circuitcli.saes import files
from circuitcli.stages import train
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.log import MetricsLog
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import line_steps, look_steps
from circuitcli.training.trainer import Trainer

N_STEPS = 60
Rows = dict[HookPoint, Tensor]


def loss_of(optimiser: CoderOptimiser, batches: list[Rows]) -> float:
    """Over all rows."""
    lengths = [len(next(iter(batch.values()))) for batch in batches]
    losses = [optimiser.full_loss(batch) for batch in batches]
    return sum(n * loss for n, loss in zip(lengths, losses, strict=True)) / sum(lengths)


def held_out(hooks: tuple[HookPoint, ...]) -> list[Rows]:
    """Two batches of unequal size."""
    rows = {hook: planted(300, seed=50 + index)[0] for index, hook in enumerate(hooks)}
    return [{hook: own[:200] for hook, own in rows.items()}, {hook: own[200:] for hook, own in rows.items()}]


def trainable(architecture: str, **changes) -> tuple[CoderOptimiser, Rows]:
    """An optimiser of any architecture, and its rows."""
    made = recipe(N_STEPS, architecture=architecture, k=3, dead_tokens=300, **changes)
    if architecture.startswith("staircase"):
        rows = layers(2_000)
        return staircase(rows, made), rows
    if architecture.endswith("transcoder"):
        rows = {hook: planted(2_000, seed=seed)[0] for seed, hook in enumerate((READS, PREDICTS))}
        return optimiser(READS, rows[READS], made, target=(PREDICTS, rows[PREDICTS])), rows
    rows = {HOOK: planted(2_000)[0]}
    return optimiser(HOOK, rows[HOOK], made), rows


def trainer(directory: Path, architecture: str = "topk", *, looks: bool = True, **changes) -> Trainer:
    made, rows = trainable(architecture, **changes)
    return Trainer(
        [made],
        MemoryBatches(rows, 64, N_STEPS),
        batch_size=64,
        checkpoints=Checkpoints(directory / "checkpoint", "test"),
        checkpoint_steps=7,
        logs={str(hook): MetricsLog(directory / str(hook) / "metrics.jsonl") for hook in made.trainable.sae_hooks},
        held_out=(lambda: held_out(made.trainable.hooks)) if looks else None,
    )


def lines(made: Trainer) -> list[dict[str, float]]:
    return [json.loads(line) for log in made.logs.values() for line in log.path.read_text().splitlines()]


def spoil(made: Trainer, monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """From a step on the learning rate is far too high."""
    schedule = made.optimisers[0].config.schedule
    usual = type(schedule).rate
    monkeypatch.setattr(type(schedule), "rate", lambda self, step: 3.0 if step >= at else usual(self, step))


ALL = [*SINGLE, "staircase", "staircase-detach"]


@pytest.mark.parametrize("architecture", ALL)
def test_looking_changes_no_bit_of_the_training(architecture: str, tmp_path: Path):
    looking, blind = trainer(tmp_path / "a", architecture), trainer(tmp_path / "b", architecture, looks=False)
    looking.run()
    blind.run()
    one, other = (made.optimisers[0].state() for made in (looking, blind))
    assert one.keys() > other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert 0 < looking.optimisers[0].best.step <= N_STEPS and not blind.optimisers[0].best.weights


@pytest.mark.parametrize("architecture", ALL)
def test_kept_are_the_weights_of_the_smallest_look(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = trainer(tmp_path, architecture, clip=1e9)
    spoil(made, monkeypatch, at=40)
    made.run()
    told = lines(made)
    looks = {line["step"]: line["loss_held_out"] for line in told if "loss_held_out" in line}
    assert list(looks) == list(range(3, N_STEPS + 1, 3))
    (optimiser,) = made.optimisers
    best = min(looks, key=lambda step: looks[step])
    assert optimiser.best.step == best <= 42 and optimiser.best.loss == looks[best]
    assert looks[N_STEPS] > 1.5 * looks[best]
    batches = list(held_out(optimiser.trainable.hooks))
    assert loss_of(optimiser, batches) == pytest.approx(looks[N_STEPS], rel=1e-5)
    optimiser.restore_best()
    assert loss_of(optimiser, batches) == pytest.approx(looks[best], rel=1e-5)
    # The same as a training that ends there, of all SAEs that learn together.
    other = trainer(tmp_path / "other", architecture, clip=1e9, looks=False)
    spoil(other, monkeypatch, at=40)
    for index, batch in zip(range(best), other.batches.from_step(0), strict=False):
        other.optimisers[0].step(batch, index=index)
    expected = other.optimisers[0].trainable.state_dict()
    found = optimiser.trainable.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_the_loss_is_the_definition_over_all_held_out_rows():
    made, _ = trainable("topk")
    batches = held_out((HOOK,))
    x = torch.cat([batch[HOOK] for batch in batches]).double()
    sae = made.finished()[HOOK].double()
    with torch.no_grad():
        missed = (sae.reconstruct(x) - x).square().sum() / len(x)
    variance = made.trainable.variance / made.trainable.scale**2
    assert loss_of(made, batches) == pytest.approx(float(missed) / variance, rel=1e-5)


def test_penalties_count_in_full_and_auxk_does_not():
    made, rows = trainable("relu", l1_weight=2.0)
    made.step({HOOK: rows[HOOK][:64]}, index=0)
    made.trainable.silent_tokens.fill_(10_000)
    batches = held_out((HOOK,))
    buffers = {name: buffer.clone() for name, buffer in made.trainable.named_buffers()}
    x = torch.cat([batch[HOOK] for batch in batches]) * made.trainable.scale
    sae = made.trainable.sae
    with torch.no_grad():
        codes = sae.encode(x)
        missed = (sae.decode(codes) - x).square().sum() / len(x)
        l1 = 2.0 * (codes @ sae.W_dec.norm(dim=1)).mean()
    expected = float(missed + l1) / made.trainable.variance
    assert loss_of(made, batches) == pytest.approx(expected, rel=1e-5)
    for name, buffer in made.trainable.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_a_look_that_is_no_number_is_never_the_best():
    made, _ = trainable("topk")
    made.keep_if_best(float("nan"), step=1)
    assert not made.best.weights
    made.restore_best()
    made.keep_if_best(2.0, step=2)
    made.keep_if_best(float("nan"), step=3)
    made.keep_if_best(2.0, step=4)
    assert (made.best.loss, made.best.step) == (2.0, 2)


def test_a_killed_training_remembers_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        broken = tmp_path / "broken"
        done = nursery.run(nursery.script(__file__, str(broken)), cwd=tmp_path, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        whole, resumed = trainer(tmp_path / "whole", clip=1e9), trainer(broken, clip=1e9)
        assert resumed.checkpoints.step() == 49
        spoil(whole, monkeypatch, at=40)
        whole.run()
        resumed.run()
    finally:
        torch.set_num_threads(before)
    one, other = whole.optimisers[0], resumed.optimisers[0]
    # It was found before the kill: nothing behind it is as good.
    assert one.best.step == other.best.step < 49 and one.best.loss == other.best.loss
    states = one.state(), other.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "batchtopk", "staircase"])
def test_two_interrupts_in_a_look_leave_nothing_of_it(architecture: str, tmp_path: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        broken = trainer(tmp_path / "broken", architecture)
        (optimiser,) = broken.optimisers
        look, hooks = optimiser.full_loss, optimiser.trainable.hooks

        def interrupted(batch: Rows) -> float:
            if broken.done == 30 and len(batch[hooks[0]]) == 100:
                optimiser.trainable.training_forward = lambda *_, learn=optimiser.trainable.training_forward, **__: [
                    learn(batch, share=1.0),
                    os.kill(os.getpid(), signal.SIGINT),
                    os.kill(os.getpid(), signal.SIGINT),
                ]
            return look(batch)

        optimiser.full_loss = interrupted
        with pytest.raises(KeyboardInterrupt):
            broken.run()
        assert 0 < broken.checkpoints.step() < 30
        resumed, whole = trainer(tmp_path / "broken", architecture), trainer(tmp_path / "whole", architecture)
        resumed.run()
        whole.run()
    finally:
        torch.set_num_threads(before)
    one, other = resumed.optimisers[0].state(), whole.optimisers[0].state()
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert [line["step"] for line in lines(resumed)] == [line["step"] for line in lines(whole)]
    # Also what is left in memory has nothing of it.
    assert optimiser.trainable.ranks is whole.optimisers[0].trainable.ranks


def test_a_look_reads_the_held_out_rows_once_for_all(tmp_path: Path):
    read = []
    hooks = tuple(HookPoint(layer, "resid") for layer in range(3))
    rows = {hook: planted(2_000, seed=hook.layer)[0] for hook in hooks}
    optimisers = [optimiser(hook, own, recipe(6)) for hook, own in rows.items()]

    def batches():
        for batch in held_out(hooks):
            read.append(len(batch[hooks[0]]))
            yield batch

    made = Trainer(
        optimisers,
        MemoryBatches(rows, 64, 6),
        batch_size=64,
        checkpoints=Checkpoints(tmp_path / "checkpoint", "test"),
        checkpoint_steps=6,
        logs={},
        held_out=batches,
    )
    made.run()
    assert read == 6 * [200, 100]
    for one in optimisers:
        one.restore_best()
        assert one.best.loss == pytest.approx(loss_of(one, held_out(hooks)), rel=1e-5)


@pytest.mark.parametrize("n_steps", [1, 5, 20, 21, 39, 60, 249, 250, 1000, 12_345])
def test_about_twenty_looks_are_taken_each_with_a_line(n_steps: int):
    every = look_steps(n_steps)
    looks = {step for step in range(1, n_steps + 1) if step % every == 0 or step == n_steps}
    assert min(n_steps, 10) <= len(looks) <= 21 and every % line_steps(n_steps) == 0


def test_the_stage_keeps_the_best_and_says_from_when(run_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    from circuitcli.training.schedule import LearningRateSchedule

    usual = LearningRateSchedule.rate
    monkeypatch.setattr(LearningRateSchedule, "rate", lambda self, step: 3.0 if step >= 25 else usual(self, step))
    kept = {}
    for keep in ("last", "best"):
        (record, _) = train.run(request(run_path, force=True, train__keep=keep, train__clip=1e6))
        config = json.loads((run_path / record.path / "config.json").read_text())
        kept[keep] = (record.explained_variance, config["kept_tokens"], config["trained_tokens"])
    assert kept["last"][1:] == (39 * 128, 39 * 128)
    tokens = kept["best"][1]
    assert 0 < tokens <= 26 * 128 and kept["best"][2] == 39 * 128
    assert kept["best"][0] > kept["last"][0] + 0.05
    metrics = (run_path / record.path / "metrics.jsonl").read_text().splitlines()
    looks = {line["tokens"]: line["loss_held_out"] for line in map(json.loads, metrics) if "loss_held_out" in line}
    assert min(looks, key=lambda at: looks[at]) == tokens
    # The look saw all rows that are held out: the loss of TopK is the share of the variance that is missed there.
    cache = ActivationCache(run_path / "activations", [HookPoint.parse(record.hook)])
    hook = cache.hooks[0]
    rows = cache.rows(hook, cache.n_tokens - 300, cache.n_tokens)
    sae = files.load(run_path / record.path)
    found = reconstruction(sae, [rows])
    spread = cache.mean_square_norm(hook) - float(cache.mean(hook).square().sum())
    assert found.mse * sae.d_in / spread == pytest.approx(looks[tokens], rel=1e-4)


def test_batchtopk_gets_the_threshold_of_the_weights_that_are_kept(
    run_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    from circuitcli.training.schedule import LearningRateSchedule

    usual = LearningRateSchedule.rate
    monkeypatch.setattr(LearningRateSchedule, "rate", lambda self, step: 3.0 if step >= 25 else usual(self, step))
    records = train.run(request(run_path, sae__architecture="batchtopk", train__keep="best", train__clip=1e6))
    assert all(record.l0 == pytest.approx(8, rel=0.25) for record in records)


def test_end_to_end_training_refuses_to_choose_by_another_loss(run_path: Path):  # noqa: F811
    with pytest.raises(SettingsError, match=r"train\.keep=best") as caught:
        train.run(request(run_path, train__keep="best", train__objective="end-to-end"))
    assert "train.keep=last" in caught.value.hint


def test_the_plan_counts_the_copy(run_path: Path):  # noqa: F811
    told = [
        dict(train.plan(request(run_path, train__keep=keep, sae__expansion=64)))["disk"] for keep in ("last", "best")
    ]
    assert told[0] != told[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    made = trainer(Path(sys.argv[1]), clip=1e9)
    spoil(made, patch, at=40)
    learn = made.optimisers[0].step

    def step(batch, *, index):
        if index == 51:
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(batch, index=index)

    made.optimisers[0].step = step
    made.run()
