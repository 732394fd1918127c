"""Help, version and usage errors: fast, complete, without heavy imports."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from cli_support import ROOT, TIMEOUT_S, circuit, environment

from circuitcli import __version__
from circuitcli.cli.app import COMMANDS, app, run
from circuitcli.cli.failures import with_places
from circuitcli.settings.sources import known_names

HEAVY = ("torch", "transformers", "h5py", "numpy", "graphviz", "datasets", "gguf", "matplotlib")

PROBE = f"""
import sys
from circuitcli.__main__ import main
status = main()
print("LOADED", *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


def hinted() -> list[tuple[str, str]]:
    """All commands between backticks in the sources, with what follows their names; texts filled in there are x."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "circuitcli").rglob("*.py"))]
    found = [found.groups() for text in texts for found in re.finditer(r"`circuit ([a-z][a-z-]*)([^`\\n]*)`", text)]
    return sorted({(command, re.sub(r"\{[^}]*\}", "x", rest)) for command, rest in found})


def test_commands_of_hints_exist_and_carry_the_run_and_the_coders_that_were_typed():
    made = typer.main.get_command(app).commands
    options = {name: {text for one in command.params for text in one.opts} for name, command in made.items()}
    typed = ["interp", "--run", "a b", "--sae=s", "--feature", "resid.1/2"]
    assert len(hinted()) > 20
    for command, rest in hinted():
        used = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", rest)
        assert {*used} <= {*options[command], "--help"}, (command, rest)
        told = with_places(f"run `circuit {command}{rest}` first", typed, options)
        words = shlex.split(told.split("`")[1]) if "--help" not in used else ["--run", "a b"]
        takes = {"--run": "a b", "--sae": "s"} if "--sae" in options[command] else {"--run": "a b"}
        for name, value in takes.items():
            place = words.index(name) if "--help" not in used and name in options[command] else None
            assert place is None or words[place + 1] == value or name in used, told
        assert with_places(told, ["interp"], options) == told


def probe(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["graph-grad", "-h"],
        ["train", "--print-settings"],
        ["trian"],
        ["train"],
        ["inspect", "gpt2-small-res-jb"],
        ["export", "--sae", "gpt2-small-res-jp", "--to", "sae_lens", "-o", "x"],
        ["train", "--k", "3"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_loads_nothing_heavy(words: list[str], tmp_path: Path):
    assert probe(*words, cwd=tmp_path).stderr.rstrip().endswith("LOADED")


def test_help_computes_little_more_than_importing_the_libraries_behind_it(tmp_path: Path):
    libraries = [sys.executable, "-c", "import pydantic, typer.rich_utils, rich.table"]
    shown, floor = [], []
    for _ in range(3):
        shown.append(computing_s([sys.executable, "-m", "circuitcli", "--help"], tmp_path))
        floor.append(computing_s(libraries, tmp_path))
    # About 2 on a quiet machine; importing torch as well makes it 10.
    assert min(shown) < 3 * min(floor)


def computing_s(command: list[str], folder: Path) -> float:
    """Processor time of a command; its modules are compiled by the first call, as by an installation."""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    before = os.times()
    subprocess.run(command, cwd=folder, env=environment() | compiled, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_python_dash_m_is_the_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "circuitcli", "--version"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"circuit {__version__}\n", "")


def test_no_words_show_the_help(tmp_path: Path):
    outcome = circuit(cwd=tmp_path)
    assert outcome.status == 0
    assert outcome.stdout == circuit("--help", cwd=tmp_path).stdout


def test_help_lists_every_command_with_a_whole_sentence(tmp_path: Path):
    listed = circuit("--help", cwd=tmp_path).stdout.partition("Commands:")[2].strip().splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "demo"])
def test_every_command_has_an_example_and_the_help_texts_of_its_settings(command: str, capsys: pytest.CaptureFixture):
    assert run([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"circuit {command}" in text.partition("Options:")[0].partition("Usage:")[2].partition(" ")[2]
    # What is made without a run has a place of its own.
    assert known_names()["pretrain.output" if command == "pretrain" else "run"] in text
    assert "--print-settings" in text


def test_help_takes_its_texts_from_the_settings():
    source = "".join(path.read_text() for path in (ROOT / "circuitcli/cli").rglob("*.py"))
    assert not [name for name, text in known_names().items() if len(text) > 30 and text in source]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["trian"], "unknown command: trian", "did you mean circuit train?"),
        (["xyzzy"], "unknown command: xyzzy", "commands are pretrain collect"),
        (["train", "--tokns", "3"], "unknown option: --tokns", "did you mean --tokens?"),
        (["train", "--k", "3"], "unknown option: --k", "write --set sae.k=VALUE"),
        (["graph-naive", "--heads"], "unknown option: --heads", "graph-grad has it; `circuit graph-naive --help`"),
        (["train", "--pin", "2:5"], "unknown option: --pin", "graph-naive validate have it"),
        (["train", "--tokens"], "option '--tokens' requires an argument", "`circuit train --help`"),
        (["collect", "extra"], "extra", "`circuit collect --help`"),
        (["train", "--tokens", "many"], "train.tokens='many' (flag)", "Tokens to train on"),
        (["train", "--set", "sae.kk=3"], "unknown setting in --set: sae.kk", "did you mean sae.k?"),
        (["train", "--set", "sae.k"], "--set sae.k has no '='", "--set NAME=VALUE"),
        (["graph-grad", "--method", "x"], "graph.method='x' (flag)", "Integrated gradients"),
        (["--nothing"], "unknown option: --nothing", "circuit"),
        (["train", "--config", "none.toml"], "cannot read none.toml", "TOML"),
    ],
)
def test_usage_errors_are_one_error_line_and_one_hint_line(
    words: list[str], error: str, hint: str, inside: Path, capsys: pytest.CaptureFixture
):
    assert run(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first.startswith("error: ") and error in first
    assert second.startswith("hint: ") and hint in second


def test_unknown_environment_variables_are_refused_with_the_nearest_name(tmp_path: Path):
    outcome = circuit("train", cwd=tmp_path, CIRCUIT_SAE__KK="3")
    assert outcome.status == 2
    assert outcome.errors[1] == "hint: did you mean CIRCUIT_SAE__K?"


def test_negative_slices_are_values_and_no_options(tmp_path: Path):
    outcome = circuit("collect", "--layers", "-2:", "--print-settings", cwd=tmp_path)
    assert 'layers = "-2:"  # flag' in outcome.stdout


def test_layers_and_sites_mean_the_data_for_collect_and_the_circuit_for_graphs(tmp_path: Path):
    words = ["--layers", "1:", "--sites", "resid,mlp", "--print-settings"]
    data, graph = (circuit(command, *words, cwd=tmp_path).stdout for command in ("collect", "graph-grad"))
    for line in ('layers = "1:"  # flag', 'sites = ["resid", "mlp"]  # flag'):
        assert data.index("[data]") < data.index(line) < data.index("[sae]")
        assert graph.index("[graph]") < graph.index(line) < graph.index("[validate]")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "demo"])
def test_help_names_the_built_in_model_as_default_only_where_a_run_begins(command: str, capsys):
    assert run([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    model = shown.partition("--model")[2].partition("--revision")[0]
    assert ("[default: builtin:tiny]" in model) == (command in ("collect", "develop"))
    others = ("pretrain", "collect", "develop", "render", "toy")
    assert ("[default: the run's]" in model) == (command not in others)
