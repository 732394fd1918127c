"""``circuit demo``: the real commands, one after the other, on the model that ships with the package."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitcli import records
from circuitcli.cli.commands import collect, graph_grad, render, validate
from circuitcli.cli.console import console
from circuitcli.cli.jobs import Call
from circuitcli.cli.options import RUN
from circuitcli.cli.verdict import verdict
from circuitcli.errors import ExitStatus
from circuitcli.records import FigureRecord, Record, ScoreRecord, VerdictRecord
from circuitcli.settings.sources import Loaded, load

FLAGS = RUN
EXTRAS = ()

DIRECTORY = "circuit-demo"
CONFIG = Path(__file__).with_name("demo.toml")
PROMPT = "def __init__(self, name):\n        self.name ="

STEPS = (
    ("collect", "--model", "builtin:tiny", "--text", "builtin:python", "--layers", "2:4", "--tokens", "200000"),
    ("train",),
    ("interp",),
    ("graph-grad", "--prompt", PROMPT, "--down", "6", "--up", "4"),
    ("graph-naive", "--prompt", PROMPT, "--sites", "resid", "--thin", "0.25"),
    ("validate", "--graph", "circuit"),
    ("render", "--graph", "circuit"),
)

# Of the commands whose words are settings for all.
_FLAGS = {
    "collect": collect.FLAGS,
    "graph-grad": graph_grad.FLAGS,
    "validate": validate.FLAGS,
    "render": render.FLAGS,
}


def demo(call: Call) -> None:
    """Run all stages on a tiny built-in model.

    Takes a few minutes and downloads nothing.
    """
    directory = call.loaded.settings.run or DIRECTORY
    printed = {words[0]: _step(words, force=call.force) for words in commands(call)}
    tested = records.read(printed["validate"].split("\n"))
    scores = [*tested.of(ScoreRecord), *tested.of(VerdictRecord)]
    figures = records.read(printed["render"].split("\n")).of(FigureRecord)
    console.say("")
    for figure in figures:
        console.say(f"{Path(figure.path).suffix.lstrip('.')}: {Path(directory) / figure.path}")
    for line in ending(scores, directory):
        console.say(line)
    if console.prints_records:
        console.records(records.to_line(record) for record in (*scores, *figures))


def settings(call: Call) -> Loaded:
    """What the commands of the demo use; ``graph-naive`` differs as its words say."""
    given: dict[str, Any] = {"run": call.loaded.settings.run or DIRECTORY}
    for name, *words in STEPS:
        known = {flag.name: flag.setting for flag in _FLAGS.get(name, ())}
        pairs = zip(words[::2], words[1::2], strict=True)
        given |= {known[flag]: value for flag, value in pairs if flag in known}
    loaded = load(given, config=[CONFIG], environment={})
    names = {"flag": "demo", str(CONFIG): CONFIG.name}
    return Loaded(loaded.settings, {name: names.get(origin, origin) for name, origin in loaded.origins.items()})


def commands(call: Call) -> list[list[str]]:
    """The words of the commands, one after the other."""
    directory = call.loaded.settings.run or DIRECTORY
    return [[*step, "--run", directory, "--config", str(CONFIG)] for step in STEPS]


def ending(scores: Sequence[Record], directory: str) -> list[str]:
    """What was found, what it means, and what to do next."""
    page, run = Path(directory) / "figures" / "circuit.html", shlex.quote(directory)
    return [
        *(verdict(scores) or ["the circuit was not tested"]),
        "",
        f"The model continues {PROMPT!r} with ' name'. The circuit is the part of the model that helps it to do so:",
        "features of its SAEs, and error nodes, which stand for what an SAE misses. The first share is how much of the",
        "effect of all nodes on the log-probability of ' name' the circuit alone keeps, with everything else at its",
        "average; the second share is how much is left with the circuit at its average instead.",
        f"Open {page} in a browser to see it; click a node for what it reacts to.",
        f"Next, a prompt of your own: circuit graph-grad --run {run} --prompt 'for i in range(' --name mine",
    ]


def _step(words: list[str], *, force: bool) -> str:
    """What one command printed on stdout. Exits with its status if it failed; it has said why."""
    console.say(f"\n$ {shlex.join(['circuit', *words])}")
    words += ["--force"] * force + ["--quiet"] * console.quiet + ["--no-color"] * (not console.colorful)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CIRCUIT_")}
    try:
        process = subprocess.run(
            [sys.executable, "-m", "circuitcli", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
            check=False,
        )
    except KeyboardInterrupt:
        # The command was interrupted too, and says so.
        raise SystemExit(ExitStatus.INTERRUPTED) from None
    if process.returncode:
        raise SystemExit(process.returncode)
    return process.stdout
