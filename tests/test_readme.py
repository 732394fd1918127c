"""Every command that the README shows is run, on fewer tokens."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nursery
import pytest
from cli_support import here

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {
    "CIRCUIT_DATA__BLOCK_LENGTH": "64",
    "CIRCUIT_SAE__D_SAE": "200",
    "CIRCUIT_TRAIN__BATCH_SIZE": "256",
    "CIRCUIT_TRAIN__EVAL_TOKENS": "512",
    "CIRCUIT_GRAPH__IG_STEPS": "2",
    "CIRCUIT_GRAPH__BASELINE_TOKENS": "512",
    "CIRCUIT_MODEL__DEVICE": "cpu",
    "CIRCUIT_VALIDATE__SAMPLES": "2",
}
# What these commands need is told beside them; the tests that run them are elsewhere.
ELSEWHERE = ("pip install", "apt-get")


def blocks() -> list[list[str]]:
    """The commands of each code block, continuation lines joined."""
    text = re.sub(r"<!-- run by tests/\w+\.py -->\s*```sh.*?```", "", README, flags=re.DOTALL)
    found = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [block.replace("\\\n", " ").strip().split("\n") for block in found]


def runnable() -> list[list[str]]:
    kept = [[line for line in block if not line.startswith(ELSEWHERE)] for block in blocks()]
    return [block for block in kept if block and any("circuit" in line for line in block)]


def run(line: str, directory: Path) -> subprocess.CompletedProcess:
    """One line of the README, in a shell that stops at the first failure of a pipe."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "circuit"
    nursery.client(program)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CIRCUIT_")}
    environment |= SMALL | {"PATH": f"{programs}{os.pathsep}{environment['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def live_feature(directory: Path, hook: str, prompt: str | None = None) -> int:
    """A feature that fires somewhere; in a prompt's naive graph if one was made."""
    graph = directory / "runs/builtin-tiny/graphs/first.jsonl"
    if prompt is not None and graph.is_file():
        # Thinned graphs name only some sources; any measured feature of the hook point with an activation is live.
        nodes = [json.loads(line) for line in graph.read_text(encoding="utf-8").splitlines()]
        live = [n["id"] for n in nodes if n["kind"] == "node" and n["id"].startswith(hook) and n.get("activation")]
        if live:
            return int(live[0].split("/")[1].split("@")[0])
    lines = (directory / f"runs/builtin-tiny/features/{hook}.jsonl").read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[0])["id"].split("/")[1])


def active_feature(directory: Path, graph: str) -> int:
    """A feature of resid.2 that is active in the prompt of a graph."""
    lines = (directory / f"runs/builtin-tiny/graphs/{graph}.jsonl").read_text(encoding="utf-8").splitlines()
    nodes = [node for node in map(json.loads, lines) if node["kind"] == "node" and node["id"].startswith("resid.2/")]
    return next(int(node["id"].split("/")[1].split("@")[0]) for node in nodes if node.get("activation"))


def adapted(line: str, directory: Path) -> str:
    """The line with fewer tokens, and with features that are live in SAEs trained on so few."""
    line = re.sub(r"--score \d+", "--score 1000", re.sub(r"--tokens \d+", "--tokens 4000", line))
    line = line.replace("configs/", f"{ROOT}/configs/")
    if "--feature" in line:
        line = re.sub(r"resid\.2/\d+", f"resid.2/{live_feature(directory, 'resid.2')}", line)
    if "--pin 2:" in line:
        line = line.replace("2:5,", f"2:{live_feature(directory, 'resid.2')},")
    if "--sweep-coefficient" in line or "--scale" in line:
        line = line.replace("2:5", f"2:{active_feature(directory, 'refined')}")
    if "--extend" in line:
        line = re.sub(r"mlp\.1:\d+", f"mlp.1:{live_feature(directory, 'mlp.1', 'graph')}", line)
    return line


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_every_command_of_the_readme_does_what_it_says(tmp_path: Path):
    ran = []
    pipes = [block for block in runnable() if any("|" in line for line in block)]
    for block in runnable():
        # The full pipe starts a run of its own, as its reader would after reading so far.
        if block in pipes:
            shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        for line in block:
            done = run(adapted(line, tmp_path), tmp_path)
            assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
            ran.append(line)
    assert len(ran) >= 12
    assert (tmp_path / "circuit.svg").stat().st_size > 1000 and (tmp_path / "circuit.html").is_file()


def test_lines_about_labels_are_ones_that_interp_takes(tmp_path: Path):
    # What they do is held against stand-ins of servers in test_explain.py, test_explain_neuronpedia.py, test_labels.py.
    block = re.search(r"<!-- run by tests/test_readme\.py -->\s*```sh\n(.*?)```", README, flags=re.DOTALL)
    assert block is not None
    lines = block[1].strip().split("\n")
    (tmp_path / "mine.tsv").write_text("resid.2/5\tnames of loops\n", encoding="utf-8")
    for line in lines:
        done = here(*shlex.split(line)[1:], "--print-settings", cwd=tmp_path)
        assert done.status == 0, f"{line}\n{done.stderr}"
    assert len(lines) == 5


def test_the_settings_and_statuses_that_the_readme_names_exist():
    from circuitcli.errors import ExitStatus
    from circuitcli.settings.sources import known_names

    for name in re.findall(r"--set ([a-z_.]+)=", README):
        assert name in known_names()
    told = {
        int(number) for number in re.findall(r"(\d+) (?:done|fault|usage|input|missing|below|interr|termin)", README)
    }
    assert told == {int(status) for status in ExitStatus}


def test_pictures_that_the_readme_shows_are_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()
