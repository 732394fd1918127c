"""``circuit develop``: checkpoints found and ordered, a run for each on the same tokens, resumed where it stopped."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_support import here
from nursery_of_checkpoints import OPTIONS, STEPS, asking, save_checkpoints, text_file

from circuitcli import progress
from circuitcli.activations.cache import ActivationCache
from circuitcli.development.checkpoints import chosen, listed
from circuitcli.development.lives import read_lives
from circuitcli.errors import CircuitError, InputError, SettingsError, ToolError
from circuitcli.features.matching import directions
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, CheckpointRecord, DevelopmentRecord, RunRecord, SaeRecord
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.stages import collect, develop, interp, matching, train

HOOKS = ("resid.1",)
NAMES = [f"step{step}" for step in STEPS]
# Of all bars that were shown, by the run.
TITLES: dict[Path, list[str]] = {}


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Figures, which take longer than all else, are drawn elsewhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(matching, "drawn", lambda *given: [])
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoints(tmp_path_factory.mktemp("training") / "gpt")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def developed(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests copy it."""
    path = tmp_path_factory.mktemp("developed") / "run"
    titles = TITLES[path] = []

    @contextmanager
    def sink(title, total, unit, done):
        titles.append(title)
        yield lambda amount=1, *, note="": None

    progress.set_sink(sink)
    try:
        develop.run(asking(path, model, text))
    finally:
        progress.set_sink(None)
    return path


