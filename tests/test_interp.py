"""The interp stage: what it writes and emits, what it keeps, what it refuses."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support_collect import save_model, texts

from circuitcli import records, runs
from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError, SettingsError
from circuitcli.features import scan as scanning
from circuitcli.features.cards import cards
from circuitcli.features.lines import checked
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import load_model
from circuitcli.records import FeaturesRecord, SaeRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.abstopk import AbsTopKSae
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.crosscoder import Crosscoder
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.settings import Settings
from circuitcli.stages import collect, interp
from circuitcli.stages.request import Request

D_SAE = 40
HOOKS = (HookPoint(1, "mlp_in"), HookPoint(1, "resid"))


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A run with activations and random SAEs at two hook points; feature 3 of each is dead."""
    folder = tmp_path_factory.mktemp("interp")
    text = folder / "text.txt"
    text.write_text("\n".join(texts(40, 7, 60, 33)), encoding="utf-8")
    data = {"text": str(text), "layers": "1", "sites": ["resid", "mlp_in"], "block_length": 16, "dtype": "float32"}
    settings = Settings.model_validate({"model": {"name": str(save_model(folder / "model"))}, "data": data})
    request = Request(settings, Stream(), Run(folder / "run"))
    made = collect.run(request)
    saes = [save_sae(request.run.path, hook, seed=number) for number, hook in enumerate(HOOKS)]
    return replace(request, records=Stream([*made, *saes]))


def save_sae(run: Path, hook: HookPoint, *, seed: int) -> SaeRecord:
    return save_coder(run, TopKSae(SaeConfig(hook, 24, D_SAE), k=4), seed=seed)


