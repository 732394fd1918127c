"""``circuit train``."""

from circuitcli.cli.jobs import Call, show_plan
from circuitcli.cli.options import DRY_RUN, FILE, MODEL, RUN, SEED, Flag

# SAEs are trained in float32 on what was collected, whatever the model's number type.
FLAGS = (
    Flag("train.tokens", "--tokens"),
    Flag("train.log", "--log"),
    Flag("train.sweep", "--sweep", metavar="NAME=VALUES", repeats=True),
    *(flag for flag in MODEL if flag.setting != "model.dtype"),
    *RUN,
    *SEED,
)
EXTRAS = (FILE, DRY_RUN)


def train(call: Call) -> None:
    """Train sparse autoencoders on the cached activations.

    All hook points are trained in one pass. A killed command goes on from its last checkpoint.

    \b
    circuit train --set sae.k=32 --set sae.expansion=16
    circuit train --sweep sae.k=16,32,64
    """
    job = call.open()
    from circuitcli.stages import train as stage

    if call.extras["dry_run"]:
        return show_plan(stage.plan(job.request))
    job.emit(stage.run(job.request))
