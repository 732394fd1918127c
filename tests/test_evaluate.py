"""``circuit train --eval``: the run's own SAEs and others, measured again without training."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from test_trackers import events
from test_train_stage import OPTIONS

from circuitcli.activations.cache import ActivationCache
from circuitcli.cli import app, summaries
from circuitcli.errors import InputError
from circuitcli.evaluation.held_out import HeldOut
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, BaselineRecord, EvaluationRecord, SaeRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.relu import ReluSae
from circuitcli.settings.sources import load
from circuitcli.stages import collect, evaluate, train
from circuitcli.stages.request import Request
from circuitcli.training.log import read_metrics

SITES = {"data.sites": "resid,mlp_in,mlp", "train.tokens": 2000}
MLP_IN, MLP, RESID = HookPoint(1, "mlp_in"), HookPoint(1, "mlp"), HookPoint(1, "resid")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with SAEs; tests copy it."""
    path = tmp_path_factory.mktemp("trained") / "run"
    collect.run(request(path))
    train.run(request(path, train__log="tensorboard"))
    return path


@pytest.fixture
def run_path(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def request(path: Path, **changes) -> Request:
    flags = OPTIONS | SITES | {name.replace("__", "."): value for name, value in changes.items()}
    run = Run(path)
    return Request(load(flags).settings, run.stream() if run.exists else Stream(), run)


def test_what_a_sweep_left_out_does_not_matter_to_the_runs_own_saes(run_path: Path, caplog: pytest.LogCaptureFixture):
    train.run(request(run_path, train__sweep="sae.k=4,8", train__eval_tokens=100))
    with caplog.at_level(logging.WARNING, logger="circuitcli"):
        evaluate.run(request(run_path))
    report = json.loads((run_path / "reports/evaluate.json").read_text())
    assert min(sae["n_eval_tokens"] for sae in report["saes"]) > 100 and not caplog.records
    evaluate.run(request(run_path, sae_path=str(run_path / "saes/sweep/sae.k=4")))
    assert "training left 100 tokens out" in caplog.text


def test_a_measurement_trains_no_variants(run_path: Path, capsys: pytest.CaptureFixture):
    assert app.run(["train", "--run", str(run_path), "--eval", "--sweep", "sae.k=4,8"]) == 2
    assert "error: --eval measures finished SAEs and does not train variants" in capsys.readouterr().err


def transcoder(directory: Path) -> ReluSae:
    """A random transcoder at mlp_in.1, saved there."""
    config = SaeConfig(MLP_IN, 128, 60, subtract_decoder_bias=False, target=MLP, d_out=128)
    made = ReluSae(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    files.save(made, directory)
    return made


def test_training_with_a_tracker_leaves_its_files_in_the_run_and_is_finished_without_one(trained: Path) -> None:
    shown = events(trained / "logs" / "tensorboard" / "resid.1")
    lines = read_metrics(trained / "saes" / "resid.1" / "metrics.jsonl")
    assert [step for step, _ in shown["fvu"]] == [line["step"] for line in lines] != []
    records = train.run(request(trained))
    assert {record.hook for record in records} == {"resid.1", "mlp_in.1", "mlp.1"}


def test_measuring_again_gives_the_numbers_that_training_wrote(run_path: Path) -> None:
    made = evaluate.run(request(run_path))
    report = json.loads((run_path / "reports" / "evaluate.json").read_text())
    assert [record.hook for record in made] == [entry["hook"] for entry in report["saes"]]
    assert {record.hook for record in made} == {"resid.1", "mlp_in.1", "mlp.1"}
    for record, entry in zip(made, report["saes"], strict=True):
        assert isinstance(record, EvaluationRecord) and record.report == "reports/evaluate.json"
        config = files.read_config(run_path / record.path)
        measured = {name: value for name, value in config.items() if name in entry}
        numbers = {name: value for name, value in measured.items() if isinstance(value, float)}
        # Weights lie in memory in another order once they were saved, so sums over them may round otherwise.
        assert numbers == pytest.approx({name: entry[name] for name in numbers}, rel=1e-6)
        assert measured["density"] == entry["density"] and len(numbers) > 20
        assert {"dead", "density", "kl_spliced", "loss_recovered", "standard_errors"} <= set(measured)
        flat = {name for name, value in entry.items() if not isinstance(value, dict)}
        assert flat <= set(record.model_dump()) and record.kl_spliced == entry["kl_spliced"]
    assert report["rows"][1] - report["rows"][0] == 300 == made[0].n_eval_tokens


def test_finished_measurement_is_not_made_again(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate.run(request(run_path))
    monkeypatch.setattr(HeldOut, "of", lambda *_: pytest.fail("measured again"))
    assert evaluate.run(request(run_path)) == first


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("no space")])
def test_a_broken_measurement_goes_on(run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error) -> None:
    whole = Path(shutil.copytree(run_path, tmp_path / "whole"))
    evaluate.run(request(whole))
    measured, real = [], evaluate._measured

    def breaks(asked: Request, held_out: HeldOut, source: dict) -> dict:
        measured.extend(source)
        if len(measured) == 2:
            raise error
        return real(asked, held_out, source)

    monkeypatch.setattr(evaluate, "_measured", breaks)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        evaluate.run(request(run_path))
    made = evaluate.run(request(run_path))
    assert len(made) == 3 and len(measured) == 4 and measured[1] == measured[2]
    assert (run_path / "reports/evaluate.json").read_text() == (whole / "reports/evaluate.json").read_text()
    assert [path.name for path in (run_path / "reports").iterdir()] == ["evaluate.json"]


def test_what_a_broken_measurement_of_other_settings_left_is_not_taken(run_path: Path, monkeypatch) -> None:
    real = evaluate._measured
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        calls = iter([None, KeyboardInterrupt])

        def breaks(*arguments) -> dict:
            if error := next(calls):
                raise error
            return real(*arguments)

        patch.setattr(evaluate, "_measured", breaks)
        evaluate.run(request(run_path))
    made = evaluate.run(request(run_path, train__loss_tokens=0))
    assert all(record.loss_recovered is None for record in made)


def test_other_settings_need_no_force_and_replace_the_report(run_path: Path) -> None:
    evaluate.run(request(run_path))
    made = evaluate.run(request(run_path, train__loss_tokens=0))
    assert made[0].loss_recovered is None and not hasattr(made[0], "ce_clean")
    report = json.loads((run_path / "reports" / "evaluate.json").read_text())
    assert "ce_clean" not in report["saes"][0] and report["saes"][0]["explained_variance"] is not None


def test_without_text_no_model_is_loaded(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitcli.models.loading.load_model", lambda *_: pytest.fail("loaded"))
    assert len(evaluate.run(request(run_path, train__loss_tokens=0))) == 3


def test_named_saes_are_measured_and_the_runs_own_stay_its_saes(run_path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run_path / "saes" / "resid.1", tmp_path / "elsewhere"))
    own = evaluate.run(request(run_path))
    (record,) = evaluate.run(request(run_path, sae_path=str(other)))
    assert record.path == str(other.resolve()) and record.hook == "resid.1" and record.report != own[0].report
    assert (run_path / record.report).is_file() and (run_path / own[0].report).is_file()
    stream = Run(run_path).stream()
    assert {sae.path for sae in stream.of(SaeRecord)} == {"saes/resid.1", "saes/mlp_in.1", "saes/mlp.1"}
    assert len(stream.of(EvaluationRecord)) == 4


def test_a_transcoder_is_measured_against_the_rows_of_its_target(run_path: Path, tmp_path: Path) -> None:
    made = transcoder(tmp_path / "transcoder").double()
    (record,) = evaluate.run(request(run_path, sae_path=str(tmp_path / "transcoder")))
    cache = ActivationCache(run_path / "activations", [MLP_IN, MLP])
    stop = cache.n_tokens
    x, y = (cache.rows(hook, stop - 300, stop).double() for hook in (MLP_IN, MLP))
    missed = (y - made.reconstruct(x)).square().sum()
    expected = 1 - float(missed / (y - y.mean(dim=0)).square().sum())
    assert record.explained_variance == pytest.approx(expected, rel=1e-5)
    assert record.target == "mlp.1" and record.ce_spliced > record.ce_clean > 0


def test_tokens_that_training_saw_are_not_measured_on(run_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="circuitcli"):
        made = evaluate.run(request(run_path, train__eval_tokens=10_000, train__loss_tokens=0))
    assert made[0].n_eval_tokens == 300 and "300 tokens" in caplog.text
    fewer = evaluate.run(request(run_path, train__eval_tokens=100, train__loss_tokens=0))
    assert fewer[0].n_eval_tokens == 100


def test_saes_that_were_trained_elsewhere_may_see_more_of_the_cache(run_path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run_path / "saes" / "resid.1", tmp_path / "elsewhere"))
    changes = {"train__eval_tokens": 250, "train__loss_tokens": 0, "sae_path": str(other)}
    assert evaluate.run(request(run_path, **changes))[0].n_eval_tokens == 250
    n_rows = request(run_path).records.of(ActivationsRecord)[0].n_tokens
    changes["train__eval_tokens"] = 10_000
    assert evaluate.run(request(run_path, **changes))[0].n_eval_tokens == n_rows // 10


