"""Names: hook points in others' words, what --sae takes, the catalogue and a hub cache without a network."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from exchange_support import D_IN, HOOK, inputs, random_sae, random_transcoder, written
from support import FAMILIES, adapter_of, random_ids

from circuitcli.errors import InputError, ToolError
from circuitcli.hookpoints import SITES, HookPoint
from circuitcli.models.taps import tapped
from circuitcli.saes import folding
from circuitcli.saes.exchange import catalogue, formats, hooks
from circuitcli.saes.exchange.naming import by_hook, named

MODEL_NAMES = {"gemma2": "google/gemma-2-2b", "gemma3": "google/gemma-3-1b-pt", "gemma": "google/gemma-2b"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("site", SITES)
def test_transformer_lens_names_go_both_ways(site: str):
    hook = HookPoint(0 if site == "embed" else 7, site)
    assert hooks.from_transformer_lens(hooks.to_transformer_lens(hook)) == (hook, False)


def test_a_norm_before_its_weight_has_a_name_of_its_own():
    found = hooks.from_transformer_lens("blocks.3.ln2.hook_normalized")
    assert found == (HookPoint(3, "mlp_in"), True)
    assert hooks.to_transformer_lens(found.hook, before_gain=True) == "blocks.3.ln2.hook_normalized"
    assert hooks.from_transformer_lens("blocks.3.hook_mlp_in") == (HookPoint(3, "resid_mid"), False)


@pytest.mark.parametrize(
    "name", ["blocks.3.attn.hook_z", "blocks.3.mlp.hook_post", "hook_pos_embed", "blocks.x.hook_q"]
)
def test_hook_points_that_circuit_lacks_are_refused_by_name(name: str):
    with pytest.raises(InputError, match=f"'{name}' is not one"):
        hooks.from_transformer_lens(name)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"generic"}))
def test_modules_are_those_whose_output_the_hook_points_are(family: str):
    adapter = adapter_of(family)
    sites = [site for site in SITES if site not in ("resid_pre", "resid_mid")]
    for hook in [HookPoint(0, "embed"), *(HookPoint(1, site) for site in sites[1:]), HookPoint(2, "resid_pre")]:
        path = hooks.to_module(hook, adapter.layout)
        seen: dict[str, torch.Tensor] = {}
        handle = adapter.model.get_submodule(path).register_forward_hook(
            lambda module, args, output, seen=seen: seen.update(
                module=output[0] if isinstance(output, tuple) else output
            )
        )
        with torch.no_grad(), tapped(adapter, {hook: lambda x, seen=seen: seen.update(tap=x)}):
            adapter.logits(random_ids())
        handle.remove()
        assert torch.equal(seen["module"], seen["tap"])
        expected = HookPoint(1, "resid") if hook.site == "resid_pre" else hook
        assert hooks.from_module(path, model=MODEL_NAMES.get(family)) == expected


@pytest.mark.parametrize("family", ["gpt2", "neox-sequential", "llama", "gemma2"])
def test_the_input_of_a_module_is_a_hook_point_too(family: str):
    adapter = adapter_of(family)
    part = {"gpt2": "mlp", "neox-sequential": "mlp", "llama": "mlp", "gemma2": "mlp"}[family]
    path = f"{adapter.layout.blocks}.1.{part}"
    hook, seen = hooks.from_module(path + ".input", model=MODEL_NAMES.get(family)), {}
    handle = adapter.model.get_submodule(path).register_forward_pre_hook(
        lambda module, args: seen.update(module=args[0])
    )
    with torch.no_grad(), tapped(adapter, {hook: lambda x: seen.update(tap=x)}):
        adapter.logits(random_ids())
    handle.remove()
    assert hook == HookPoint(1, "mlp_in") and torch.equal(seen["module"], seen["tap"])
    assert hooks.from_module(f"{adapter.layout.blocks}.1", takes_input=True) == HookPoint(1, "resid_pre")


def test_resid_mid_and_the_first_resid_pre_are_no_modules_output():
    layout = adapter_of("llama").layout
    for hook in (HookPoint(1, "resid_mid"), HookPoint(0, "resid_pre")):
        with pytest.raises(InputError, match="not the output of a module"):
            hooks.to_module(hook, layout)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("google/gemma-2-2b", True),
        ("gemma-3-270m-it", True),
        ("gemma-v3-1b", True),
        ("gemma2", True),
        ("google/gemma-2b", False),
        ("gemma-7b", False),
        ("gpt2", False),
        (None, False),
    ],
)
def test_gemma_2_is_not_gemma_2b(model: str | None, expected: bool):
    assert hooks.has_sandwich_norms(model) is expected


def test_models_are_the_same_under_their_several_names():
    assert hooks.same_model("gpt2-small", "openai-community/gpt2")
    assert hooks.same_model("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped")
    assert not hooks.same_model("gpt2", "gpt2-medium") and not hooks.same_model("pythia-70m", "pythia-70m-deduped")


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "gated", "topk", "jumprelu"])
def test_an_affine_input_is_folded_exactly(architecture: str, has_bias: bool):
    gain = torch.linspace(0.3, 2, D_IN) * torch.tensor([1, -1] * (D_IN // 2))
    bias = torch.linspace(-1, 1, D_IN) if has_bias else None
    y = inputs()
    x = y * gain + (bias if bias is not None else 0)
    for config in ({"skip": True}, {"skip": False}):
        sae = random_transcoder(architecture, **config)
        codes, output = sae.encode(y), sae.reconstruct(y)
        folding.fold_affine_input(sae, gain, bias)
        assert torch.allclose(sae.encode(x), codes, atol=1e-4) and torch.allclose(sae.reconstruct(x), output, atol=1e-4)
    for subtract in (True, False):
        sae = random_sae(architecture, subtract_decoder_bias=subtract)
        codes, output = sae.encode(y), sae.reconstruct(y)
        folding.fold_affine_input(sae, gain, bias)
        again = output * gain + (bias if bias is not None else 0)
        assert torch.allclose(sae.encode(x), codes, atol=1e-4) and torch.allclose(sae.reconstruct(x), again, atol=1e-4)


def native(directory: Path, *layers: int) -> Path:
    for layer in layers:
        written(random_sae("relu", hook=HookPoint(layer, "resid")), "circuit", directory, model="gpt2")
    return directory


def test_a_path_names_one_sae_or_several_and_a_run_its_own(tmp_path: Path):
    native(tmp_path / "saes", 1, 2)
    assert [str(place.hook) for place in named(str(tmp_path / "saes"))] == ["resid.1", "resid.2"]
    assert [str(place.hook) for place in named(str(tmp_path / "saes/resid.2"))] == ["resid.2"]
    native(tmp_path / "elsewhere", 2)
    native(tmp_path / "saes/sweep/sae.k=16", 2)
    assert [str(place.hook) for place in named(str(tmp_path / "saes/sweep/sae.k=16"))] == ["resid.2"]
    with pytest.raises(InputError, match=r"more than one SAE at resid\.2"):
        by_hook(named(str(tmp_path)))
    (tmp_path / "run.json").write_text("{}")
    assert list(by_hook(named(str(tmp_path)))) == [HookPoint(1, "resid"), HookPoint(2, "resid")]


@pytest.mark.parametrize("name", ["blocks.3.attn.hook_z", "blocks.0.attn.hook_v", "blocks.2.attn.hook_result"])
def test_saes_of_attention_heads_are_told_what_they_are(name: str, tmp_path: Path):
    path = written(random_sae("relu"), "sae_lens", tmp_path)
    config = json.loads((path / "cfg.json").read_text())
    for changes in ({"hook_name": name}, {"reshape_activations": "hook_z"}, {"hook_head_index": 3}):
        flat = {key: value for key, value in config.items() if key != "metadata"} | config["metadata"] | changes
        (path / "cfg.json").write_text(json.dumps({key: value for key, value in flat.items() if value is not None}))
        with pytest.raises(InputError, match="inside attention, before the output projection") as caught:
            formats.find(tmp_path)
        assert "an SAE of attn, which is behind that projection" in caught.value.hint


def test_a_transcoder_that_nobody_places_asks_for_both_ends(tmp_path: Path):
    transcoder = random_transcoder("topk", d_out=D_IN)
    traced = written(transcoder, "circuit_tracer", tmp_path / "traced")
    (traced.parent / "config.yaml").unlink()
    sparse = written(transcoder, "sparsify", tmp_path / "sparse", module="layers.2.mlp")
    renamed = sparse.rename(tmp_path / "renamed")
    for path in (traced, renamed):
        with pytest.raises(InputError, match="tell its hook points, what it reads and what it predicts") as caught:
            named(str(path))
        assert f"{path}@mlp_in.8:mlp.8" in caught.value.hint
        (place,) = named(f"{path}@mlp_in.8:mlp.8")
        found = formats.read(place).sae
        assert (found.hook, found.target) == (HookPoint(8, "mlp_in"), HookPoint(8, "mlp"))
    files = written(random_sae("topk"), "sparsify", tmp_path / "sae", module="layers.2")
    with pytest.raises(InputError, match="tell its hook point") as caught:
        named(str(files.rename(tmp_path / "other")))
    assert "@resid.8" in caught.value.hint


def test_a_prefix_chooses_the_format(tmp_path: Path):
    written(random_sae("relu"), "sae_lens", tmp_path)
    assert named(f"sae_lens:{tmp_path}")[0].format == named(str(tmp_path))[0].format == "sae_lens"
    with pytest.raises(InputError, match="in the format of sparsify"):
        named(f"sparsify:{tmp_path}")


def test_an_at_says_where_an_sae_belongs(tmp_path: Path):
    path = written(random_sae("relu"), "sae_lens", tmp_path)
    (place,) = named(f"{path}@resid_pre.3")
    assert place.hook == HookPoint(3, "resid_pre") and formats.read(place).sae.hook == place.hook
    assert place.digest != named(str(path))[0].digest
    transcoder = written(random_transcoder("relu"), "sae_lens", tmp_path / "other")
    (place,) = named(f"{transcoder}@mlp_in.5:mlp.5")
    found = formats.read(place).sae
    assert (found.hook, found.target) == (HookPoint(5, "mlp_in"), HookPoint(5, "mlp"))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("gpt2-small-res-jp", "no SAE in gpt2-small-res-jp", "did you mean gpt2-small-res-jb"),
        ("gpt2-small-hook-z-kk", "before the output projection", "attn, mlp or a residual stream"),
        ("gemma-scope-2b-pt-att/layer_3", "before the output projection", "attn, mlp or a residual stream"),
        ("gpt2-small-res-jb/resid_pre.88", "has no SAE 'resid_pre.88'", "did you mean gpt2-small-res-jb/resid_pre.8"),
        ("gpt2-small-res-jb", "a release of 13 SAEs", "gpt2-small-res-jb/resid_pre.6"),
        ("sae-pythia-70m-32k", "a release of many SAEs", "sae-pythia-70m-32k/PATH"),
        ("./nowhere", "no SAE in ./nowhere", "FORMAT:PATH"),
        ("sae_lens:./nowhere", "there is no nowhere", "formats are"),
        ("sae_lens:hf://org/repo", "is not a path in a repository", "OWNER/REPOSITORY/PATH"),
    ],
)
def test_what_names_nothing_is_refused_with_the_nearest_name(text: str, message: str, hint: str):
    with pytest.raises(InputError) as caught:
        named(text)
    assert message in caught.value.message and hint in caught.value.hint


def test_the_catalogue_is_whole():
    known = catalogue.releases()
    assert len(known) > 100 and not known.keys() & catalogue.refused().keys()
    qwen = known["qwen-scope-3-8b-base-w64k-l100"].entry("resid.35")
    assert (qwen.path, qwen.changes.model) == ("layer35.sae.pt", "Qwen/Qwen3-8B-Base")
    assert known["goodfire-llama-3.3-70b-instruct"].entry("resid.50").path == "Llama-3.3-70B-Instruct-SAE-l50.pt"
    for release in known.values():
        assert release.format in formats.FORMATS and release.repo.count("/") == 1
        assert len({entry.path for entry in release.entries}) == len(release.entries)
        assert all("{" not in entry.path + entry.id for entry in release.entries)
        # What no hook point is known of is found by its layer.
        assert all(entry.hook is not None or (entry.also and entry.layer is not None) for entry in release.entries)
    jbloom = known["gpt2-small-res-jb"].by_hook()
    assert [str(hook) for hook in jbloom] == [*(f"resid_pre.{n}" for n in range(12)), "resid.11"]
    assert {entry.changes.normalisation for entry in jbloom.values()} == {"centre"}
    # End-to-end SAEs were trained on TransformerLens's centred model.
    ends = [name for name in known if re.fullmatch(r"gpt2-small-res_s\w+-ajt", name)]
    assert len(ends) == 6 and all(known[name].changes.normalisation == "centre" for name in ends)
    canonical = known["gemma-scope-2b-pt-res-canonical"].entry("resid.12")
    assert (canonical.id, canonical.path) == ("layer_12/width_16k/canonical", "layer_12/width_16k/average_l0_82")
    assert known["gpt2-small-mlp-tm"].entry("mlp.11").changes.scale == pytest.approx(0.2851548652550073)
    transcoder = known["gemma-scope-2b-pt-transcoders"].entry("mlp_in.3").changes
    assert (transcoder.hook, transcoder.target) == (HookPoint(3, "mlp_in"), HookPoint(3, "mlp"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a hub cache that cannot be filled from outside."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def cached(hub: Path, repo: str, source: Path, path: str) -> None:
    """A folder of files as the hub's own client would have left it."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / COMMIT / path)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(COMMIT)


