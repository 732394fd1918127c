"""``circuit graph-naive``."""

from circuitcli.cli.jobs import Call
from circuitcli.cli.options import FILE, GRAPH, MODEL_OF_RUN, RUN, SAE, SEED, Flag

FLAGS = (
    *GRAPH,
    Flag("graph.threshold_exp", "--threshold-exp"),
    Flag("graph.thin", "--thin"),
    Flag("graph.pin", "--pin", repeats=True),
    Flag("graph.to", "--to"),
    Flag("graph.sweep_coefficient", "--sweep-coefficient"),
    Flag("search.by", "--search"),
    Flag("search.max_kl", "--max-kl"),
    Flag("search.errors", "--errors"),
    *SAE,
    *MODEL_OF_RUN,
    *RUN,
    *SEED,
)
EXTRAS = (FILE,)


def graph_naive(call: Call) -> None:
    """Find a circuit by ablating one feature after another.

    \b
    circuit graph-naive --prompt "The capital of France is" --threshold-exp -4
    circuit graph-naive --prompt "The capital of France is" --pin 6:8339,14104
    circuit graph-naive --prompt "The capital of France is" --pin 6:8339 --sweep-coefficient 0:2:0.1
    circuit graph-naive --prompt "The capital of France is" --search nearest --max-kl 0.25
    """
    job = call.open()
    from circuitcli.stages import graph_naive as stage

    job.emit(stage.run(job.request))
