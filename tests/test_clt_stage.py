"""``circuit train`` of coders that write together, from records to files, on the model that ships with the package."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import load_model
from circuitcli.models.taps import tapped
from circuitcli.records import EvaluationRecord, ReplacementRecord, SaeRecord, Stream, SweepRecord
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.settings.sources import load
from circuitcli.stages import collect, evaluate, train
from circuitcli.stages.request import Request
from circuitcli.training.optimiser import CoderOptimiser

READS = ("mlp_in.1", "mlp_in.2")
WRITES = ("mlp.1", "mlp.2")
OPTIONS = {
    "data.layers": "1:3",
    "data.sites": "mlp_in,mlp",
    "data.tokens": 2000,
    "data.block_length": 64,
    "sae.architecture": "clt",
    "sae.k": 8,
    "sae.d_sae": 200,
    "train.batch_size": 128,
    "train.tokens": 4000,
    "train.eval_tokens": 200,
    "train.loss_tokens": 150,
    "train.checkpoint_tokens": 1000,
    "model.device": "cpu",
}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clt") / "run"
    collect.run(request(path, Stream()))
    return path


@pytest.fixture(scope="module")
def trained(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(collected, tmp_path_factory.mktemp("trained") / "run"))
    train.run(request(path))
    return path


def request(path: Path, records: Stream | None = None, *, force: bool = False, **changes) -> Request:
    flags = OPTIONS | {name.replace("__", "."): value for name, value in changes.items()}
    run = Run(path)
    return Request(load(flags).settings, run.stream() if records is None else records, run, force)


def digests(records) -> list[str]:
    return [record.digest for record in records if isinstance(record, SaeRecord)]


def test_each_layer_read_gets_a_record_and_all_together_one(trained: Path):
    records = train.run(request(trained))
    one, other, together = records
    assert [record.kind for record in records] == ["sae", "sae", "replacement"]
    assert (one.hook, one.target, one.further) == ("mlp_in.1", "mlp.1", ("mlp.2",))
    assert (other.hook, other.target, other.further) == ("mlp_in.2", "mlp.2", None)
    assert (together.hooks, together.replaced) == (READS, WRITES)
    for record in (one, other):
        assert (
            record.architecture == "jumprelu"
            and 2 < record.l0 < 16
            and 0.2 < record.explained_variance < 1
            and not record.problems
        )
        assert record.loss_recovered == together.loss_recovered
        config = files.read_config(trained / record.path)
        assert config["replaced"] == list(WRITES) and config["trained_as"] == "clt"
        lines = [json.loads(line) for line in (trained / record.path / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 31 and lines[-1]["fvu"] < lines[0]["fvu"]
    assert files.read_config(trained / one.path)["explained_variances"] == {
        "mlp.1": pytest.approx(one.explained_variance),
        "mlp.2": pytest.approx(other.explained_variance),
    }


def test_scores_are_those_of_the_saved_coders_written_out(trained: Path):
    one, other, together = train.run(request(trained))
    cache = ActivationCache(trained / "activations", [HookPoint.parse(hook) for hook in (*READS, *WRITES)])
    rows = {hook: cache.rows(hook, cache.n_tokens - 200, cache.n_tokens) for hook in cache.hooks}
    coders = [files.load(trained / record.path) for record in (one, other)]
    write = HookPoint(2, "mlp")
    total = sum(coder.decode(coder.encode(rows[coder.hook]), hook=write) for coder in coders)
    y = rows[write]
    expected = 1 - float((y - total).square().sum() / (y - y.mean(dim=0)).square().sum())
    assert other.explained_variance == pytest.approx(expected, abs=1e-4)
    assert together.ce_spliced == pytest.approx(loss_with_both_replaced(coders, trained), rel=1e-4)
    assert together.ce_increase == pytest.approx(together.ce_spliced - together.ce_clean)
    assert together.loss_recovered < 1


def loss_with_both_replaced(coders, path: Path) -> float:
    """By the model's own forward pass with hooks on its MLPs, one text after the other."""
    model = load_model(load({"model.name": "builtin:tiny", "model.device": "cpu"}).settings.model)
    hooks = [HookPoint.parse(hook) for hook in (*READS, *WRITES)]
    cache = ActivationCache(path / "activations", hooks)
    sum_, n = 0.0, 0
    start = cache.n_tokens - 200
    for block in cache.blocks(start, start + 150):
        if len(block.ids) < 2:
            continue
        seen: dict[HookPoint, torch.Tensor] = {}

        def take(hook: HookPoint, seen=seen):
            return lambda x: seen.__setitem__(hook, x)

        def put(hook: HookPoint, seen=seen, block=block):
            def replaced(y):
                total = sum(c.decode(c.encode(seen[c.hook]), hook=hook) for c in coders if hook in c.writes)
                result = y.clone()
                result[:, block.positions] = total[:, block.positions]
                return result

            return replaced

        taps = {coder.hook: take(coder.hook) for coder in coders} | {hook: put(hook) for hook in hooks[2:]}
        ids = torch.tensor([block.ids])
        with torch.no_grad(), tapped(model.adapter, taps):
            log_p = model.adapter.model(ids).logits.log_softmax(dim=-1)[0, :-1]
        sum_ -= float(log_p.gather(1, ids[0, 1:, None]).sum())
        n += len(block.ids) - 1
    return sum_ / n


