"""What is said of an SAE: its fit to activations and what would fit better, its weights, and both over a real run."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_support import circuit
from exchange_support import random_sae, random_transcoder, written
from support import adapter_of, random_ids
from support_collect import save_model, texts
from torch import Tensor

from circuitcli.errors import InputError, SettingsError
from circuitcli.evaluation.fit import Fit, fit, n_tokens
from circuitcli.evaluation.health import problems, weight_facts
from circuitcli.hookpoints import HookPoint
from circuitcli.models import loading
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.findings import Findings
from circuitcli.models.taps import read
from circuitcli.records import InspectionRecord, SaeRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.exchange import formats
from circuitcli.saes.exchange.place import About
from circuitcli.settings.settings import Settings
from circuitcli.stages import collect, evaluate, export, fitting, inspect, interp, live
from circuitcli.stages.request import Request
from circuitcli.stages.saes import fold_gain

D, RANK, N = 12, 4, 300
HOOK = HookPoint(1, "resid")


def basis() -> Tensor:
    """Orthonormal columns (D, RANK), all at right angles to the vector of ones."""
    drawn = torch.randn(D, RANK, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn - drawn.mean(dim=0)).Q


def exact_sae(**config) -> SparseCoder:
    """A ReLU SAE that reconstructs what lies in the span of the basis, and nothing else."""
    sae = ARCHITECTURES["relu"](SaeConfig(HOOK, D, 2 * RANK, **config))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([basis(), -basis()], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
    return sae.requires_grad_(False)


def in_span(seed: int = 1) -> Tensor:
    return torch.randn(N, RANK, generator=torch.Generator().manual_seed(seed)) @ basis().T


def test_an_sae_that_fits_is_left_alone():
    found = fit(exact_sae(), in_span())
    assert found.quality.explained_variance == pytest.approx(1, abs=1e-5)
    assert not found.is_bad and not found.better


def test_a_missing_centring_is_found():
    means = 20 * torch.randn(N, 1, generator=torch.Generator().manual_seed(2))
    found = fit(exact_sae(), in_span() + means)
    assert found.is_bad and "if the mean over the width were removed from its input" in found.better
    assert found.better["if the mean over the width were removed from its input"] == pytest.approx(1, abs=1e-5)
    assert not fit(exact_sae(normalisation="centre"), in_span() + means).is_bad


@pytest.mark.parametrize("subtracts", [True, False])
def test_a_wrong_rule_for_the_decoder_bias_is_found(subtracts: bool):
    sae, x = exact_sae(subtract_decoder_bias=not subtracts), in_span()
    with torch.no_grad():
        sae.b_dec.copy_(9 * basis()[:, 0])
        if not subtracts:
            sae.b_enc.sub_(sae.b_dec @ sae.W_enc)
    found = fit(sae, x)
    name = f"if its decoder bias were {'subtracted' if subtracts else 'not subtracted'}"
    assert found.is_bad and found.better == {name: pytest.approx(1, abs=1e-5)} | found.better
    assert next(iter(found.better)) == name and "it would be 1.00" in found.sentence()


def test_another_hook_point_is_found_where_its_activations_are_at_hand():
    noise = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    noise -= noise @ basis() @ basis().T
    elsewhere = {"mlp.1": in_span(), "resid.0": noise, "narrow": torch.zeros(N, 3)}
    found = fit(exact_sae(), noise, elsewhere=elsewhere)
    assert found.better == {"at mlp.1 instead": pytest.approx(1, abs=1e-5)}


def test_a_transcoder_is_held_against_its_target():
    sae = random_transcoder("relu")
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(4))
    target = sae.reconstruct(x)
    assert fit(sae, x, target=target).quality.explained_variance == pytest.approx(1, abs=1e-5)
    assert fit(sae, x, target=target.flip(0)).is_bad


@pytest.mark.parametrize(
    ("explained", "recorded", "is_bad"),
    [
        (0.3, None, True),
        (0.4, None, False),
        (0.2, 0.4, False),
        (0.1, 0.4, True),
        (0.34, 0.95, True),
        (None, 0.9, False),
    ],
)
def test_what_was_recorded_lowers_what_is_asked_for(explained: float | None, recorded: float | None, is_bad: bool):
    quality = replace(fit(exact_sae(), in_span()).quality, explained_variance=explained)
    assert Fit(quality, 1.0, recorded).is_bad is is_bad


def test_wide_saes_are_judged_by_fewer_tokens():
    narrow, wide = exact_sae(), ARCHITECTURES["relu"](SaeConfig(HOOK, 4000, 20_000))
    assert n_tokens(narrow) == 2048 and n_tokens(wide) == 250


@pytest.mark.parametrize("architecture", ["relu", "gated", "topk", "jumprelu"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_features_that_cannot_fire_are_those_that_no_input_of_that_length_opens(architecture: str, subtracts: bool):
    sae, radius = random_sae(architecture, subtract_decoder_bias=subtracts), 2.0
    with torch.no_grad():
        sae.b_enc.sub_(4)
    # The input that opens a feature most points along its encoder column.
    best = radius * sae.W_enc.T / sae.W_enc.norm(dim=0)[:, None]  # (d_sae, d_in)
    if architecture == "gated" or architecture == "topk":
        is_open = sae.pre_activations(best).diagonal() > 0
    else:
        is_open = sae.encode(best).diagonal() > 0
    expected = int((~is_open).sum())
    assert 0 < expected < sae.d_sae
    assert weight_facts(sae, radius=radius)["cannot_fire"] == expected
    assert "cannot_fire" not in weight_facts(sae)
    assert any("cannot fire" in sentence for sentence in problems(sae, weight_facts(sae, radius=radius), None))


def test_sick_weights_are_told():
    sae = random_sae("jumprelu")
    assert problems(sae, weight_facts(sae), None) == []
    with torch.no_grad():
        sae.W_dec[0] = 0
        sae.W_enc[:, 1] = 0
        sae.threshold[2] = -1
        sae.W_dec[3] = 2 * sae.W_dec[4]
    told = " ".join(problems(sae, weight_facts(sae), None, dead=0.3))
    for words in ("1 of 17 features write nothing", "1 of 17 features read nothing", "negative threshold"):
        assert words in told
    assert (
        "11.8% of the features write nearly what another one writes" in told and "30% of the features were dead" in told
    )
    with torch.no_grad():
        sae.b_enc[5] = float("nan")
    assert "b_enc has 1 numbers that are not finite" in problems(sae, weight_facts(sae), None)


def test_a_bad_scale_and_codes_that_are_not_sparse_are_told():
    sae = exact_sae()
    with torch.no_grad():
        sae.W_dec.mul_(0.7)
    found = fit(sae, in_span())
    told = problems(sae, weight_facts(sae), found, recorded_l0=40.0)
    assert [words.split(":")[0] for words in told] == [
        "reconstructions are too short",
        "4 features are active per token, where 40 were recorded",
    ]
    dense = ARCHITECTURES["relu"](SaeConfig(HOOK, D, 2 * D))
    with torch.no_grad():
        dense.W_enc.copy_(torch.cat([torch.eye(D), -torch.eye(D)], dim=1))
        dense.W_dec.copy_(dense.W_enc.T)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(5))
    assert "that is not sparse" in " ".join(problems(dense, weight_facts(dense), fit(dense, x)))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox-sequential"])
@pytest.mark.parametrize("site", ["attn_in", "mlp_in"])
def test_an_sae_of_a_norm_before_its_weight_reads_it_after(family: str, site: str):
    adapter = adapter_of(family, dtype=torch.float32)
    before, hook = HookPoint(1, "resid_pre" if site == "attn_in" else "resid_mid"), HookPoint(1, site)
    with torch.no_grad():
        found = read(adapter, random_ids(), None, [before, hook])
    stream = found[before][0]
    if family in ("gpt2", "neox-sequential"):
        stream = stream - stream.mean(dim=-1, keepdim=True)
    y = stream / (stream.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    sae = ARCHITECTURES["relu"](SaeConfig(hook, 24, 40, subtract_decoder_bias=False))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    expected = sae.encode(y)
    fold_gain(sae.requires_grad_(False), adapter)
    assert (expected > 0).any()
    assert torch.allclose(sae.encode(found[hook][0]), expected, atol=2e-3)


def test_without_the_model_an_sae_of_a_norm_before_its_weight_is_refused():
    with pytest.raises(InputError, match="the model is needed"):
        fold_gain(random_sae("relu", hook=HookPoint(1, "mlp_in")), None)


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a cache of three hook points and one SAE that reconstructs resid.1 exactly."""
    folder = tmp_path_factory.mktemp("inspect")
    text = folder / "text.txt"
    text.write_text("\n".join(texts(40, 7, 60, 33)), encoding="utf-8")
    data = {"text": str(text), "layers": "1", "sites": ["resid", "mlp", "attn"], "block_length": 16, "dtype": "float32"}
    settings = Settings.model_validate({"model": {"name": str(save_model(folder / "model"))}, "data": data})
    run = Run(folder / "run")
    collect.run(Request(settings, Stream(), run))
    save_exact(run.path / "saes/resid.1", settings.model.name)
    return run.path


