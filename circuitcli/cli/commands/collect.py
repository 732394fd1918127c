"""``circuit collect``."""

from circuitcli.cli.jobs import Call, show_plan, with_run_record
from circuitcli.cli.options import DRY_RUN, MODEL, RUN, SEED, Flag

FLAGS = (
    *MODEL,
    Flag("data.layers", "--layers"),
    Flag("data.sites", "--sites"),
    Flag("data.text", "--text"),
    Flag("data.field", "--field"),
    Flag("data.tokens", "--tokens"),
    *RUN,
    *SEED,
)
EXTRAS = (DRY_RUN,)


def collect(call: Call) -> None:
    """Cache a model's activations over text; begins a run.

    \b
    circuit collect --model gpt2 --layers 8:11 --tokens 2000000
    cat notes.txt | circuit collect --model gpt2 --text - | circuit train
    """
    plans = call.extras["dry_run"]
    job = call.start(keeps_text=not plans)
    from circuitcli.stages import collect as stage

    if plans:
        return show_plan(stage.plan(job.request))
    job.emit(with_run_record(stage.run(job.request), job.request.run))
