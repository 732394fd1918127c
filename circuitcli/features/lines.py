"""The lines of a features file, RUN/features/HOOK.jsonl: one live feature each, checked when it is read; torch-free."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

from circuitcli import faults
from circuitcli.reading import parse_object, text_lines

# Quotation marks inside JSON strings are escaped, so that this matches keys only.
_ID = re.compile(r'"id":\s*"([^"\\]+)"')
HINT = "run `circuit interp --force`, or move the file away to work without it"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Context(_Frozen):
    """A piece of text on which the feature is active; one activation for each token, ``peak`` is the strongest.

    ``quantile``: the share of the feature's activations that are no larger than the peak's. ``document``: from which
    document of the cached text it is, where that is known. Bytes that make a character are one token.
    """

    tokens: tuple[str, ...]
    activations: tuple[FiniteFloat, ...]
    peak: int
    block: int | None = None
    position: int | None = None
    quantile: FiniteFloat | None = None
    document: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Context":
        if len(self.tokens) != len(self.activations):
            raise ValueError("tokens and activations are not equally many")
        return self


class Histogram(_Frozen):
    """How many activations lie between each edge and the next; edges rise, and there is one more of them than counts.

    Edges are log-spaced: equally wide when drawn on a logarithmic axis of distances from zero.
    """

    edges: tuple[FiniteFloat, ...]
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _fits(self) -> "Histogram":
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError("a histogram has one edge more than counts")
        return self


class Negative(_Frozen):
    """Where a feature's codes are below zero, which few architectures have: as of `Details`, by distance from zero.

    ``min`` is the code furthest from zero; quantiles are of the distances, with the sign put back.
    """

    label: str = ""
    density: FiniteFloat | None = None
    n_active: int | None = None
    min: FiniteFloat | None = None
    mean: FiniteFloat | None = None
    quantiles: Mapping[str, FiniteFloat] = {}
    histogram: Histogram | None = None
    contexts: tuple[Context, ...] = ()


class Score(_Frozen):
    """How well a label tells where its feature is active, on ``n_tokens`` that it was not made from.

    balanced_accuracy: 0.5 for a label that tells nothing, None where the feature is silent there; exchanged: that of
    another feature's label.
    """

    balanced_accuracy: FiniteFloat | None = None
    precision: FiniteFloat | None = None
    recall: FiniteFloat | None = None
    exchanged: FiniteFloat | None = None
    n_active: int
    n_tokens: int


class Details(_Frozen):
    """All that is known about one feature; activations in activation units, promoted and suppressed in logits.

    promoted and suppressed: for each unit of activation, by all that the feature writes on the direct path to the
    logits. Numbers are of the codes above zero, ``negative`` of those below. ``decoder_norms``: how long the feature's
    decoder row is at each hook point that it writes, where it writes several. ``confidence``: balanced accuracy
    that is expected of the rules' label. ``label_source``: rules if not given, hand, model or neuronpedia;
    ``label_score``: balanced accuracy of a label that is not the rules' own.
    """

    id: str
    label: str = ""
    confidence: FiniteFloat | None = None
    label_source: str | None = None
    label_score: FiniteFloat | None = None
    density: FiniteFloat | None = None
    n_active: int | None = None
    max: FiniteFloat | None = None
    mean: FiniteFloat | None = None
    quantiles: Mapping[str, FiniteFloat] = {}
    histogram: Histogram | None = None
    contexts: tuple[Context, ...] = ()
    promoted: tuple[tuple[str, FiniteFloat], ...] = ()
    suppressed: tuple[tuple[str, FiniteFloat], ...] = ()
    negative: Negative | None = None
    decoder_norms: Mapping[str, FiniteFloat] | None = None
    score: Score | None = None
    sae: str | None = None


def wanted_lines(path: Path, wanted: Iterable[str]) -> Iterator[tuple[dict[str, Any], Details]]:
    """The lines about these features, as they are written and checked.

    Raises InputError for a file that cannot be read and for a damaged line about one of the features.
    """
    names = frozenset(wanted)
    for place, line in text_lines(path, hint=HINT):
        match = _ID.search(line)
        if match is not None and match[1] in names:
            content = parse_object(line, name=place, hint=HINT)
            details = checked(content, place=place)
            if details.id in names:
                yield content, details


def first_lines(path: Path, n: int | None = None) -> Iterator[Details]:
    """The first so many lines, or all. Raises as `wanted_lines`."""
    for place, line in islice(text_lines(path, hint=HINT), n):
        yield checked(parse_object(line, name=place, hint=HINT), place=place)


def checked(content: Mapping[str, Any], *, place: str) -> Details:
    """What a line says. Raises InputError, naming its place, for a value of a wrong type."""
    return faults.checked(Details, content, place=f"{place}: damaged feature", hint=HINT)