def save_exact(directory: Path, model: str, hook: HookPoint = HOOK) -> str:
    sae = ARCHITECTURES["relu"](SaeConfig(hook, 24, 48))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(24), -torch.eye(24)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
    return files.save(sae, directory, model=model)


@pytest.fixture
def ask(run_path: Path) -> Callable[..., Request]:
    run = Run(run_path)
    settings = Settings.model_validate({"model": {"name": run.manifest()["model"], "device": "cpu"}})
    digest = formats.find(run_path / "saes/resid.1")[0].digest
    record = SaeRecord(hook="resid.1", architecture="relu", d_in=24, d_sae=48, path="saes/resid.1", digest=digest)

    def request(sae: str | None = None, *, with_run: bool = True, force: bool = False, **changes) -> Request:
        named = settings.model_copy(update={"sae_path": sae, **changes})
        stream = Stream([*run.stream(), record]) if with_run else Stream()
        return Request(named, stream, run if with_run else Run(Path("/nowhere")), force)

    return request


def test_the_runs_own_saes_are_held_against_its_cache(ask, run_path: Path):
    (found,) = inspect.run(ask(), is_chosen=True)
    assert isinstance(found, InspectionRecord)
    assert found.activations["explained_variance"] == pytest.approx(1, abs=1e-5)
    assert found.activations["of"] == f"the cache of {run_path}" and found.activations["l0"] == pytest.approx(24)
    assert [sentence for sentence in found.problems if "not sparse" in sentence]
    assert (found.format, found.normalisation, found.model) == ("circuit", "none", ask().settings.model.name)


