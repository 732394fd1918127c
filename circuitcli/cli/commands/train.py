"""``circuit train``."""

from circuitcli.cli.jobs import Call, show_plan
from circuitcli.cli.options import DRY_RUN, FILE, MODEL_OF_RUN, RUN, SAE, SEED, Flag, switch
from circuitcli.errors import SettingsError

# SAEs are trained in float32 on what was collected, whatever the model's number type.
FLAGS = (
    Flag("train.tokens", "--tokens"),
    Flag("train.log", "--log"),
    Flag("train.sweep", "--sweep", metavar="NAME=VALUES", repeats=True),
    Flag("train.start", "--from", metavar="SAE"),
    Flag("train.baselines", "--baselines", metavar="NAMES"),
    *(flag for flag in MODEL_OF_RUN if flag.setting != "model.dtype"),
    *RUN,
    *SAE,
    *SEED,
)
EVAL = switch(
    "eval", "--eval", help="Measure the run's SAEs, or those of --sae, on held-out tokens instead of training."
)
EXTRAS = (FILE, DRY_RUN, EVAL)


def train(call: Call) -> None:
    """Train sparse autoencoders on the cached activations.

    All hook points are trained in one pass. A killed command goes on from its last checkpoint.

    \b
    circuit train --set sae.k=32 --set sae.expansion=16
    circuit train --sweep sae.k=16,32,64
    circuit train --from runs/other --tokens 200000
    circuit train --eval --baselines pca,ica,identity
    """
    if call.loaded.origins.get("sae_path") == "flag" and not call.extras["eval"]:
        raise SettingsError(
            "--sae names trained SAEs", hint="add --eval to measure them, or use --from to train them on"
        )
    if call.loaded.origins.get("train.start") == "flag" and call.extras["eval"]:
        raise SettingsError("--eval trains nothing, so it begins from no SAE", hint="name SAEs to measure with --sae")
    if call.loaded.origins.get("train.baselines") == "flag" and not call.extras["eval"]:
        raise SettingsError("--baselines are measured beside finished SAEs", hint="add --eval")
    if call.loaded.origins.get("train.sweep") == "flag" and call.extras["eval"]:
        raise SettingsError(
            "--eval measures finished SAEs and does not train variants",
            hint="train them with --sweep alone, then name one: --eval --sae RUN/saes/sweep/sae.k=16",
        )
    job = call.open()
    if call.extras["eval"]:
        from circuitcli.stages import evaluate as stage
    else:
        from circuitcli.stages import train as stage  # type: ignore[no-redef]

    if call.extras["dry_run"]:
        return show_plan(stage.plan(job.request))
    job.emit(stage.run(job.request))
