"""Cross-layer transcoders of other libraries: the same numbers as a slow, plain forward pass, and no weight in vain."""

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from cli_support import here
from exchange_support import random_sae
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitcli.cli.inspection_view import written as writes_text
from circuitcli.errors import InputError, ToolError
from circuitcli.evaluation.fit import Sample
from circuitcli.hookpoints import HookPoint
from circuitcli.saes import files, folding, stored
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.cutting import cut
from circuitcli.saes.exchange import formats
from circuitcli.saes.exchange.choosing import resolve
from circuitcli.saes.exchange.outline import across_layers
from circuitcli.saes.exchange.place import About, Place
from circuitcli.saes.exchange.tensors import Foreign
from circuitcli.stages import inspect_layers

N_LAYERS, N_TOKENS, D_IN, D_SAE = 4, 11, 6, 17


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# What each layer reads, of all layers and tokens.
X = random(N_LAYERS, N_TOKENS, D_IN, seed=1).double() + 0.5


def mlp(layer: int) -> HookPoint:
    return HookPoint(layer, "mlp")


def coders_of(path: Path, name: str | None = None) -> list[SparseCoder]:
    return [formats.read(place).sae.double() for place in formats.find(path, name)]


def outputs(coders: list[SparseCoder]) -> Tensor:
    """What all coders write at each layer together, (layer, token, width)."""
    made = torch.zeros(N_LAYERS, N_TOKENS, coders[0].d_out, dtype=torch.float64)
    for coder in coders:
        x = X[coder.hook.layer]
        codes = coder.encode(x)
        for hook in coder.writes:
            skip = coder.skip(x, hook)
            made[hook.layer] += coder.decode(codes, hook=hook) + (0 if skip is None else skip)
    return made


def tracer_files(directory: Path, *, has_threshold: bool = True, **config: Any) -> dict[str, Tensor]:
    """The files of a cross-layer transcoder of circuit-tracer, and all of their tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for layer in range(N_LAYERS):
        encoder = {
            f"W_enc_{layer}": random(D_SAE, D_IN, seed=10 + layer),
            f"b_enc_{layer}": random(D_SAE, seed=20 + layer),
            f"b_dec_{layer}": random(D_IN, seed=30 + layer),
        }
        if has_threshold:
            encoder[f"threshold_{layer}"] = random(D_SAE, seed=40 + layer).abs()
        decoder = {f"W_dec_{layer}": random(D_SAE, N_LAYERS - layer, D_IN, seed=50 + layer)}
        save_file(encoder, directory / f"W_enc_{layer}.safetensors")
        save_file(decoder, directory / f"W_dec_{layer}.safetensors")
        tensors |= encoder | decoder
    content = {
        "model_name": "google/gemma-2-2b",
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "clt",
        **config,
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(content))
    return {name: tensor.double() for name, tensor in tensors.items()}


def tracer_forward(w: dict[str, Tensor]) -> Tensor:
    """circuit-tracer's: pre-activations above the threshold pass, whatever their sign; W_dec_i starts at its layer."""
    made = torch.stack([w[f"b_dec_{layer}"].expand(N_TOKENS, -1) for layer in range(N_LAYERS)]).clone()
    for layer in range(N_LAYERS):
        for token in range(N_TOKENS):
            for feature in range(D_SAE):
                pre = w[f"W_enc_{layer}"][feature] @ X[layer, token] + w[f"b_enc_{layer}"][feature]
                if pre > w.get(f"threshold_{layer}", torch.zeros(D_SAE))[feature]:
                    made[layer:, token] += pre * w[f"W_dec_{layer}"][feature]
    return made


@pytest.mark.parametrize("has_threshold", [True, False])
def test_a_clt_of_circuit_tracer_gives_the_same_here(has_threshold: bool, tmp_path: Path):
    tensors = tracer_files(tmp_path, has_threshold=has_threshold)
    coders = coders_of(tmp_path)
    assert [str(coder.hook) for coder in coders] == ["mlp_in.0", "mlp_in.1", "mlp_in.2", "mlp_in.3"]
    assert [coder.writes for coder in coders] == [tuple(map(mlp, range(n, N_LAYERS))) for n in range(N_LAYERS)]
    assert {coder.architecture for coder in coders} == {"jumprelu" if has_threshold else "relu"}
    torch.testing.assert_close(outputs(coders), tracer_forward(tensors), rtol=1e-12, atol=1e-12)


