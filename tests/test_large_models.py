"""Models that no device holds: all commands with weights in memory and on disk give the numbers of the plain run."""

import gc
import json
from pathlib import Path

import pytest
import torch
from cli_support import Outcome, here
from support import hf_model, random_ids
from support_collect import save_model, texts
from transformers import AutoModelForCausalLM

from circuitcli.errors import InputError, SettingsError, ToolError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.loading import choose_device, load_model
from circuitcli.models.mlp import mlp_between
from circuitcli.models.offloading import placed, placement
from circuitcli.models.partial import clean_pass, first_block, rerun
from circuitcli.models.taps import leaf
from circuitcli.settings.model import ModelSettings
from circuitcli.settings.sources import load, to_toml

SAES = ["--set", "sae.d_sae=40", "--set", "sae.k=4", "--set", "train.batch_size=128", "--set", "train.tokens=1024"]
SAES += ["--set", "train.eval_tokens=300", "--set", "train.loss_tokens=200"]
PROMPT = ["--prompt", "abcabcab", "--set", "graph.baseline_tokens=200", "--set", "graph.ig_steps=2"]
COMMANDS = {
    "collect": ["--layers", "1:", "--sites", "resid,mlp", "--tokens", "1200", "--set", "data.block_length=32"],
    "train": SAES,
    "train --eval": ["--set", "train.eval_tokens=300"],
    "interp": [],
    "graph-grad": [*PROMPT, "--down", "4", "--up", "3"],
    "graph-naive": [*PROMPT, "--thin", "0.3", "--name", "naive"],
    "validate --graph circuit": ["--set", "validate.samples=3"],
    "validate --pin": ["resid.1:1,2", "--prompt", "abcabcab"],
}
PLACES = {"plain": "model.device=cpu", "disk": "model.max_memory=cpu=0KB"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large")
    save_model(path / "model")
    (path / "text.txt").write_text("\n\n".join(texts(*range(20, 120))))
    return path


def source(folder: Path) -> list[str]:
    return ["--model", str(folder / "model"), "--text", str(folder / "text.txt")]


def done(*words: str, cwd: Path) -> Outcome:
    outcome = here(*words, cwd=cwd)
    assert outcome.status == 0, (words, outcome.stderr)
    return outcome


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, dict[str, Outcome]]:
    """What each command left in each place."""
    found: dict[str, dict[str, Outcome]] = {}
    for place, where in PLACES.items():
        run, words, found[place] = folder / place, ["--set", where], {}
        run.mkdir()
        for command, more in COMMANDS.items():
            begin = (
                ["--model", str(folder / "model"), "--text", str(folder / "text.txt")] if command == "collect" else []
            )
            done = here(*command.split(), *more, *begin, *words, "--run", ".", cwd=run)
            assert done.status == 0, (place, command, done.stderr)
            found[place][command] = done
    return found


def test_every_command_leaves_the_bytes_of_the_plain_run(runs: dict[str, dict[str, Outcome]], folder: Path):
    plain, spread = (files(folder / place) for place in PLACES)
    assert plain.keys() == spread.keys() and len(plain) > 20
    # The one has times in it, the other speeds.
    assert {name for name in plain if plain[name] != spread[name]} == {
        "run.json",
        *(name for name in plain if name.endswith("metrics.jsonl")),
    }
    for command, outcome in runs["disk"].items():
        assert "0.1 MiB on disk" in outcome.stderr, command
        assert untimed(outcome.stdout) == untimed(runs["plain"][command].stdout), command
    assert not any("weights" in outcome.stderr for outcome in runs["plain"].values())


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def untimed(stdout: str) -> list[dict]:
    records = map(json.loads, stdout.splitlines())
    return [{name: value for name, value in record.items() if name != "path"} for record in records]


def losses(run: Path) -> list[dict]:
    lines = (run / "saes/resid.2/metrics.jsonl").read_text().splitlines()
    return [
        {name: json.loads(line)[name] for name in ("step", "tokens", "loss", "fvu", "l0", "dead")} for line in lines
    ]


def test_training_takes_the_same_steps(runs: dict[str, dict[str, Outcome]], folder: Path):
    plain, spread = (losses(folder / place) for place in PLACES)
    assert plain == spread and len(plain) > 1


def numbers(adapter: ModelAdapter) -> list[torch.Tensor]:
    """Logits, those of a changed rerun of three rows, a gradient, and what is read from weights."""
    ids, hook, seen = random_ids(), HookPoint(1, "mlp"), []

    def callback(activation: torch.Tensor) -> torch.Tensor:
        seen.append(leaf(activation * torch.arange(1, 4)[:, None, None]))
        return seen[0]

    clean = clean_pass(adapter, ids, (hook,))
    logits = adapter.head(rerun(adapter, clean, {hook: callback}, rows=3, start=first_block(hook)))
    logits[:, -1].log_softmax(-1)[:, 5].sum().backward()
    directions = torch.linspace(-1, 1, 2 * adapter.d_model, dtype=torch.float64).reshape(2, -1)
    found = [clean.logits, logits, seen[0].grad, adapter.logit_effect(directions)]
    if adapter.layout.mlp is not None:
        places = HookPoint(1, "mlp_in"), HookPoint(1, "mlp")
        found.append(mlp_between(adapter, *places, device=ids.device, dtype=adapter.dtype)(clean.residuals[1][0]))
    return found