def test_an_sae_of_huge_weights_is_measured_without_what_is_no_number(run_path: Path, tmp_path: Path) -> None:
    huge = ReluSae(SaeConfig(RESID, 128, 20)).requires_grad_(False)
    huge.W_enc.fill_(1e30)
    huge.W_dec.fill_(1e30)
    files.save(huge, tmp_path / "huge")
    (record,) = evaluate.run(request(run_path, sae_path=str(tmp_path / "huge"), train__loss_tokens=0))
    (entry,) = json.loads((run_path / record.report).read_text())["saes"]
    assert record.explained_variance is entry["mse"] is None and record.l0 > 0


def test_an_sae_without_cached_activations_or_of_another_width_is_refused(run_path: Path, tmp_path: Path) -> None:
    for name, hook, width in (("missing", HookPoint(2, "resid"), 128), ("narrow", RESID, 64)):
        files.save(ReluSae(SaeConfig(hook, width, 20)), tmp_path / name)
    with pytest.raises(InputError, match=r"cached activations of resid\.2") as caught:
        evaluate.run(request(run_path, sae_path=str(tmp_path / "missing")))
    assert "circuit collect" in caught.value.hint
    with pytest.raises(InputError, match=r"width 64, the activations at resid\.1 have 128"):
        evaluate.run(request(run_path, sae_path=str(tmp_path / "narrow")))


