"""`circuit interp --explain` against a server that knows each feature's rule, one that guesses, and ones that fail."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_server import oracle, serving
from support_collect import hf_gpt2, save_model, tokenizer

from circuitcli import records
from circuitcli.explaining import server
from circuitcli.features.label_files import LabelBook, read_kept
from circuitcli.hookpoints import HookPoint
from circuitcli.records import LabelScoreRecord, SaeRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.settings import Settings
from circuitcli.stages import collect, explain
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
