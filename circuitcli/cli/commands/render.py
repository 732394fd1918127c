"""``circuit render``."""

import sys

from circuitcli.cli.console import console
from circuitcli.cli.jobs import Call
from circuitcli.cli.options import FILE, RUN, Flag, switch
from circuitcli.cli.told import told
from circuitcli.errors import SettingsError
from circuitcli.records import CircuitRecord, GraphRecord
from circuitcli.stages.request import Request

FLAGS = (
    Flag("render.output", "--output", short="-o", metavar="FILE", repeats=True),
    Flag("render.form", "--as", metavar="FORMAT"),
    Flag("render.graph", "--graph"),
    Flag("render.max_edges", "--max-edges"),
    Flag("render.labels", "--labels", metavar="FILE", repeats=True),
    Flag("render.max_nodes", "--max-nodes"),
    Flag("render.state", "--state", metavar="FILE"),
    Flag("render.tile", "--tile"),
    Flag("render.figure", "--figure"),
    Flag("render.interaction", "--interaction", metavar="FILE,FILE"),
    *RUN,
)
EXTRAS = (
    FILE,
    switch("curves", "--curves", help="Draw how the SAEs learned instead of a circuit, as .svg .png .pdf."),
    switch("sweep", "--sweep", help="Draw how the variants of `train --sweep` compare instead, as .svg .png .pdf."),
)

# What is drawn instead of a circuit, and the options that then mean nothing.
INSTEAD = ("--figure", "--curves", "--sweep", "--interaction")
OF_CIRCUITS = ("--as", "--max-edges", "--max-nodes", "--state", "--tile")


def render(call: Call) -> None:
    """Draw a circuit.

    The suffix of a file says how: .dot, .svg, .png, .pdf, .html for an interactive page, .json for all its numbers,
    .graphml and .gexf for NetworkX and Gephi, .csv, .mmd for Mermaid; --as writes another format. FILE may be the graph
    of another program too: of Neuronpedia, circuit-tracer, feature-circuits, EAP-IG or MIB.

    \b
    circuit render -o circuit.svg -o circuit.html
    circuit render -o - | dot -Tpdf > circuit.pdf
    circuit render --max-nodes 30 --tile a4 -o circuit.pdf
    circuit render --as neuronpedia -o dallas/dallas.json
    circuit render their-graph.json -o circuit.html
    circuit render --figure attribution -o effects.pdf
    circuit render --curves -o curves.svg
    circuit render --interaction topk.json,staircase.json -o edges.svg

    A run of `circuit develop` with prompts is drawn as one page with a time slider, or as small multiples.
    """
    check(call)
    compares = call.loaded.settings.render.interaction
    job = call.open_without_pipe() if compares else call.open(needs_run=False)
    if call.extras["sweep"]:
        from circuitcli.stages.curves import run_sweep as run
    elif compares:
        from circuitcli.stages.curves import run_interactions as run
    elif call.loaded.settings.render.figure is not None:
        from circuitcli.stages.render_figure import run
    elif call.extras["curves"]:
        from circuitcli.stages.curves import run
    elif shows_training(job.request):
        from circuitcli.stages.timeline import run
    else:
        from circuitcli.stages.render import run

    emitted = run(job.request, stdout=sys.stdout)
    if "-" not in job.request.settings.render.output:
        job.emit(emitted)
    for line in told(emitted):
        console.say(line)


def check(call: Call) -> None:
    """Raise SettingsError for options that ask for several drawings at once, or for what one of no circuit lacks."""
    given = {flag.name for flag in FLAGS if call.loaded.origins.get(flag.setting) == "flag"}
    given |= {f"--{name}" for name in ("curves", "sweep") if call.extras[name]}
    drawn = [name for name in INSTEAD if name in given]
    if len(drawn) > 1:
        raise SettingsError(f"{' and '.join(drawn)} are different drawings", hint=f"leave out {drawn[-1]}")
    lost = [name for name in OF_CIRCUITS if name in given]
    if drawn and lost:
        raise SettingsError(f"{lost[0]} is about circuits, and {drawn[0]} draws something else", hint="leave out one")


def shows_training(request: Request) -> bool:
    """Whether the run holds circuits of several checkpoints, and none of its own."""
    records = request.records
    return bool(records.of(CircuitRecord)) and not records.of(GraphRecord) and request.settings.render.graph is None
