"""The catalogue held against SAELens's own list, and releases with folders of their own kinds."""

import json
import logging
import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import make_neuronpedia
import pytest
import torch
from exchange_support import D_IN, D_SAE, assert_same, inputs, only, random_sae, written
from make_catalogue import as_toml, catalogued, sae_lens_list
from safetensors.torch import save_file

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, Stream
from circuitcli.runs import Run, file_digest
from circuitcli.saes.exchange import catalogue, formats, neuronpedia
from circuitcli.saes.exchange.naming import named
from circuitcli.saes.exchange.place import Changes
from circuitcli.settings.settings import Settings
from circuitcli.stages.request import Request
from circuitcli.stages.saes import load_saes, sae_sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Of each release so many ids are looked up, spread over all of them.
N_IDS = 12


@pytest.fixture(scope="module")
def listed() -> dict[str, Any]:
    """The releases that the installed SAELens knows, without importing it."""
    try:
        return sae_lens_list()
    except ImportError as error:
        pytest.skip(str(error))


def test_the_catalogue_is_what_the_list_of_the_installed_sae_lens_gives(listed: dict[str, Any]):
    by_hand = tomllib.loads(catalogue.BY_HAND.read_text(encoding="utf-8"))
    written = catalogue.LISTED.read_text(encoding="utf-8").partition("\n\n")[2]
    assert written == as_toml(catalogued(listed, by_hand=by_hand)), "run `python -m tests.make_catalogue`"
    assert not listed.keys() & by_hand.keys() and len(by_hand) < 30


def test_neuronpedias_names_of_saes_are_those_of_the_list_of_the_installed_sae_lens(listed: dict[str, Any]):
    written = neuronpedia.LISTED.read_text(encoding="utf-8").partition("\n\n")[2]
    assert written == make_neuronpedia.generated().partition("\n\n")[2], "run `python tests/make_neuronpedia.py`"
    for (repository, path), source in make_neuronpedia.known(listed).items():
        assert neuronpedia.source_of(repository, path) == source and neuronpedia.is_source(source)
    assert neuronpedia.source_of("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre") == (
        "gpt2-small/8-res-jb"
    )
    assert neuronpedia.source_of("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.12.hook_resid_pre") is None


def test_what_is_listed_comes_back_from_the_generated_tables_and_what_is_written_by_hand_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paths = [f"transcoder/layer_{at}_width_16k_l0_{size}" for at in (0, 1, 5, 16) for size in ("big", "medium")]
    saes = [{"id": path, "path": path} for path in paths]
    odd = [
        {"id": f"layer_{at}", "path": f"SAEs-{at}/x-SAE-l{at}.pt", "norm_scaling_factor": at + 0.5} for at in (1, 2, 9)
    ]
    about = {"repo_id": "a/b", "model": "gemma-2-2b", "conversion_func": "gemma_3"}
    listed = {
        "one": {**about, "saes": saes},
        "two.5": {**about, "conversion_func": "goodfire", "saes": odd},
        "three-canonical": {**about, "saes": []},
        "three": {**about, "saes": saes},
        "four": {**about, "saes": saes},
    }
    for name, text in (
        ("LISTED", as_toml(catalogued(listed, by_hand=["four"]))),
        ("BY_HAND", '[one]\nmodel = "x"\nrefused = "y"\n'),
    ):
        path = tmp_path / name
        path.write_text(text)
        monkeypatch.setattr(catalogue, name, path)
    found = {
        name: catalogue._release(name, table)
        for name, table in tomllib.loads((tmp_path / "LISTED").read_text()).items()
    }
    assert {(entry.path, str(entry.hook), str(entry.changes.target)) for entry in found["one"].entries} == {
        (path, f"mlp_in.{layer}", f"mlp.{layer}") for path in paths for layer in [path.split("_")[1]]
    }
    # Of the two at each hook point the middle one comes first.
    assert [entry.path.endswith("medium") for entry in found["one"].by_hook().values()] == [True] * 4
    assert [(entry.id, entry.path, entry.changes.scale) for entry in found["two.5"].entries] == [
        (sae["id"], sae["path"], sae["norm_scaling_factor"]) for sae in odd
    ]
    assert found["three"].entries == () and "four" not in found
    catalogue._content.cache_clear()
    try:
        assert catalogue._content()["one"] == {"model": "x", "refused": "y"} and "two.5" in catalogue._content()
    finally:
        catalogue._content.cache_clear()


