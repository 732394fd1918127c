"""dictionary_learning's files, held against its documented forward passes; TopK ties; pickles with code in them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange_support import D_IN, D_SAE, HOOK, K, assert_same, inputs, only, random_sae, random_transcoder, written
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import formats

THRESHOLD = 1.1
LINEAR = {"encoder.weight": (D_SAE, D_IN), "decoder.weight": (D_IN, D_SAE)}
PLAIN = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": LINEAR | {"encoder.bias": (D_SAE,), "bias": (D_IN,)},
    "AutoEncoderNew": LINEAR | {"encoder.bias": (D_SAE,), "decoder.bias": (D_IN,)},
    "GatedAutoEncoder": LINEAR
    | {"decoder_bias": (D_IN,), "r_mag": (D_SAE,), "gate_bias": (D_SAE,), "mag_bias": (D_SAE,)},
    "JumpReluAutoEncoder": PLAIN | {"threshold": (D_SAE,)},
    "AutoEncoderTopK": LINEAR | {"encoder.bias": (D_SAE,), "b_dec": (D_IN,)},
    "BatchTopKSAE": LINEAR | {"encoder.bias": (D_SAE,), "b_dec": (D_IN,)},
    "MatryoshkaBatchTopKSAE": PLAIN,
}


def state_of(name: str) -> dict[str, Any]:
    """A random state dict of a class."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Any] = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES[name].items()}
    if name == "JumpReluAutoEncoder":
        state["threshold"] = state["threshold"].abs()
    if "TopK" in name:
        state |= {"k": torch.tensor(K), "threshold": torch.tensor(THRESHOLD)}
    if name.startswith("Matryoshka"):
        state["group_sizes"] = torch.tensor([5, D_SAE - 5])
    return state


def saved(directory: Path, name: str, state: dict[str, Any] | None = None, **trainer: Any) -> Path:
    """The files of a training."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(state_of(name) if state is None else state, directory / "ae.pt")
    content = {
        "trainer": {
            "dict_class": name,
            "trainer_class": "SomeTrainer",
            "activation_dim": D_IN,
            "dict_size": D_SAE,
            "layer": 2,
            "lm_name": "EleutherAI/pythia-70m-deduped",
            "submodule_name": "resid_post_layer_2",
            "lr": 3e-4,
            **trainer,
        },
        "buffer": {"d_submodule": D_IN, "io": "out", "ctx_len": 128},
    }
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def largest(pre: Tensor, k: int) -> Tensor:
    values, indices = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def forward(name: str, w: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction as the class documents them."""
    if name == "AutoEncoder":
        norms = w["decoder.weight"].norm(dim=0)
        codes = torch.relu((x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]) * norms
        return codes, codes @ (w["decoder.weight"] / norms).T + w["bias"]
    if name == "AutoEncoderNew":
        codes = torch.relu(x @ w["encoder.weight"].T + w["encoder.bias"])
        return codes, codes @ w["decoder.weight"].T + w["decoder.bias"]
    if name == "GatedAutoEncoder":
        z = (x - w["decoder_bias"]) @ w["encoder.weight"].T
        codes = (z + w["gate_bias"] > 0) * torch.relu(w["r_mag"].exp() * z + w["mag_bias"])
        return codes, codes @ w["decoder.weight"].T + w["decoder_bias"]
    if name == "JumpReluAutoEncoder":
        pre = x @ w["W_enc"] + w["b_enc"]
        codes = torch.relu(pre * (pre > w["threshold"]))
        return codes, codes @ w["W_dec"] + w["b_dec"]
    encoder = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    decoder = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    positive = torch.relu((x - w["b_dec"]) @ encoder + w["b_enc" if "b_enc" in w else "encoder.bias"])
    codes = largest(positive, K) if name == "AutoEncoderTopK" else positive * (positive > w["threshold"])
    return codes, codes @ decoder + w["b_dec"]