def test_what_a_clt_reads_is_told_by_its_config(tmp_path: Path):
    tracer_files(tmp_path, feature_input_hook="hook_resid_mid")
    (place, *_) = formats.find(tmp_path)
    assert (str(place.hook), place.model) == ("resid_mid.0", "google/gemma-2-2b")
    tracer_files(tmp_path, feature_input_hook="ln2.hook_normalized")
    found = formats.read(formats.find(tmp_path)[1])
    assert str(found.sae.hook) == "mlp_in.1" and found.about.before_gain and found.about.training == {"scan": "clt"}


def gemma_files(directory: Path, *, skips: bool = True) -> list[dict[str, Tensor]]:
    """The files of a cross-layer transcoder of Gemma Scope 2, and the tensors of each layer."""
    directory.mkdir(parents=True)
    made = []
    for layer in range(N_LAYERS):
        tensors = {
            "w_enc": random(D_IN, D_SAE, seed=10 + layer),
            "b_enc": random(D_SAE, seed=20 + layer),
            "threshold": random(D_SAE, seed=40 + layer).abs(),
            "w_dec": random(D_SAE, N_LAYERS, D_IN, seed=50 + layer),
            "b_dec": random(D_IN, seed=30 + layer),
        }
        if skips:
            tensors["affine_skip_connection"] = random(D_IN, D_IN, seed=60 + layer)
        save_file(tensors, directory / f"params_layer_{layer}.safetensors")
        made.append({name: tensor.double() for name, tensor in tensors.items()})
    return made


def gemma_forward(layers: list[dict[str, Tensor]]) -> Tensor:
    """Gemma Scope 2's: a layer writes itself and what follows it; its affine map goes to itself alone."""
    made = torch.zeros(N_LAYERS, N_TOKENS, D_IN, dtype=torch.float64)
    for layer, w in enumerate(layers):
        pre = X[layer] @ w["w_enc"] + w["b_enc"]
        codes = (pre > w["threshold"]) * torch.relu(pre)
        for later in range(layer, N_LAYERS):
            made[later] += codes @ w["w_dec"][:, later]
        made[layer] += w["b_dec"] + (X[layer] @ w["affine_skip_connection"] if len(w) > 5 else 0)
    return made


@pytest.mark.parametrize("skips", [True, False])
def test_a_clt_of_gemma_scope_2_gives_the_same_here(skips: bool, tmp_path: Path):
    directory = tmp_path / "gemma-scope-2-1b-it/clt/width_17_l0_medium"
    tensors = gemma_files(directory, skips=skips)
    coders = coders_of(tmp_path)
    assert [str(coder.hook) for coder in coders] == ["mlp_in.0", "mlp_in.1", "mlp_in.2", "mlp_in.3"]
    assert coders[1].writes == (mlp(1), mlp(2), mlp(3)) and coders[1].config.skip == skips
    torch.testing.assert_close(outputs(coders), gemma_forward(tensors), rtol=1e-12, atol=1e-12)
    found = formats.read(formats.find(directory / "params_layer_2.safetensors")[0])
    assert (found.about.model, found.about.bos, str(found.sae.hook)) == ("google/gemma-3-1b-it", True, "mlp_in.2")


