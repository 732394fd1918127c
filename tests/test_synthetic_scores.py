"""What a coder found of planted features: against coders that know them, against sae-lens, and through the stage."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuitcli.evaluation.baselines.linear import linear_coder
from circuitcli.records import FigureRecord, Stream, SyntheticRecord
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.relu import ReluSae
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed
from circuitcli.stages import synthetic
from circuitcli.stages.request import Request
from circuitcli.toys.synthetic.scores import DetectionMeter, cosines, found, mean_matched
from circuitcli.toys.synthetic.training import HOOK

D, N_ROWS = 6, 400


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor]:
    """Directions at right angles, activations, and which features are active in them."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    is_active = torch.rand(N_ROWS, D, generator=generator) < 0.3
    return directions, (is_active * (1 + torch.rand(N_ROWS, D, generator=generator))) @ directions, is_active


def parts(x: Tensor, is_active: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(150), is_active.split(150), strict=True)


def relu_coder(rows: Tensor, *, bias: float = 0.0) -> ReluSae:
    coder = ReluSae(SaeConfig(HOOK, rows.shape[1], len(rows))).requires_grad_(False)
    coder.W_enc.data, coder.W_dec.data = rows.T.contiguous(), rows.clone()
    coder.b_enc.data.fill_(bias)
    return coder


def test_a_coder_that_knows_the_features_has_found_them_all(data: tuple[Tensor, Tensor, Tensor]):
    directions, x, is_active = data
    score = found(relu_coder(directions.flip(0), bias=-1e-3), directions, parts(x, is_active))
    assert (score.detection.precision, score.detection.recall, score.detection.f1) == (1.0, 1.0, 1.0)
    assert score.mcc == pytest.approx(1.0) and score.uniqueness == 1.0 and score.silent == 0.0
    assert score.explained_variance > 0.999 and score.l0 == pytest.approx(float(is_active.sum() / N_ROWS))


def test_twice_the_same_feature_is_no_other_one(data: tuple[Tensor, Tensor, Tensor]):
    directions, x, is_active = data
    doubled = directions[[0, 0, 1, 1, 2, 2]]
    score = found(relu_coder(doubled, bias=-1e-3), directions, parts(x, is_active))
    assert score.detection.f1 == 1.0 and score.uniqueness == 0.5
    # One of each pair is matched with a feature at a right angle to it.
    assert score.mcc == pytest.approx(0.5, abs=1e-6)


def test_scores_are_those_of_sae_lens(data: tuple[Tensor, Tensor, Tensor]):
    evals = pytest.importorskip("sae_lens.synthetic.evals")
    directions, x, is_active = data
    rows = torch.nn.functional.normalize(torch.randn(4, D, generator=torch.Generator().manual_seed(2)), dim=1)
    coder = relu_coder(rows, bias=-0.3)
    coder.b_enc.data[3] = -100.0  # dead
    score, codes = found(coder, directions, parts(x, is_active)), coder.encode(x)
    theirs = evals.compute_classification_metrics(codes, is_active.float(), rows, directions)
    ours = score.detection
    assert (ours.precision, ours.recall, ours.f1) == pytest.approx((theirs.precision, theirs.recall, theirs.f1_score))
    assert score.mcc == pytest.approx(evals.mean_correlation_coefficient(rows, directions), abs=1e-6)
    assert score.uniqueness == evals.feature_uniqueness(rows, directions) and score.silent == 0.25


def test_more_features_than_planted_ones_are_matched_the_other_way_round():
    rows = torch.eye(5)
    assert mean_matched(cosines(rows, rows[:2])) == mean_matched(cosines(rows[:2], rows)) == pytest.approx(1.0)


def test_what_is_never_active_has_zeros():
    meter = DetectionMeter(2)
    meter.update(torch.tensor([[True, False]]), torch.tensor([[True, False]]))
    assert meter.result() == type(meter.result())(0.5, 0.5, 0.5)


TINY = {
    "synthetic.shrink": "128",
    "synthetic.samples": "8192",
    "synthetic.eval_samples": "8192",
    "synthetic.probe_samples": "20480",
    "synthetic.architectures": "topk",
    "synthetic.baselines": "pca,identity,frozen-decoder,random-model",
    "synthetic.d_sae": "16",
    "synthetic.k": "2",
}


