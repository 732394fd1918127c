"""The demo runs the real commands; here they are only written down."""

import subprocess
from pathlib import Path

import pytest

from circuitcli import records
from circuitcli.cli import demo
from circuitcli.cli.app import COMMANDS, run
from circuitcli.records import FigureRecord, ScoreRecord
from circuitcli.settings.sources import load

PRINTED = {
    "validate": [
        ScoreRecord(name="faithfulness", value=0.75, low=0.7, high=0.8, errors="nodes", judged=True, n_nodes=7),
        ScoreRecord(name="faithfulness", value=1.0, errors="kept"),
    ],
    "render": [FigureRecord(path="figures/circuit.svg"), FigureRecord(path="figures/circuit.html")],
}


@pytest.fixture
def ran(inside: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of the commands that the demo would have run."""
    commands: list[list[str]] = []

    def write_down(words: list[str], **options: object) -> subprocess.CompletedProcess:
        commands.append(words[3:])
        lines = [records.to_line(record) for record in PRINTED.get(words[3], ())]
        return subprocess.CompletedProcess(words, 3 if "fail" in words else 0, stdout="\n".join(lines))

    monkeypatch.setattr(subprocess, "run", write_down)
    return commands


def test_the_demo_runs_every_stage_in_one_run_and_ends_with_what_it_found(
    ran: list[list[str]], capsys: pytest.CaptureFixture
):
    assert run(["demo"]) == 0
    assert [words[0] for words in ran] == [name for name in demo_order() if name != "demo"]
    assert all("circuit-demo" in words for words in ran)
    printed = capsys.readouterr()
    assert "$ circuit collect --model builtin:tiny" in printed.err
    said = printed.err.splitlines()
    assert said[said.index("svg: circuit-demo/figures/circuit.svg") :][1:3] == [
        "html: circuit-demo/figures/circuit.html",
        "the circuit keeps 75 % of the behaviour [70 %, 80 %]",
    ]
    ending = " ".join(said[said.index("html: circuit-demo/figures/circuit.html") :])
    assert (
        "error nodes, which stand for what an SAE misses" in ending and "the second share is how much is left" in ending
    )
    assert "Open circuit-demo/figures/circuit.html in a browser" in ending
    assert "circuit graph-grad --run circuit-demo --prompt" in said[-1]
    assert [record.kind for record in records.read(printed.out.split("\n"))] == ["score", "score", "figure", "figure"]


def demo_order() -> list[str]:
    order = ["collect", "train", "interp", "graph-grad", "graph-naive", "validate", "render", "demo"]
    assert sorted([*order, "pretrain", "toy", "develop", "inspect", "export"]) == sorted(COMMANDS)
    return order


def test_the_demo_takes_another_directory_and_passes_force_on(ran: list[list[str]]):
    assert run(["demo", "--run", "there", "-f", "-q"]) == 0
    assert all("there" in words and "--force" in words and "--quiet" in words for words in ran)


def test_the_demo_stops_with_the_status_of_the_command_that_failed(ran: list[list[str]]):
    assert run(["demo", "--run", "fail"]) == 3
    assert len(ran) == 1


def test_the_settings_of_the_demo_are_known(tmp_path: Path):
    assert load({}, config=[demo.CONFIG], environment={}, directory=tmp_path).settings.data.text is None


@pytest.mark.parametrize("step", demo.STEPS, ids=lambda step: step[0])
def test_every_command_line_of_the_demo_is_one_that_circuit_takes(step: tuple[str, ...], inside: Path):
    assert run([*step, "--print-settings", "--run", "none", "--config", str(demo.CONFIG)]) == 0


def test_the_demo_prints_the_settings_that_its_commands_load(
    ran: list[list[str]], inside: Path, capsys: pytest.CaptureFixture
):
    assert run(["demo", "--print-settings", "--run", "elsewhere"]) == 0
    printed = capsys.readouterr().out
    assert ran == []
    (inside / "printed.toml").write_text(printed, encoding="utf-8")
    found = load({}, config=[inside / "printed.toml"]).settings
    assert (found.run, found.model.name, found.data.layers, found.graph.prompt) == (
        "elsewhere",
        "builtin:tiny",
        "2:4",
        demo.PROMPT,
    )
    assert found.train == load({}, config=[demo.CONFIG]).settings.train and found.graph.sites is None
    assert [line.split()[2] for line in printed.splitlines() if line.startswith("# circuit")] == demo_order()[:-1]
    assert "tokens = 600000  # demo.toml" in printed and 'layers = "2:4"  # demo' in printed