def test_a_release_that_the_generator_does_not_understand_is_named():
    about = {"repo_id": "a/b", "model": "gpt2-small", "saes": [{"id": "x", "path": "y"}]}
    with pytest.raises(ValueError, match="new: no format is known for what SAELens converts by magic"):
        catalogued({"new": {**about, "conversion_func": "magic"}}, by_hand=())
    with pytest.raises(ValueError, match="new: no hook point is known for y"):
        catalogued({"new": about}, by_hand=())


def test_every_release_of_sae_lens_is_known_or_refused_with_a_reason(listed: dict[str, Any]):
    known, refused = catalogue.releases(), catalogue.refused()
    assert len(listed) >= 170
    assert [name for name in listed if name not in known and name not in refused] == []
    assert all(len(reason) > 30 for reason in refused.values())
    heads = {name for name in listed if name.startswith("gemma-scope") and "-att" in name}
    assert heads <= refused.keys() and len(heads) > 20


def test_releases_hold_the_saes_that_sae_lens_lists_under_their_ids_and_paths(listed: dict[str, Any]):
    known = catalogue.releases()
    for name in listed.keys() & known.keys():
        release, saes = known[name], listed[name]["saes"]
        assert release.repo == listed[name]["repo_id"], name
        if not release.entries:
            continue
        assert sorted(sae["path"] for sae in saes) == sorted(entry.path for entry in release.entries), name
        for sae in saes[:: max(1, len(saes) // N_IDS)]:
            assert release.entry(sae["id"]).path == release.entry(sae["path"]).path == sae["path"], name
        told = {entry.path: entry.changes.scale for entry in release.entries if entry.changes.scale is not None}
        assert told == {sae["path"]: pytest.approx(sae["norm_scaling_factor"]) for sae in saes if sae["path"] in told}
    assert all(entry.changes.scale for entry in known["llama_scope_r1_distill"].entries)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("gemma-scope-2-4b-pt-att", "before the output projection", "attn, mlp or a residual stream"),
        (
            "mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_3",
            "a cross-layer transcoder",
            "mntss-clt-gemma-2-2b-2.5m is all",
        ),
        ("gemma-scope-2-4b-pt-resid/resid.9", "no release of that name", "did you mean gemma-scope-2-4b-pt-res or"),
        ("sae_bench_gemma-2-2b_topk", "no release of that name", "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109"),
        ("gpt2-small-res-jb/blocks.88.hook_resid_pre", "has no SAE", "did you mean gpt2-small-res-jb/"),
    ],
)
def test_refused_and_similar_releases_are_told(text: str, message: str, hint: str):
    with pytest.raises(InputError) as caught:
        named(text)
    assert message in caught.value.message and hint in caught.value.hint


def test_similar_names_of_models_of_another_size_are_no_suggestion():
    assert all("-4b-" in name for name in catalogue.nearest("gemma-scope-2-4b-pt-resid"))


def test_a_part_of_a_path_that_several_share_names_none():
    release = catalogue.releases()["sae_bench_gemma-2-2b_topk_width-2pow12_date-1109"]
    with pytest.raises(InputError, match="has no SAE 'trainer_0'"):
        release.entry("trainer_0")
    assert release.entry("resid.12").path.endswith("resid_post_layer_12/trainer_0")


