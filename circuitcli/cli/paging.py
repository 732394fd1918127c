"""The option by which `circuit interp` writes pages, and what it does for it."""

import sys
from collections.abc import Sequence

from circuitcli.cli.jobs import Call, Job
from circuitcli.cli.options import option
from circuitcli.records import Record

EXTRAS = (
    option(
        "html",
        "--html",
        annotation=str | None,
        default=None,
        metavar="DIR",
        help="Write pages of all features; with --feature one page of these, to a file or - for stdout.",
    ),
)
# Where settings come from that a person gave with this very command.
GIVEN = ("flag", "--set")


def wants_pages(call: Call) -> bool:
    """Whether pages are to be written."""
    return call.extras["html"] is not None


def write(call: Call, job: Job, *, made: Sequence[Record]) -> None:
    """Write the pages, and tell of them and of what was made before; stdout is the page's where it goes there."""
    from circuitcli.stages import interp_pages

    output, features = call.extras["html"], call.extras["feature"]
    if features:
        emitted = interp_pages.single(job.request, features, output, stdout=sys.stdout)
    else:
        given = [name for name, origin in call.loaded.origins.items() if origin in GIVEN]
        describes = any(name.startswith("interp.") for name in given)
        emitted = interp_pages.run(job.request, output, describes=describes)
    if output != interp_pages.STDOUT:
        job.emit([*made, *emitted])
