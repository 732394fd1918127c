"""Configurations and files of foreign SAEs that make no sense: each is refused by name, none is a bug in circuit."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exchange_support import D_IN, D_SAE, random_sae, random_transcoder, written
from safetensors.torch import load_file, save_file

from circuitcli.errors import CircuitError, InputError
from circuitcli.saes.exchange import formats
from circuitcli.saes.exchange.naming import named

DEEP = "[" * 30_000 + "]" * 30_000
NONSENSE = ["x", "blocks.²", -1, 0, 2.5, 10**30, float("nan"), float("inf"), [], {}, [[1]], {"a": {}}, True, "\ud800"]
FORMATS = ["sae_lens", "temporal", "dictionary_learning", "sparsify", "circuit_tracer", "gemma_scope", "llama_scope"]


def files_of(name: str, directory: Path) -> Path:
    """The config of an SAE in a format, with more of its fields than `written` gives."""
    directory.mkdir(parents=True, exist_ok=True)
    if name in ("gemma_scope", "llama_scope"):
        return OTHERS[name](directory)
    if name == "temporal":
        return temporal(directory)
    if name == "sparsify":
        sae = random_sae("topk")
        formats.sparsify.module_name(sae.hook, "layers.2")
        path = written(sae, name, directory, module="layers.2")
        (path.parent / "config.json").write_text(json.dumps({"model": "gpt2", "ctx_len": 64, "lr": 0.1}))
    elif name == "circuit_tracer":
        path = written(random_transcoder("topk", d_out=D_IN), name, directory, model="m").parent
    else:
        path = written(random_sae("topk"), name, directory, model="gpt2", bos=True, context_length=64, dataset="text")
    return next(path / file for file in ("cfg.json", "config.json", "config.yaml") if (path / file).is_file())


def tensors(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name.replace("__", "."): torch.randn(shape, generator=generator).abs() for name, shape in shapes.items()}


def gemma(directory: Path) -> Path:
    shapes = {"w_enc": (D_IN, D_SAE), "w_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    save_file(tensors(**shapes, threshold=(D_SAE,)), directory / "params.safetensors")
    content = {"hf_hook_point_in": "model.layers.5.output", "architecture": "jump_relu", "l0": 3, "type": "sae"}
    (directory / "config.json").write_text(json.dumps({"model_name": "gemma-v3-1b", **content}))
    return directory / "config.json"


def llama(directory: Path) -> Path:
    (directory / "checkpoints").mkdir()
    made = {"encoder__weight": (D_SAE, D_IN), "encoder__bias": (D_SAE,)}
    save_file(
        tensors(**made, decoder__weight=(D_IN, D_SAE), decoder__bias=(D_IN,)),
        directory / "checkpoints/final.safetensors",
    )
    content: dict[str, Any] = {name: "blocks.5.hook_resid_post" for name in ("hook_point_in", "hook_point_out")}
    content |= {"act_fn": "jumprelu", "jump_relu_threshold": 0.8, "norm_activation": "dataset-wise"}
    content |= {"sparsity_include_decoder_norm": True, "apply_decoder_bias_to_pre_encoder": False}
    content["dataset_average_activation_norm"] = {"in": 3.0, "out": 3.0}
    (directory / "hyperparams.json").write_text(json.dumps(content))
    return directory / "hyperparams.json"


def temporal(directory: Path) -> Path:
    folder = directory / "layer_3"
    folder.mkdir()
    attention = {f"attn_layers.0.{part}.weight": torch.randn(24 // 3, 24) for part in ("k_ctx", "q_target")}
    attention |= {f"attn_layers.0.{part}.weight": torch.randn(24, 24) for part in ("v_ctx", "c_proj")}
    attention |= {name.replace("weight", "bias"): value[:, 0].clone() for name, value in attention.items()}
    save_file({"D": torch.randn(24, D_IN), "b": torch.randn(D_IN), **attention}, folder / "latest_ckpt.safetensors")
    shape = {"n_heads": 2, "n_attn_layers": 1, "bottleneck_factor": 3, "kval_topk": 5, "sae_diff_type": "topk"}
    content = {"sae": {**shape, "tied_weights": True, "scaling_factor": 0.3}}
    (folder / "conf.yaml").write_text(yaml.safe_dump(content))
    return folder / "conf.yaml"


OTHERS: dict[str, Callable[[Path], Path]] = {"gemma_scope": gemma, "llama_scope": llama}


def mutations(content: Any) -> Iterator[Any]:
    """The content with each of its fields, at every level, replaced by each kind of nonsense, or left out."""
    for name, value in content.items():
        yield {key: kept for key, kept in content.items() if key != name}
        for other in NONSENSE:
            yield content | {name: other}
        if isinstance(value, dict):
            for changed in mutations(value):
                yield content | {name: changed}


def dumped(content: Any, path: Path) -> str:
    if path.suffix == ".json":
        return json.dumps(content)
    return yaml.dump(json.loads(json.dumps(content)), allow_unicode=False)


def read(directory: Path) -> None:
    for place in formats.find(directory):
        if place.hook is None:
            raise InputError("no hook point")
        assert formats.read(place).sae.W_enc.isfinite().all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_config_of_nonsense_is_refused_or_means_the_same(name: str, tmp_path: Path):
    path = files_of(name, tmp_path / "sae")
    whole = path.read_text()
    content = json.loads(whole) if path.suffix == ".json" else yaml.safe_load(whole)
    read(tmp_path / "sae")
    n_refused = n_all = 0
    for changed in mutations(content):
        # A new file is made faster than an old one is emptied.
        path.unlink()
        path.write_text(dumped(changed, path), encoding="utf-8")
        n_all += 1
        try:
            read(tmp_path / "sae")
        except CircuitError as error:
            assert error.message.isprintable() and error.exit_status == InputError.exit_status
            n_refused += 1
    assert n_refused > n_all // 3
    deep = DEEP if path.suffix == ".json" else DEEP[28_000:32_000]
    for text in (deep, "{" * 2000, '{"a": 1' + "0" * 5000 + "}", "[]", "null", "3", "\xff\xfe", "\0", "%", "a: !!x"):
        path.write_bytes(text.encode("latin-1"))
        try:
            read(tmp_path / "sae")
        except CircuitError as error:
            assert error.exit_status == InputError.exit_status


def weights_of(name: str, directory: Path) -> Path:
    config = files_of(name, directory)
    return next(path for path in config.parent.rglob("*.safetensors"))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "dictionary_learning"])
def test_weights_of_another_kind_or_shape_are_refused_by_file(name: str, tmp_path: Path):
    path = weights_of(name, tmp_path / "sae")
    found = load_file(path)
    for tensor in found:
        for other in (found[tensor][None], found[tensor].long(), found[tensor].bool(), torch.zeros(0)):
            save_file(found | {tensor: other.contiguous()}, path)
            with pytest.raises(InputError, match=path.name):
                read(tmp_path / "sae")
    save_file(found, path)
    content = path.read_bytes()
    header = (2**60).to_bytes(8, "little")
    for bad in (
        b"",
        b"x",
        content[:9],
        content[: len(content) // 2],
        header + content[8:],
        content[:8] + DEEP.encode(),
    ):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=path.name):
            read(tmp_path / "sae")


class Code:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("content", ["code", "list", "object", "cut", "empty", "wrong kinds", "sparse"])
def test_a_pickle_that_is_no_state_dict_is_refused_and_runs_nothing(content: str, inside: Path):
    path = files_of("dictionary_learning", inside / "sae").parent / "ae.pt"
    whole, bytes_ = torch.load(path, weights_only=True), path.read_bytes()
    if content == "code":
        path.write_bytes(pickle.dumps({"encoder.weight": Code()}))
    if content == "list":
        torch.save([1, 2], path)
    if content == "object":
        torch.save(torch.nn.Linear(2, 2), path)
    if content in ("cut", "empty"):
        path.write_bytes(bytes_[: len(bytes_) // 2] if content == "cut" else b"")
    if content == "wrong kinds":
        torch.save(dict.fromkeys(whole, "text") | {3: 4}, path)
    if content == "sparse":
        torch.save(whole | {"encoder.weight": whole["encoder.weight"].to_sparse()}, path)
    with pytest.raises(InputError, match=r"ae\.pt"):
        read(inside / "sae")
    assert not (inside / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("~nobody-at-all/sae", "a\0b", "\udcff", "fifo", "", ".", "/dev/zero", "x" * 5000),
        *("sae_lens:fifo", "sae_lens:~nobody-at-all", "sae_lens:a\0b", "sae_lens:", "sae_lens:/dev/zero"),
        *("sae@resid.²", "sae@resid.99999999999999999999999", "sae@²", "sae@resid.1:²"),
        *("sae_lens:hf://\0/b/c", "sae_lens:hf://../../x/y", "openai:/dev/null", "gpt2-small-res-jb/../../x"),
    ],
)
def test_a_name_that_can_name_nothing_is_refused(text: str, inside: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    os.mkfifo(inside / "fifo")
    (inside / "sae").mkdir()
    with pytest.raises(CircuitError) as caught:
        named(text)
    assert caught.value.exit_status in (2, 3, 4) and caught.value.hint


@pytest.mark.parametrize("name", [*FORMATS, "circuit"])
def test_a_pipe_in_place_of_a_file_is_no_endless_wait(name: str, tmp_path: Path):
    config = files_of(name, tmp_path / "sae")
    places = formats.find(tmp_path / "sae")
    for path in [path for path in config.parent.rglob("*") if path.is_file()]:
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(InputError, match="cannot read"):
            formats.read(places[0])
        for found in (lambda: formats.find(tmp_path / "sae"), lambda: places[0].digest):
            with suppress(InputError):
                found()
