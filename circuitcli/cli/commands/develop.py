"""``circuit develop``."""

from circuitcli.cli.console import console
from circuitcli.cli.development_view import told
from circuitcli.cli.jobs import Call, show_plan, with_run_record
from circuitcli.cli.options import BEHAVIOUR, DRY_RUN, MODEL, RUN, SEED, Flag

FLAGS = (
    *(flag for flag in MODEL if flag.setting != "model.revision"),
    Flag("develop.revisions", "--revisions"),
    Flag("data.layers", "--layers"),
    Flag("data.sites", "--sites"),
    Flag("data.text", "--text"),
    Flag("data.field", "--field"),
    Flag("data.tokens", "--tokens"),
    Flag("develop.start", "--start"),
    Flag("develop.seeds", "--seeds"),
    Flag("develop.by", "--by"),
    Flag("develop.interp", "--interp"),
    Flag("develop.crosscoder", "--crosscoder"),
    Flag("graph.prompts", "--prompts", metavar="FILE"),
    *BEHAVIOUR,
    *RUN,
    *SEED,
)
EXTRAS = (DRY_RUN,)


def develop(call: Call) -> None:
    """Follow features through the checkpoints of a training.

    Each checkpoint becomes a run below RUN/checkpoints, on the same tokens. A killed command goes on where it stopped.
    With prompts, the circuit of their behaviour is found at every checkpoint and drawn as one page with a time slider.

    \b
    circuit develop --revisions step0,step512,step2000,step143000 --model EleutherAI/pythia-70m-deduped
    circuit develop --model my-gpt --sites resid --text book.txt --tokens 500000
    circuit develop --model my-gpt --sites resid --text book.txt --prompts prompts.jsonl --crosscoder
    """
    plans = call.extras["dry_run"]
    job = call.start(keeps_text=not plans)
    from circuitcli.stages import develop as stage
    from circuitcli.stages import develop_further as further
    from circuitcli.stages import through

    through.check(job.request.settings)
    if plans:
        return show_plan([*stage.plan(job.request), *further.plan(job.request)])
    made = with_run_record(stage.run(job.request), job.request.run)
    job.emit([*made, *further.run(job.request)])
    for line in told(made):
        console.say(line)
