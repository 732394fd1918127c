"""What `circuit develop` makes behind the coders: a crosscoder over checkpoints, circuits at each, and their page."""

import csv
import json
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
from nursery_of_checkpoints import STEPS, asking, save_checkpoints, text_file

from circuitcli.cli.commands.render import shows_training
from circuitcli.errors import InputError, SettingsError
from circuitcli.records import CircuitRecord, CrosscoderRecord, FigureRecord, GraphRecord, ScoreRecord, Stream, to_line
from circuitcli.render.timeline_page import embedded_report
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.checkpoint_crosscoder import CheckpointCrosscoder
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed
from circuitcli.stages import develop, develop_circuits, develop_further, graph_grad, through, timeline, validate
from circuitcli.stages.request import Request

NAMES = [f"step{step}" for step in STEPS]
SMALL = {
    **{"data__layers": "1:2", "data__tokens": 500, "graph__down": 3, "graph__up": 2},
    **{"validate__samples": 3, "develop__seeds_at": NAMES[1], "train__loss_tokens": 32},
}


@dataclass(frozen=True)
class Followed:
    """A run, and at which checkpoints circuits were looked for before and after the command was broken off."""

    request: Request
    before: list[str]
    after: list[str]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """Three checkpoints at one hook point, with a crosscoder and the circuits of a behaviour that some of these random
    models have; broken off at the second circuit."""
    path, patch = tmp_path_factory.mktemp("through"), pytest.MonkeyPatch()
    model, text = save_checkpoints(path / "gpt"), text_file(path / "text.txt")
    texts = ("the king of", "my lord and", "sweet nigh", "to be, or n")
    # The text has no Z, so a model that knows nothing at all may well give it more than its frequency.
    lines = (json.dumps({"prompt": text, "target": "Z"}) + "\n" for text in texts)
    (path / "prompts.jsonl").write_text("".join(lines))
    changes = SMALL | {"develop__crosscoder": True, "graph__prompts": str(path / "prompts.jsonl")}
    request = asking(path / "run", model, text, **changes)
    develop.run(request)
    begun, breaks, work = [], [NAMES[1]], graph_grad._work

    def counted(task):
        begun.append(task.request.run.path.relative_to(path / "run" / "checkpoints").as_posix())
        if begun[-1] in breaks:
            raise KeyboardInterrupt
        return work(task)

    with patch.context() as patched:
        patched.setattr(graph_grad, "_work", counted)
        with pytest.raises(KeyboardInterrupt):
            develop_further.run(request)
        before, begun[:], breaks[:] = [*begun], [], []
        develop_further.run(request)
    return Followed(request, before, [*begun])


def again(followed: Followed) -> list[str]:
    return [to_line(record) for record in develop_further.run(followed.request)]


def test_the_same_command_again_makes_nothing(followed: Followed, monkeypatch: pytest.MonkeyPatch):
    expected = again(followed)
    for stage in (graph_grad, validate):
        monkeypatch.setattr(stage, "_work", None)
    monkeypatch.setattr(through.Moment, "model", None)
    assert again(followed) == expected
    kinds = [json.loads(line)["kind"] for line in expected]
    assert kinds == ["crosscoder", "figure", "circuit", "circuit", "circuit", "figure", "figure"]


def test_the_crosscoder_is_kept_with_what_it_tells_of_each_feature(followed: Followed):
    run = followed.request.run
    (record,) = run.stream().of(CrosscoderRecord)
    coder = files.load(run.path / record.path)
    assert isinstance(coder, CheckpointCrosscoder) and coder.checkpoints == NAMES == list(record.checkpoints)
    assert files.sae_digest(run.path / record.path) == record.digest and record.steps == STEPS
    for name in ("explained_variance", "ce_clean", "ce_increase", "reldec", "relie", "agreement", "born", "died"):
        assert len(getattr(record, name)) == len(STEPS)
    # The loss of each checkpoint's own model is that which its own SAEs were measured against.
    for name, clean in zip(NAMES, record.ce_clean or (), strict=True):
        config = json.loads((run.path / "checkpoints" / name / "saes" / record.hook / "config.json").read_text())
        assert clean == pytest.approx(config["ce_clean"], abs=1e-4)
    # What features write here is small, so that ablating them does what the gradient says.
    assert all(value is None or value > 0.9 for value in record.agreement or ())
    assert sum(value or 0 for value in record.kinds.values()) == record.n_live == sum(record.two_ended)
    with (run.path / record.table).open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == record.n_live
    for line in lines:
        assert sum(float(line[f"reldec_{name}"]) for name in NAMES) == pytest.approx(1, abs=1e-4)
        # Of what is not active in the prompts there is no effect to share out.
        assert sum(float(line[f"relie_{name}"]) for name in NAMES) in (0, pytest.approx(1, abs=1e-4))
    assert not (run.path / "crosscoder" / "partial").exists()