def test_plan_counts_saes_and_tokens(run_path: Path) -> None:
    facts = dict(evaluate.plan(request(run_path, train__loss_tokens=200)))
    assert facts["autoencoders"].startswith("3: ") and facts["tokens"] == "300 cached"
    assert "200 tokens" in facts["model"] and not (run_path / "reports").exists()


def test_people_see_the_headline_numbers(run_path: Path) -> None:
    made = evaluate.run(request(run_path))
    (rows,) = summaries.tables(made, run_path)
    assert "300 tokens" in rows.title and len(rows.rows) == 3 and all(all(cells) for cells in rows.rows)
    assert "3 evaluations" in summaries.sentence("train", made, "run", 1.0)


def test_naming_saes_without_asking_to_measure_them_is_an_error(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.run(["train", "--run", str(run_path), "--sae", "somewhere"]) == 2
    assert "--eval" in capsys.readouterr().err


def test_measuring_again_that_is_killed_keeps_what_was_measured(
    run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = {"train__eval_tokens": 100, "train__loss_tokens": 0}
    first = evaluate.run(request(run_path, train__loss_tokens=0))
    facts, seen = HeldOut.facts, []

    def dying(self, sae, **asked):
        seen.append(str(sae.hook))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return facts(self, sae, **asked)

    monkeypatch.setattr(HeldOut, "facts", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(request(run_path, **fewer))
    assert Run(run_path).stream().of(EvaluationRecord) == first
    (kept,) = (run_path / "reports" / "evaluate.partial").iterdir()
    whole = kept.read_bytes()
    for damaged in (b"[" * 50_000, b"\xff", b'{"hook": 3}'):
        kept.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged|UTF-8|nested"):
            evaluate.run(request(run_path, **fewer))
    kept.write_bytes(whole)
    made = evaluate.run(request(run_path, **fewer))
    assert [record.n_eval_tokens for record in made] == [100, 100, 100]
    assert seen.count(str(kept.stem)) == 1 and not kept.parent.exists()


def test_baselines_stand_beside_the_runs_saes_with_as_many_codes(run_path: Path):
    names = ("pca", "identity", "frozen-decoder", "random-model")
    asked = request(run_path, train__baselines=",".join(names), train__baseline_tokens=1500)
    records = evaluate.run(asked)
    found = {(one.hook, one.name): one for one in records if isinstance(one, BaselineRecord)}
    saes = {one.hook: one for one in records if isinstance(one, EvaluationRecord)}
    assert [*found] == [(hook, name) for hook in saes for name in names]
    for (hook, name), one in found.items():
        assert one.k == round(saes[hook].l0) == one.l0
        assert (one.loss_recovered is None) == (name == "random-model")
        assert one.d_sae == (128 if name in ("pca", "identity") else 256)
    assert found["resid.1", "pca"].explained_variance > found["resid.1", "identity"].explained_variance
    report = json.loads((run_path / "reports/evaluate.json").read_text())
    assert len(report["baselines"]) == len(found) and report["saes"]
    lines = [" ".join(row) for rows in summaries.tables(records, run_path) for row in rows.rows]
    assert sum("random-model" in line for line in lines) == len(saes)
    # Nothing of it is made again, and training is still what it was.
    assert evaluate.run(asked) == records and isinstance(train.run(asked)[0], SaeRecord)


@pytest.mark.parametrize(
    ("names", "changes", "is_other"),
    [
        ("frozen-decoder", {"train__learning_rate": 1e-5}, True),
        ("random-model", {"train__warmup": 0.2}, True),
        ("random-model", {"sae__k": 3}, False),
        ("pca", {"train__learning_rate": 1e-5}, False),
        ("pca", {"train__baseline_tokens": 700}, True),
    ],
)
def test_baselines_are_made_again_where_they_would_come_out_differently(
    run_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, changes: dict[str, object], is_other: bool
) -> None:
    seen = []
    monkeypatch.setattr(evaluate, "resumable", lambda request, name, print_, *_, **__: seen.append(print_) or [])
    for more in ({}, changes):
        evaluate.run(request(run_path, train__baselines=names, **more))
    assert (seen[0] != seen[1]) is is_other


def test_baselines_are_asked_for_beside_finished_saes_alone(run_path: Path, capsys: pytest.CaptureFixture):
    assert app.run(["train", "--run", str(run_path), "--baselines", "pca"]) == 2
    assert "hint: add --eval" in capsys.readouterr().err
