"""Runs `circuit` as people do, in a process of its own, with stages that do what a test needs."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Replaces the stages, so that a test of the command line needs no model. Each adds a line of its own to the stream.
FAKE_STAGES = '''
import os, sys, time, types
from circuitcli import records, runs
from circuitcli.errors import InputError, ThresholdError
from circuitcli.records import ActivationsRecord, FigureRecord, SaeRecord, ScoreRecord

def fake(name, run, **more):
    module = types.ModuleType("circuitcli.stages." + name)
    module.run = run
    vars(module).update(more)
    sys.modules[module.__name__] = module
    import circuitcli.stages
    setattr(circuitcli.stages, name, module)

def keep(request, stage, made):
    request.run.begin(stage, runs.Fingerprint({}, {}), force=True)
    request.run.finish(stage, made, seconds=0.0)
    return made

def collect(request):
    model = request.settings.model
    request.run.update_manifest(model=model.name, revision=model.revision, layers=request.settings.data.layers,
                                model_settings={"model.name": model.name, "model.dtype": model.dtype})
    return keep(request, "collect", [ActivationsRecord(hook="resid.0", path="activations/resid.0", n_tokens=8,
                d_model=4, dtype="float16", digest="sha256:0", text=request.settings.data.text)])

def train(request):
    return keep(request, "train", [SaeRecord(hook="resid.0", architecture="topk", d_in=4, d_sae=8, path="saes/resid.0",
                digest="sha256:1", seen=[record.kind for record in request.records], model_dtype=request.settings.model.dtype)])

def validate(request):
    return [ScoreRecord(name="faithfulness", value=0.5)]

def check(made, settings):
    if settings.validation.at_least is not None and made[-1].value < settings.validation.at_least:
        raise ThresholdError("faithfulness 0.5 is below %s" % settings.validation.at_least)

def render(request, *, stdout):
    if "-" in request.settings.render.output:
        stdout.write("digraph {}\\n" * 20000)
        return []
    return [FigureRecord(path="figures/circuit.svg")]

def plan(request):
    return [("tokens", "8")]

fake("collect", collect, plan=plan)
fake("train", train, plan=plan)
fake("validate", validate, check=check)
fake("render", render)
'''


@dataclass(frozen=True)
class Outcome:
    """What a process left."""

    status: int
    stdout: str
    stderr: str

    @property
    def records(self) -> list[dict]:
        """The records on stdout."""
        return [json.loads(line) for line in self.stdout.split("\n") if line]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the records, in order."""
        return [record["kind"] for record in self.records]

    @property
    def errors(self) -> list[str]:
        """The error and hint lines."""
        return [line for line in self.stderr.split("\n") if line.startswith(("error:", "hint:"))]


def command_line(words: Sequence[str], stages: str = FAKE_STAGES) -> list[str]:
    """A process that runs one command with the given stages."""
    program = f"import sys\n{stages}\nsys.argv[0] = 'circuit'\nfrom circuitcli.__main__ import main\nsys.exit(main())"
    return [sys.executable, "-c", program, *words]


def environment(**variables: str) -> dict[str, str]:
    """The variables of a process that finds this source tree and no settings of the person who runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CIRCUIT_")}
    return {**inherited, "PYTHONPATH": str(ROOT), **variables}


def circuit(
    *words: str, cwd: Path, stdin: str | None = None, stages: str = FAKE_STAGES, more_stages: str = "", **variables: str
) -> Outcome:
    """Run one command; without ``stdin`` there is nothing to read, as in a terminal."""
    done = subprocess.run(
        command_line(words, stages + more_stages),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        **({"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def shell_word(*words: str) -> str:
    """One command of a shell pipe."""
    import shlex

    return shlex.join(command_line(words))
