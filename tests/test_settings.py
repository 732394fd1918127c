"""Every setting has one source that wins, is known by that source, and survives being printed and read back."""

import os
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from circuitcli.cli.options import choices, field
from circuitcli.errors import SettingsError
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import Loaded, flatten, known_names, load, to_toml, toml_value

SOURCES = ("flag", "--set", "environment", "second.toml", "first.toml", "circuit.toml")

in_directory = hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def load_from(directory: Path, given: dict[str, int]) -> Loaded:
    """Settings where each of the named sources sets sae.k."""
    for name in SOURCES[3:]:
        path = directory / name
        path.write_text(f"[sae]\nk = {given[name]}\n" if name in given else "")
    return load(
        {"sae.k": given.get("flag")},
        assignments=[f"sae.k={given['--set']}"] if "--set" in given else [],
        environment={"CIRCUIT_SAE__K": str(given["environment"])} if "environment" in given else {},
        config=[directory / "first.toml", directory / "second.toml"],
        directory=directory,
    )


@in_directory
@given(given=st.dictionaries(st.sampled_from(SOURCES), st.integers(1, 99)))
def test_flags_beat_environment_beats_files_beat_the_project_beats_defaults(tmp_path: Path, given: dict[str, int]):
    loaded = load_from(tmp_path, given)
    winner = next((source for source in SOURCES if source in given), None)
    assert loaded.settings.sae.k == (given[winner] if winner else Settings().sae.k)
    origin = loaded.origins.get("sae.k")
    assert origin == (str(tmp_path / winner) if winner in SOURCES[3:5] else winner)


def test_sources_add_up_where_they_name_different_settings(tmp_path: Path):
    (tmp_path / "circuit.toml").write_text('seed = 3\n[data]\nlayers = "1:2"\nsites = ["resid", "mlp"]\n')
    loaded = load(
        {"model.name": "gpt2", "model.revision": None},
        assignments=["train.tokens=5_000"],
        environment={"CIRCUIT_GRAPH__PIN": "6:1,2", "PATH": "x"},
        directory=tmp_path,
    )
    found = loaded.settings
    assert (found.seed, found.data.layers, found.data.sites) == (3, "1:2", ("resid", "mlp"))
    assert (found.model.name, found.train.tokens, found.graph.pin) == ("gpt2", 5000, ("6:1,2",))
    assert "model.revision" not in loaded.origins


@pytest.mark.parametrize("setting", ["data.sites", "graph.sites"])
def test_lists_of_words_are_split_at_commas(setting: str, tmp_path: Path):
    loaded = load({setting: "resid, mlp"}, directory=tmp_path, environment={})
    assert flatten(loaded.settings)[setting] == ["resid", "mlp"]


@pytest.mark.parametrize("setting", ["graph.pin", "validate.pin", "render.output"])
def test_lists_whose_entries_may_hold_commas_are_not_split(setting: str, tmp_path: Path):
    loaded = load({}, assignments=[f"{setting}=6:1,2"], directory=tmp_path, environment={})
    assert flatten(loaded.settings)[setting] == ["6:1,2"]


@pytest.mark.parametrize(
    ("sources", "place"),
    [
        ({"assignments": ["sae.kk=3"]}, "--set: sae.kk"),
        ({"environment": {"CIRCUIT_SAE__KK": "3"}}, "environment variable: CIRCUIT_SAE__KK"),
        ({"config": "[sae]\nkk = 3\n"}, "config.toml: sae.kk"),
        ({"project": "[sae]\nkk = 3\n"}, "circuit.toml: sae.kk"),
        ({"project": "sae = 3\n"}, "circuit.toml: sae"),
    ],
)
def test_an_unknown_name_is_refused_in_every_source(sources: dict, place: str, tmp_path: Path):
    (tmp_path / "config.toml").write_text(sources.pop("config", ""))
    (tmp_path / "circuit.toml").write_text(sources.pop("project", ""))
    with pytest.raises(SettingsError) as caught:
        load({}, **{"environment": {}, **sources}, config=[tmp_path / "config.toml"], directory=tmp_path)
    assert place in caught.value.message
    assert "did you mean" in caught.value.hint


