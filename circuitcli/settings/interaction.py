"""How edges between the features of two hook points are ranked, and where their curve is taken."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from circuitcli.errors import SettingsError
from circuitcli.reading import whole_number
from circuitcli.settings.section import Section


def _points(text: str) -> str:
    if text in ("powers", "paper", "none"):
        return text
    numbers = [whole_number(part.strip()) for part in text.split(",")]
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers) or found != sorted(set(found)):
        raise SettingsError(
            f"'{text[:60]}' names no points of a curve",
            hint="write powers, paper or none, or numbers of edges that grow, for example 0,16,256",
        )
    return text


class InteractionSettings(Section):
    """How edges between the features of two hook points are ranked, and where their curve is taken."""

    method: Literal["ig", "paper", "grad-act", "jacobian"] = "ig"
    """What edges are worth: ig (integrated gradients times each source's own value), paper (as SCALAR's published code
    has them), grad-act (the gradient times the value), jacobian (the derivative between active features)."""
    steps: int | None = Field(None, ge=1, le=1000)
    """Points on the path of ig and paper; by default 10 of ig, and 4 of paper as there."""
    measure: Literal["square", "absolute"] = "square"
    """How the values of prompts and positions are joined: the root of the sum of their squares, or the sum of sizes."""
    order: Literal["attribution", "random", "random-live"] = "attribution"
    """Which edges are kept first; as controls random: of all possible edges, as in the paper, or of the live ones."""
    points: Annotated[str, AfterValidator(_points)] = "powers"
    """Numbers of edges at which the curve is taken, beside 0 and all: powers of two, those of the paper (35, from 1 to
    262,144), such as 16,256, or none: attributions alone."""
    rule: Literal["own", "paper"] = "own"
    """How codes are made of pre-activations with few edges: as the SAE does, or as the published code does: TopK keeps
    negative ones too, and the run with all edges has the codes of the clean run."""
    length: int = Field(64, ge=2, le=65_536)
    """Tokens of each piece of the run's own text."""
    pieces: Literal["last", "first"] = "last"
    """Which blocks of the run's own text: the last, which training holds out, or the first."""
    kept_edges: int = Field(2**20, ge=1, le=2**28)
    """Attributions are stored as a matrix up to so many edges; of more the largest so many are."""