def test_an_sae_at_another_hook_point_is_told_where_it_fits(ask, run_path: Path, tmp_path: Path):
    rows = fitting.cached(ask(), [HookPoint(1, "mlp"), HOOK], n_tokens=100).rows[HookPoint(1, "mlp")]
    direction = torch.linalg.svd(rows - rows.mean(dim=0)).Vh[:3].T
    sae = ARCHITECTURES["relu"](SaeConfig(HOOK, 24, 6))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([direction, -direction], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
        sae.b_dec.copy_(rows.mean(dim=0))
    path = written(sae, "sae_lens", tmp_path, model="gpt2")
    (found,) = inspect.run(ask(str(path)), is_chosen=True)
    told = " ".join(found.problems)
    assert "it was trained on gpt2" in told and "at mlp.1 instead" in told
    assert found.source_hook == "blocks.1.hook_resid_post"


def test_the_model_reads_some_text_where_nothing_is_cached(ask, tmp_path: Path):
    save_exact(tmp_path / "sae", "test", HookPoint(2, "resid_mid"))
    data = ask().settings.data.model_copy(update={"block_length": 16})
    request = ask(str(tmp_path / "sae"), with_run=False, data=data)
    (found,) = inspect.run(request, is_chosen=True)
    assert found.activations["explained_variance"] == pytest.approx(1, abs=1e-4)
    assert found.activations["of"].endswith("on builtin:python") and found.activations["n_tokens"] == 2048
    (found,) = inspect.run(request, is_chosen=False)
    assert found.activations is None and found.weights["zero_decoder_rows"] == 0


def test_what_a_model_does_not_offer_beside_the_hook_point_is_not_looked_at(ask, tmp_path: Path, monkeypatch):
    save_exact(tmp_path / "sae", "test", HookPoint(2, "mlp"))
    model = loading.load_model(ask().settings.model)
    refused = {HookPoint(2, "attn"): "it is another thing"}
    adapter = ModelAdapter(model.adapter.model, model.adapter.layouts, Findings(refused=refused))
    monkeypatch.setattr(loading, "load_model", lambda settings: replace(model, adapter=adapter))
    data = ask().settings.data.model_copy(update={"block_length": 16})
    request = ask(str(tmp_path / "sae"), with_run=False, data=data)
    (found,) = inspect.run(request, is_chosen=True)
    assert found.activations["explained_variance"] == pytest.approx(1, abs=1e-4)
    _, sample = live.read_rows(request, loading.load_model(None), [HookPoint(2, "mlp")], n_tokens=20)
    assert {hook.site for hook in sample.rows} == {"resid_pre", "mlp", "resid"}


def test_an_sae_of_another_width_is_told_and_not_measured(ask, tmp_path: Path):
    path = written(random_sae("relu", hook=HOOK), "circuit", tmp_path)
    (found,) = inspect.run(ask(str(path)), is_chosen=True)
    assert found.activations is None
    assert "it is for width 6 at resid.1, where the model has 24" in found.problems


def test_an_sae_of_a_layer_that_the_model_lacks_is_told_and_not_measured(ask, tmp_path: Path):
    path = written(random_sae("relu", hook=HookPoint(9, "resid")), "circuit", tmp_path)
    (found,) = inspect.run(ask(str(path)), is_chosen=True)
    assert found.activations is None and found.weights["decoder_norm"] is not None
    assert found.problems[0].startswith("the model is not its own: resid.9 does not exist: this model has")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_stages_refuse_weights_that_are_no_numbers(ask, number: float, tmp_path: Path):
    sae = random_sae("relu", hook=HOOK)
    with torch.no_grad():
        sae.W_enc[2, 3] = number
    path = written(sae, "circuit", tmp_path)
    for stage in (interp, evaluate):
        with pytest.raises(InputError, match="holds numbers that are not finite, in W_enc"):
            stage.run(ask(str(path), force=True))


def test_a_run_that_nobody_named_is_used_for_its_own_model_only(ask, run_path: Path, tmp_path: Path):
    save_exact(tmp_path / "ours", ask().settings.model.name)
    save_exact(tmp_path / "others", "gpt2")
    assert inspect.run(ask(str(tmp_path / "ours")), is_chosen=False)[0].activations is not None
    (found,) = inspect.run(ask(str(tmp_path / "others")), is_chosen=False)
    assert found.activations is None and not any("trained on" in sentence for sentence in found.problems)


def test_damaged_weights_are_told_and_are_json(ask, tmp_path: Path):
    sae = random_sae("relu", hook=HOOK)
    with torch.no_grad():
        sae.W_dec[0, 0] = float("inf")
    path = written(sae, "circuit", tmp_path)
    (found,) = inspect.run(ask(str(path), with_run=False), is_chosen=False)
    assert found.problems == ("W_dec has 1 numbers that are not finite",)
    json.dumps(found.model_dump(), allow_nan=False)


@pytest.mark.parametrize(
    ("trained", "had", "is_cached", "told"),
    [
        (True, False, True, "trained with .*there is none: try `circuit collect --set model.bos=always` into another"),
        (False, True, False, "trained without .*there is one: try --set model.bos=never$"),
        (True, True, True, "^$"),
        (None, True, True, "^$"),
        (False, None, False, "^$"),
    ],
)
def test_another_bos_is_told_with_what_mends_it(trained: bool | None, had: bool | None, is_cached: bool, told: str):
    assert re.search(told, fitting.other_bos(About(bos=trained), had, is_cached=is_cached))


@pytest.mark.parametrize("trained", [True, False])
def test_the_bos_of_the_cache_counts_and_not_that_of_a_model(ask, trained: bool, tmp_path: Path):
    sae = ARCHITECTURES["relu"](SaeConfig(HOOK, 24, 6))
    with torch.no_grad():
        sae.W_enc.normal_(generator=torch.Generator().manual_seed(1))
        sae.W_dec.normal_(generator=torch.Generator().manual_seed(2))
    path = written(sae, "sae_lens", tmp_path, bos=trained)
    (found,) = inspect.run(ask(str(path)), is_chosen=True)
    assert any("BOS token in front" in problem for problem in found.problems) == (not trained)


def test_stages_warn_of_an_sae_that_does_not_fit(ask, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    sae = ARCHITECTURES["relu"](SaeConfig(HOOK, 24, 6))
    with torch.no_grad():
        sae.W_enc.normal_(generator=torch.Generator().manual_seed(1))
        sae.W_dec.normal_(generator=torch.Generator().manual_seed(2))
    bad = written(sae, "sae_lens", tmp_path, model="gpt2", bos=False)
    with caplog.at_level(logging.WARNING, logger="circuitcli"):
        interp.run(ask(str(bad), force=True))
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == f"the SAE at resid.1 was trained on gpt2, not on {ask().settings.model.name}"
    assert told[1].startswith("the SAE at resid.1 explains -")
    assert "without a BOS token in front, and here there is one: try `circuit collect --set model.bos=never`" in told[1]
    caplog.clear()
    save_exact(tmp_path / "good", ask().settings.model.name)
    with caplog.at_level(logging.WARNING, logger="circuitcli"):
        interp.run(ask(str(tmp_path / "good"), force=True))
    assert not caplog.records


@pytest.mark.parametrize("format_", sorted(set(formats.WRITABLE) - {"circuit_tracer", "sparsify"}))
def test_the_runs_saes_are_exported_with_what_the_run_knows(ask, format_: str, tmp_path: Path):
    (record,) = export.run(ask(), format_=format_, output=str(tmp_path / "out"))
    found = formats.read(formats.find(Path(record.path), format_)[0])
    own = files.load(ask().run.path / "saes/resid.1")
    x = torch.randn(20, 24, generator=torch.Generator().manual_seed(8))
    assert torch.allclose(found.sae.encode(x), own.encode(x), atol=1e-5)
    assert torch.allclose(found.sae.reconstruct(x), own.reconstruct(x), atol=1e-5)
    assert (found.about.model, found.about.context_length) == (ask().settings.model.name, 16)
    if format_ != "dictionary_learning":
        assert found.about.bos is True


def test_sparsify_gets_the_modules_of_the_model(ask, tmp_path: Path):
    sae = ARCHITECTURES["topk"](SaeConfig(HookPoint(1, "mlp"), 24, 40), k=3)
    files.save(sae, tmp_path / "sae")
    (record,) = export.run(ask(str(tmp_path / "sae")), format_="sparsify", output=str(tmp_path / "out"))
    assert Path(record.path).name == "h.1.mlp"


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ({"format_": None, "output": "x"}, SettingsError, "no format is given"),
        ({"format_": "gemma_scope", "output": "x"}, SettingsError, "'gemma_scope' is not a format that can be written"),
        ({"format_": "sae_lens", "output": None}, SettingsError, "no directory is named"),
        ({"format_": "sparsify", "output": "x"}, InputError, "sparsify cannot hold the relu SAE"),
    ],
)
def test_what_cannot_be_exported_is_refused(ask, words: dict, kind: type, message: str, inside: Path):
    with pytest.raises(kind, match=message):
        export.run(ask(), **words)


