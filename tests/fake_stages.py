"""Stages for tests of the command line: they need no model, and each adds records of its own to the stream."""

import sys
import types
from typing import TextIO

import circuitcli.stages
from circuitcli import runs
from circuitcli.errors import ThresholdError
from circuitcli.records import ActivationsRecord, FigureRecord, Record, SaeRecord, ScoreRecord
from circuitcli.settings.settings import Settings
from circuitcli.stages.request import Request


def _kept(request: Request, stage: str, made: list[Record]) -> list[Record]:
    request.run.begin(stage, runs.Fingerprint({}, {}), force=True)
    request.run.finish(stage, made, seconds=0.0)
    return made


def collect(request: Request) -> list[Record]:
    model, data = request.settings.model, request.settings.data
    chosen = {"model.name": model.name, "model.revision": model.revision, "model.dtype": model.dtype}
    request.run.update_manifest(model=model.name, revision=model.revision, layers=data.layers, model_settings=chosen)
    place = {"hook": "resid.0", "path": "activations/resid.0", "dtype": "float16", "digest": "sha256:0"}
    return _kept(request, "collect", [ActivationsRecord(**place, n_tokens=8, d_model=4, text=data.text)])


def train(request: Request) -> list[Record]:
    place = {"hook": "resid.0", "path": "saes/resid.0", "architecture": "topk", "digest": "sha256:1"}
    seen = [record.kind for record in request.records]
    return _kept(request, "train", [SaeRecord(**place, d_in=4, d_sae=8, seen=seen, dtype=request.settings.model.dtype)])


def validate(request: Request) -> list[Record]:
    return [ScoreRecord(name="faithfulness", value=0.5)]


def check(made: list[Record], settings: Settings) -> None:
    at_least = settings.validation.at_least
    if at_least is not None and made[-1].value < at_least:
        raise ThresholdError(f"faithfulness 0.5 is below {at_least}")


def render(request: Request, *, stdout: TextIO) -> list[Record]:
    if "-" in request.settings.render.output:
        stdout.write("digraph {}\n" * 20_000)
        return []
    return [FigureRecord(path="figures/circuit.svg")]


def plan(request: Request) -> list[tuple[str, str]]:
    return [("tokens to store", "1,000")]


STAGES = {
    "collect": {"run": collect, "plan": plan},
    "train": {"run": train, "plan": plan},
    "validate": {"run": validate, "check": check},
    "render": {"run": render},
}


def modules() -> dict[str, types.ModuleType]:
    """A module for each of these stages."""
    made = {}
    for name, functions in STAGES.items():
        made[name] = types.ModuleType(f"circuitcli.stages.{name}")
        vars(made[name]).update(functions)
    return made


def install() -> None:
    """Put these stages in the place of the real ones, for as long as the process lasts."""
    for name, module in modules().items():
        sys.modules[module.__name__] = module
        setattr(circuitcli.stages, name, module)