@pytest.mark.parametrize("name", SHAPES)
def test_codes_and_reconstructions_are_those_of_the_class(name: str, tmp_path: Path):
    found = only(saved(tmp_path, name))
    assert_same(found.sae, *forward(name, state_of(name), inputs()), inputs())
    assert found.sae.hook == HOOK
    assert (found.about.model, found.about.context_length) == ("EleutherAI/pythia-70m-deduped", 128)
    assert found.about.training["dict_class"] == name and found.about.training["lr"] == 3e-4


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("AutoEncoderTopK", "BatchTopKSAE")])
def test_the_class_is_told_by_the_tensors_where_there_is_no_config(name: str, tmp_path: Path):
    directory = saved(tmp_path / "resid_post_layer_2/trainer_0", name)
    (directory / "config.json").unlink()
    assert_same(only(directory).sae, *forward(name, state_of(name), inputs()), inputs())


@pytest.mark.parametrize("name", ["AutoEncoderTopK", "BatchTopKSAE"])
def test_topk_and_batchtopk_have_the_same_tensors_so_one_without_a_config_is_refused(name: str, tmp_path: Path):
    directory = saved(tmp_path / "resid_post_layer_2/trainer_0", name)
    (directory / "config.json").unlink()
    with pytest.raises(InputError, match="there is no telling the class"):
        only(directory)


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_set_means_relu(name: str, tmp_path: Path):
    state = state_of(name) | {"threshold": torch.tensor(-1.0)}
    found = only(saved(tmp_path, name, state))
    assert found.sae.architecture == "relu" and "never set" in " ".join(found.about.notes)
    assert_same(found.sae, *forward(name, state, inputs()), inputs())


def test_the_threshold_of_a_topk_is_not_applied(tmp_path: Path):
    state = state_of("AutoEncoderTopK") | {"threshold": torch.tensor(1e6)}
    found = only(saved(tmp_path, "AutoEncoderTopK", state)).sae
    assert found.options == {"k": K}
    assert_same(found, *forward("AutoEncoderTopK", state, inputs()), inputs())


def test_ties_in_a_topk_keep_k_features(tmp_path: Path):
    state = state_of("AutoEncoderTopK")
    state["encoder.weight"] = state["encoder.weight"][:1].expand(D_SAE, D_IN).clone()
    state["encoder.bias"] = torch.full((D_SAE,), 50.0)
    found = only(saved(tmp_path, "AutoEncoderTopK", state)).sae
    assert ((found.encode(inputs()) > 0).sum(dim=1) == K).all()


def test_an_autoencoder_with_rows_of_length_1_is_left_alone(tmp_path: Path):
    state = state_of("AutoEncoder")
    state["decoder.weight"] /= state["decoder.weight"].norm(dim=0)
    found = only(saved(tmp_path, "AutoEncoder", state))
    assert not found.about.notes
    assert_same(found.sae, *forward("AutoEncoder", state, inputs()), inputs())


@pytest.mark.parametrize(
    ("trainer", "folder", "hook"),
    [
        ({"submodule_name": "resid_post_layer_7"}, "x", "resid.7"),
        ({"submodule_name": "mlp_out_layer_3"}, "x", "mlp.3"),
        ({"submodule_name": "attn_out", "layer": 4}, "x", "attn.4"),
        ({"submodule_name": "resid_pre", "layer": 4}, "x", "resid_pre.4"),
        ({"submodule_name": "gpt_neox.layers.5.mlp"}, "x", "mlp.5"),
        ({"submodule_name": None}, "resid_post_layer_11/trainer_3", "resid.11"),
    ],
)
def test_the_hook_point_is_found(trainer: dict, folder: str, hook: str, tmp_path: Path):
    (place,) = formats.find(saved(tmp_path / folder, "AutoEncoderNew", **trainer))
    assert str(place.hook) == hook


def test_a_module_whose_input_was_read_is_told_by_the_buffer(tmp_path: Path):
    directory = saved(tmp_path, "AutoEncoderNew", submodule_name="gpt_neox.layers.5.mlp")
    content = json.loads((directory / "config.json").read_text())
    content["buffer"]["io"] = "in"
    (directory / "config.json").write_text(json.dumps(content))
    assert str(formats.find(directory)[0].hook) == "mlp_in.5"


