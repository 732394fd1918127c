"""``circuit graph-grad``."""

from circuitcli.cli.jobs import Call
from circuitcli.cli.options import FILE, GRAPH, MODEL_OF_RUN, RUN, SAE, SEED, Flag

FLAGS = (
    *GRAPH,
    Flag("graph.down", "--down"),
    Flag("graph.up", "--up"),
    Flag("graph.method", "--method"),
    Flag("graph.ig_steps", "--steps"),
    Flag("graph.refine", "--refine"),
    Flag("graph.qk", "--qk", metavar="LAYER.HEAD:QUERY,KEY", repeats=True),
    *SAE,
    *MODEL_OF_RUN,
    *RUN,
    *SEED,
)
EXTRAS = (FILE,)


def graph_grad(call: Call) -> None:
    """Find a circuit from gradients.

    The features with the largest effects on the metric, and the edges between them. Without a prompt this is about a
    prediction of the run's own text.

    \b
    circuit graph-grad --down 10 --up 5
    circuit graph-grad --prompt "The capital of France is" --down 10 --up 5
    """
    job = call.open()
    from circuitcli.stages import graph_grad as stage

    job.emit(stage.run(job.request))