def dictionary(folder: Path) -> dict[str, torch.Tensor]:
    """ae.pt of the sparse-feature-circuits paper; no config lies beside it."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "encoder.weight": (D_SAE, D_IN),
        "encoder.bias": (D_SAE,),
        "decoder.weight": (D_IN, D_SAE),
        "bias": (D_IN,),
    }
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["decoder.weight"] /= state["decoder.weight"].norm(dim=0)
    torch.save(state, folder / "ae.pt")
    return state


@pytest.mark.parametrize(
    ("folder", "hook"),
    [
        ("attn_out_layer0", "attn.0"),
        ("mlp_out_layer1", "mlp.1"),
        ("resid_out_layer5", "resid.5"),
        ("embed", "embed"),
    ],
)
def test_dictionaries_of_the_sparse_feature_circuits_paper_are_at_their_submodule(
    folder: str, hook: str, tmp_path: Path
):
    path = tmp_path / "dictionaries/pythia-70m-deduped" / folder / "10_32768"
    state = dictionary(path)
    found = only(tmp_path)
    codes = ((inputs() - state["bias"]) @ state["encoder.weight"].T + state["encoder.bias"]).relu()
    assert_same(found.sae, codes, codes @ state["decoder.weight"].T + state["bias"], inputs())
    assert (str(found.sae.hook), found.about.model) == (hook, "EleutherAI/pythia-70m-deduped")


def test_all_submodules_of_that_paper_are_found_below_their_model(tmp_path: Path):
    for folder in ("embed", "attn_out_layer0", "mlp_out_layer0", "resid_out_layer0", "resid_out_layer11"):
        dictionary(tmp_path / "pythia-70m-deduped" / folder / "10_32768")
    assert {str(place.hook) for place in formats.find(tmp_path)} == {"embed", "attn.0", "mlp.0", "resid.0", "resid.11"}


def openmoss(directory: Path, *, weights: str = "sae_weights.safetensors", **config: Any) -> dict[str, torch.Tensor]:
    """A folder of OpenMOSS's library, as its SAEs of R1 are."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,), "decoder.weight": (D_IN, D_SAE)}
    shapes |= {"decoder.bias": (D_IN,), "log_jumprelu_threshold": (D_SAE,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, directory / weights)
    hooks = {name: "blocks.5.hook_resid_post" for name in ("hook_point_in", "hook_point_out")}
    content = {"d_model": D_IN, "expansion_factor": 3, "act_fn": "jumprelu", "norm_activation": "dataset-wise"}
    (directory / "config.json").write_text(json.dumps(hooks | content | config))
    return tensors


@pytest.mark.parametrize("by_norm", [True, False])
def test_llama_scope_r1_has_its_factor_from_the_catalogue(by_norm: bool, tmp_path: Path):
    w, scale = openmoss(tmp_path, sparsity_include_decoder_norm=by_norm), 3.5
    pre = scale * inputs() @ w["encoder.weight"].T + w["encoder.bias"]
    compared = pre * w["decoder.weight"].norm(dim=0) if by_norm else pre
    codes = pre.relu() * (compared > w["log_jumprelu_threshold"].exp())
    expected = (codes @ w["decoder.weight"].T + w["decoder.bias"]) / scale
    assert_same(only(tmp_path, changes=Changes(scale=scale)).sae, codes, expected, inputs())
    with pytest.raises(InputError, match="does not say the mean norm") as caught:
        only(tmp_path)
    assert "dataset_average_activation_norm" in caught.value.hint
    norm = math.sqrt(D_IN) / scale
    openmoss(
        tmp_path,
        sparsity_include_decoder_norm=by_norm,
        dataset_average_activation_norm={"in": norm, "out": norm},
    )
    assert_same(only(tmp_path).sae, codes, expected, inputs())


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ({"sae_type": "crosscoder"}, "sae_weights.safetensors", "holds a crosscoder"),
        ({"sae_type": "clt"}, "sae_weights.safetensors", "holds a clt"),
        ({}, "sae_weights.dcp", r"has no sae_weights\.safetensors"),
        ({"act_fn": "topk"}, "sae_weights.safetensors", "the activation 'topk' is not known"),
    ],
)
def test_other_folders_of_openmoss_are_told_by_what_they_are(config: dict, weights: str, message: str, tmp_path: Path):
    openmoss(tmp_path, weights=weights, **config)
    with pytest.raises(InputError, match=message) as caught:
        only(tmp_path, changes=Changes(scale=1.0))
    assert caught.value.hint


