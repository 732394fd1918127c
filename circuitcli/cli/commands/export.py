"""``circuit export``."""

from circuitcli.cli.jobs import Call
from circuitcli.cli.options import FILE, MODEL_OF_RUN, RUN, SAE, option

FLAGS = (*SAE, *MODEL_OF_RUN, *RUN)
TO = option(
    "to",
    "--to",
    annotation=str | None,
    default=None,
    metavar="FORMAT",
    help="sae_lens, dictionary_learning, sparsify, circuit_tracer, or circuit for our own files.",
)
OUTPUT = option(
    "output", "--output", "-o", annotation=str | None, default=None, metavar="DIR", help="Directory to write into."
)
EXTRAS = (FILE, TO, OUTPUT)


def export(call: Call) -> None:
    """Write SAEs in the files of another library.

    Those of the run, or of --sae, in any format that is known.

    \b
    circuit export --to sae_lens -o exported
    circuit export --to circuit --sae gpt2-small-res-jb/resid_pre.8 -o ours
    """
    from circuitcli.stages import export as stage

    job = call.open_for_saes(call.loaded.settings.sae_path)
    made = stage.run(job.request, format_=call.extras["to"], output=call.extras["output"])
    job.emit(made)