def clt_training_files(directory: Path, **config: Any) -> list[dict[str, Tensor]]:
    """The files of a cross-layer transcoder of clt-training, and the tensors of each layer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model": "HuggingFaceTB/SmolLM2-135M", "ctx_len": 64}))
    made = []
    for layer in range(N_LAYERS):
        tensors = {
            "encoder.weight": random(D_SAE, D_IN, seed=10 + layer),
            "encoder.bias": random(D_SAE, seed=20 + layer),
        }
        for number in range(N_LAYERS - layer):
            tensors[f"W_decs.{number}"] = random(D_SAE, D_IN, seed=50 + 10 * layer + number)
            tensors[f"b_decs.{number}"] = random(D_IN, seed=30 + 10 * layer + number)
        folder = directory / f"layers.{layer}.mlp"
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "sae.safetensors")
        content = {"activation": "topk", "k": 4, "num_latents": D_SAE, "d_in": D_IN, "transcode": True}
        content |= {"n_targets": N_LAYERS - layer, "coalesce_topk": "none", **config}
        (folder / "cfg.json").write_text(json.dumps(content))
        made.append({name: tensor.double() for name, tensor in tensors.items()})
    return made


def clt_training_forward(layers: list[dict[str, Tensor]]) -> Tensor:
    """Each layer keeps its k largest activations, and adds by its n-th decoder to the n-th layer from it on."""
    made = torch.zeros(N_LAYERS, N_TOKENS, D_IN, dtype=torch.float64)
    for layer, w in enumerate(layers):
        pre = torch.relu(X[layer] @ w["encoder.weight"].T + w["encoder.bias"])
        for token, row in enumerate(pre):
            for feature in row.argsort(descending=True)[:4]:
                for number in range(N_LAYERS - layer):
                    made[layer + number, token] += row[feature] * w[f"W_decs.{number}"][feature]
        for number in range(N_LAYERS - layer):
            made[layer + number] += w[f"b_decs.{number}"]
    return made


def test_a_clt_of_clt_training_gives_the_same_here(tmp_path: Path):
    tensors = clt_training_files(tmp_path)
    coders = coders_of(tmp_path)
    assert [str(coder.hook) for coder in coders] == ["mlp_in.0", "mlp_in.1", "mlp_in.2", "mlp_in.3"]
    assert coders[1].writes == (mlp(1), mlp(2), mlp(3)) and coders[1].options == {"k": 4}
    torch.testing.assert_close(outputs(coders), clt_training_forward(tensors), rtol=1e-12, atol=1e-12)
    found = formats.read(place_of(tmp_path, "mlp_in.2"))
    assert (found.about.model, found.about.context_length) == ("HuggingFaceTB/SmolLM2-135M", 64)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({"coalesce_topk": "concat"}, {}, "has no W_dec b_dec; of"),
        ({"normalize_io": True}, {}, "has no in_norm out_norm; of"),
        ({"skip_connection": True}, {}, r"has no W_skips\.0 W_skips\.1"),
        ({"activation": "groupmax"}, {}, "with the activation groupmax, which"),
        ({"n_targets": "many"}, {}, "'n_targets' is 'many'"),
        ({"num_latents": 9}, {}, "encoder.weight has shape"),
        ({}, {"W_decs.1": None}, "has no W_decs.1; of a cross-layer transcoder of 4 layers"),
        ({}, {"post_enc": torch.zeros(4)}, "has, unlike known ones, post_enc"),
        ({}, {"b_decs.2": torch.zeros(5)}, "b_decs.2 has shape"),
    ],
)
def test_a_clt_of_clt_training_that_is_not_known_is_refused_by_what_it_says(
    config: dict[str, Any], change: dict[str, Tensor | None], message: str, tmp_path: Path
):
    tensors: dict[str, Tensor | None] = {**clt_training_files(tmp_path, **config)[0], **change}
    left = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(left, tmp_path / "layers.0.mlp/sae.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        formats.read(formats.find(tmp_path / "layers.0.mlp")[0])
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["circuit", "sparsify"])
def test_a_clt_of_folders_without_one_in_the_middle_is_refused(kind: str, tmp_path: Path):
    if kind == "circuit":
        written(random_clt(), kind, tmp_path)
    else:
        clt_training_files(tmp_path)
    folder = {"circuit": "mlp_in.2", "sparsify": "layers.2.mlp"}[kind]
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(InputError, match=r"without layer 2: mlp\.2 is written"):
        formats.find(tmp_path)


def test_a_clt_of_some_layers_has_no_gap(tmp_path: Path):
    written(random_clt(layers=(0, 2, 3)), "circuit", tmp_path)
    assert len(formats.find(tmp_path)) == 3


@pytest.mark.parametrize("text", ["gemma-scope-2-1b-it/", "gemma_scope:hf://google/gemma-scope-2-1b-it/"])
def test_of_a_clt_of_gemma_scope_the_layers_of_the_graph_are_fetched(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "models--google--gemma-scope-2-1b-it"
    commit, folder = "0123456789abcdef0123456789abcdef01234567", "clt/width_17_l0_big_affine"
    gemma_files(root / "snapshots" / commit / folder)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(commit)
    # Layer 3 was never fetched.
    (root / "snapshots" / commit / folder / "params_layer_3.safetensors").unlink()
    found = resolve([text + folder], hooks=[HookPoint(layer, "mlp_in") for layer in (0, 2)])
    assert list(map(str, found)) == ["mlp_in.0", "mlp_in.2"] and len(found[HookPoint(0, "mlp_in")].writes) == N_LAYERS
    assert next(iter(found.values())).model == "google/gemma-3-1b-it"
    with pytest.raises(InputError, match="without layer 3"):
        resolve([text + folder])
    with pytest.raises(ToolError, match="is not in the local cache"):
        resolve([text + folder], hooks=[HookPoint(3, "mlp")])


def random_clt(architecture: str = "jumprelu", *, layers: tuple[int, ...] = (0, 1, 2, 3)) -> list[SparseCoder]:
    """The layers of a cross-layer transcoder, with biases of their own layers alone."""
    made = []
    for layer in layers:
        writes = [mlp(later) for later in layers if later >= layer]
        coder = random_sae(
            architecture,
            seed=layer,
            hook=HookPoint(layer, "mlp_in"),
            target=writes[0],
            further=tuple(writes[1:]),
            subtract_decoder_bias=False,
            d_out=D_IN,
        )
        for hook in writes[1:]:
            coder.decoder_bias(hook).zero_()
        made.append(coder)
    return made


def written(coders: list[SparseCoder], name: str, directory: Path) -> list[Path]:
    return formats.WRITABLE[name].write([Foreign(coder, About(model="org/model")) for coder in coders], directory)


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1, 2, 3)], ids=["all", "last"])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_a_clt_comes_back_from_circuit_tracer_as_it_was(
    architecture: str, layers: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    coders = random_clt(architecture, layers=layers)
    own = [formats.read(formats.find(path)[0]).sae for path in written(coders, "circuit", tmp_path / "own")]
    written(own, "circuit_tracer", tmp_path / "theirs")
    assert ("only if it has all layers" in caplog.text) == (layers[0] > 0)
    theirs = [formats.read(place).sae for place in formats.find(tmp_path / "theirs")]
    again = written(theirs, "circuit", tmp_path / "again")
    for before, after in zip(coders, (files.load(path) for path in again), strict=True):
        assert (after.config, type(after)) == (before.config, type(before))
        state = after.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.state_dict().items())


def test_a_clt_of_ours_gives_the_same_in_circuit_tracer(tmp_path: Path):
    coders = random_clt()
    # A bias that one layer adds to another is part of that layer's there.
    coders[0].decoder_bias(mlp(2)).fill_(0.25)
    written(coders, "circuit_tracer", tmp_path)
    tensors: dict[str, Tensor] = {}
    for path in tmp_path.glob("*.safetensors"):
        tensors |= {name: tensor.double() for name, tensor in load_file(path).items()}
    expected = outputs([coder.double() for coder in coders])
    # Biases are added up in float32.
    torch.testing.assert_close(tracer_forward(tensors), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("coders", "message"),
    [
        (lambda: random_clt("topk"), "cannot hold the topk cross-layer transcoder at mlp_in.0"),
        (lambda: [*random_clt(), random_sae("jumprelu")], "one cross-layer transcoder, all of whose layers"),
        (lambda: random_clt()[:1], "no place for the bias of layer 3"),
    ],
)
def test_a_clt_that_circuit_tracer_cannot_load_is_not_written(
    coders: Callable[[], list[SparseCoder]], message: str, tmp_path: Path
):
    made = coders()
    made[0].decoder_bias(made[0].writes[-1]).fill_(0.5 if len(made) == 1 else 0)
    with pytest.raises(InputError, match=message) as caught:
        written(made, "circuit_tracer", tmp_path)
    assert caught.value.hint and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sae_lens", "dictionary_learning", "sparsify"])
def test_formats_of_one_layer_refuse_a_clt(name: str, tmp_path: Path):
    architecture = "topk" if name == "sparsify" else "relu"
    with pytest.raises(InputError, match=r"transcoder.* at mlp_in\.0"):
        written(random_clt(architecture), name, tmp_path)


class Reader:
    """What is read of tensors' contents, by file and name, with the column if it is one."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def __call__(self, path: Path, **options: Any) -> "Reader.Opened":
        return Reader.Opened(self, path, options)

    class Opened:
        def __init__(self, reader: "Reader", path: Path, options: dict[str, Any]) -> None:
            self.reader, self.real = reader, REAL_OPEN(path, **options)

        def __enter__(self) -> "Reader.Opened":
            self.real.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.real.__exit__(*error)

        def get_tensor(self, name: str) -> Tensor:
            self.reader.read.add(name)
            return self.real.get_tensor(name)

        def get_slice(self, name: str) -> Any:
            reader, part = self.reader, self.real.get_slice(name)

            class Part:
                def __getitem__(self, at: tuple[Any, slice]) -> Tensor:
                    reader.read.update(f"{name}[:, {column}]" for column in range(at[1].start, at[1].stop))
                    return part[at]

            return Part()


