"""``circuit toy``."""

from pathlib import Path

from circuitcli.cli.console import console
from circuitcli.cli.input import Received
from circuitcli.cli.jobs import Call, Job, show_plan
from circuitcli.cli.options import DRY_RUN, RUN, SEED, Flag
from circuitcli.records import Stream
from circuitcli.runs import Run
from circuitcli.stages.request import Request

FLAGS = (
    Flag("toy.l1_weights", "--l1", metavar="X,X"),
    Flag("toy.ratios", "--ratios", metavar="X,X"),
    Flag("toy.d_model", "--d-model"),
    Flag("toy.n_features", "--features"),
    Flag("toy.steps", "--steps"),
    Flag("toy.correlation", "--correlation"),
    Flag("toy.strength", "--strength"),
    Flag("model.device", "--device"),
    *RUN,
    *SEED,
)
EXTRAS = (DRY_RUN,)

DIRECTORY = "runs/toy"


def toy(call: Call) -> None:
    """Try autoencoders on planted features.

    All weights of the penalty and all sizes are trained side by side; the run, by default runs/toy, gets dictionaries,
    a table and heat maps. A killed command goes on from its last checkpoint.

    \b
    circuit toy
    circuit toy --l1 0.1,0.316,1 --ratios 1,2 --d-model 256 --features 512 --steps 20000
    circuit toy --config configs/toy-quick.toml
    """
    run = Run(Path(call.loaded.settings.run or DIRECTORY))
    console.hello(f"toy in {run.path}")
    request = Request(call.loaded.settings, Stream(), run, call.force)
    from circuitcli.stages import toy as stage

    if call.extras["dry_run"]:
        return show_plan(stage.plan(request))
    # No activations, no model: nothing that the commands after it could go on with.
    Job("toy", request, Received((), Stream(), run, "pipe"), is_current=False).emit(stage.run(request))