def test_a_checkpoint_is_read_with_the_config_above_it(tmp_path: Path):
    saved(tmp_path, "AutoEncoderNew")
    (tmp_path / "checkpoints").mkdir()
    torch.save(state_of("AutoEncoderNew"), tmp_path / "checkpoints/ae_500.pt")
    found = only(tmp_path / "checkpoints/ae_500.pt").sae
    assert_same(found, *forward("AutoEncoderNew", state_of("AutoEncoderNew"), inputs()), inputs())
    assert len(formats.find(tmp_path)) == 1


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"dict_class": "CrossCoder"}, "'CrossCoder' of dictionary_learning is not known"),
        ({"dict_size": D_SAE + 1}, f"config.json says dict_size {D_SAE + 1}"),
        ({"dict_class": "GatedAutoEncoder"}, "ae.pt has no tensor decoder_bias"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(trainer: dict, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        only(saved(tmp_path, "AutoEncoderNew", **trainer))


def test_a_bias_of_another_width_is_refused_by_name(tmp_path: Path):
    state = state_of("AutoEncoderNew") | {"decoder.bias": torch.zeros(D_IN + 1)}
    with pytest.raises(InputError, match=rf"ae.pt: decoder.bias has shape .{D_IN + 1},., expected .{D_IN}."):
        only(saved(tmp_path, "AutoEncoderNew", state))


class _Bomb:
    """Unpickled without care, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_code_in_a_pickle_is_not_run_and_is_one_clean_error(tmp_path: Path):
    fired = tmp_path / "fired"
    directory = saved(tmp_path / "sae", "AutoEncoderNew", {"encoder.weight": _Bomb(fired)})
    with pytest.raises(InputError, match="can run any code") as caught:
        only(directory)
    assert not fired.exists() and "ae.pt" in caught.value.message
    torch.load(directory / "ae.pt", weights_only=False)
    assert fired.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no pickle at all"])
def test_cut_and_foreign_files_are_one_clean_error(content: bytes, tmp_path: Path):
    (saved(tmp_path, "AutoEncoderNew") / "ae.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"ae\.pt"):
        only(tmp_path)


def test_half_a_pickle_is_one_clean_error(tmp_path: Path):
    path = saved(tmp_path, "AutoEncoderNew") / "ae.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cannot read .*ae\.pt"):
        only(tmp_path)


WRITTEN = {"relu": "AutoEncoderNew", "gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK"}
WRITTEN |= {"jumprelu": "JumpReluAutoEncoder"}


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", WRITTEN)
def test_ours_give_the_same_in_its_classes(architecture: str, subtract: bool, tmp_path: Path):
    sae = random_sae(architecture, subtract_decoder_bias=subtract)
    path = written(sae, "dictionary_learning", tmp_path, model="gpt2", context_length=64)
    state = torch.load(path / "ae.pt", weights_only=True)
    content = json.loads((path / "config.json").read_text())
    name = content["trainer"]["dict_class"]
    assert name == WRITTEN[architecture] and {key for key in state} - {"k", "threshold"} <= set(SHAPES[name])
    assert_same(sae, *forward(name, state, inputs()), inputs())
    assert (content["trainer"]["layer"], content["buffer"]["ctx_len"]) == (2, 64)
    assert_same(only(path).sae, sae.encode(inputs()), sae.reconstruct(inputs()), inputs())


@pytest.mark.parametrize(
    "sae",
    [
        random_sae("abstopk"),
        random_sae("relu", normalisation="layer-norm"),
        random_transcoder("relu"),
        random_sae("relu", hook=HookPoint(2, "mlp_in")),
    ],
    ids=["abstopk", "layer-norm", "transcoder", "mlp_in"],
)
def test_what_it_has_no_class_for_is_not_written(sae: Any, tmp_path: Path):
    with pytest.raises(InputError, match="dictionary_learning has no"):
        written(sae, "dictionary_learning", tmp_path)
