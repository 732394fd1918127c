"""The rich console that everything coloured goes through: what it is given is text, never markup or control codes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console

from circuitcli.printable import printable

# A terminal that says it is narrower, or has no width at all, breaks longer lines by itself.
NARROWEST, USUAL = 40, 80

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment


class SafeConsole(Console):
    """A console in which names, tokens and labels cannot steer the terminal; rich's own control codes pass."""

    def __init__(self, *, stderr: bool, no_color: bool | None) -> None:
        super().__init__(stderr=stderr, no_color=no_color, highlight=False, soft_wrap=False, markup=False, emoji=False)
        if self.width < NARROWEST:
            self.width = NARROWEST if self.width > 0 else USUAL

    def render(self, renderable: "RenderableType", options: "ConsoleOptions | None" = None) -> "Iterable[Segment]":
        """What rich makes of a renderable, with its texts made printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_safe(segment.text))


def _safe(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