def test_an_export_does_not_mix_with_what_is_there(ask, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        export.run(ask(), format_="sae_lens", output=str(tmp_path / "out"))
    export.run(ask(force=True), format_="sae_lens", output=str(tmp_path / "out"))
    assert (tmp_path / "out/mine").read_text() == "precious"


@pytest.mark.parametrize("format_", sorted(set(formats.WRITABLE) - {"circuit_tracer", "sparsify"}))
def test_a_forced_export_replaces_its_own_files_alone(ask, format_: str, tmp_path: Path):
    out = tmp_path / "out"
    (record,) = export.run(ask(), format_=format_, output=str(out))
    made = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = Path(record.path) / "metrics.jsonl"
    other.write_text("mine")
    for path in made:
        path.write_text("old")
    (out / ".circuit-export-left").mkdir()
    export.run(ask(force=True), format_=format_, output=str(out))
    assert {path: path.read_bytes() for path in made} == made and other.read_text() == "mine"


def test_an_export_that_finds_a_folder_in_its_way_changes_nothing(ask, tmp_path: Path):
    out = tmp_path / "out"
    (record,) = export.run(ask(), format_="circuit", output=str(out))
    config, weights = Path(record.path) / "config.json", Path(record.path) / "weights.safetensors"
    config.unlink()
    (config / "mine").mkdir(parents=True)
    weights.write_text("old")
    with pytest.raises(InputError, match="Is a directory"):
        export.run(ask(force=True), format_="circuit", output=str(out))
    assert weights.read_text() == "old" and not list(tmp_path.glob("**/.circuit-export-*"))


def test_a_refused_export_leaves_nothing_and_what_a_killed_one_left_does_not_matter(ask, tmp_path: Path):
    out = tmp_path / "deep/out"
    with pytest.raises(InputError, match="circuit-tracer cannot hold"):
        export.run(ask(), format_="circuit_tracer", output=str(out))
    assert not (tmp_path / "deep").exists()
    (out / ".circuit-export-x").mkdir(parents=True)
    assert export.run(ask(), format_="circuit", output=str(out))
    with pytest.raises(InputError, match="is a file"):
        export.run(ask(), format_="circuit", output=str(out / "resid.1/config.json"))


def test_a_release_is_listed_without_torch_or_network(tmp_path: Path):
    outcome = circuit("inspect", "gpt2-small-res-jb", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert outcome.status == 0 and set(outcome.kinds) == {"release"} and len(outcome.records) == 13
    assert outcome.records[8]["hook"] == "resid_pre.8"
    program = "import sys; from circuitcli.cli.app import run; run(['inspect', 'gpt2-small-res-jb'])\n"
    program += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_sae_is_inspected_and_exported_without_a_run(tmp_path: Path):
    written(random_sae("gated"), "sae_lens", tmp_path / "theirs", model="gpt2")
    outcome = circuit("inspect", "theirs", cwd=tmp_path)
    assert (outcome.status, outcome.kinds) == (0, ["inspection"])
    assert "add --model or --run" in outcome.stderr
    outcome = circuit("export", "--sae", "theirs", "--to", "dictionary_learning", "-o", "out", cwd=tmp_path)
    assert (outcome.status, outcome.kinds) == (0, ["export"])
    assert Path(outcome.records[0]["path"]).is_dir()


def test_nothing_to_inspect_is_one_clear_error(tmp_path: Path):
    for words, status, error in [
        (["inspect", "gpt2-small-res-jp"], 3, "no SAE in gpt2-small-res-jp"),
        (["inspect"], 3, "there is no run"),
        (["export", "--sae", "nowhere", "--to", "sae_lens", "-o", "x"], 3, "no SAE in nowhere"),
        (["export", "--to", "sae_lens", "-o", "x"], 3, "there is no run"),
    ]:
        outcome = circuit(*words, cwd=tmp_path)
        assert outcome.status == status and error in outcome.errors[0], words