def test_a_killed_training_goes_on_to_the_same_bits(trained: Path, collected: Path, tmp_path: Path, monkeypatch):
    path = Path(shutil.copytree(collected, tmp_path / "run"))
    step = CoderOptimiser.step

    def interrupted(self, batch, *, index: int):
        if index == 21:
            raise KeyboardInterrupt
        return step(self, batch, index=index)

    with monkeypatch.context() as patched:
        patched.setattr(CoderOptimiser, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(request(path))
    assert (path / "saes" / "checkpoint").exists()
    begun = []
    monkeypatch.setattr(CoderOptimiser, "step", lambda self, *a, **b: begun.append(b["index"]) or step(self, *a, **b))
    assert digests(train.run(request(path))) == digests(train.run(request(trained)))
    assert begun[0] == 21


def test_a_sweep_keeps_the_best_weights_and_measures_each_variant(collected: Path, tmp_path: Path):
    path = Path(shutil.copytree(collected, tmp_path / "run"))
    records = train.run(request(path, train__sweep=("sae.k=4,8",), train__keep="best"))
    swept = [(record.variant, record.hook) for record in records if isinstance(record, SweepRecord)]
    assert swept == [(f"sae.k={k}", hook) for k in (4, 8) for hook in READS]
    together = [record for record in records if isinstance(record, ReplacementRecord)]
    assert [record.variant for record in together] == ["sae.k=4", "sae.k=8"]


def test_measuring_again_and_evaluating_give_the_same_numbers(trained: Path, tmp_path: Path, monkeypatch):
    path = Path(shutil.copytree(trained, tmp_path / "run"))
    before = train.run(request(path))
    *evaluated, together = evaluate.run(request(path))
    assert [type(record) for record in evaluated] == [EvaluationRecord] * 2
    for record, other in zip(evaluated, before, strict=False):
        assert record.explained_variance == pytest.approx(other.explained_variance)
        assert (record.l0, record.loss_recovered) == (other.l0, pytest.approx(other.loss_recovered))
    assert together.ce_spliced == pytest.approx(before[-1].ce_spliced)
    report = json.loads((path / "reports" / "evaluate.json").read_text())
    assert report["replacement"]["replaced"] == list(WRITES) and len(report["saes"]) == 2
    monkeypatch.setattr(CoderOptimiser, "step", lambda *_, **__: pytest.fail("trained again"))
    again = train.run(request(path, train__loss_tokens=0))
    assert [record.kind for record in again] == ["sae", "sae"] and digests(again) == digests(before)
    assert [record.explained_variance for record in again] == [one.explained_variance for one in before[:2]]


def test_transcoders_of_several_layers_are_replaced_at_once(collected: Path, tmp_path: Path):
    path = Path(shutil.copytree(collected, tmp_path / "run"))
    one, other, together = train.run(request(path, sae__architecture="transcoder"))
    coders = [files.load(path / record.path) for record in (one, other)]
    assert together.ce_spliced == pytest.approx(loss_with_both_replaced(coders, path), rel=1e-4)
    assert together.ce_spliced not in (one.loss_recovered, other.loss_recovered)
    *_, evaluated = evaluate.run(request(path))
    assert evaluated.ce_spliced == pytest.approx(together.ce_spliced)


def test_a_layer_without_its_output_is_named(collected: Path, tmp_path: Path):
    path = tmp_path / "run"
    collect.run(request(path, Stream(), data__sites="mlp_in", data__tokens=300))
    with pytest.raises(SettingsError, match=r"the run lacks mlp\.1 mlp\.2") as caught:
        train.run(request(path))
    assert caught.value.hint == "`circuit collect --sites mlp_in,mlp --layers 1:3 --force`"
