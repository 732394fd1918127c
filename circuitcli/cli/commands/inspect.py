"""``circuit inspect``."""

from inspect import Parameter

import typer

from circuitcli.cli.console import console
from circuitcli.cli.inspection_view import show
from circuitcli.cli.jobs import Call
from circuitcli.cli.options import MODEL, RUN, Flag

FLAGS = (Flag("inspect.tokens", "--tokens"), Flag("data.text", "--text"), *MODEL, *RUN)
SAE = Parameter(
    "sae",
    Parameter.KEYWORD_ONLY,
    annotation=str | None,
    default=typer.Argument(
        None,
        metavar="SAE",
        show_default=False,
        help="What --sae takes, or the name of a release; by default the run's own SAEs.",
    ),
)
EXTRAS = (SAE,)


def inspect(call: Call) -> None:
    """Tell what an SAE is, expects and lacks.

    With a run or a model also how well it fits real activations, and what looks wrong.

    \b
    circuit inspect
    circuit inspect gpt2-small-res-jb/resid_pre.8 --model gpt2
    circuit inspect sae_lens:path/to/sae --run runs/gpt2
    """
    from circuitcli.stages import inspect as stage

    text = call.extras["sae"]
    if text is not None and (listed := stage.listing(text)):
        return show(listed)
    job = call.open_for_saes(text)
    is_chosen = text is None or call.run_is_explicit or "model.name" in call.loaded.origins
    made = stage.run(job.request, is_chosen=is_chosen)
    show(made, before=job.received.lines)
    if not is_chosen and not any(getattr(record, "activations", None) for record in made):
        console.say("add --model or --run to see how it fits real activations")
