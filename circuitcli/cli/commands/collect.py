"""``circuit collect``."""

from circuitcli.cli.jobs import Call, show_plan, with_run_record
from circuitcli.cli.options import DRY_RUN, MODEL, RUN, SEED, Flag

FLAGS = (
    *MODEL,
    Flag("data.layers", "--layers"),
    Flag("data.sites", "--sites"),
    Flag("data.text", "--text"),
    Flag("data.field", "--field"),
    Flag("data.activations", "--from"),
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
    circuit collect --model gpt2 --from sae_lens:activations/pile/gpt2/blocks.8.hook_resid_pre
    """
    plans = call.extras["dry_run"]
    job = call.start(keeps_text=not plans)
    from circuitcli.stages import adopt
    from circuitcli.stages import collect as own

    stage = own if job.request.settings.data.activations is None else adopt
    if plans:
        return show_plan(stage.plan(job.request))
    job.emit(with_run_record(stage.run(job.request), job.request.run))
