"""SVG, PNG and PDF files, drawn by the ``dot`` program of Graphviz."""

import logging
import re
import subprocess
from pathlib import Path

from circuitcli.errors import ToolError
from circuitcli.render.fonts import environment, with_fonts
from circuitcli.runs import atomic
from circuitcli.settings.render import PaperName

logger = logging.getLogger(__name__)

# How long dot may take: of a picture of 300 boxes and 1,000 edges it takes 5 s, and is given 170 on a busy machine.
TIMEOUT_S, SECONDS_A_LINE, LONGEST_S = 30.0, 0.1, 600.0
# What cairo says of a picture of more pixels than it has room for.
_SCALED = re.compile(rb"too large for cairo-renderer bitmaps\. Scaling by ([0-9.]+)")
_INSTALL = "`apt-get install graphviz` or `brew install graphviz`; .html, .dot and .json need no program"


def picture(source: str, *, form: str, dpi: int = 96) -> bytes:
    """The drawing of a DOT text as ``svg``, ``png`` or ``pdf``, its fonts in it; as ``json`` where each line is.

    Raises ToolError if the program is missing, fails, or takes longer than `limit_s`.
    """
    limit = limit_s(source)
    command = ["dot", f"-T{form}", *([f"-Gdpi={dpi}"] if form == "png" else [])]
    try:
        with environment() as variables:
            done = subprocess.run(
                command, input=source.encode(), capture_output=True, timeout=limit, check=False, env=variables
            )
    except FileNotFoundError:
        raise ToolError(f"cannot draw {form.upper()}: the program 'dot' is missing", hint=_INSTALL) from None
    except OSError as error:
        raise ToolError(f"cannot draw {form.upper()}: 'dot': {error.strerror}", hint=_INSTALL) from None
    except subprocess.TimeoutExpired:
        raise ToolError(
            f"'dot' was stopped after {limit:.3g} s",
            hint="draw less with --max-nodes 50 or --max-edges 100, or draw .html",
        ) from None
    if done.returncode != 0 or not done.stdout:
        complaint = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise ToolError(f"'dot' failed: {complaint[-300:]}", hint="draw .html, and report this as a bug in circuit")
    if scaled := _SCALED.search(done.stderr):
        percent = round(100 * float(scaled[1]))
        logger.warning("the picture is too large for PNG and has %d %% of its size; .svg and .pdf have all", percent)
    return with_fonts(done.stdout.decode(errors="replace")).encode() if form == "svg" else done.stdout


def limit_s(source: str) -> float:
    """Seconds that dot is given for a DOT text: half a minute, more for each box and edge, at most ten minutes."""
    return min(TIMEOUT_S + SECONDS_A_LINE * source.count("\n"), LONGEST_S)


def write_picture(
    source: str,
    path: Path,
    *,
    form: str | None = None,
    dpi: int = 96,
    paper: PaperName | None = None,
    title: str = "circuit",
) -> None:
    """Draw a DOT text into an .svg, .png or .pdf file, or one of this form, a PDF on pages of a paper if one is named.

    Raises as `picture` does.
    """
    kind = form or path.suffix.lower().removeprefix(".")
    drawn = picture(source, form=kind, dpi=dpi)
    if paper is not None and kind == "pdf":
        from circuitcli.render.ink import ink_of
        from circuitcli.render.tiles import tiled

        drawn = tiled(drawn, paper, title=title, ink=ink_of(picture(source, form="json").decode()))
    with atomic(path, "wb") as stream:
        stream.write(drawn)
