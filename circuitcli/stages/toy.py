"""``circuit toy``: autoencoders of a sweep over planted features, trained side by side, measured and drawn."""

import shutil
import time
from typing import TYPE_CHECKING, Any

from circuitcli.progress import note
from circuitcli.records import FigureRecord, Record, ReportRecord, ToyRecord
from circuitcli.runs import file_digest
from circuitcli.stages.estimates import memory, size
from circuitcli.stages.request import Request, fingerprint, resumable

if TYPE_CHECKING:
    from circuitcli.toys.measures import Measured

NAME = "toy"
FOLDER, FIGURE = "toy", "figures/toy.svg"
TRUTH, DICTIONARIES, TABLE = f"{FOLDER}/features.safetensors", f"{FOLDER}/dictionaries.safetensors", f"{FOLDER}/toy.csv"
CHECKPOINT = f"{FOLDER}/checkpoint.safetensors"
# Bytes of a number, and numbers for each weight while training: itself, its gradient and two moments.
_BYTES, _STATE = 4, 4
# A step takes so many times as long as its encoder product and its Adam, with the codes of a trained dictionary.
_OTHERS, _TIMED_STEPS = 1.3, 3


def run(request: Request) -> list[Record]:
    """One record for each autoencoder, trained now or before, a table and a figure; a killed call goes on.

    Raises SettingsError for features that cannot be, CircuitError if weights stop being finite.
    """
    print_ = fingerprint(request, ("toy.", "seed"), {}, without=("toy.checkpoint_steps",))
    made = resumable(
        request,
        NAME,
        print_,
        lambda resumes: _work(request, resumes=resumes),
        partial=request.run.path / CHECKPOINT,
        begins=True,
        clean=lambda: (request.run.path / CHECKPOINT).unlink(missing_ok=True),
    )
    _tell_collapses([record for record in made if isinstance(record, ToyRecord)])
    return [request.run.record(), *made]


def _work(request: Request, *, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.models.loading import choose_device
    from circuitcli.toys import files
    from circuitcli.toys.ground_truth import plant
    from circuitcli.toys.measures import measure
    from circuitcli.toys.stack import Stack, models
    from circuitcli.toys.training import Checkpoint, train

    settings, path = request.settings.toy, request.run.path
    truth = plant(settings, seed=request.settings.seed)
    device = choose_device(request.settings.model.device)
    stack = Stack(models(settings), settings, seed=request.settings.seed, device=device)
    if not resumes:
        shutil.rmtree(path / FOLDER, ignore_errors=True)
    train(stack, truth, Checkpoint(path / CHECKPOINT))
    measured = measure(stack, truth)
    files.write_truth(truth, path / TRUTH)
    files.write_dictionaries(stack, path / DICTIONARIES)
    files.write_table(measured, path / TABLE)
    return [*_records(request, measured), ReportRecord(path=TABLE), _drawn(request, measured)], {}


def _records(request: Request, measured: "list[Measured]") -> list[ToyRecord]:
    from circuitcli.toys.files import numbers

    settings, digest = request.settings.toy, file_digest(request.run.path / DICTIONARIES)
    about = {"d_model": settings.d_model, "n_features": settings.n_features, "steps": settings.steps}
    return [
        ToyRecord.model_validate({**numbers(one), **about, "path": DICTIONARIES, "digest": digest}) for one in measured
    ]


def _drawn(request: Request, measured: "list[Measured]") -> FigureRecord:
    from circuitcli.render.heatmaps import write_heat_maps
    from circuitcli.render.toys import heat_maps

    records = _records(request, measured)
    write_heat_maps(heat_maps(records), request.run.path / FIGURE)
    return FigureRecord(path=FIGURE)


def _tell_collapses(made: list[ToyRecord]) -> None:
    """Say which dictionaries came to nothing: what is drawn of them is no recovery."""
    collapsed = [record for record in made if record.collapsed]
    if collapsed:
        shown = " ".join(f"{record.name} ({record.dead:.0%} dead)" for record in collapsed[:4])
        more = f" and {len(collapsed) - 4} more" if len(collapsed) > 4 else ""
        note(f"collapsed, nearly all of what they need is dead: {shown}{more}; lower their weight of the penalty")


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people; a few steps are timed."""
    from circuitcli.toys.stack import models

    settings = request.settings.toy
    chosen = models(settings)
    n_features = sum(model.width for model in chosen)
    weights = n_features * (2 * settings.d_model + 1)
    codes = 3 * n_features * settings.batch_size
    seconds = _step_s(request, n_features) * settings.steps
    return [
        (
            "autoencoders",
            f"{len(chosen)}: {len(set(settings.ratios))} sizes, {len(set(settings.l1_weights))} weights",
        ),
        ("features", f"{n_features:,} in all; {settings.n_features:,} planted in {settings.d_model:,} dimensions"),
        ("examples", f"{settings.steps * settings.batch_size:,} in {settings.steps:,} steps"),
        ("disk", f"{size(_BYTES * weights)}, and {size(3 * _BYTES * weights)} while training"),
        *memory(0, _BYTES * (_STATE * weights + codes), device=request.settings.model.device),
        ("time", f"about {duration(seconds)} on this machine as it is now"),
    ]


def _step_s(request: Request, n_features: int) -> float:
    """Seconds of a step, from those of the product and the Adam that it cannot do without."""
    import torch

    from circuitcli.models.loading import choose_device

    settings, device = request.settings.toy, choose_device(request.settings.model.device)
    x = torch.randn(settings.batch_size, settings.d_model, device=device)
    weights = [torch.nn.Parameter(torch.randn(n_features, settings.d_model, device=device)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    adam = torch.optim.Adam(weights, fused=device.type in ("cpu", "cuda"))
    taken = []
    for _ in range(_TIMED_STEPS):
        begun = time.perf_counter()
        (weights[0].detach() @ x.T).amax().item()
        adam.step()
        taken.append(time.perf_counter() - begun)
    return _OTHERS * min(taken)


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
