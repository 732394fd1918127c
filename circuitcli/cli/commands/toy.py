"""``circuit toy``."""

from pathlib import Path

from circuitcli.cli.console import console
from circuitcli.cli.input import Received
from circuitcli.cli.jobs import Call, Job, show_plan
from circuitcli.cli.options import DRY_RUN, RUN, SEED, Flag, switch
from circuitcli.errors import SettingsError
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
    Flag("synthetic.architectures", "--architectures", metavar="NAMES"),
    Flag("synthetic.baselines", "--baselines", metavar="NAMES"),
    Flag("synthetic.samples", "--samples"),
    Flag("synthetic.shrink", "--shrink"),
    Flag("model.device", "--device"),
    *RUN,
    *SEED,
)
SYNTHETIC = switch(
    "synthetic",
    "--synthetic",
    help="Try the architectures of `circuit train`, and baselines, on the features of SynthSAEBench instead.",
)
EXTRAS = (DRY_RUN, SYNTHETIC)

DIRECTORY = "runs/toy"


def toy(call: Call) -> None:
    """Try autoencoders on planted features.

    All weights of the penalty and all sizes are trained side by side; the run, by default runs/toy, gets dictionaries,
    a table and heat maps. A killed command goes on from its last checkpoint.

    \b
    circuit toy
    circuit toy --l1 0.1,0.316,1 --ratios 1,2 --d-model 256 --features 512 --steps 20000
    circuit toy --config configs/toy-quick.toml
    circuit toy --synthetic --architectures topk,batchtopk --samples 1000000
    """
    is_synthetic = call.extras["synthetic"]
    _check_flags(call, unread="toy." if is_synthetic else "synthetic.")
    run = Run(Path(call.loaded.settings.run or DIRECTORY))
    console.hello(f"toy in {run.path}")
    request = Request(call.loaded.settings, Stream(), run, call.force)
    if is_synthetic:
        from circuitcli.stages import synthetic as stage
    else:
        from circuitcli.stages import toy as stage  # type: ignore[no-redef]

    if call.extras["dry_run"]:
        return show_plan(stage.plan(request))
    # No activations, no model: nothing that the commands after it could go on with.
    Job("toy", request, Received((), Stream(), run, "pipe"), is_current=False).emit(stage.run(request))


def _check_flags(call: Call, *, unread: str) -> None:
    """Raise SettingsError for an option that the other half of the command alone reads."""
    given = [flag for flag in FLAGS if flag.setting.startswith(unread)]
    wrong = next((flag for flag in given if call.loaded.origins.get(flag.setting) == "flag"), None)
    if wrong is not None:
        has = "has no effect with" if unread == "toy." else "needs"
        raise SettingsError(
            f"{wrong.name} {has} --synthetic", hint=f"{'leave out' if unread == 'toy.' else 'add'} --synthetic"
        )