@pytest.mark.parametrize("name", ["sae.K", "sae.kk", "k", "data.layer", "grph.down", "validate.at-least"])
def test_the_nearest_known_name_is_offered(name: str, tmp_path: Path):
    with pytest.raises(SettingsError) as caught:
        load({}, assignments=[f"{name}=1"], environment={}, directory=tmp_path)
    offered = caught.value.hint.removeprefix("did you mean ").removesuffix("?")
    assert offered in known_names()


@pytest.mark.parametrize(
    ("assignment", "place"),
    [
        ("sae.k=0", "sae.k='0' (--set)"),
        ("train.decay=2", "train.decay='2' (--set)"),
        ("model.dtype=int8", "model.dtype='int8' (--set)"),
        ("data.tokens=lots", "data.tokens='lots' (--set)"),
        ("validate.errors=some", "validate.errors='some' (--set)"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_origin_and_meaning(assignment: str, place: str, tmp_path: Path):
    with pytest.raises(SettingsError) as caught:
        load({}, assignments=[assignment], environment={}, directory=tmp_path)
    assert caught.value.message.startswith(place)
    assert caught.value.hint == known_names()[assignment.partition("=")[0]]


@pytest.mark.parametrize("text", ["a = ", "\x00", "a = 1\na = 2\n", "\ufeff[sae"])
def test_a_file_that_is_no_toml_is_refused_by_name(text: str, tmp_path: Path):
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"broken\.toml"):
        load({}, config=[path], environment={}, directory=tmp_path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"none\.toml"):
        load({}, config=[tmp_path / "none.toml"], environment={}, directory=tmp_path)


def test_every_setting_has_a_help_text_that_ends_like_a_sentence():
    assert [name for name, text in known_names().items() if not text.endswith(".")] == []


def test_every_setting_can_be_given_by_a_variable_of_its_own(tmp_path: Path):
    variables = {"CIRCUIT_" + name.upper().replace(".", "__"): name for name in known_names()}
    assert len(variables) == len(known_names())
    for variable in variables:
        with pytest.raises(SettingsError) as caught:
            load({}, environment={variable + "X": "1"}, directory=tmp_path)
        assert caught.value.hint.startswith("did you mean CIRCUIT_")


def test_the_environment_of_the_process_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "CIRCUIT_SEED", "11")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circuit.toml").write_text("seed = 5\n[sae]\nk = 4\n")
    loaded = load()
    assert (loaded.settings.seed, loaded.settings.sae.k) == (11, 4)


plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@in_directory
@given(
    prompt=plain,
    outputs=st.lists(plain, max_size=3),
    sites=st.lists(st.sampled_from(["resid", "attn", "mlp"]), min_size=1, max_size=3),
    rate=st.none() | st.floats(1e-9, 10),
    exponent=st.floats(-1000, 1000),
    minimality=st.booleans(),
)
def test_printed_settings_read_back_the_same(tmp_path: Path, prompt, outputs, sites, rate, exponent, minimality):
    flags = {
        "graph.prompt": prompt,
        "render.output": outputs,
        "data.sites": sites,
        "train.learning_rate": rate,
        "graph.threshold_exp": exponent,
        "validate.minimality": minimality,
    }
    printed = load(flags, environment={}, directory=tmp_path)
    path = tmp_path / "printed.toml"
    path.write_text(to_toml(printed), encoding="utf-8")
    again = load({}, config=[path], environment={}, directory=tmp_path)
    assert again.settings == printed.settings
    assert set(again.origins.values()) == {str(path)}


@given(
    st.recursive(
        st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | plain, st.lists, max_leaves=5
    )
)
def test_values_are_written_as_toml(value: object):
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


def test_printed_settings_show_every_name_with_its_origin(tmp_path: Path):
    printed = to_toml(load({"sae.k": 3}, environment={"CIRCUIT_SEED": "1"}, directory=tmp_path))
    assert "k = 3  # flag" in printed
    assert "seed = 1  # environment" in printed
    assert "expansion = 8.0  # default" in printed
    assert "# revision is not set (default)" in printed
    for name in known_names():
        assert f"{name.rpartition('.')[2]} = " in printed or f"# {name.rpartition('.')[2]} is not set" in printed


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().sae.k = 3


NUMERIC = [name for name in known_names() if {int, float} & {field(name).annotation, *get_args(field(name).annotation)}]
TOO_LARGE = (
    "9" * 20,
    "-" + "9" * 20,
    "9" * 5000,
    "1e308",
    "-1e308",
    "1e400",
    "inf",
    "-inf",
    "nan",
    "18446744073709551616",
)
NO_NUMBERS = ("\u0663", "\u00b2", "1_", "0x", "1;", "one", "[1]", "\0", "\ud800", "1\n2")


@pytest.mark.parametrize("name", NUMERIC)
def test_a_number_that_nothing_can_take_is_refused_in_every_source(name: str, tmp_path: Path):
    for written in TOO_LARGE + NO_NUMBERS:
        sources = [{"flags": {name: written}}, {"assignments": [f"{name}={written}"]}]
        sources.append({"environment": {"CIRCUIT_" + name.upper().replace(".", "__"): written}})
        if written in TOO_LARGE:
            (tmp_path / "config.toml").write_text(f"{name} = {written}\n")
            sources.append({"config": [tmp_path / "config.toml"]})
        for source in sources:
            with pytest.raises(SettingsError) as caught:
                load(**{"environment": {}, **source}, directory=tmp_path)
            assert len(caught.value.message) < 400, source


@pytest.mark.parametrize("name", NUMERIC)
def test_every_number_has_bounds_and_both_are_taken(name: str, tmp_path: Path):
    bounds = {
        key: bound
        for data in field(name).metadata
        for key in ("ge", "gt", "le", "lt")
        if (bound := getattr(data, key, None)) is not None
    }
    assert bounds.keys() & {"ge", "gt"} and bounds.keys() & {"le", "lt"}
    for key in bounds.keys() & {"ge", "le"}:
        assert flatten(load({name: bounds[key]}, environment={}, directory=tmp_path).settings)[name] == bounds[key]
    assert abs(bounds.get("le", 1)) <= 2**50


TEXTS = [
    name for name in known_names() if name not in NUMERIC and not choices(name) and field(name).annotation is not bool
]


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_no_file_and_no_tokenizer_takes_is_refused_in_every_source(name: str, tmp_path: Path):
    for written in ("a\0b", "a\udcffb", "\ud800"):
        for source in (
            {"flags": {name: written}},
            {"assignments": [f"{name}={written}"]},
            {"environment": {"CIRCUIT_" + name.upper().replace(".", "__"): written}},
        ):
            with pytest.raises(SettingsError):
                load(**{"environment": {}, **source}, directory=tmp_path)


@pytest.mark.parametrize("name", ["run", "sae_path", "data.text", "graph.extend", "validate.prompts"])
def test_the_home_of_nobody_is_no_path(name: str, tmp_path: Path):
    with pytest.raises(SettingsError, match="no such user"):
        load({name: "~no-such-user-here/x"}, environment={}, directory=tmp_path)


def test_a_run_may_lie_in_ones_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert load({"run": "~/runs/x"}, environment={}, directory=tmp_path).settings.run == "/home/someone/runs/x"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("data.layers", "1:\u00b2"),
        ("data.layers", "\u0663:\u0665"),
        ("data.layers", "1_0"),
        ("data.layers", "4:2:-1"),
        ("data.layers", "9" * 5000),
        ("data.layers", ""),
        ("graph.layers", "::::"),
        ("data.sites", ""),
        ("data.sites", "resid,heads"),
        ("graph.pin", "6:\u00b2"),
        ("graph.pin", "\u0666:1"),
        ("validate.pin", "6:" + "9" * 5000),
        ("validate.pin", "resid.\u0669:1"),
        ("validate.pin", "6:1,"),
        ("validate.pin", ""),
    ],
)
def test_layers_sites_and_pins_are_read_before_any_run_is(name: str, written: str, tmp_path: Path):
    with pytest.raises(SettingsError):
        load({name: written}, environment={}, directory=tmp_path)
