"""The example configurations load, alone and together, and say only what is a setting."""

import re
from pathlib import Path

import pytest

from circuitcli.hookpoints import HookPoint, parse_layers
from circuitcli.settings.pretrain import PretrainSettings, checkpoint_steps
from circuitcli.settings.sources import flatten, known_names, load, to_toml

CONFIGS = Path(__file__).parents[1] / "configs"
# Of models that are trained from nothing.
RECIPES = {"tiny-model.toml", "shakespeare_64x4.toml", "shakespeare_128x6.toml", "nanogpt_16x6.toml"}
# These ask about planted features, not about a model.
TOYS = {"toy.toml", "toy-quick.toml"}
N_LAYERS = {
    "builtin:tiny": 4,
    "gpt2": 12,
    "EleutherAI/pythia-70m": 6,
    "meta-llama/Llama-2-7b-hf": 32,
    "meta-llama/Llama-2-70b-hf": 80,
}
EXAMPLES = sorted(path for path in CONFIGS.glob("*.toml") if path.name not in RECIPES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_and_all_its_values_come_from_it(path: Path, tmp_path: Path) -> None:
    loaded = load(config=[path], environment={}, directory=tmp_path)
    assert set(loaded.origins.values()) == {str(path)}
    assert loaded.settings.graph.prompt or path.name in TOYS
    parse_layers(loaded.settings.data.layers, n_layers=N_LAYERS.get(loaded.settings.model.name, 30))
    for site in loaded.settings.data.sites:
        HookPoint(0, site)
    assert all(name in flatten(loaded.settings) for name in loaded.origins)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_printed_settings_of_an_example_load_back_as_the_same_settings(path: Path, tmp_path: Path) -> None:
    loaded = load(config=[path], environment={}, directory=tmp_path)
    printed = tmp_path / "printed.toml"
    printed.write_text(to_toml(loaded), encoding="utf-8")
    assert load(config=[printed], environment={}, directory=tmp_path).settings == loaded.settings


def test_printed_settings_stand_below_what_they_mean(tmp_path: Path) -> None:
    lines = to_toml(load(environment={}, directory=tmp_path)).splitlines()
    meanings, section, told = dict(known_names()), "", []
    for line in lines:
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif re.match(r"# \w+ is not set \(|\w+ = ", line):
            name = section + line.removeprefix("# ").split()[0]
            assert " ".join(told) == meanings.pop(name)
            told = []
        elif line:
            told.append(line.removeprefix("# "))
    assert not meanings


def test_commands_in_the_comments_name_their_own_file() -> None:
    for path in EXAMPLES:
        named = [line for line in path.read_text(encoding="utf-8").splitlines() if "--config" in line]
        assert named and all(f"--config configs/{path.name}" in line for line in named)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_of_a_model_loads_by_the_command_that_it_names(name: str, tmp_path: Path) -> None:
    path = CONFIGS / name
    loaded = load(config=[path], environment={}, directory=tmp_path)
    assert set(loaded.origins.values()) == {str(path)}
    assert checkpoint_steps(loaded.settings.pretrain.checkpoints, n_steps=loaded.settings.pretrain.steps)[-1:] in (
        [],
        [loaded.settings.pretrain.steps],
    )
    assert f"circuit pretrain --config configs/{name}" in path.read_text(encoding="utf-8")


def test_the_shipped_model_is_what_pretrain_makes_without_settings_but_for_its_numbers(tmp_path: Path) -> None:
    made = load(config=[CONFIGS / "tiny-model.toml"], environment={}, directory=tmp_path).settings.pretrain
    of_numbers = {"hold_out": "documents", "autocast": True, "dtype": "float16"}
    assert made == PretrainSettings().model_copy(update=of_numbers)


def test_the_example_for_the_shipped_model_needs_no_network() -> None:
    settings = load(config=[CONFIGS / "builtin.toml"], environment={}, directory=CONFIGS).settings
    assert settings.model.name == "builtin:tiny"
    assert settings.data.text == "builtin:python"


@pytest.mark.parametrize(
    ("name", "model", "layer"),
    [
        ("pythia-70m", "EleutherAI/pythia-70m", 2),
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf", 13),
        ("llama-2-70b", "meta-llama/Llama-2-70b-hf", 32),
    ],
)
def test_starting_points_of_the_table_that_users_know_are_kept(name: str, model: str, layer: int) -> None:
    settings = load(config=[CONFIGS / f"{name}.toml"], environment={}, directory=CONFIGS).settings
    assert (settings.model.name, settings.sae.expansion) == (model, 10)
    assert parse_layers(settings.data.layers, n_layers=N_LAYERS[model]) == [layer]
    # An L0 of 10 to 100 was what to tune for.
    assert settings.sae.architecture == "topk" and 10 <= settings.sae.k <= 100
    if model.startswith("meta-llama"):
        assert settings.model.device_map == "auto" and "HF_TOKEN" in (CONFIGS / f"{name}.toml").read_text()
