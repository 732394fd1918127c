"""The options by which `circuit interp` writes pages and looks at a text, and what it does for them."""

import sys
from collections.abc import Sequence

from circuitcli.cli.console import Rows, console
from circuitcli.cli.input import stdin_text
from circuitcli.cli.jobs import Call, Job
from circuitcli.cli.options import option
from circuitcli.errors import InputError
from circuitcli.records import FigureRecord, Record, TokenRecord, to_line

EXTRAS = (
    option(
        "html",
        "--html",
        annotation=str | None,
        default=None,
        metavar="DIR",
        help="Write pages of all features; with --feature or --text one page, to a file or - for stdout.",
    ),
    option(
        "text",
        "--text",
        annotation=str | None,
        default=None,
        metavar="TEXT",
        help="Tell which features are active in this text, token by token; a file, or - for stdin.",
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


def wants_text(call: Call) -> bool:
    """Whether a text is to be looked at."""
    return call.extras["text"] is not None


def show_text(call: Call) -> None:
    """Tell of each token which features are active there: records, a table for people, a page if it is asked for.

    What was made before in the run is not passed on: it would stand before every answer.
    """
    from circuitcli.stages import interp_text

    text, stdin = call.extras["text"], None
    if text == interp_text.STDOUT:
        # The pipe brings the text, so that records come from the run.
        job, stdin = call.open_without_pipe(), stdin_text()
        if not job.request.run.exists:
            raise InputError("there is no run whose features to look for", hint="name a run with --run")
    else:
        job = call.open()
    text = interp_text.of_source(text, stdin=stdin)
    asked = interp_text.Asked.of(text, call.extras["feature"] or (), html=call.extras["html"])
    made = interp_text.run(job.request, asked, stdout=sys.stdout)
    if console.prints_records:
        console.records(map(to_line, made))
    elif made:
        console.view_table(token_rows([one for one in made if isinstance(one, TokenRecord)]))
    for record in made:
        if isinstance(record, FigureRecord):
            console.say(f"wrote {record.path}")


def token_rows(tokens: Sequence[TokenRecord]) -> Rows:
    """A line for each feature of each token."""
    rows = []
    for token in tokens:
        told = [(name, f"{value:.3g}", label) for name, value, label in token.features] or [("", "", "")]
        for place, cells in enumerate(told):
            rows.append(("" if place else str(token.position), "" if place else token.token, *cells))
    return Rows(("at", "token", "feature", "activation", "label"), rows)