def test_a_release_comes_from_the_local_cache_without_a_network(hub: Path, tmp_path: Path):
    path = written(random_sae("relu", hook=HookPoint(8, "resid_pre")), "sae_lens", tmp_path)
    cached(hub, "jbloom/GPT2-Small-SAEs-Reformatted", path, "blocks.8.hook_resid_pre")
    for text in ("gpt2-small-res-jb/resid_pre.8", "gpt2-small-res-jb/blocks.8.hook_resid_pre"):
        (place,) = named(text)
        found = formats.read(place)
        assert (place.hook, found.sae.config.normalisation) == (HookPoint(8, "resid_pre"), "centre")
        assert (found.about.model, found.about.bos) == ("gpt2", True)
        assert place.neuronpedia == "gpt2-small/8-res-jb"
    (place,) = named("sae_lens:hf://jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre")
    assert place.neuronpedia == "gpt2-small/8-res-jb" and named(str(path))[0].neuronpedia is None
    collected = {HookPoint(8, "resid_pre"), HookPoint(3, "mlp")}
    assert [place.hook for place in named("gpt2-small-res-jb", hooks=collected)] == [HookPoint(8, "resid_pre")]


def test_a_path_in_a_repository_of_the_hub_is_named_with_its_format(hub: Path, tmp_path: Path):
    cached(hub, "org/repo", written(random_sae("relu"), "sae_lens", tmp_path), "deep/inside")
    (place,) = named("sae_lens:hf://org/repo/deep/inside")
    assert place.hook == HOOK
    assert named("sae_lens:hf://org/repo/deep/inside@resid.7")[0].hook == HookPoint(7, "resid")