@pytest.fixture
def run_path(developed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(developed, tmp_path / "run", symlinks=True))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which stages do work from here on, as step16/collect and step16/seeds/1/train."""
    made: list[str] = []
    for stage in (collect, train, interp):
        before = stage._work

        def work(first, *given, _stage=stage, _before=before, **named):
            path = getattr(first, "request", first).run.path
            made.append(f"{path.relative_to(path.parents[len(path.parts) - 1 - path.parts.index('checkpoints')])}")
            made[-1] = made[-1].partition("checkpoints/")[2] + f"/{_stage.NAME}"
            return _before(first, *given, **named)

        monkeypatch.setattr(stage, "_work", work)
    return made


def test_checkpoints_are_taken_by_number_and_named_by_patterns(tmp_path: Path):
    for name in ("step1000", "step16", "step0", "best", "step2"):
        (tmp_path / "gpt" / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "gpt" / "checkpoints" / name / "config.json").write_text("{}")
    (tmp_path / "gpt" / "checkpoints" / "no model").mkdir()
    named = lambda *patterns: [one.name for one in chosen(str(tmp_path / "gpt"), patterns)]  # noqa: E731
    assert named("*") == ["step0", "step2", "step16", "step1000", "best"]
    assert named("step1*", "best", "step16") == ["step16", "step1000", "best"]
    assert [one.step for one in chosen(str(tmp_path / "gpt"), ["step1000", "best"])] == [1000, None]
    # A folder of checkpoints may be named itself.
    assert [one.name for one in listed(str(tmp_path / "gpt" / "checkpoints"))] == sorted(named("*"))
    with pytest.raises(InputError, match="no checkpoint 'step17'") as refused:
        named("step0", "step17")
    assert "did you mean step1" in refused.value.hint
    with pytest.raises(InputError, match=r"none of its folders has a config\.json"):
        chosen(str(tmp_path / "gpt" / "checkpoints" / "no model"), ["*"])
    with pytest.raises(InputError, match="without checkpoints"):
        chosen("builtin:tiny", ["*"])


def test_revisions_of_a_hub_model_are_branches_and_tags_or_without_a_network_what_the_cache_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub
    from huggingface_hub import constants

    branches = [SimpleNamespace(name=name) for name in ("main", "step1000", "stage1/step2")]
    refs = SimpleNamespace(branches=branches, tags=[SimpleNamespace(name=name) for name in ("step16", "main")])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ToolError, match="the local cache has no revision of org/gpt") as refused:
        listed("org/gpt")
    assert "--model" in refused.value.hint and "HF_HUB_OFFLINE" in refused.value.hint
    for name in ("main", "step1000", "step8"):
        (tmp_path / "models--org--gpt" / "refs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models--org--gpt" / "refs" / name).write_text("0" * 40)
    assert [one.revision for one in chosen("org/gpt", ["*"])] == ["step8", "step1000", "main"]
    monkeypatch.setattr("circuitcli.development.checkpoints.hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", lambda self, name: refs)
    assert [(one.name, one.revision) for one in chosen("org/gpt", ["*"])] == [
        ("stage1-step2", "stage1/step2"),
        ("step16", "step16"),
        ("step1000", "step1000"),
        ("main", "main"),
    ]

    def refuse(self, name):
        raise ConnectionError("gone")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", refuse)
    with pytest.raises(ToolError, match="org/gpt"):
        listed("org/gpt")


def test_each_checkpoint_is_a_run_with_the_same_tokens_in_the_same_order(developed: Path, model: Path):
    records = Run(developed).stream()
    made = records.of(CheckpointRecord)
    assert [(one.name, one.step) for one in made] == list(zip(NAMES, STEPS, strict=True))
    assert records.last(RunRecord).model == str(model)
    assert len({one.tokens for one in made}) == 1 and {one.hooks for one in made} == {HOOKS}
    rows = []
    for one in made:
        own = Run(developed / one.path)
        assert own.record().model.endswith(one.name)
        assert [record.hook for record in own.stream().of(ActivationsRecord)] == list(HOOKS)
        assert [record.hook for record in own.stream().of(SaeRecord)] == list(HOOKS)
        cache = ActivationCache(own.path / "activations", [HookPoint(1, "resid")])
        rows.append((cache.tokens(0, cache.n_tokens), cache.rows(HookPoint(1, "resid"), 0, cache.n_tokens)))
        assert len(cache.rows(HookPoint(1, "resid"), 0, cache.n_tokens)) == one.n_tokens
    assert all((tokens.token == rows[0][0].token).all() for tokens, _ in rows)
    assert not (rows[0][1] == rows[1][1]).all()


def test_every_seed_has_coders_of_its_own_on_the_same_activations(developed: Path):
    digests = set()
    for name in NAMES:
        own = developed / "checkpoints" / name
        other = own / "seeds" / "1"
        assert (other / "activations").resolve() == (own / "activations").resolve()
        for run in (Run(own), Run(other)):
            digests |= {record.digest for record in run.stream().of(SaeRecord)}
        seeds = {json.loads((run / "saes/resid.1/config.json").read_text())["seed"] for run in (own, other)}
        assert len(seeds) == 2
    assert len(digests) == 2 * len(HOOKS) * len(NAMES)


def test_finished_work_is_emitted_again_and_new_checkpoints_are_added(
    run_path: Path, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = calls(monkeypatch)
    before = [one.model_dump() for one in develop.run(asking(run_path, model, text))]
    assert made == []
    assert [one["kind"] for one in before[: len(NAMES) + 1]] == ["run", *["checkpoint"] * len(NAMES)]
    more = Path(shutil.copytree(model, tmp_path / "gpt"))
    # Files of a model count by name, size and time; another folder's are other ones.
    shutil.copytree(more / "checkpoints/step16", model / "checkpoints/step64")
    try:
        after = develop.run(asking(run_path, model, text))
    finally:
        shutil.rmtree(model / "checkpoints/step64")
    assert made == ["step64/collect", "step64/train", "step64/seeds/1/train"]
    assert [one.name for one in after if isinstance(one, CheckpointRecord)] == ["step0", "step16", "step64", "step1000"]
    with pytest.raises(InputError, match=r"already has develop with other settings: sae\.k was 4 and is now 5"):
        develop.run(asking(run_path, model, text, sae__k=5))


def test_what_was_killed_goes_on_at_the_checkpoint_and_the_stage_where_it_stopped(
    developed: Path, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = calls(monkeypatch)
    work = train._work

    def killed(training, resumes):
        if training.request.run.path.name == "step16":
            raise KeyboardInterrupt
        return work(training, resumes)

    with monkeypatch.context() as patched:
        patched.setattr(train, "_work", killed)
        with pytest.raises(KeyboardInterrupt):
            develop.run(asking(tmp_path / "run", model, text))
    assert made == ["step0/collect", "step0/train", "step0/seeds/1/train", "step16/collect"]
    made.clear()
    after = develop.run(asking(tmp_path / "run", model, text))
    rest = [f"step1000/{stage}" for stage in ("collect", "train", "seeds/1/train")]
    assert made == ["step16/train", "step16/seeds/1/train", *rest]
    unbroken = [one.model_dump() for one in Run(developed).stream()][1:]
    assert [one.model_dump() for one in after][1:] == unbroken
    weights = "checkpoints/step16/saes/resid.1/weights.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (developed / weights).read_bytes()


def test_force_makes_again_only_what_other_settings_change(
    run_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    made = calls(monkeypatch)
    chosen_ones = asking(run_path, model, text, force=True, sae__k=5, develop__revisions="step0,step16")
    develop.run(chosen_ones)
    assert made == [f"{name}/{stage}" for name in ("step0", "step16") for stage in ("train", "seeds/1/train")]


@pytest.mark.parametrize("at", ["step0", "step16"])
def test_what_is_wrong_with_a_checkpoint_is_said_with_its_name(
    at: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bad = Path(shutil.copytree(model, tmp_path / "gpt"))
    (bad / "checkpoints" / at / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CircuitError, match=f"^checkpoint {at}: ") as refused:
        develop.run(asking(tmp_path / "new", bad, text, develop__seeds=1))
    assert refused.value.exit_status == 3 and str(refused.value) == refused.value.message
    # Once it is mended, what was made before is kept.
    shutil.copy(model / "checkpoints" / at / "model.safetensors", bad / "checkpoints" / at)
    monkeypatch.setattr(develop.checkpoint_run, "made", lambda *given, **named: pytest.fail("goes on"))
    with pytest.raises(pytest.fail.Exception, match="goes on"):
        develop.run(asking(tmp_path / "new", bad, text, develop__seeds=1))


def test_another_tokenizer_is_refused_as_rows_would_be_of_other_tokens(model: Path, text: Path, tmp_path: Path):
    bad = Path(shutil.copytree(model, tmp_path / "gpt"))
    file = bad / "checkpoints/step16/tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["e"], vocabulary["z"] = vocabulary["z"], vocabulary["e"]
    file.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"^checkpoint step16: its 9.. tokens are not the 9.. of step0"):
        develop.run(asking(tmp_path / "new", bad, text, develop__seeds=1))


def test_a_mistyped_setting_leaves_no_run_that_refuses_the_mended_one(model: Path, text: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="layer slice"):
        develop.run(asking(tmp_path / "run", model, text, data__layers="7:9"))
    develop.run(asking(tmp_path / "run", model, text, develop__seeds=1, develop__revisions="step0"))
    with pytest.raises(SettingsError, match="step0 is one checkpoint"):
        develop.run(asking(tmp_path / "run", model, text, model__revision="step0"))


def test_bars_say_which_checkpoint(developed: Path):
    titles = TITLES[developed]
    assert {title.split(" (")[0] for title in titles} >= {*NAMES, *HOOKS}
    assert any(title.startswith("step16 (2/3) collect") for title in titles)


def test_a_dry_run_tells_checkpoints_tokens_and_bytes_and_makes_nothing(model: Path, text: Path, tmp_path: Path):
    told = dict(develop.plan(asking(tmp_path / "run", model, text)))
    assert told["checkpoints"] == f"3: {' '.join(NAMES)}"
    assert told["tokens"] == "900 at each, 2,700 in all"
    assert told["in all"].startswith("6 coders") and "autoencoders" in " ".join(told)
    assert "MiB" in told["disk"] or "KiB" in told["disk"] or "kB" in told["disk"] or "B" in told["disk"]
    assert not (tmp_path / "run").exists()


def test_coders_begin_from_those_of_the_checkpoint_before_and_lives_have_labels(
    model: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    made = develop.run(
        asking(
            tmp_path / "run",
            model,
            text,
            develop__revisions="step0,step16",
            develop__start="before",
            develop__interp=True,
        )
    )
    own, other = (
        [tmp_path / "run/checkpoints" / name / seed / "saes/resid.1" for name in ("step0", "step16")]
        for seed in (".", "seeds/1")
    )
    for first, second in (own, other):
        told = [json.loads((path / "config.json").read_text()) for path in (first, second)]
        assert "begun_from" not in told[0] and told[1]["begun_from"] == files.sae_digest(first)
    before, after = (directions(files.load(path)) for path in own)
    # They stay what they were, number for number, more than any others are alike.
    assert float((before * after).sum(dim=1).mean()) > 0.8
    assert not [record for record in caplog.records if "was trained on" in record.getMessage()]
    found = read_lives(tmp_path / "run/reports/development.json")[HookPoint(1, "resid")]
    lines = (tmp_path / "run/checkpoints/step16/features/resid.1.jsonl").read_text().splitlines()
    labels = {int(one["id"].split("/")[1]): one["label"] for one in map(json.loads, lines)}
    last = [one for one in found if one.last == 1]
    assert last and all(one.label == labels[one.features[-1]] for one in last)
    (record,) = (one for one in made if isinstance(one, DevelopmentRecord))
    assert record.lives == len(found) and record.whole > 0


def test_the_command_says_what_it_found_and_records_read_back(run_path: Path, model: Path, text: Path):
    words = ["--model", str(model), "--text", str(text), "--revisions", "step*", "--run", str(run_path), "--seeds", "2"]
    pairs = [f"{name}={value}" for name, value in OPTIONS.items() if name != "develop.revisions"]
    outcome = here("develop", *words, *(word for pair in pairs for word in ("--set", pair)), cwd=run_path.parent)
    assert outcome.status == 0, outcome.stderr
    assert outcome.kinds[:5] == ["run", *["checkpoint"] * 3, "match"] and outcome.kinds[-1] == "development"
    said = outcome.stderr
    assert "matches" in said and "resid.1: of the " in said and "shuffled features" in said
    made = [one.model_dump(exclude_none=True) for one in Run(run_path).stage_records("develop")]
    assert outcome.records[1:] == json.loads(json.dumps(made))
