"""``circuit demo``: the real commands, one after the other, on the model that ships with the package."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from circuitcli import records
from circuitcli.cli.console import console
from circuitcli.cli.jobs import Call
from circuitcli.cli.options import RUN
from circuitcli.errors import ExitStatus
from circuitcli.records import FigureRecord, ScoreRecord

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


def demo(call: Call) -> None:
    """Run all stages on a tiny built-in model.

    Takes a few minutes and downloads nothing.
    """
    directory = call.loaded.settings.run or DIRECTORY
    printed = {step[0]: _step([*step, "--run", directory, "--config", str(CONFIG)], force=call.force) for step in STEPS}
    scores = records.read(printed["validate"].split("\n")).of(ScoreRecord)
    figures = records.read(printed["render"].split("\n")).of(FigureRecord)
    console.say("")
    for figure in figures:
        console.say(f"{Path(figure.path).suffix.lstrip('.')}: {Path(directory) / figure.path}")
    console.say(f"faithfulness: {faithfulness(scores)}")
    if console.prints_records:
        console.records(records.to_line(record) for record in (*scores, *figures))


def faithfulness(scores: Sequence[ScoreRecord]) -> str:
    """The newest faithfulness with error terms as nodes, and its interval, as text."""
    found = [score for score in scores if score.name == "faithfulness" and score.errors in ("nodes", None)]
    if not found:
        return "not measured"
    score = found[-1]
    interval = f" ({score.low:.2f} to {score.high:.2f})" if score.low is not None and score.high is not None else ""
    return f"{score.value:.2f}{interval}"


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
