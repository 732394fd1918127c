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
LAYERS = option(
    "layers",
    "--layers",
    annotation=str | None,
    default=None,
    metavar="LAYERS",
    help="Blocks of the SAEs to write, as a Python slice: 3:5 is 3 and 4. By default all.",
)
SITES = option(
    "sites",
    "--sites",
    annotation=list[str] | None,
    default=None,
    metavar="SITES",
    help="Which of embed resid_pre attn_in attn resid_mid mlp_in mlp resid to write; by default all. May be repeated.",
)
EXTRAS = (FILE, TO, OUTPUT, LAYERS, SITES)


def export(call: Call) -> None:
    """Write SAEs in the files of another library.

    Those of the run, or of --sae, in any format that is known. sae_lens takes all kinds but TopK transcoders;
    dictionary_learning ReLU, gated, TopK and JumpReLU SAEs; sparsify TopK SAEs and (skip) transcoders; circuit_tracer
    ReLU and JumpReLU transcoders and CLTs, and, for its version 0.4.1 and later, TopK transcoders.

    \b
    circuit export --to sae_lens -o exported
    circuit export --to circuit_tracer --sites mlp_in -o transcoders
    circuit export --to circuit --sae gpt2-small-res-jb/resid_pre.8 -o ours
    """
    from circuitcli.stages import export as stage

    job = call.open_for_saes(call.loaded.settings.sae_path)
    choice = stage.Choice.of(call.extras["layers"], call.extras["sites"])
    emitted = stage.run(job.request, format_=call.extras["to"], output=call.extras["output"], choice=choice)
    job.emit(emitted)
