"""``circuit render``."""

import sys

from circuitcli.cli.jobs import Call
from circuitcli.cli.options import FILE, RUN, Flag, switch

FLAGS = (
    Flag("render.output", "--output", short="-o", metavar="FILE", repeats=True),
    Flag("render.graph", "--graph"),
    Flag("render.max_edges", "--max-edges"),
    *RUN,
)
EXTRAS = (
    FILE,
    switch("curves", "--curves", help="Draw how the SAEs learned instead of a circuit, as .svg .png .pdf."),
    switch("sweep", "--sweep", help="Draw how the variants of `train --sweep` compare instead, as .svg .png .pdf."),
)


def render(call: Call) -> None:
    """Draw a circuit.

    The suffix of a file says how: .dot, .svg, .png, .pdf, .html for an interactive page, .json for all its numbers.

    \b
    circuit render -o circuit.svg -o circuit.html
    circuit render -o - | dot -Tpdf > circuit.pdf
    circuit render --curves -o curves.svg
    """
    job = call.open(needs_run=False)
    if call.extras["sweep"]:
        from circuitcli.stages.curves import run_sweep as run
    elif call.extras["curves"]:
        from circuitcli.stages.curves import run
    else:
        from circuitcli.stages.render import run

    emitted = run(job.request, stdout=sys.stdout)
    if "-" not in job.request.settings.render.output:
        job.emit(emitted)
