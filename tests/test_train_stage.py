"""``circuit train`` from records to files, on activations of the model that ships with the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import h5py
import pytest
import torch

import circuitcli
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.storage.shards import ROWS
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import load_model
from circuitcli.records import EvaluationRecord, SaeRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.settings.sae import Architecture
from circuitcli.settings.sources import load
from circuitcli.stages import collect, estimates, evaluate, train, verify
from circuitcli.stages.request import Request
from circuitcli.training import plan as plan_module
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.auxk import most_bytes
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.job import Job
from circuitcli.training.plan import training_plan
from circuitcli.training.readers import unread

HOOKS = ("attn.1", "resid.1")
OPTIONS = {
    "data.layers": "1:2",
    "data.sites": "attn,resid",
    "data.tokens": 3000,
    "data.shard_tokens": 700,
    "data.block_length": 64,
    "sae.k": 8,
    "sae.expansion": 2,
    "train.batch_size": 128,
    "train.tokens": 5000,
    "train.eval_tokens": 300,
    "train.checkpoint_tokens": 1000,
    "model.device": "cpu",
}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with activations; tests copy it."""
    path = tmp_path_factory.mktemp("collected") / "run"
    collect.run(request(path, Stream()))
    return path


@pytest.fixture
def run_path(collected: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(collected, tmp_path / "run"))


def request(path: Path, records: Stream | None = None, *, force: bool = False, **changes) -> Request:
    flags = OPTIONS | {name.replace("__", "."): value for name, value in changes.items()}
    run = Run(path)
    return Request(load(flags).settings, run.stream() if records is None else records, run, force)


def test_every_hook_point_gets_an_sae_a_record_and_metrics(run_path: Path):
    records = train.run(request(run_path))
    assert [record.hook for record in records] == list(HOOKS)
    for record in records:
        assert isinstance(record, SaeRecord)
        sae = files.load(run_path / record.path)
        assert (
            (sae.d_in, sae.d_sae, str(sae.hook)) == (128, 256, record.hook) == (record.d_in, record.d_sae, record.hook)
        )
        assert files.sae_digest(run_path / record.path) == record.digest
        assert 0.3 < record.explained_variance < 1 and record.loss_recovered < 1 and 0 <= record.dead <= 1
        assert 0 < record.l0 <= 8 and record.k == 8
        lines = [json.loads(line) for line in (run_path / record.path / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 40)) and lines[-1]["tokens"] == 39 * 128
        assert lines[-1]["fvu"] < lines[0]["fvu"]
        config = files.read_config(run_path / record.path)
        assert {"ce_clean", "ce_spliced", "ce_mean", "ce_zero", "kl_spliced", "cosine", "mse", "silent"} <= set(config)
        assert {"explained_variance", "loss_recovered", "kl_spliced"} <= set(config["standard_errors"])
        assert config["density"]["n_tokens"] == config["n_eval_tokens"] == 300
    assert not (run_path / "saes" / "checkpoint").exists()


def test_scores_are_those_of_the_saved_sae_on_the_raw_held_out_rows(run_path: Path):
    record = train.run(request(run_path))[1]
    cache = ActivationCache(run_path / "activations", [HookPoint(1, "resid")])
    x = cache.rows(HookPoint(1, "resid"), cache.n_tokens - 300, cache.n_tokens).double()
    sae = files.load(run_path / record.path).double()
    with torch.no_grad():
        error = x - sae.decode(sae.encode(x))
    expected = 1 - float(error.square().sum() / (x - x.mean(dim=0)).square().sum())
    assert record.explained_variance == pytest.approx(expected, abs=1e-4)


