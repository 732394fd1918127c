"""clt-training's files, as its code writes them, held against a slow, plain account of what its forward pass adds."""

import json
import logging
import shutil
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes import stored
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.exchange import formats
from circuitcli.saes.exchange import place as place_module
from circuitcli.saes.exchange.outline import outlined
from circuitcli.saes.exchange.place import Changes
from circuitcli.saes.splice import Encoded, error_of

N_LAYERS, N_TOKENS, D_IN, D_SAE, K, CROSS = 5, 7, 4, 11, 3, 3
ALL_OF_IT = {"normalize_io": True, "skip_connection": True, "post_encoder_scale": True}
CONCAT = {"coalesce_topk": "concat", "topk_coalesced": False}
# As in the project's script for SmolLM2.
SMOLLM = CONCAT | ALL_OF_IT
KINDS: dict[str, dict[str, Any]] = {
    "untied": {},
    "skips": {"skip_connection": True},
    "scales": {"post_encoder_scale": True},
    "norms": {"normalize_io": True},
    "all": ALL_OF_IT,
    "divided": {"divide_cross_layer": True, "skip_connection": True},
    "divided, all": {"divide_cross_layer": True, **ALL_OF_IT},
    "tied": {"per_source_tied": True, **ALL_OF_IT},
    "topk of nothing": {"topk_coalesced": True},
    "concat": CONCAT,
    "concat, divided": {"divide_cross_layer": True, "normalize_io": True, **CONCAT},
    "smollm": SMOLLM,
}
Files = list[tuple[dict[str, Any], dict[str, Tensor]]]


def mlp(layer: int) -> HookPoint:
    return HookPoint(layer, "mlp")


def saved(
    directory: Path, *, layers: tuple[int, ...] = tuple(range(N_LAYERS)), cross: int = CROSS, **options: Any
) -> Files:
    """The folders of a transcoder, and of each layer its config and tensors: under all names that clt-training stores.

    The training's config lists the hook points if the layers do not follow each other.
    """
    generator = torch.Generator().manual_seed(3)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    run: dict[str, Any] = {"model": "HuggingFaceTB/SmolLM2-135M", "cross_layer": cross}
    if layers != tuple(range(N_LAYERS)):
        run["hookpoints"] = [f"layers.{layer}.mlp" for layer in layers]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(run))
    files: Files = []
    for position, layer in enumerate(layers):
        n_targets = min(cross, len(layers) - position)
        is_concat = options.get("coalesce_topk") == "concat"
        tensors = {"encoder.weight": made(D_SAE, D_IN), "encoder.bias": made(D_SAE)}
        shapes: dict[str, tuple[int, ...]] = {"W_dec": (D_SAE, D_IN), "b_dec": (D_IN,), "post_enc": (D_SAE,)}
        if options.get("skip_connection"):
            shapes["W_skip"] = (D_IN, D_IN)
        if options.get("post_encoder_scale"):
            shapes["post_enc_scale"] = (D_SAE,)
        for part, shape in shapes.items():
            alone = not part.startswith("post") and (is_concat or (part == "W_dec" and options.get("per_source_tied")))
            if alone or not n_targets:
                tensors[part] = made(*shape) * (part != "post_enc")
                continue
            for number in range(n_targets):
                tensors[f"{part}s.{number}"] = made(*shape) * (part != "post_enc")
            if not part.startswith("post"):
                tensors[part] = tensors[f"{part}s.0"].clone()
        if options.get("normalize_io"):
            tensors |= {"in_norm": made(1).abs() + 2.5, "out_norm": made(1).abs() + 0.5}
        config = {"activation": "topk", "k": K, "num_latents": 0, "d_in": D_IN, "transcode": True}
        config |= {"n_targets": n_targets, "coalesce_topk": "none", **options}
        folder = directory / f"layers.{layer}.mlp"
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps(config))
        files.append((config, {name: tensor.double() for name, tensor in tensors.items()}))
    return files


def inputs() -> Tensor:
    """What each layer reads, of all positions in the transcoder and tokens."""
    return torch.randn(N_LAYERS, N_TOKENS, D_IN, generator=torch.Generator().manual_seed(8)).double() + 0.5