def test_the_scale_of_a_release_is_applied_where_its_files_ask_for_one(hub: Path, tmp_path: Path):
    path = written(sae := random_sae("relu", hook=HookPoint(3, "mlp")), "sae_lens", tmp_path)
    content = json.loads((path / "cfg.json").read_text()) | {"normalize_activations": "expected_average_only_in"}
    (path / "cfg.json").write_text(json.dumps(content))
    entry = catalogue.releases()["gpt2-small-mlp-tm"].entry("mlp.3")
    cached(hub, "tommmcgrath/gpt2-small-mlp-out-saes", path, entry.path)
    found = formats.read(named("gpt2-small-mlp-tm/mlp.3")[0]).sae
    mean, scale = inputs().mean(dim=1, keepdim=True), entry.changes.scale
    assert torch.allclose(found.encode(inputs()), sae.encode((inputs() - mean) * scale), atol=1e-4)
    again = sae.reconstruct((inputs() - mean) * scale) / scale + mean
    assert torch.allclose(found.reconstruct(inputs()), again, atol=1e-4)


def test_what_is_not_cached_is_a_missing_network_and_no_fault(hub: Path):
    with pytest.raises(ToolError, match="not in the local cache, and the hub cannot be reached"):
        named("gpt2-small-res-jb/resid_pre.8")