def test_circuits_are_those_that_the_stages_find_in_each_run_alone(followed: Followed):
    records = followed.request.run.stream().of(CircuitRecord)
    assert [one.checkpoint for one in records] == NAMES and [one.step for one in records] == list(STEPS)
    for record in records:
        own = Run(followed.request.run.path / "checkpoints" / record.checkpoint).stream()
        head = next(one for one in own.of(GraphRecord) if one.name == record.graph)
        assert record.metric_clean == pytest.approx(head.metric_clean, abs=1e-5)
        assert record.there == (record.gain_low > 0) == (record.faithfulness is not None)
        assert (record.seed is not None) == (record.checkpoint == NAMES[1])
        if not record.there:
            continue
        score = next(one for one in own.of(ScoreRecord) if one.name == "faithfulness" and one.judged)
        assert (record.faithfulness, record.low, record.high) == (score.value, score.low, score.high)
    assert {record.there for record in records} == {True, False}
    assert [record.before is None for record in records] == [True, False, False]
    assert [record.last is None for record in records] == [False, False, True]
    with (followed.request.run.path / develop_circuits.TABLE).open() as stream:
        assert [line["checkpoint"] for line in csv.DictReader(stream)] == NAMES


def test_the_page_is_in_the_run_and_render_draws_it_in_every_form(followed: Followed, tmp_path: Path):
    run = followed.request.run
    request = Request(followed.request.settings, run.stream(), run)
    assert shows_training(request)
    page = embedded_report((run.path / timeline.DEFAULT).read_text())
    assert [one["name"] for one in page["frames"]] == NAMES
    text = (run.path / timeline.DEFAULT).read_text()
    assert "no better than chance" in text
    for title in ("Faithfulness of the circuit", "All features: share that is matched", "Crosscoder: RelDec"):
        assert f"<b>{title}</b>" in text
    outputs = [str(tmp_path / f"x{suffix}") for suffix in timeline.SUFFIXES]
    asked = replace(request, settings=changed(request.settings, {"render.output": outputs}))
    made = timeline.run(asked, stdout=StringIO())
    assert [record.path for record in made if isinstance(record, FigureRecord)] == outputs
    for path, begins in zip(outputs, (b"<!DOCTYPE html", b"<?xml", b"\x89PNG", b"%PDF", b"{"), strict=True):
        assert Path(path).read_bytes().startswith(begins)
    with pytest.raises(SettingsError, match=r"cannot draw 'x\.doc'"):
        timeline.write_files(run, ["x.doc"])
    with pytest.raises(InputError, match=r"circuits\.json"):
        timeline.write_files(Run(tmp_path), [])


def test_a_killed_command_goes_on_with_the_checkpoint_where_it_stopped(followed: Followed):
    assert followed.before == NAMES[:2]
    assert followed.after == [NAMES[1], f"{NAMES[1]}/seeds/1", NAMES[2]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"graph.prompt": "the king", "graph.target": None}, "has no target"),
        ({"graph.prompt": "the king", "graph.target": "Z", "graph.metric": "kl"}, "is 0 at every checkpoint"),
    ],
)
def test_prompts_that_cannot_be_followed_are_refused_before_anything_is_made(values: dict, told: str):
    with pytest.raises(SettingsError, match=told):
        through.check(changed(Settings(), values))


def test_the_plan_tells_what_is_made_behind_the_coders(followed: Followed):
    assert dict(develop_further.plan(followed.request)) == {
        "crosscoder": "of all checkpoints, at each hook point, in crosscoder",
        "circuits": "of 4 prompts at each checkpoint, drawn in figures/development.html",
    }
    assert develop_further.plan(replace(followed.request, settings=Settings())) == []


def test_what_needs_several_checkpoints_says_so(followed: Followed, tmp_path: Path):
    request = Request(followed.request.settings, Stream(), Run(tmp_path))
    with pytest.raises(InputError, match=r"too few checkpoints with coders \(0\)"):
        through.moments(request)
    with pytest.raises(SettingsError, match="one node for each feature"):
        develop_circuits.run(replace(request, settings=changed(followed.request.settings, {"graph.positions": "last"})))
