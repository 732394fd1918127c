"""``circuit graph-grad``."""

from circuitcli.cli.jobs import Call, show_plan
from circuitcli.cli.options import FILE, GRAPH, MODEL_OF_RUN, RUN, SAE, SEED, Flag, switch
from circuitcli.errors import SettingsError

FLAGS = (
    *GRAPH,
    Flag("graph.down", "--down"),
    Flag("graph.up", "--up"),
    Flag("graph.strongest", "--strongest"),
    Flag("graph.min_share", "--min-share"),
    Flag("graph.min_effect", "--min-effect"),
    Flag("graph.method", "--method"),
    Flag("graph.ig_steps", "--steps"),
    Flag("graph.refine", "--refine"),
    Flag("graph.heads", "--heads"),
    Flag("graph.edges_exact", "--edges-exact"),
    Flag("graph.qk", "--qk", metavar="LAYER.HEAD:QUERY,KEY", repeats=True),
    Flag("graph.frozen", "--frozen"),
    Flag("graph.node_threshold", "--node-threshold"),
    Flag("graph.edge_threshold", "--edge-threshold"),
    Flag("graph.max_nodes", "--max-nodes"),
    Flag("graph.check_edges", "--check-edges"),
    *SAE,
    *MODEL_OF_RUN,
    *RUN,
    *SEED,
)
ESTIMATE = switch("estimate", "--estimate", help="With --frozen: measure a few passes, tell time and memory, and stop.")
EXTRAS = (FILE, ESTIMATE)


def graph_grad(call: Call) -> None:
    """Find a circuit from gradients.

    The features with the largest effects on the metric, and the edges between them. Without a prompt this is about a
    prediction of the run's own text.

    \b
    circuit graph-grad --down 10 --up 5
    circuit graph-grad --prompt "The capital of France is" --down 10 --up 5
    circuit graph-grad --prompt "The capital of France is" --frozen --check-edges 100
    """
    if call.extras["estimate"] and not call.loaded.settings.graph.frozen:
        raise SettingsError("--estimate tells what a frozen graph takes", hint="add --frozen")
    job = call.open()
    from circuitcli.stages import graph_grad as stage

    if call.extras["estimate"]:
        from circuitcli.stages import graph_frozen

        return show_plan(graph_frozen.plan(job.request))
    job.emit(stage.run(job.request))