def codes_of(config: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The input as a layer takes it, and its codes."""
    if config.get("normalize_io"):
        x = x * sqrt(D_IN) / w["in_norm"]
    codes = torch.zeros(N_TOKENS, D_SAE, dtype=torch.float64)
    for token in range(N_TOKENS):
        pre = torch.relu(w["encoder.weight"] @ x[token] + w["encoder.bias"])
        for feature in pre.argsort(descending=True)[:K]:
            codes[token, feature] = pre[feature]
    return x, codes


def forward(files: Files, x: Tensor) -> Tensor:
    """What is written at each layer, (layer, token, width): layers run one after the other, and those that still have
    targets add to the one that runs."""
    made, running = [], []
    for position, (config, own) in enumerate(files):
        running.append([*codes_of(config, own, x[position]), config, own, 0])
        at_own, of_others = torch.zeros(N_TOKENS, D_IN).double(), torch.zeros(N_TOKENS, D_IN).double()
        for read, codes, theirs, w, number in running:
            which = f"s.{number}" if theirs["n_targets"] else ""
            if theirs.get("post_encoder_scale"):
                codes = codes * w[f"post_enc_scale{which}"]
            if config["coalesce_topk"] == "concat":
                at_own += codes @ own["W_dec"]
                continue
            part = codes @ w["W_dec" if theirs.get("per_source_tied") else f"W_dec{which}"] + w[f"b_dec{which}"]
            if theirs.get("skip_connection"):
                part = part + read @ w[f"W_skip{which}"].T
            (at_own if w is own else of_others).add_(part)
        if config["coalesce_topk"] == "concat":
            at_own += own["b_dec"]
            if config.get("skip_connection"):
                at_own += running[-1][0] @ own["W_skip"].T
        total = at_own + of_others / (max(1, len(running) - 1) if config.get("divide_cross_layer") else 1)
        made.append(total * own["out_norm"] / sqrt(D_IN) if config.get("normalize_io") else total)
        running = [[*source, n + 1] for *source, n in running if n + 1 < source[2]["n_targets"]]
    return torch.stack(made)


def outputs(path: Path, layers: tuple[int, ...] = tuple(range(N_LAYERS))) -> Tensor:
    """The same of our coders: what their errors lack of an activation."""
    coders = [formats.read(place).sae for place in formats.find(path)]
    return added_up(coders, dict(zip(layers, inputs(), strict=True)))


def added_up(made: list[SparseCoder], x: dict[int, Tensor]) -> Tensor:
    coders = Coders.of(coder.double() for coder in made)
    encoded = {}
    for hook, coder in coders.items():
        read = x[hook.layer][None]
        encoded[hook] = Encoded(read, *coder.encode_framed(read), None)
    y = torch.full((1, N_TOKENS, D_IN), 0.25).double()
    return torch.cat([y - error_of(coders.writers(hook), hook, y, encoded) for hook in coders.written])


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    # Factors are folded into weights of 32 bits.
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_coders_add_up_to_what_clt_training_gives(kind: str, tmp_path: Path):
    files = saved(tmp_path, **KINDS[kind])
    assert_close(outputs(tmp_path), forward(files, inputs()))
    assert [place.writes for place in formats.find(tmp_path)] == [
        tuple(map(mlp, range(layer, min(layer + CROSS, N_LAYERS)))) for layer in range(N_LAYERS)
    ]


@pytest.mark.parametrize("kind", ["untied", "divided, all", "smollm"])
def test_targets_are_counted_among_the_layers_of_the_training(kind: str, tmp_path: Path):
    layers = (0, 2, 3, 7, 11)
    files = saved(tmp_path, layers=layers, **KINDS[kind])
    assert_close(outputs(tmp_path, layers), forward(files, inputs()))
    (place,) = formats.find(tmp_path / "layers.2.mlp")
    assert place.writes == (mlp(2), mlp(3), mlp(7))


@pytest.mark.parametrize("kind", ["untied", "all", "norms"])
def test_its_transcoders_of_one_layer_are_read_with_their_options(kind: str, tmp_path: Path):
    files = saved(tmp_path, cross=0, **KINDS[kind])
    assert_close(outputs(tmp_path), forward(files, inputs()))
    assert not formats.read(formats.find(tmp_path)[1]).about.writes_with_others


def test_scales_that_are_not_stored_write_to_the_own_layer_alone(tmp_path: Path):
    files = saved(tmp_path, post_encoder_scale=True)
    for (_, tensors), folder in zip(files, sorted(tmp_path.glob("layers.*")), strict=True):
        for name in [name for name in tensors if name.startswith("post_enc")]:
            tensors[name] = torch.full((D_SAE,), float(name.endswith("s.0"))).double()
        kept = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("post_enc")}
        save_file(kept, folder / "sae.safetensors")
    assert_close(outputs(tmp_path), forward(files, inputs()))


@pytest.mark.parametrize("kind", ["norms", "smollm"])
def test_layers_missing_behind_are_not_written_and_in_the_middle_an_error(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    files = saved(tmp_path, **KINDS[kind])
    shutil.rmtree(tmp_path / "layers.4.mlp")
    with caplog.at_level(logging.WARNING, logger="circuitcli"):
        coders = [formats.read(place).sae for place in formats.find(tmp_path)]
    assert len(caplog.records) == 1 and "no layer after 3" in caplog.text
    assert [coder.writes[-1] for coder in coders] == [mlp(2), mlp(3), mlp(3), mlp(3)]
    x = dict(enumerate(inputs()[:4]))
    assert_close(added_up(coders, x), forward(files, inputs())[:4])
    shutil.rmtree(tmp_path / "layers.2.mlp")
    with pytest.raises(InputError, match=r"without layer 2: mlp\.2 is written"):
        formats.find(tmp_path)
    with pytest.raises(InputError, match=r"layers\.1\.mlp writes the layer of .*layers\.2\.mlp, which is not there"):
        formats.read(formats.find(tmp_path / "layers.1.mlp")[0])


@pytest.mark.parametrize(("kind", "holder"), [("all", 0), ("smollm", 2)])
def test_decoders_of_layers_outside_a_graph_are_never_read(
    kind: str, holder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved(tmp_path, **KINDS[kind])
    whole = formats.read(formats.find(tmp_path)[0]).sae
    read: list[str] = []
    real = stored.StoredTensors.read

    def noted(self: stored.StoredTensors, name: str, **options: Any) -> Tensor:
        read.append(f"{self.path.parent.name} {name}")
        return real(self, name, **options)

    monkeypatch.setattr(stored.StoredTensors, "read", noted)
    place = formats.find(tmp_path)[0].cut([mlp(2), mlp(4)])
    assert place is not None and not read
    coder = formats.read(place).sae
    wide = {name for name in read if "W_dec" in name}
    assert wide == {f"layers.{holder}.mlp W_dec" + ("s.2" if kind == "all" else "")}
    assert not any(name.startswith("layers.1") for name in read)
    assert coder.writes == (mlp(2),) and torch.equal(coder.decoder(mlp(2)), whole.decoder(mlp(2)))
    assert torch.equal(coder.decoder_bias(mlp(2)), whole.decoder_bias(mlp(2)))
    assert torch.equal(coder.skip_weight(mlp(2)), whole.skip_weight(mlp(2)))


@pytest.mark.parametrize(("kind", "depends"), [("untied", False), ("norms", True), ("smollm", True)])
def test_the_digest_of_a_layer_is_of_all_files_that_decide_what_it_writes(
    kind: str, depends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved(tmp_path, **KINDS[kind])
    digests = [place.digest for place in formats.find(tmp_path)]
    # Outlines tell the layer's own file, and that it skips.
    for place in formats.find(tmp_path):
        outline = outlined(place)
        assert outline is not None and outline.skip == bool(KINDS[kind].get("skip_connection"))
        assert outline.n_bytes == (place.path / "sae.safetensors").stat().st_size
    path = tmp_path / "layers.3.mlp/sae.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    changed = [place.digest != digest for place, digest in zip(formats.find(tmp_path), digests, strict=True)]
    assert changed == [False, depends, depends, True, False]
    # Large files are read once, however many layers depend on them.
    read: list[Path] = []
    monkeypatch.setattr(place_module, "_LARGE", 0)
    monkeypatch.setattr(place_module, "file_digest", lambda path: read.append(path) or "sha256:")
    for place in formats.find(tmp_path):
        assert place.digest
    assert len(read) == len({*read}) == 2 * N_LAYERS


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({**CONCAT, "topk_coalesced": True}, {}, "with topk_coalesced, which"),
        ({"coalesce_topk": "per-layer"}, {}, "with coalesce_topk per-layer, which"),
        ({"coalesce_topk": "group"}, {}, "with coalesce_topk group, which"),
        ({"secondary_target_tied": True}, {}, "with secondary_target_tied, which"),
        ({"activation": "batchtopk"}, {}, "with the activation batchtopk, which"),
        ({"activation": "groupmax"}, {}, "with the activation groupmax, which"),
        ({}, {"post_encs.1": torch.ones(D_SAE)}, r"post_encs\.1 is not zero"),
        (SMOLLM, {"post_encs.2": torch.ones(D_SAE)}, r"post_encs\.2 is not zero"),
        (SMOLLM, {"post_enc_scales.1": torch.ones(2)}, r"post_enc_scales\.1 has shape"),
        (SMOLLM, {"W_dec": torch.ones(D_SAE, 2)}, "W_dec has shape"),
        (SMOLLM, {"in_norm": torch.zeros(1)}, r"in_norm is 0\.0, not a length"),
        (SMOLLM, {"out_norm": torch.full((1,), torch.inf)}, r"out_norm is inf, not a length"),
        (SMOLLM, {"W_decs.1": torch.ones(D_SAE, D_IN)}, r"has, unlike known ones, W_decs\.1"),
        ({}, {"gate": torch.ones(1)}, "has, unlike known ones, gate"),
    ],
)
def test_what_a_plain_sum_cannot_give_is_refused_by_name(
    options: dict[str, Any], change: dict[str, Tensor], message: str, tmp_path: Path
):
    folder = tmp_path / "layers.0.mlp"
    tensors = saved(tmp_path, **options)[0][1] | change
    save_file({name: tensor.float() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        formats.read(formats.find(tmp_path / "layers.0.mlp")[0])
    assert caught.value.hint and str(tmp_path / "layers.0.mlp") in caught.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coalesce_topk": "none"}, "has 'coalesce_topk' none, .*which writes it, concat"),
        ({"d_in": 9}, "has 'd_in' 9"),
        ({"n_targets": 10**9}, r"layers\.1\.mlp: no model has 1000000000 layers"),
        ({"activation": "groupmax"}, "layers.1.mlp is a transcoder of clt-training with the activation groupmax"),
    ],
)
def test_layers_of_one_transcoder_agree(change: dict[str, Any], message: str, tmp_path: Path):
    config, _ = saved(tmp_path, **SMOLLM)[1]
    (tmp_path / "layers.1.mlp/cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message) as caught:
        formats.read(formats.find(tmp_path / "layers.0.mlp")[0])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("model", "module", "hook"),
    [
        ("org/gpt2", "layers.{}.ln_2", "resid_mid"),
        ("org/Llama-3.2-1B", "layers.{}.post_attention_layernorm", "resid_mid"),
        ("google/gemma-2-2b", "layers.{}.pre_feedforward_layernorm", "resid_mid"),
        ("org/Llama-3.2-1B", "layers.{}.mlp", "mlp_in"),
        ("org/OLMo-2-1B", "layers.{}.post_attention_layernorm", None),
    ],
)
def test_what_is_read_is_the_input_of_the_module_that_the_training_names(
    model: str, module: str, hook: str | None, tmp_path: Path
):
    saved(tmp_path, **SMOLLM)
    folders = [f"layers.{layer}.mlp" for layer in range(N_LAYERS)]
    if "gemma" in model:
        for folder in folders:
            (tmp_path / folder).rename(tmp_path / folder.replace("mlp", "post_feedforward_layernorm"))
        folders = [folder.replace("mlp", "post_feedforward_layernorm") for folder in folders]
    run = {"model": model, "hookpoints": folders, "hookpoints_in": [module.format(layer) for layer in range(N_LAYERS)]}
    (tmp_path / "config.json").write_text(json.dumps(run))
    if hook is None:
        with pytest.raises(InputError, match="is not one that circuit knows"):
            formats.find(tmp_path)
        return
    assert [str(place.hook) for place in formats.find(tmp_path)] == [f"{hook}.{layer}" for layer in range(N_LAYERS)]
    del run["hookpoints"]
    (tmp_path / "config.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="names hookpoints_in, but none for"):
        formats.find(tmp_path)


def test_fewer_hook_points_than_targets_and_folders_of_other_names_are_refused(tmp_path: Path):
    saved(tmp_path, **SMOLLM)
    (tmp_path / "config.json").write_text(json.dumps({"hookpoints": ["layers.0.mlp", "layers.1.mlp"]}))
    with pytest.raises(InputError, match=r"'n_targets' is 3, but the hookpoints of the training above it have 2 from"):
        formats.find(tmp_path)
    (tmp_path / "layers.1.mlp").rename(tmp_path / "first")
    place = formats.find(tmp_path / "first")[0].changed(Changes(hook=HookPoint(1, "mlp_in"), target=mlp(1)))
    with pytest.raises(InputError, match="the name of its folder does not tell which"):
        formats.read(place)
    with pytest.raises(InputError, match="does not tell its module"):
        formats.read(formats.find(tmp_path / "first")[0])


@pytest.mark.parametrize("change", [{"normalize_io": True}, {"post_encoder_scale": True}, "post_enc"])
def test_its_autoencoders_with_more_than_a_topk_are_refused(change: dict[str, Any] | str, tmp_path: Path):
    config, tensors = saved(tmp_path, cross=0)[0]
    tensors["post_enc"] = torch.full((D_SAE,), float(change == "post_enc"))
    save_file({name: tensor.float() for name, tensor in tensors.items()}, tmp_path / "layers.0.mlp/sae.safetensors")
    config = config | {"transcode": False} | (change if isinstance(change, dict) else {})
    (tmp_path / "layers.0.mlp/cfg.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"an SAE of clt-training with (normalize_io|post_enc\S*) is not known"):
        formats.read(formats.find(tmp_path / "layers.0.mlp")[0])
