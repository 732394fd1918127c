"""``circuit inspect``."""

import shlex
from inspect import Parameter
from pathlib import Path

import typer

from circuitcli.cli.console import console
from circuitcli.cli.inspection_view import show
from circuitcli.cli.jobs import Call
from circuitcli.cli.listing_view import table
from circuitcli.cli.options import MODEL_OF_RUN, RUN, Flag
from circuitcli.records import to_line

FLAGS = (Flag("inspect.tokens", "--tokens"), Flag("data.text", "--text"), *MODEL_OF_RUN, *RUN)
SAE = Parameter(
    "sae",
    Parameter.KEYWORD_ONLY,
    annotation=str | None,
    default=typer.Argument(
        None,
        metavar="SAE",
        show_default=False,
        help="What --sae takes, or the name of a release; without it the run is listed.",
    ),
)
EXTRAS = (SAE,)


def inspect(call: Call) -> None:
    """List what the run holds, or tell what an SAE is.

    With a run or a model also how well it fits real activations, and what looks wrong. A run's own SAEs are named by
    its directory. Of a file with the graph of another program, and of pages, tells what they are and hold.

    Formats that are read: sae_lens (6.x, 5.x, the oldest and checkpoints; no crosscoders), dictionary_learning (all
    SAEs), sparsify (SAEs, (skip) transcoders, CLTs without trained post-encoders), circuit_tracer (transcoders, CLTs),
    gemma_scope (SAEs, transcoders, CLTs; no single heads), llama_scope, qwen_scope, goodfire, temporal, openai.

    \b
    circuit inspect
    circuit inspect runs/gpt2
    circuit inspect gpt2-small-res-jb/resid_pre.8 --model gpt2
    circuit inspect sae_lens:path/to/sae --run runs/gpt2
    """
    text = call.extras["sae"]
    if text is None:
        return _list(call)
    if Path(text).exists():
        from circuitcli.cli import graph_file_view, recognised_view

        if (found := graph_file_view.graph_in(text)) is not None:
            return graph_file_view.show(found, text)
        if (other := recognised_view.found(text)) is not None:
            return recognised_view.show(other, text)
    from circuitcli.stages import inspect as stage

    if listed := stage.listing(text):
        return show(listed)
    job = call.open_for_saes(text)
    is_chosen = call.run_is_explicit or "model.name" in call.loaded.origins
    emitted = stage.run(job.request, is_chosen=is_chosen)
    show(emitted, before=job.received.lines)
    # What only headers tell of is not held against activations.
    looked_at = [record for record in emitted if getattr(record, "n_bytes", None) is None]
    if looked_at and not is_chosen and not any(getattr(record, "activations", None) for record in looked_at):
        console.say("add --model or --run to see how it fits real activations")


def _list(call: Call) -> None:
    """What the run holds: as records, or as a table."""
    from circuitcli.stages.listing import listing

    run = call.open().request.run
    emitted = listing(run)
    if console.prints_records:
        return console.records(map(to_line, emitted))
    console.view_table(table(emitted))
    console.say(f"next: `circuit inspect {shlex.quote(str(run.path))}` looks at its SAEs")
