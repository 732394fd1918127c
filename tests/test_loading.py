"""Where models come from, and what is said when they do not; tokens as people see them."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from cli_support import here
from support_collect import save_model, tokenizer

from circuitcli.errors import InputError, SettingsError, ToolError
from circuitcli.models.loading import choose_device, load_model, load_tokenizer
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.settings.model import ModelSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def hub_cache(saved: Path, home: Path) -> None:
    """The model as the hub's own client would have left it in its cache."""
    repository = home / "models--org--tiny"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which cannot be reached: port 9 of this machine answers nobody."""
    # The libraries read the variable when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


def test_a_hub_model_in_the_local_cache_loads_without_a_network_and_tells_its_commit(saved, cache):
    hub_cache(saved, cache)
    model = load_model(ModelSettings(name="org/tiny", device="cpu"))
    assert (model.revision, model.adapter.family, model.tokenizer.bos_id) == (COMMIT, "gpt2", 256)


def test_a_hub_model_that_is_neither_cached_nor_reachable_is_refused_within_seconds(cache, tmp_path):
    begin = time.monotonic()
    done = here("collect", "--model", "org/none", "--run", str(tmp_path / "run"), cwd=tmp_path)
    assert done.status == 4 and time.monotonic() - begin < 30
    assert [line.split(":")[0] for line in done.stderr.strip().splitlines()] == ["error", "hint"]
    assert "org/none" in done.stderr


def test_a_directory_and_the_package_itself_are_models(saved):
    model = load_model(ModelSettings(name=str(saved), device="cpu", dtype="float64"))
    assert model.adapter.dtype == torch.float64 and model.tokenizer.bos_id == 256
    assert load_model(ModelSettings(device="cpu")).adapter.family == "gpt2"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("./nowhere", InputError, "no directory"),
        ("/nowhere/model.gguf", InputError, "no file"),
        ("builtin:huge", InputError, "no built-in model"),
    ],
)
def test_models_that_are_not_there_are_named(name, kind, message):
    with pytest.raises(kind, match=message):
        load_model(ModelSettings(name=name, device="cpu"))


def test_weights_that_cannot_be_read_are_an_input_error(saved, tmp_path):
    broken = shutil.copytree(saved, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot load model"):
        load_model(ModelSettings(name=str(broken), device="cpu"))


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ModuleNotFoundError("No module named 'einops'", name="einops"), "pip install einops"),
        (ImportError("this model needs the package einops"), "pip install the package that it names"),
    ],
)
def test_a_package_that_a_model_needs_is_named(saved, monkeypatch, error, hint):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(ToolError, match=r"needs a package: .*einops") as caught:
        load_model(ModelSettings(name=str(saved), device="cpu"))
    assert caught.value.hint == hint


def test_devices_are_chosen_and_missing_ones_refused():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(SettingsError, match="is not a device"):
        choose_device("gpu-please")
    for missing in (f"cuda:{torch.cuda.device_count()}", "cpu:1", "vulkan"):
        with pytest.raises(ToolError, match="is not available here"):
            choose_device(missing)


def test_bos_follows_the_policy():
    assert tokenizer().with_bos([1, 2]) == [256, 1, 2]
    assert tokenizer("never").with_bos([1, 2]) == [1, 2]
    hf = load_tokenizer(ModelSettings()).hf
    hf.bos_token = None
    assert Tokenizer(hf).bos_id is None
    with pytest.raises(InputError, match="no BOS token"):
        Tokenizer(hf, bos="always")


def test_tokens_are_shown_as_text_and_lone_bytes_by_their_number():
    shown = tokenizer()
    assert "".join(shown.token_strings(shown.encode('a "b"\n\\'))) == 'a "b"\n\\'
    assert shown.token_strings(shown.encode("é")) == ["<0xC3>", "<0xA9>"]
    assert shown.token_strings([256]) == ["<|bos|>"]


def test_a_target_of_several_tokens_shows_its_pieces():
    assert tokenizer().single_token("a", what="target") == tokenizer().encode("a")[0]
    with pytest.raises(InputError, match=r"target 'ab' is not one token but 2: 'a' 'b'"):
        tokenizer().single_token("ab", what="target")
    with pytest.raises(InputError, match="not one token but 0"):
        tokenizer().single_token("", what="foil")
