"""``circuit collect``."""

from circuitcli.cli.jobs import Call, show_plan, with_run_record
from circuitcli.cli.options import DRY_RUN, MODEL, RUN, SEED, Flag, switch

FLAGS = (
    *MODEL,
    Flag("data.layers", "--layers"),
    Flag("data.sites", "--sites"),
    Flag("data.hooks", "--hooks"),
    Flag("data.text", "--text"),
    Flag("data.field", "--field"),
    Flag("data.chat", "--chat"),
    Flag("data.activations", "--from"),
    Flag("data.tokens", "--tokens"),
    *RUN,
    *SEED,
)
VERIFY = switch("verify", "--verify", help="Read all activations of the run and name what is damaged or missing.")
EXTRAS = (DRY_RUN, VERIFY)


def collect(call: Call) -> None:
    """Cache a model's activations over text; begins a run.

    \b
    circuit collect --model gpt2 --layers 8:11 --tokens 2000000
    cat notes.txt | circuit collect --model gpt2 --text - | circuit train
    circuit collect --model gpt2 --from sae_lens:activations/pile/gpt2/blocks.8.hook_resid_pre
    circuit collect --verify
    """
    if call.extras["verify"]:
        return _verify(call)
    plans = call.extras["dry_run"]
    job = call.start(keeps_text=not plans)
    from circuitcli.stages import adopt
    from circuitcli.stages import collect as own

    stage = own if job.request.settings.data.activations is None else adopt
    if plans:
        return show_plan(stage.plan(job.request))
    job.emit(with_run_record(stage.run(job.request), job.request.run))


def _verify(call: Call) -> None:
    job = call.revisit()
    from circuitcli.stages import verify

    job.emit(verify.run(job.request.run))
