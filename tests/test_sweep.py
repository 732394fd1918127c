"""``circuit train --sweep``: variants beside each other, as if each had been trained alone."""

import json
import shutil
from pathlib import Path

import pytest
from test_train_stage import collected, request  # noqa: F401

from circuitcli.cli.app import run
from circuitcli.errors import SettingsError
from circuitcli.records import FigureRecord, SweepRecord
from circuitcli.render.pareto import pareto
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.settings.settings import Settings
from circuitcli.settings.train import TrainSettings
from circuitcli.stages import train
from circuitcli.stages.sweep import variants


@pytest.fixture(scope="module")
def swept(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run with SAEs of its own and a finished sweep."""
    path = Path(shutil.copytree(collected, tmp_path_factory.mktemp("swept") / "run"))
    train.run(request(path))
    train.run(request(path, train__sweep=("sae.k=4,8",)))
    return path


def records(path: Path):
    return train.run(request(path, train__sweep=("sae.k=4,8",)))


def test_a_sweep_gives_a_record_for_each_variant_and_hook_point_and_a_plot(swept: Path):
    made = records(swept)
    assert [(record.variant, record.hook) for record in made if isinstance(record, SweepRecord)] == [
        (f"sae.k={k}", hook) for k in (4, 8) for hook in ("attn.1", "resid.1")
    ]
    for record in made[:-1]:
        sae = files.load(swept / record.path)
        assert f"sae.k={sae.k}" == record.variant and 0 < record.l0 <= sae.k and record.loss_recovered < 1
        lines = (swept / record.path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 39
    assert isinstance(made[-1], FigureRecord)
    drawing = (swept / made[-1].path).read_text()
    assert "explained variance" in drawing and "resid.1" in drawing
    assert not (swept / "saes" / "sweep" / "checkpoint").exists()


def test_a_sweep_is_drawn_again_in_other_forms(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert run(["render", "--sweep", "--run", str(swept), "-o", "s.pdf", "-o", "s.svg"]) == 0
    assert Path("s.pdf").read_bytes().startswith(b"%PDF")
    assert "explained variance" in Path("s.svg").read_text() and ">resid.1<" in Path("s.svg").read_text()
    Run(tmp_path / "other").update_manifest(model="builtin:tiny")
    assert run(["render", "--sweep", "--run", "other"]) == 3
    assert run(["render", "--sweep", "--run", str(swept), "-o", "s.dot"]) == 2


def test_a_variant_is_what_training_it_alone_gives_and_the_run_keeps_its_saes(swept: Path, tmp_path: Path):
    own = train.run(request(swept))
    by_place = {(record.variant, record.hook): record.digest for record in records(swept)[:-1]}
    assert [record.digest for record in own] == [by_place["sae.k=8", record.hook] for record in own]
    assert {record.path for record in own} == {"saes/attn.1", "saes/resid.1"}


def test_a_broken_sweep_goes_on(swept: Path, collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    path = Path(shutil.copytree(collected, tmp_path / "run"))
    from circuitcli.training.optimiser import CoderOptimiser

    learn = CoderOptimiser.step

    def interrupted(self, batch, *, index):
        if index == 20 and self.name == "sae.k=8/attn.1":
            raise RuntimeError("the machine fails")
        return learn(self, batch, index=index)

    monkeypatch.setattr(CoderOptimiser, "step", interrupted)
    with pytest.raises(RuntimeError):
        records(path)
    monkeypatch.undo()
    assert (path / "saes" / "sweep" / "checkpoint" / "step-00000014" / "sae.k=4" / "resid.1.safetensors").is_file()
    assert [record.digest for record in records(path)[:-1]] == [record.digest for record in records(swept)[:-1]]


def settings(*sweep: str) -> Settings:
    return Settings(train=TrainSettings(sweep=sweep))


def test_several_sweeps_are_combined():
    made = variants(settings("sae.k=16,32", "sae.architecture=topk,jumprelu"))
    assert list(made) == [
        "sae.k=16,sae.architecture=topk",
        "sae.k=16,sae.architecture=jumprelu",
        "sae.k=32,sae.architecture=topk",
        "sae.k=32,sae.architecture=jumprelu",
    ]
    assert [(made[name].sae.k, made[name].sae.architecture) for name in made][1] == (16, "jumprelu")
    assert variants(Settings()) == {"": Settings()}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (("sae.k",), "has no values"),
        (("sae.k=",), "has no values"),
        (("train.batch_size=1,2",), "cannot be swept"),
        (("data.tokens=1,2",), "cannot be swept"),
        (("sae.k=1,1",), "must differ"),
        (("sae.k=1", "sae.k=2"), "names sae.k twice"),
        (("sae.d_sae=8", "sae.k=1", "sae.k=2"), "names sae.k twice"),
        (("sae.l1_weight=1,2",), "sae.l1_weight makes no difference: topk does not read it"),
        (("sae.k=0,2",), "sae.k='0'"),
        (("sae.size=1",), "unknown setting in --sweep: sae.size"),
        (("sae.architecture=topk,../../x",), "hold no '/'"),
    ],
)
def test_what_cannot_be_swept_is_refused(sweep: tuple[str, ...], message: str):
    with pytest.raises(SettingsError, match=message):
        variants(settings(*sweep))


def test_points_of_the_plot_are_named_by_the_first_setting_and_joined_by_the_others():
    common = {"hook": "resid.1", "architecture": "topk", "d_in": 4, "d_sae": 8, "path": "x", "digest": "y"}
    made = [
        SweepRecord(variant=f"sae.k={k},sae.architecture={name}", l0=k, explained_variance=0.5, **common)
        for k in (8, 2)
        for name in ("topk", "relu")
    ]
    ((variance,),) = pareto(made, title="t").rows
    assert [series.label for series in variance.series] == ["sae.architecture=topk", "sae.architecture=relu"]
    assert all((line.x, line.y, line.names) == ((2, 8), (0.5, 0.5), ("2", "8")) for line in variance.series)
    measured = [record.model_copy(update={"loss_recovered": 0.9}) for record in made]
    rows = pareto([*measured, *(record.model_copy(update={"hook": "resid.2"}) for record in made)], title="t").rows
    assert [[len(panel.series) for panel in row] for row in rows] == [[2, 2], [2, 0]]