REAL_OPEN = stored.safe_open


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    made = Reader()
    monkeypatch.setattr(stored, "safe_open", made)
    yield made


def place_of(path: Path, hook: str) -> Place:
    return next(place for place in formats.find(path) if str(place.hook) == hook)


def test_decoders_that_are_not_written_are_never_read(reader: Reader, tmp_path: Path):
    tracer_files(tmp_path / "tracer")
    gemma_files(tmp_path / "gemma-scope-2-1b-it/clt/x")
    clt_training_files(tmp_path / "training")
    written(random_clt("topk"), "circuit", tmp_path / "own")
    kept = [mlp(2), mlp(3), HookPoint(1, "resid")]
    expected = {
        "tracer": {"W_enc_1", "b_enc_1", "b_dec_1", "threshold_1", "W_dec_1[:, 1]", "W_dec_1[:, 2]"},
        "gemma-scope-2-1b-it": {
            *("w_enc", "b_enc", "b_dec", "threshold", "affine_skip_connection"),
            *("w_dec[:, 2]", "w_dec[:, 3]"),
        },
        "training": {"encoder.weight", "encoder.bias", "W_decs.1", "b_decs.1", "W_decs.2", "b_decs.2"},
        "own": {"W_enc", "b_enc", "W_dec_1", "b_dec_1", "W_dec_2", "b_dec_2"},
    }
    for folder, tensors in expected.items():
        whole = place_of(tmp_path / folder, "mlp_in.1")
        digest = whole.digest
        reader.read.clear()
        place = whole.cut(kept)
        assert place is not None and place.digest == digest and not reader.read
        coder = formats.read(place).sae
        assert reader.read == tensors
        assert coder.writes == (mlp(2), mlp(3)) == place.writes
        # The same as all of it, of which the rest is left out.
        expected_coder = cut(formats.read(whole).sae, kept)
        assert coder.config == expected_coder.config
        state = expected_coder.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in coder.state_dict().items())
        assert whole.cut([mlp(0)]) is None and whole.cut([*whole.writes, mlp(0)]) is whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: (at / "W_dec_2.safetensors").unlink(), "lacks W_dec_2.safetensors"),
        (lambda at: (at / "W_enc_2.safetensors").unlink(), "lacks W_enc_2.safetensors"),
        (lambda at: [path.unlink() for path in at.glob("*_1.safetensors")], "of 4 layers without layer 1$"),
        (lambda at: [path.unlink() for path in at.glob("*_3.safetensors")], "of 4 layers without layer 3$"),
        (lambda at: save_file({"W_dec_1": torch.zeros(D_SAE, 2, D_IN)}, at / "W_dec_1.safetensors"), "has 3 layers"),
        (lambda at: save_file({"W_dec_1": torch.zeros(D_SAE, D_IN)}, at / "W_dec_1.safetensors"), "of three axes"),
        (lambda at: save_file({"W_dec_0": torch.zeros(D_SAE, 4, 9)}, at / "W_dec_0.safetensors"), "expected"),
        (lambda at: (at / "W_enc_0.safetensors").write_bytes(b"x" * 99), "cannot read"),
        (lambda at: tracer_files(at, activation="topk"), "no cross-layer transcoder of the activation 'topk'"),
    ],
)
def test_an_incomplete_clt_of_circuit_tracer_is_refused_by_name(
    change: Callable[[Path], object], message: str, tmp_path: Path
):
    tracer_files(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        coders_of(tmp_path)
    assert caught.value.hint and str(tmp_path) in caught.value.message


@pytest.mark.parametrize("kind", ["tracer", "tracer alone", "gemma", "sparsify"])
def test_numbers_of_layers_that_no_model_has_are_refused(kind: str, tmp_path: Path):
    """Of empty tensors a file may tell any size."""
    path = tmp_path
    if kind == "sparsify":
        clt_training_files(tmp_path, n_targets=2**31 - 1)
    elif kind == "gemma":
        path = tmp_path / "params_layer_0.safetensors"
        save_file({"w_dec": torch.zeros(0, 10**9, 0)}, path)
    else:
        tracer_files(tmp_path)
        save_file({"W_dec_3": torch.zeros(0, 10**9, 0)}, tmp_path / "W_dec_3.safetensors")
        path = tmp_path / "W_enc_3.safetensors" if "alone" in kind else tmp_path
    with pytest.raises(InputError, match=r"no model has \d{9,} layers|has 4 layers, by others") as caught:
        formats.find(path)
    assert str(tmp_path) in caught.value.message and caught.value.hint


def test_a_clt_of_gemma_scope_without_a_layer_is_refused(tmp_path: Path):
    directory = tmp_path / "gemma-scope-2-1b-it/clt/x"
    gemma_files(directory)
    (directory / "params_layer_2.safetensors").unlink()
    with pytest.raises(InputError, match=r"of 4 layers without layer 2$"):
        formats.find(tmp_path)
    # A layer that is named alone needs no other.
    assert str(formats.find(directory / "params_layer_3.safetensors")[0].hook) == "mlp_in.3"
    gemma_files(tmp_path / "gemma-scope-2-1b-it/crosscoder/x")
    with pytest.raises(InputError, match="holds a crosscoder"):
        formats.find(tmp_path / "gemma-scope-2-1b-it/crosscoder")


def test_a_clt_without_its_first_layers_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tracer_files(tmp_path)
    for path in tmp_path.glob("*_0.safetensors"):
        path.unlink()
    with caplog.at_level(logging.WARNING, logger="circuitcli"):
        assert [str(place.hook) for place in formats.find(tmp_path)] == ["mlp_in.1", "mlp_in.2", "mlp_in.3"]
    assert "begins with layer 1" in caplog.text


def test_what_a_clt_subtracts_goes_into_its_encoder_when_that_is_cut_off(tmp_path: Path):
    (coder, *_) = random_clt("relu")
    coder.config = coder.config.__class__(**{**vars(coder.config), "subtract_decoder_bias": True})
    files.save(coder, tmp_path)
    found = files.load(tmp_path, [mlp(2)])
    assert found.writes == (mlp(2),) and not found.config.subtract_decoder_bias
    torch.testing.assert_close(found.encode(X[0].float()), coder.encode(X[0].float()), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.decoder(mlp(2)), coder.decoder(mlp(2)))


def test_a_loaded_coder_is_what_was_read_and_no_copy_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files.save(random_clt()[0], tmp_path)
    places: dict[str, int] = {}
    read = stored.StoredTensors.read

    def noted(self: stored.StoredTensors, name: str, **options: Any) -> Tensor:
        made = read(self, name, **options)
        places[name] = made.data_ptr()
        return made

    monkeypatch.setattr(stored.StoredTensors, "read", noted)
    assert {name: tensor.data_ptr() for name, tensor in files.load(tmp_path).state_dict().items()} == places


def test_a_clt_is_inspected_without_its_weights(reader: Reader, tmp_path: Path):
    tracer_files(tmp_path / "tracer")
    gemma_files(tmp_path / "gemma-scope-2-1b-it/clt/x")
    clt_training_files(tmp_path / "training")
    written(random_clt("topk"), "circuit", tmp_path / "own")
    written([random_sae("relu")], "circuit", tmp_path / "own")
    expected = {"tracer": ("jumprelu", 0), "gemma-scope-2-1b-it/clt/x": ("jumprelu", 0), "own": ("topk", 1)}
    expected["training"] = ("topk", 0)
    for folder, (architecture, others) in expected.items():
        reader.read.clear()
        outcome = here("inspect", folder, "--json", cwd=tmp_path)
        assert outcome.status == 0, outcome.stderr
        layers = [record for record in outcome.records if "n_bytes" in record]
        assert [record["hook"] for record in layers] == [f"mlp_in.{layer}" for layer in range(N_LAYERS)]
        assert [record["writes"] for record in layers] == [
            [f"mlp.{later}" for later in range(layer, N_LAYERS)] for layer in range(N_LAYERS)
        ]
        assert {record["architecture"] for record in layers} == {architecture}
        assert {(record["d_in"], record["d_sae"], record["d_out"]) for record in layers} == {(D_IN, D_SAE, D_IN)}
        on_disk = sum(path.stat().st_size for path in (tmp_path / folder).rglob("*.safetensors"))
        assert on_disk * 0.8 < sum(record["n_bytes"] for record in layers) <= on_disk
        # Of an SAE beside them weights are read.
        assert len(outcome.records) == N_LAYERS + others and bool(reader.read) == bool(others)
    # A layer that is named alone is looked at.
    outcome = here("inspect", "own/mlp_in.1", "--json", cwd=tmp_path)
    (record,) = outcome.records
    assert record["writes"] == ["mlp.1", "mlp.2", "mlp.3"] and record["weights"] and "n_bytes" not in record
    # Also the last, which writes one hook point, is known to write it with others.
    (last,) = here("inspect", "tracer/W_enc_3.safetensors", "--json", cwd=tmp_path).records
    assert "writes" not in last and "adds to what other layers write" in last["notes"][0]


def test_the_layers_of_a_clt_are_held_together_against_activations_that_are_named(tmp_path: Path):
    tracer_files(tmp_path)
    places = formats.find(tmp_path)
    coders = [formats.read(place).sae for place in places]
    rows = {coder.hook: random(40, D_IN, seed=coder.hook.layer) for coder in coders}
    for layer in range(N_LAYERS):
        written = [coder.decode(coder.encode(rows[coder.hook]), hook=mlp(layer)) for coder in coders[: layer + 1]]
        rows[mlp(layer)] = torch.stack(written).sum(dim=0)
    rows[mlp(2)] = rows[mlp(2)].flip(0)
    wrong: list[list[str]] = []

    def sample(hooks: Any, n_tokens: int, told: list[str]) -> Any:
        wrong.append(told)
        return "some text", Sample(rows, [40])

    def held(*, is_chosen: bool = True) -> list[dict[str, Any]]:
        bench: Any = SimpleNamespace(is_chosen=is_chosen, rows=sample, model=None)
        made = inspect_layers.held_together(inspect_layers.outlines(places), bench)
        return [record.model_dump() for record in made]

    assert not any("activations" in record for record in held(is_chosen=False)) and not wrong
    found = held()
    assert [record["activations"]["explained_variance"] for record in found[:2]] == pytest.approx([1, 1], abs=1e-4)
    assert [bool(record["problems"]) for record in found] == [False, False, True, False]
    assert "the layers together explain -" in found[2]["problems"][0] and found[2]["problems"][0].endswith("mlp.2")
    active = [float((coder.encode(rows[coder.hook]) != 0).double().sum(dim=1).mean()) for coder in coders]
    assert [record["activations"]["l0"] for record in found] == pytest.approx(active)
    rows[mlp(3)] = torch.zeros(40, D_IN + 1)
    assert {record["problems"] for record in held()} == {("it is for width 6 at mlp.3, where the model has 7",)}


def test_variants_of_one_transcoder_are_no_layers_of_a_cross_layer_one(tmp_path: Path):
    """As a sweep leaves them; nor are a transcoder and an SAE of what it writes."""
    files.save(random_sae("relu", hook=mlp(3)), tmp_path / "mlp.3")
    for folder in ("k=2", "k=4"):
        files.save(random_clt("topk")[3], tmp_path / f"sweep/{folder}/mlp_in.3")
    assert across_layers(formats.find(tmp_path)) == []
    files.save(random_clt("topk")[2], tmp_path / "sweep/k=4/mlp_in.2")
    assert len(across_layers(formats.find(tmp_path))) == 3


def test_layers_that_are_very_large_are_not_loaded(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspect_layers, "MOST_BYTES", 10)
    tracer_files(tmp_path)
    made = inspect_layers.outlines(formats.find(tmp_path))
    bench: Any = SimpleNamespace(is_chosen=True)
    assert all("not held against" in record.problems[0] for record in inspect_layers.held_together(made, bench))
    assert not reader.read


def test_the_layers_of_a_clt_are_shown_in_one_table(tmp_path: Path):
    from circuitcli.cli.inspection_view import _layers

    tracer_files(tmp_path / "tracer")
    records = here("inspect", "tracer", "--json", cwd=tmp_path).records
    console = Console(file=io.StringIO(), width=110)
    console.print(_layers(records))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "mlp_in.0  mlp.0 to mlp.3" in shown and "kB of weights; name one layer" in shown
    assert writes_text(["mlp.1", "mlp.3"]) == "mlp.1 mlp.3" and writes_text(["mlp.4", "mlp.5"]) == "mlp.4 mlp.5"


def test_a_clt_is_exported_to_circuit_tracer_and_back(tmp_path: Path):
    written(random_clt("relu"), "circuit", tmp_path / "own")
    outcome = here("export", "--sae", "own", "--to", "circuit_tracer", "-o", "theirs", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.stderr
    assert [record["hook"] for record in outcome.records] == [f"mlp_in.{layer}" for layer in range(N_LAYERS)]
    assert all(Path(record["path"]).is_file() for record in outcome.records)
    assert yaml.safe_load((tmp_path / "theirs/config.yaml").read_text())["model_kind"] == "cross_layer_transcoder"
    outcome = here("export", "--sae", "theirs", "--to", "circuit", "-o", "again", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.stderr
    for layer in range(N_LAYERS):
        before, after = (files.load(tmp_path / folder / f"mlp_in.{layer}") for folder in ("own", "again"))
        assert before.config == after.config
        assert all(torch.equal(before.state_dict()[name], tensor) for name, tensor in after.state_dict().items())


def test_what_is_wrong_with_named_coders_is_one_error_and_one_hint(tmp_path: Path):
    tracer_files(tmp_path / "tracer")
    (tmp_path / "tracer/W_enc_1.safetensors").unlink()
    written(random_clt("relu")[:1], "circuit", tmp_path / "own")
    for words, status, error in [
        (["inspect", "tracer"], 3, "lacks W_enc_1.safetensors"),
        (["export", "--sae", "own,own", "--to", "circuit", "-o", "x"], 3, "more than one SAE at mlp_in.0"),
        (["export", "--sae", "own", "--to", "sae_lens", "-o", "x"], 3, "no relu cross-layer transcoder"),
    ]:
        outcome = here(*words, cwd=tmp_path)
        assert (outcome.status, len(outcome.errors)) == (status, 2), (words, outcome.stderr)
        told, hint = outcome.errors
        assert told.startswith("error:") and error in told and hint.startswith("hint:")


def outputs_of(coder: SparseCoder, x: Tensor) -> list[Tensor]:
    codes = coder.encode(x)
    skips = [coder.skip(x, hook) for hook in coder.writes]
    return [
        coder.decode(codes, hook=hook) + (0 if skip is None else skip)
        for hook, skip in zip(coder.writes, skips, strict=True)
    ]


@pytest.mark.parametrize("shares_zeros", [True, False])
def test_conventions_are_folded_into_all_that_a_coder_writes(shares_zeros: bool, tmp_path: Path):
    coder = random_sae(
        "relu",
        hook=HookPoint(0, "mlp_in"),
        **{"target": mlp(0), "further": (mlp(1), mlp(3)), "d_out": D_IN, "skip": True, "subtract_decoder_bias": False},
    ).double()
    if shares_zeros:
        # As layers of Gemma Scope 2 come.
        coder.W_skip_1.data = torch.zeros((), dtype=torch.float64).expand(D_IN, D_IN)
    files.save(coder, tmp_path)
    x, gain, bias = X[0], random(D_IN, seed=3).double().abs() + 0.5, random(D_IN, seed=4).double()
    expected = outputs_of(coder, x)
    folded = files.load(tmp_path).double()
    if shares_zeros:
        folded.W_skip_1 = coder.W_skip_1
    folding.fold_affine_input(folded, gain, bias)
    assert len(expected) == 3
    for made, wanted in zip(outputs_of(folded, x * gain + bias), expected, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    plain = cut(random_clt("relu")[0].double(), [mlp(0), mlp(2)])
    expected = outputs_of(plain, x)
    folding.scale_input(plain, 0.25, output=4.0)
    for made, wanted in zip(outputs_of(plain, x * 4.0), expected, strict=True):
        torch.testing.assert_close(made * 4.0, wanted, rtol=1e-10, atol=1e-10)
