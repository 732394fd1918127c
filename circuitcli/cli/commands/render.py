"""``circuit render``."""

import sys

from circuitcli.cli.jobs import Call
from circuitcli.cli.options import FILE, RUN, Flag

FLAGS = (
    Flag("render.output", "--output", short="-o", metavar="FILE", repeats=True),
    Flag("render.graph", "--graph"),
    Flag("render.max_edges", "--max-edges"),
    *RUN,
)
EXTRAS = (FILE,)


def render(call: Call) -> None:
    """Draw a circuit.

    The suffix of a file says how: .dot, .svg, .png, .html for an interactive page, .json for all its numbers.

    \b
    circuit render -o circuit.svg -o circuit.html
    circuit render -o - | dot -Tpdf > circuit.pdf
    """
    job = call.open(needs_run=False)
    from circuitcli.stages import render as stage

    made = stage.run(job.request, stdout=sys.stdout)
    if "-" not in job.request.settings.render.output:
        job.emit(made)