def request(run: Path, **others: str) -> Request:
    return Request(changed(Settings(), TINY | {f"synthetic.{k}": v for k, v in others.items()}), Stream(), Run(run))


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SyntheticRecord]]:
    run = tmp_path_factory.mktemp("toy") / "run"
    records = synthetic.run(request(run))
    assert isinstance(records[-1], FigureRecord) and (run / records[-1].path).is_file()
    return run, [record for record in records if isinstance(record, SyntheticRecord)]


def test_every_coder_has_a_record_a_row_and_is_kept(tried: tuple[Path, list[SyntheticRecord]]):
    run, records = tried
    by_name = {record.coder: record for record in records}
    assert list(by_name) == ["topk", "pca", "identity", "frozen-decoder", "random-model", "probe"]
    assert by_name["probe"].f1 > max(record.f1 for name, record in by_name.items() if name != "probe")
    assert by_name["topk"].explained_variance > by_name["frozen-decoder"].explained_variance
    with (run / by_name["topk"].csv).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["coder"], float(row["f1"])) for row in rows] == [(record.coder, record.f1) for record in records]
    for record in records[:-1]:
        assert files.load(run / record.path).d_sae == record.d_sae


def test_a_frozen_decoder_keeps_its_random_rows(tried: tuple[Path, list[SyntheticRecord]]):
    run, _ = tried
    learned, frozen, other = (
        files.load(run / f"toys/synthetic/{name}") for name in ("topk", "frozen-decoder", "random-model")
    )
    assert not torch.allclose(learned.W_dec, frozen.W_dec, atol=0.05)
    assert not torch.allclose(frozen.W_enc, frozen.W_dec.T, atol=0.05)
    # The seed is one: before training all three had the same rows.
    from circuitcli.training.initial import generator_of, unit_rows

    start = unit_rows(16, 6, generator_of(0, HOOK))
    torch.testing.assert_close(frozen.W_dec, start)
    assert not torch.allclose(other.W_dec, start, atol=0.05)


def test_other_coders_are_added_without_trying_the_first_again(
    tried: tuple[Path, list[SyntheticRecord]], monkeypatch: pytest.MonkeyPatch
):
    run, before = tried
    made = []
    measured = synthetic._measured
    monkeypatch.setattr(
        synthetic, "_measured", lambda bench, folder, name: made.append(name) or measured(bench, folder, name)
    )
    again = [r for r in synthetic.run(request(run, baselines="ica,pca")) if isinstance(r, SyntheticRecord)]
    assert made == ["ica"] and [record.coder for record in again] == ["topk", "ica", "pca", "probe"]
    assert again[0] == before[0] and again[2] == before[1]
    # Unchanged, nothing is measured or drawn anew.
    monkeypatch.setattr(synthetic, "_work", lambda *_: pytest.fail("a finished benchmark was worked on again"))
    assert [r for r in synthetic.run(request(run, baselines="ica,pca")) if isinstance(r, SyntheticRecord)] == again


def test_perfect_linear_coders_show_in_signs_too(data: tuple[Tensor, Tensor, Tensor]):
    directions, x, is_active = data
    coder = linear_coder(HOOK, -directions.double(), -directions.double(), torch.zeros(D), k=2)
    score = found(coder, directions, parts(x, is_active))
    assert score.mcc == pytest.approx(1.0) and score.detection.recall > 0.5


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["--samples", "9"], "add --synthetic"), (["--synthetic", "--l1", "1"], "leave out --synthetic")],
)
def test_options_of_the_other_half_of_the_command_are_refused(words: list[str], hint: str, capsys):
    from circuitcli.cli import app

    assert app.run(["toy", *words, "--run", "nowhere"]) == 2
    assert hint in capsys.readouterr().err


def test_the_command_tells_what_it_would_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from circuitcli.cli import app

    words = ["toy", "--synthetic", "--dry-run", "--run", str(tmp_path / "none"), "--architectures", "topk"]
    assert app.run(words) == 0
    assert "4,096 features in 192 dimensions" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