def test_a_config_of_something_else_is_passed_over(tmp_path: Path):
    for name, text in (("model", '{"model_type": "gpt2"}'), ("junk", "[[[")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    written(random_sae("relu"), "sae_lens", tmp_path)
    assert len(formats.find(tmp_path)) == 1


@pytest.mark.parametrize("names", [("encoder", "decoder"), ("encoder_linear", "decoder_linear")])
def test_the_sae_of_deepseeks_distilled_llama_is_two_linear_layers(names: tuple[str, str], tmp_path: Path):
    layers = torch.nn.Linear(D_IN, D_SAE), torch.nn.Linear(D_SAE, D_IN)
    state = {
        f"{name}.{key}": value for name, of in zip(names, layers, strict=True) for key, value in of.state_dict().items()
    }
    torch.save(state, tmp_path / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt")
    found = only(tmp_path)
    with torch.no_grad():
        codes = layers[0](inputs()).relu()
        assert_same(found.sae, codes, layers[1](codes), inputs())
    assert (str(found.sae.hook), found.about.model) == ("resid.19", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")


def test_of_a_release_only_what_is_needed_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "hub/models--jbloom--GPT2-Small-SAEs-Reformatted"
    source = written(random_sae("relu", hook=HookPoint(6, "resid_pre")), "sae_lens", tmp_path / "theirs", model="gpt2")
    snapshot = root / "snapshots" / COMMIT
    shutil.copytree(source, snapshot / "blocks.6.hook_resid_pre")
    # All others would fail to be read.
    for layer in (5, 7, 8):
        (snapshot / f"blocks.{layer}.hook_resid_pre").mkdir()
        (snapshot / f"blocks.{layer}.hook_resid_pre/cfg.json").write_text("{")
    (root / "refs").mkdir()
    (root / "refs/main").write_text(COMMIT)
    record = {"path": "x", "n_tokens": 1, "d_model": D_IN, "dtype": "float32", "digest": "x"}
    collected = Stream([ActivationsRecord(hook=f"resid.{layer}", **record) for layer in (3, 4)])
    request = Request(Settings(sae_path="gpt2-small-res-jb"), collected, Run(tmp_path))
    sources = sae_sources(request, stage="validate", layers={6})
    assert list(sources) == [HookPoint(6, "resid_pre")]
    with caplog.at_level(logging.WARNING, logger="circuitcli"):
        found = load_saes(sources, sources, model="gpt2", adapter=None)[HookPoint(6, "resid_pre")]
    assert found.sae.config.normalisation == "centre" and not caplog.records


def test_of_a_cross_layer_release_only_the_layers_of_the_graph_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "hub/models--mntss--clt-gemma-2-2b-426k"
    snapshot, blobs = root / "snapshots" / COMMIT, root / "blobs"
    for folder in (snapshot, blobs, root / "refs"):
        folder.mkdir(parents=True)
    (root / "refs/main").write_text(COMMIT)
    for layer in (24, 25):
        for name, tensors in {
            f"W_enc_{layer}.safetensors": {
                f"W_enc_{layer}": torch.randn(D_SAE, D_IN),
                f"b_enc_{layer}": torch.randn(D_SAE),
                f"b_dec_{layer}": torch.randn(D_IN),
            },
            f"W_dec_{layer}.safetensors": {f"W_dec_{layer}": torch.randn(D_SAE, 26 - layer, D_IN)},
        }.items():
            save_file(tensors, blobs / "x")
            digest = file_digest(blobs / "x")
            (blobs / "x").rename(blobs / digest.removeprefix("sha256:"))
            (snapshot / name).symlink_to(Path("../../blobs") / digest.removeprefix("sha256:"))
    (snapshot / "config.yaml").write_text("feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n")
    request = Request(Settings(sae_path="mntss-clt-gemma-2-2b-426k"), Stream(), Run(tmp_path))
    sources = sae_sources(request, stage="graph-grad", layers={25})
    (place,) = (source.place for source in sources.values())
    assert (str(place.hook), list(map(str, place.writes)), place.model) == (
        "resid_mid.25",
        ["mlp.25"],
        "google/gemma-2-2b",
    )
    # What the hub calls by its digest is not read for it, and it is the same elsewhere.
    with monkeypatch.context() as changed:
        changed.setattr(
            "circuitcli.saes.exchange.place.file_digest", lambda path: "small" if "config" in str(path) else 1 / 0
        )
        assert place.digest
    copied = tmp_path / "copied"
    shutil.copytree(snapshot, copied)
    by_hand = formats.find(copied / "W_enc_25.safetensors")[0].changed(place.changes)
    assert by_hand.digest == place.digest
    named_alone = sae_sources(
        Request(Settings(sae_path="mntss-clt-gemma-2-2b-426k/layer_24"), Stream(), Run(tmp_path)), stage="inspect"
    )
    assert [list(map(str, source.place.writes)) for source in named_alone.values()] == [["mlp.24", "mlp.25"]]