def loaded(saved: Path, **places) -> ModelAdapter:
    """A saved model without a tokenizer."""
    settings = ModelSettings(name=str(saved), dtype="float64", **places)
    with placement(settings) as options:
        model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float64, **options)
    placed(model, options)
    return ModelAdapter.of(model)


def n_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@pytest.mark.parametrize("share", [0, 0.7])
def test_passes_gradients_and_weights_of_every_family_are_those_of_the_plain_model(
    family: str, share: float, tmp_path: Path
):
    model = hf_model(family, dtype=torch.float64)
    model.save_pretrained(tmp_path)
    plain, spread = loaded(tmp_path), loaded(tmp_path, max_memory=f"cpu={share * n_bytes(model) / 1000:.3f}KB")
    on_disk = [parameter.device.type == "meta" for parameter in spread.model.parameters()]
    assert 0 < sum(on_disk) < len(on_disk) if share else all(on_disk)
    assert spread.device.type == "cpu" and spread.n_token_ids == plain.n_token_ids
    for one, other in zip(numbers(plain), numbers(spread), strict=True):
        assert torch.equal(one, other)


def test_weights_that_are_written_to_disk_are_read_from_there_and_go_with_the_model(tmp_path: Path):
    saved, folder = tmp_path / "model", tmp_path / "some" / "folder"
    model = hf_model("gpt2", dtype=torch.float64)
    model.config.save_pretrained(saved)
    # Files of this kind are not read piece by piece.
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
    spread = loaded(saved, max_memory="cpu=60KB", offload_folder=str(folder))
    assert any(path.is_file() for path in folder.rglob("*"))
    for one, other in zip(numbers(loaded(saved)), numbers(spread), strict=True):
        # The files hold the same numbers; where they lie in memory decides the order of sums.
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    del spread
    gc.collect()
    assert list(folder.iterdir()) == []


def test_a_model_that_cannot_be_loaded_leaves_no_folder(tmp_path: Path):
    settings = ModelSettings(max_memory="cpu=1GiB", offload_folder=str(tmp_path))
    with pytest.raises(InputError), placement(settings):
        assert len(list(tmp_path.iterdir())) == 1
        raise InputError("no such model")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SettingsError, match="cannot write to") as caught,
        placement(ModelSettings(max_memory="cpu=1GiB", offload_folder=str(tmp_path / "file"))),
    ):
        pass
    assert "model.offload_folder" in caught.value.hint


def test_a_model_that_fits_is_one_piece_wherever_accelerate_puts_it():
    assert load_model(ModelSettings(device_map="auto")).adapter.device == choose_device("auto")


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("0=20GiB,cpu=64GiB", {0: 20 * 2**30, "cpu": 64 * 2**30}),
        ("cuda:1=1.5GB, mps=3MB", {1: 1_500_000_000, "mps": 3_000_000}),
        (["cpu=2TiB", "3=7KiB"], {"cpu": 2 * 2**40, 3: 7 * 1024}),
        ("", {}),
    ],
)
def test_limits_are_read_from_flags_environment_and_files(text, limits, tmp_path: Path):
    assigned = ",".join(text) if isinstance(text, list) else text
    project = tmp_path / "circuit.toml"
    by_flag = load(assignments=[f"model.max_memory={assigned}"], environment={}, directory=tmp_path)
    by_variable = load(environment={"CIRCUIT_MODEL__MAX_MEMORY": assigned}, directory=tmp_path)
    project.write_text(f"[model]\nmax_memory = {json.dumps(text)}\n")
    by_file = load(environment={}, directory=tmp_path)
    project.write_text(to_toml(by_flag))
    again = load(environment={}, directory=tmp_path)
    for found in (by_flag, by_variable, by_file, again):
        assert found.settings.model.memory_limits == limits


@pytest.mark.parametrize(
    "text",
    ["20GiB", "cpu=20", "cpu=-1GiB", "cpu=1e3GiB", "cpu=1 PB", "vulkan=1GiB", "cpu=²GiB", "0=9" + "9" * 5000 + "GB"],
)
def test_what_is_no_limit_is_a_usage_error_that_shows_one(text: str, tmp_path: Path):
    with pytest.raises(SettingsError, match="write DEVICE=SIZE, for example 0=20GiB"):
        load(assignments=[f"model.max_memory={text}"], environment={}, directory=tmp_path)


@pytest.mark.parametrize("places", [{"device_map": "auto"}, {"max_memory": "cpu=1GiB"}])
def test_one_device_and_several_are_not_asked_for_together(places: dict[str, str]):
    with pytest.raises(SettingsError, match="--device cpu asks for one") as caught:
        load_model(ModelSettings(device="cpu", **places))
    assert "leave out --device" in caught.value.hint


def test_a_limit_for_a_device_that_is_not_there_names_those_that_are():
    with pytest.raises(ToolError, match=r"device 99 of model\.max_memory is not available here") as caught:
        load_model(ModelSettings(max_memory="99=1GiB"))
    assert "cpu" in caught.value.hint