def test_finished_stage_answers_without_torch(run_path: Path):
    before = [record.model_dump() for record in train.run(request(run_path))]
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from circuitcli.stages import train
from circuitcli.stages.request import Request
from circuitcli.training.readers import unread
from circuitcli.settings.sources import load
from circuitcli.runs import Fingerprint, Run
run = Run({str(run_path)!r} and __import__("pathlib").Path({str(run_path)!r}))
records = train.run(Request(load({OPTIONS!r}).settings, run.stream(), run))
assert "torch" not in sys.modules
print([record.model_dump() for record in records] == {before!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_interrupted_stage_goes_on_to_the_same_weights(run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = Path(shutil.copytree(run_path, tmp_path / "other"))
    unbroken = [record.digest for record in train.run(request(other))]
    from circuitcli.training.optimiser import CoderOptimiser

    learn = CoderOptimiser.step

    def interrupted(self, batch, *, index):
        if index == 20 and self.name == "resid.1":
            raise RuntimeError("the machine fails")
        return learn(self, batch, index=index)

    monkeypatch.setattr(CoderOptimiser, "step", interrupted)
    with pytest.raises(RuntimeError):
        train.run(request(run_path))
    assert (run_path / "saes" / "checkpoint" / "step-00000014").is_dir()
    monkeypatch.undo()
    assert [record.digest for record in train.run(request(run_path))] == unbroken
    lines = (run_path / "saes" / "resid.1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 40))


def test_other_settings_are_refused_unless_forced(run_path: Path):
    first = train.run(request(run_path))
    with pytest.raises(InputError, match=r"sae\.k was 8 and is now 9"):
        train.run(request(run_path, sae__k=9))
    assert train.run(request(run_path, train__checkpoint_tokens=77)) == first
    forced = train.run(request(run_path, force=True, sae__k=9))
    assert forced[0].digest != first[0].digest and forced[0].k == 9


@pytest.mark.parametrize("architecture", ["relu", "gated", "topk", "batchtopk", "matryoshka", "jumprelu"])
def test_settings_that_an_architecture_does_not_read_change_nothing(run_path: Path, architecture: str):
    few = {"sae__architecture": architecture, "train__tokens": 640, "sae__d_sae": 64, "train__eval_tokens": 64}
    others = {
        "sae.k": 9,
        "sae.expansion": 3,
        "sae.l1_weight": 6,
        "sae.l0_weight": 2,
        "sae.bandwidth": 0.2,
        "sae.jacobian_weight": 0.2,
        "sae.prefixes": "0.5,1",
        "train.local_share": 0.3,
        "train.local_weight": 2,
    }
    asked = request(run_path, **few)
    names = unread([asked.settings])
    changes = {name.replace(".", "__"): value for name, value in others.items() if name in names}
    assert len(changes) >= 6
    first = train.run(asked)
    assert train.run(request(run_path, **few, **changes)) == first
    again = train.run(request(run_path, force=True, **few, **changes))
    assert [record.digest for record in again] == [record.digest for record in first]
    for name in set(others) - names:
        with pytest.raises(InputError, match=name):
            train.run(request(run_path, **few | {name.replace(".", "__"): others[name]}))


def test_seed_changes_the_weights(run_path: Path, tmp_path: Path):
    other = Path(shutil.copytree(run_path, tmp_path / "other"))
    assert train.run(request(run_path))[0].digest != train.run(request(other, seed=1))[0].digest


def test_k_above_the_width_is_refused_before_anything_is_written(run_path: Path):
    with pytest.raises(SettingsError, match=r"sae.k=300 is more than the 256 features"):
        train.run(request(run_path, sae__k=300))
    assert not (run_path / "saes").exists()


def test_without_activations_the_hint_is_to_collect(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        train.run(request(tmp_path / "empty", Stream()))
    assert "circuit collect" in caught.value.hint


def test_too_few_rows_for_one_batch_are_refused(run_path: Path):
    with pytest.raises(InputError, match=r"make no batch of 4,096") as caught:
        train.run(request(run_path, train__batch_size=4096))
    advised = int(caught.value.hint.rpartition("=")[2])
    assert 100 < advised < 4096
    train.run(request(run_path, train__batch_size=advised))


def change_the_model(monkeypatch: pytest.MonkeyPatch, *, block: int) -> None:
    """Models that are loaded from now on have an MLP of twice the size in this block."""
    from circuitcli.models import loading

    load_unchanged = loading.load_model

    def changed(settings):
        model = load_unchanged(settings)
        model.adapter.blocks[block].mlp.c_proj.weight.data *= 2
        return model

    monkeypatch.setattr(loading, "load_model", changed)


def test_model_that_changed_since_collecting_is_noticed(run_path: Path, monkeypatch: pytest.MonkeyPatch):
    change_the_model(monkeypatch, block=0)
    with pytest.raises(InputError, match=r"other activations at (attn|resid)\.1") as caught:
        train.run(request(run_path))
    assert "collect --force" in caught.value.hint


def test_plan_tells_tokens_and_bytes_without_files(run_path: Path):
    facts = dict(train.plan(request(run_path)))
    assert "time" not in facts and facts.keys() >= {"disk", "memory"}
    assert facts["autoencoders"] == "2: attn.1 resid.1"
    assert "4,992 in 39 steps" in facts["tokens"] and "300 held out" in facts["tokens"]
    assert not (run_path / "saes").exists()


def test_plan_names_what_is_trained_on_and_what_dead_features_may_add(run_path: Path):
    facts = dict(train.plan(request(run_path, sae__d_sae=1000)))
    d_model = load_model(request(run_path).settings.model).adapter.d_model
    one = most_bytes(d_sae=1000, d_in=d_model, d_out=d_model, batch=128, k=d_model // 2)
    assert facts["dead features"] == f"up to {estimates.size(one)} more memory, if many"
    assert "dead features" not in dict(train.plan(request(run_path, train__auxk_weight=0.0)))


def test_plan_tells_memory_by_widths_architecture_pool_and_model(run_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimates, "size", lambda n_bytes: f"{n_bytes:.0f}")

    def told(**assignments) -> int:
        return int(dict(train.plan(request(run_path, **assignments)))["memory"].split()[1])

    model = told() - told(train__loss_tokens=0)
    adapter = load_model(request(run_path).settings.model).adapter
    logits = 5 * 300 * adapter.n_token_ids
    assert model == 4 * (sum(parameter.numel() for parameter in adapter.model.parameters()) + logits)
    # Each of two SAEs has four numbers for each weight, and one at a time two for each feature and row of a batch.
    assert told(sae__expansion=4) - told() == 4 * (2 * 4 * 2 * 128 * 256 + 2 * 128 * 256)
    assert told(sae__architecture="relu") - told() == 4 * 4 * 128 * 256
    n_rows = ActivationCache(run_path / "activations", [*map(HookPoint.parse, HOOKS)]).n_tokens - 300
    assert told() - told(train__pool_tokens=100) == 2 * 2 * 128 * (n_rows - 100)


def shares(path: Path, **changes) -> tuple[list[list[torch.Tensor]], int]:
    """The first rows of resid.1 in the batches of a process that trains all SAEs, and of one that trains this alone."""
    asked = request(path, **changes)
    cache = ActivationCache(path / "activations", [*map(HookPoint.parse, HOOKS)])
    made = training_plan(asked.settings, n_rows=cache.n_tokens)
    job = Job(
        settings=asked.settings,
        variants={"": asked.settings},
        cache=cache,
        plan=made,
        device=torch.device("cpu"),
        checkpoints=Checkpoints(path, ""),
        model=lambda: load_model(asked.settings.model),
        logs=path,
    )
    found = []
    for hooks in (cache.hooks, cache.hooks[1:]):
        batches = job.batches(hooks)
        found.append([batch[cache.hooks[1]][:3] for batch in batches.from_step(0)])
    return found, job.pool_tokens


def test_the_order_of_rows_is_the_same_for_a_process_that_trains_some_of_the_saes(
    run_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A row of both hook points takes 512 bytes.
    monkeypatch.setattr(plan_module, "POOL_BYTES", 512 * 1024)
    (everything, own), pool = shares(run_path)
    assert pool == 1024 and all(torch.equal(a, b) for a, b in zip(everything, own, strict=True))
    monkeypatch.setattr(plan_module, "POOL_BYTES", 2**31)
    (other, _), _ = shares(run_path)
    assert not all(torch.equal(a, b) for a, b in zip(everything, other, strict=True)), "pools must matter here"


def test_another_training_leaves_no_sae_of_the_one_before(run_path: Path):
    train.run(request(run_path))
    evaluate.run(request(run_path))
    train.run(request(run_path, train__sweep="sae.k=4,6"))
    # As a measurement that was killed leaves it.
    Run(run_path).update_stage("evaluate:elsewhere", state="interrupted")
    shutil.copytree(run_path / "saes" / "attn.1", run_path / "saes" / "attn.3", ignore=lambda *_: ["metrics.jsonl"])
    assert [record.hook for record in request(run_path).records.of(EvaluationRecord)] == list(HOOKS)
    records = request(run_path).records
    fewer = Stream([record for record in records if getattr(record, "hook", "resid.1") == "resid.1"])
    train.run(request(run_path, fewer, force=True, sae__k=7))
    assert sorted(path.name for path in (run_path / "saes").iterdir()) == ["attn.3", "resid.1", "sweep"]
    assert not request(run_path).records.of(EvaluationRecord)
    assert len(list((run_path / "saes" / "sweep").glob("*/*/weights.safetensors"))) == 4
    train.run(request(run_path, force=True, train__sweep="sae.k=6,9"))
    assert sorted(path.name for path in (run_path / "saes" / "sweep").iterdir()) == ["sae.k=6", "sae.k=9"]
    assert (run_path / "saes" / "resid.1" / "weights.safetensors").is_file()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_held_out_activations_that_are_no_numbers_are_an_error(run_path: Path, keep: str):
    file = sorted((run_path / "activations" / "resid.1").glob("*.h5"))[-1]
    with h5py.File(file, "r+") as stored:
        stored[ROWS][-1] = float("nan")
    with pytest.raises(InputError, match=r"activations at resid.1 hold numbers that are not finite") as caught:
        train.run(request(run_path, train__keep=keep))
    assert "--verify" in caught.value.hint


def test_damaged_activations_are_to_be_collected_again(run_path: Path):
    file = sorted((run_path / "activations" / "resid.1").glob("*.h5"))[0]
    file.unlink()
    with pytest.raises(InputError):
        verify.run(Run(run_path))
    with pytest.raises(InputError, match="are damaged") as caught:
        train.run(request(run_path))
    assert "run the same `circuit collect` again" in caught.value.hint


def test_settings_are_numbers():
    for name in ("train.learning_rate", "train.clip"):
        with pytest.raises(SettingsError, match=name):
            load({name: "inf"})


def test_every_architecture_that_can_be_set_is_described():
    assert list(DESCRIPTIONS) == list(get_args(Architecture))


# TopK SAEs at attention and residual stream that learn together, with ``sae.share`` of sae.k features.
HALF = """
from dataclasses import replace

from torch import nn

from circuitcli.saes.topk import TopKSae
from circuitcli.training.architectures.several import TrainableCoders
from circuitcli.training.architectures.single import build_single
from circuitcli.training.architectures.topk import TrainableTopK


class Half(TrainableCoders):
    def __init__(self, coders):
        super().__init__()
        self.both = nn.ModuleList(coders)

    @property
    def coders(self):
        return [*self.both]


def build(inputs):
    sae = inputs.config.sae.model_copy(update={"k": int(inputs.config.sae.k * inputs.config.sae.share)})
    inputs = replace(inputs, config=replace(inputs.config, sae=sae))
    return Half([build_single(TrainableTopK, TopKSae, replace(inputs, hooks=(hook,))) for hook in inputs.hooks])
"""
DESCRIBED = 'Description("half", frozenset({"k", "share"}), Ends("attn", "resid"), can_end_to_end=False)'


def test_an_architecture_is_added_in_three_files(run_path: Path, tmp_path: Path):
    package = Path(shutil.copytree(Path(circuitcli.__file__).parent, tmp_path / "copy" / "circuitcli"))
    architectures = package / "training" / "architectures"
    edit(package / "settings" / "sae.py", '    "topk",\n', '    "half",\n    "topk",\n')
    edit(package / "settings" / "sae.py", "    k: int =", "    share: float = 1.0\n    k: int =")
    edit(architectures / "descriptions.py", '    "topk": ', f'    "half": {DESCRIBED},\n    "topk": ')
    (architectures / "half.py").write_text(HALF)
    options = OPTIONS | {"sae.architecture": "half", "train.tokens": 512, "train.loss_tokens": 0}
    words = [f"{name}={value}" for name, value in options.items() if name.startswith(("sae.", "train."))]
    done = subprocess.run(
        [sys.executable, "-m", "circuitcli", "train", "--run", run_path, "--json", "--sweep", "sae.share=1,0.5"]
        + [part for word in words for part in ("--set", word)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    swept = [(one["variant"], one["hook"], one["k"]) for one in records if one["kind"] == "sweep"]
    assert swept == [(f"sae.share={share}", hook, k) for share, k in (("1", 8), ("0.5", 4)) for hook in HOOKS], (
        done.stderr
    )


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