def save_coder(run: Path, coder: SparseCoder, *, seed: int) -> SaeRecord:
    """Random weights; feature 3 has no positive code."""
    generator, hook = torch.Generator().manual_seed(seed), str(coder.hook)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            if name.startswith("W_"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        coder.b_enc[3] = -1e6
    digest = files.save(coder, run / "saes" / hook)
    path, architecture = f"saes/{hook}", coder.architecture
    return SaeRecord(hook=hook, architecture=architecture, d_in=24, d_sae=D_SAE, path=path, digest=digest)


@pytest.fixture
def request_(collected: Request, tmp_path: Path) -> Request:
    """The same run, without anything that other tests described."""
    shutil.copytree(collected.run.path, tmp_path / "run")
    return replace(collected, run=Run(tmp_path / "run"))


def with_interp(request: Request, *, force: bool = False, **changes: int) -> Request:
    section = request.settings.interp.model_copy(update=changes)
    return replace(request, settings=request.settings.model_copy(update={"interp": section}), force=force)


def lines(request: Request, hook: HookPoint) -> list[dict]:
    path = request.run.path / "features" / f"{hook}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids(request: Request) -> list[str]:
    return [line["id"] for hook in HOOKS for line in lines(request, hook)]


def test_each_live_feature_has_a_line_and_each_hook_point_one_record(request_: Request) -> None:
    made = interp.run(request_)
    assert [record.hook for record in made] == [str(hook) for hook in HOOKS]
    for record, hook in zip(made, HOOKS, strict=True):
        kept, path = lines(request_, hook), request_.run.path / record.path
        assert record.path == f"features/{hook}.jsonl" and record.digest == runs.file_digest(path)
        assert record.n_live == len(kept) > 0 and record.n_live + record.n_dead == D_SAE
        sae = next(one for one in request_.records.of(SaeRecord) if one.hook == str(hook))
        assert {line["sae"] for line in kept} == {record.sae} == {sae.digest}
        assert f"{hook}/3" not in {line["id"] for line in kept}
        assert {"kind", "id", "label", "density", "quantiles", "contexts", "promoted", "suppressed"} <= set(kept[0])


def test_the_stream_does_not_grow_with_the_number_of_features(request_: Request) -> None:
    written = [len(records.to_line(record)) for record in interp.run(request_)]
    assert len(written) == len(HOOKS) and max(written) < 400


def test_features_off_the_residual_stream_promote_nothing(request_: Request) -> None:
    interp.run(request_)
    assert all(len(line["promoted"]) == 8 for line in lines(request_, HookPoint(1, "resid")))
    assert all(line["promoted"] == line["suppressed"] == [] for line in lines(request_, HookPoint(1, "mlp_in")))


def test_layers_of_cross_layer_transcoders_and_codes_below_zero_are_described_as_their_cards_say(
    request_: Request,
) -> None:
    """The layer reads the cached ``mlp_in.1``, promotes by all that it writes, and its features are named by it."""
    layer = TopKSae(SaeConfig(HOOKS[0], 24, D_SAE, target=HookPoint(1, "mlp"), further=(HookPoint(2, "mlp"),)), k=4)
    signed = AbsTopKSae(SaeConfig(HOOKS[1], 24, D_SAE), k=4)
    made = {hook: coder.requires_grad_(False) for hook, coder in zip(HOOKS, (layer, signed), strict=True)}
    saved = [save_coder(request_.run.path, coder, seed=7 + number) for number, coder in enumerate(made.values())]
    interp.run(replace(request_, records=request_.records + saved))
    cache, model = ActivationCache(request_.run.path / "activations", HOOKS), load_model(request_.settings.model)
    for hook, coder in made.items():
        kept = {line["id"]: checked(line, place="") for line in lines(request_, hook)}
        expected = [one.model_copy(update={"sae": kept[one.id].sae}) for one in cards(coder, cache, model=model)]
        assert [*kept.values()] == expected
        assert all(len(one.promoted) == 8 for one in expected)
    assert any(line.get("negative") for line in lines(request_, HOOKS[1]))
    assert not any(line.get("negative") for line in lines(request_, HOOKS[0]))
    (shown,) = interp.describe(
        replace(request_, records=request_.records + saved), [lines(request_, HOOKS[0])[0]["id"]]
    )
    assert shown == lines(request_, HOOKS[0])[0]


def test_crosscoders_are_described_from_all_that_they_read_which_must_be_collected(request_: Request) -> None:
    names = [str(hook) for hook in HOOKS]
    coder = Crosscoder(SaeConfig(HOOKS[0], 48, D_SAE), hooks=names).requires_grad_(False)
    record = save_coder(request_.run.path, coder, seed=3).model_copy(update={"hooks": tuple(names), "d_in": 48})
    others = [one for one in request_.records if not isinstance(one, SaeRecord)]
    asked = replace(request_, records=Stream([*others, record]))
    made = interp.run(asked)
    assert [one.hook for one in made] == [names[0]] and made[0].n_live > 0
    cache, model = ActivationCache(request_.run.path / "activations", HOOKS), load_model(request_.settings.model)
    kept = [checked(line, place="") for line in lines(request_, HOOKS[0])]
    assert kept == [one.model_copy(update={"sae": record.digest}) for one in cards(coder, cache, model=model)]
    assert {*kept[0].decoder_norms} == {*names}
    other = [one.model_copy(update={"digest": "sha256:x"}) if one.hook == names[1] else one for one in others[-2:]]
    with pytest.raises(InputError, match=f"activations at {names[1]}"):
        interp.run(replace(request_, records=Stream([*others[:-2], *other, record])))
    alone = [one for one in others if getattr(one, "hook", "") != names[1]]
    with pytest.raises(InputError, match="interp read SAEs at"):
        interp.run(replace(request_, records=Stream([*alone, record])))


def test_only_the_tokens_asked_for_count(request_: Request) -> None:
    interp.run(with_interp(request_, tokens=20))
    found = lines(request_, HookPoint(1, "resid"))
    assert sum(line["n_active"] for line in found) <= 20 * 4
    assert all(line["density"] == pytest.approx(line["n_active"] / 20) for line in found)


def test_a_finished_stage_answers_without_work_whatever_the_batch_size(request_: Request) -> None:
    first = interp.run(request_)
    before = {path: path.stat().st_mtime_ns for path in (request_.run.path / "features").iterdir()}
    again = interp.run(with_interp(request_, batch_size=3))
    assert again == first
    assert before == {path: path.stat().st_mtime_ns for path in (request_.run.path / "features").iterdir()}


def test_a_killed_stage_goes_on_with_the_first_missing_hook_point(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, seen = scanning.scan, []

    def dying(cache, sae, **options):
        seen.append(str(sae.hook))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return scan(cache, sae, **options)

    monkeypatch.setattr(scanning, "scan", dying)
    with pytest.raises(KeyboardInterrupt):
        interp.run(request_)
    assert sorted(path.name for path in (request_.run.path / "features").iterdir()) == ["mlp_in.1.jsonl"]
    resumed = interp.run(request_)
    assert seen == ["mlp_in.1", "resid.1", "resid.1"]
    assert interp.run(replace(request_, force=True)) == resumed
    assert seen[3:] == ["mlp_in.1", "resid.1"]


def test_other_settings_are_refused_by_name_and_replaced_by_force(request_: Request) -> None:
    interp.run(request_)
    with pytest.raises(InputError, match=r"interp\.window was 16 and is now 2"):
        interp.run(with_interp(request_, window=2))
    interp.run(with_interp(request_, window=2, force=True))
    assert all(len(context["tokens"]) <= 5 for context in lines(request_, HOOKS[1])[0]["contexts"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), InputError("no")])
def test_force_that_fails_gives_the_finished_descriptions_back(
    request_: Request, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    finished = interp.run(request_)
    before = {path.name: path.read_bytes() for path in (request_.run.path / "features").iterdir()}
    scan, seen = scanning.scan, []

    def failing(cache, sae, **options):
        seen.append(str(sae.hook))
        if len(seen) == 2:
            raise error
        return scan(cache, sae, **options)

    monkeypatch.setattr(scanning, "scan", failing)
    with pytest.raises(type(error)):
        interp.run(with_interp(request_, window=2, force=True))
    assert request_.run.stream().of(FeaturesRecord) == finished == interp.run(request_)
    assert {path.name: path.read_bytes() for path in (request_.run.path / "features").glob("*.jsonl")} == before
    if isinstance(error, KeyboardInterrupt):
        made = interp.run(with_interp(request_, window=2))
        assert seen == ["mlp_in.1", "resid.1", "resid.1"]
    else:
        made = interp.run(with_interp(request_, window=2, force=True))
    assert request_.run.stream().of(FeaturesRecord) == made != finished
    assert sorted(path.name for path in (request_.run.path / "features").iterdir()) == sorted(before)
    assert [runs.file_digest(request_.run.path / record.path) for record in made] == [record.digest for record in made]


def test_a_half_written_file_is_made_again(request_: Request) -> None:
    whole = interp.run(request_)
    path = request_.run.path / "features" / "resid.1.jsonl"
    content = path.read_bytes()
    path.write_bytes(b"")
    request_.run.interrupt("interp", seconds=0.0)
    assert interp.run(request_) == whole
    assert path.read_bytes() == content


def test_describe_returns_the_stored_lines_in_the_order_asked(request_: Request) -> None:
    interp.run(request_)
    asked = [ids(request_)[-1], ids(request_)[0]]
    found = interp.describe(request_, asked)
    assert [line["id"] for line in found] == asked
    assert found[0] == lines(request_, HookPoint(1, "resid"))[-1]


@pytest.mark.parametrize(
    "feature, message, hint",
    [
        ("resid.1/3", "never fired", "all cached tokens with `circuit interp --force`"),
        ("resid.1/400", "no feature resid.1/400", "0 to 39"),
        ("resid.2/3", "nothing is known about features of resid.2", "mlp_in.1 resid.1"),
        ("resid.1/error", "error term", "feature"),
    ],
)
def test_describe_says_why_it_knows_nothing(request_: Request, feature: str, message: str, hint: str) -> None:
    interp.run(request_)
    with pytest.raises(InputError, match=message) as raised:
        interp.describe(request_, [feature])
    assert hint in raised.value.hint


def test_describe_before_interp_says_what_to_run(request_: Request) -> None:
    with pytest.raises(InputError, match="no described features") as raised:
        interp.describe(request_, ["resid.1/0"])
    assert "circuit interp" in raised.value.hint
    with pytest.raises(SettingsError):
        interp.describe(request_, ["nonsense"])


def test_features_of_another_sae_are_not_shown(request_: Request) -> None:
    interp.run(request_)
    other = request_.records.of(SaeRecord)[1].model_copy(update={"digest": "sha256:other"})
    stale = replace(request_, records=Stream([*request_.records, other]))
    with pytest.raises(InputError, match="another SAE") as raised:
        interp.describe(stale, [ids(request_)[-1]])
    assert "--force" in raised.value.hint


@pytest.mark.parametrize("kind, hint", [("activations", "circuit collect"), ("sae", "circuit train")])
def test_missing_inputs_are_named_with_the_command_that_makes_them(request_: Request, kind: str, hint: str) -> None:
    poor = replace(request_, records=Stream(record for record in request_.records if record.kind != kind))
    with pytest.raises(InputError, match=f"interp read no '{kind}' record") as raised:
        interp.run(poor)
    assert hint in raised.value.hint


def test_saes_elsewhere_are_described_where_activations_are(request_: Request, tmp_path: Path) -> None:
    save_sae(tmp_path / "other", HookPoint(1, "resid"), seed=5)
    save_sae(tmp_path / "other", HookPoint(2, "resid"), seed=6)
    settings = request_.settings.model_copy(update={"sae_path": str(tmp_path / "other")})
    made = interp.run(replace(request_, settings=settings))
    assert [record.hook for record in made] == ["resid.1"]
    settings = request_.settings.model_copy(update={"sae_path": str(tmp_path / "other/saes/resid.2")})
    with pytest.raises(InputError, match=r"SAEs at resid\.2 and activations at mlp_in\.1 resid\.1"):
        interp.run(replace(request_, settings=settings))


def test_finished_records_and_descriptions_need_no_torch(request_: Request, tmp_path: Path) -> None:
    made = interp.run(request_)
    stream = tmp_path / "stream.jsonl"
    with stream.open("w", encoding="utf-8") as opened:
        records.write(request_.records, opened)
    program = f"""
import sys
from pathlib import Path
from circuitcli import records, runs
from circuitcli.runs import Run
from circuitcli.settings.settings import Settings
from circuitcli.stages import interp
from circuitcli.stages.request import Request
request = Request(Settings(), records.read(Path({str(stream)!r}).open()), Run(Path({str(request_.run.path)!r})))
assert len(interp.run(request)) == {len(made)}
assert interp.describe(request, [{ids(request_)[0]!r}])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_an_older_version_emitted_for_each_feature_is_emitted_again(request_: Request) -> None:
    interp.run(request_)
    names = ("id", "label", "density", "path")
    old = [{"kind": "feature", **{name: line[name] for name in names}} for line in lines(request_, HOOKS[1])]
    kept = request_.run.path / "records" / "interp.jsonl"
    kept.write_text("".join(json.dumps(line) + "\n" for line in old), encoding="utf-8")
    assert [record.kind for record in interp.run(request_)] == ["feature"] * len(old)
    assert interp.describe(request_, [old[0]["id"]])[0]["label"] == old[0]["label"]


@pytest.mark.parametrize("bad", [b'{"id": "resid.1/0", "contexts": 7}', b'{"id": "resid.1/0", ', b"\xff", b"deep"])
def test_a_damaged_line_about_a_feature_is_named_with_its_place(request_: Request, bad: bytes) -> None:
    interp.run(request_)
    deep = b'{"id": "resid.1/0", "later": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    (request_.run.path / "features" / "resid.1.jsonl").write_bytes((deep if bad == b"deep" else bad) + b"\n")
    with pytest.raises(InputError, match=r"resid\.1\.jsonl line 1"):
        interp.describe(request_, ["resid.1/0"])


def test_labels_are_scored_on_the_last_tokens_which_make_no_label(request_: Request) -> None:
    made = interp.run(with_interp(request_, score_tokens=40))
    for record, hook in zip(made, HOOKS, strict=True):
        kept = [line["score"] for line in lines(request_, hook)]
        found = [score["balanced_accuracy"] for score in kept if score["balanced_accuracy"] is not None]
        assert record.n_scored == len(found) > 1 and record.label_score == pytest.approx(sum(found) / len(found))
        assert record.label_score_low <= record.label_score <= record.label_score_high
        assert {score["n_tokens"] for score in kept} == {40} and kept[0]["exchanged"] is None
    n_described = sum(record.n_live for record in made)
    with pytest.raises(InputError, match="leaves none"):
        interp.run(with_interp(request_, score_tokens=1_000_000, force=True))
    assert len(ids(request_)) == n_described
