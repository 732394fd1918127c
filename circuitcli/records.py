"""The typed JSON lines that pass through pipes.

A stage forwards every line that it read, unchanged, and appends its own. ``kind`` comes first; fields may be added but
are never renamed; a kind that nobody knows passes through.
"""

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any, ClassVar, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from circuitcli.errors import InputError


class Record(BaseModel):
    """One line; fields that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str


class RunRecord(Record):
    """The run directory (absolute, or relative to the working directory) and the model it belongs to."""

    kind: str = "run"
    path: str
    model: str
    revision: str | None = None
    layers: str = ":"
    version: str


class ActivationsRecord(Record):
    """Cached activations of one hook point."""

    kind: str = "activations"
    hook: str
    path: str
    n_tokens: int
    d_model: int
    dtype: str
    digest: str


class TrainedRecord(Record):
    """What is told of any sparse autoencoder of a run."""

    hook: str
    architecture: str
    d_in: int
    d_sae: int
    path: str
    digest: str
    explained_variance: float | None = None
    l0: float | None = None
    loss_recovered: float | None = None
    dead: float | None = None


class SaeRecord(TrainedRecord):
    """One sparse autoencoder."""

    kind: str = "sae"


class SweepRecord(TrainedRecord):
    """One sparse autoencoder of a sweep; stages do not take it unless it is named with ``--sae``."""

    kind: str = "sweep"
    variant: str


class EvaluationRecord(Record):
    """An SAE that was measured on tokens it was not trained on: further fields are numbers by name, ``report`` has all.

    ``path`` is the SAE's own, relative to the run if it lies there.
    """

    kind: str = "evaluation"
    hook: str
    architecture: str
    path: str
    digest: str
    report: str
    n_eval_tokens: int
    explained_variance: float | None = None
    l0: float
    loss_recovered: float | None = None


class InspectionRecord(Record):
    """What an SAE is and expects, and what looks wrong; ``path`` is whole, in the format that is named."""

    kind: str = "inspection"
    hook: str
    architecture: str
    d_in: int
    d_sae: int
    format: str
    path: str
    digest: str
    problems: tuple[str, ...]


class ReleaseRecord(Record):
    """One SAE of a release of the catalogue: ``NAME/ID`` names it."""

    kind: str = "release"
    name: str
    id: str
    hook: str
    format: str
    repository: str
    path: str


class ExportRecord(Record):
    """An SAE that was written in the format of another library; ``path`` is whole."""

    kind: str = "export"
    hook: str
    format: str
    path: str


class FeatureRecord(Record):
    """What one feature means; details are in the file."""

    kind: str = "feature"
    id: str
    label: str
    density: float
    path: str


class GraphRecord(Record):
    """Head of a circuit graph; its nodes and edges follow."""

    kind: str = "graph"
    name: str
    method: str
    metric: str
    prompt: str
    tokens: tuple[str, ...]
    metric_clean: float
    metric_baseline: float
    dtype: str
    unit: str
    baseline: str
    positions: str
    model: str
    target: str | None = None
    foil: str | None = None
    saes: dict[str, str] = {}
    path: str | None = None


class NodeRecord(Record):
    """A feature, an error term or the output."""

    kind: str = "node"
    id: str
    activation: float | None = None
    effect: float | None = None
    unit: str | None = None


class EdgeRecord(Record):
    """What the source contributes to the target."""

    kind: str = "edge"
    source: str
    target: str
    weight: float
    unit: str


class ScoreRecord(Record):
    """A measured property of a circuit; ``low`` and ``high`` bound it where several prompts were run."""

    kind: str = "score"
    name: str
    value: float
    low: float | None = None
    high: float | None = None


class FigureRecord(Record):
    """A picture that was drawn."""

    kind: str = "figure"
    path: str


class UnknownRecord(Record):
    """A line of a kind that this version does not know."""


KINDS: dict[str, type[Record]] = {
    "run": RunRecord,
    "activations": ActivationsRecord,
    "sae": SaeRecord,
    "sweep": SweepRecord,
    "evaluation": EvaluationRecord,
    "inspection": InspectionRecord,
    "release": ReleaseRecord,
    "export": ExportRecord,
    "feature": FeatureRecord,
    "graph": GraphRecord,
    "node": NodeRecord,
    "edge": EdgeRecord,
    "score": ScoreRecord,
    "figure": FigureRecord,
}

R = TypeVar("R", bound=Record)


class Stream:
    """Records in the order in which they came; later ones of the same thing replace earlier ones."""

    same_thing: ClassVar[dict[str, tuple[str, ...]]] = {
        "activations": ("hook",),
        "sae": ("hook",),
        "evaluation": ("path",),
        "feature": ("id",),
    }

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records = list(records)

    def __add__(self, more: "Iterable[Record] | Stream") -> "Stream":
        return Stream([*self.records, *(more.records if isinstance(more, Stream) else more)])

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def of(self, kind: type[R]) -> list[R]:
        """All records of one kind; of several about the same hook point or feature, the last."""
        found = [record for record in self.records if isinstance(record, kind)]
        keys = self.same_thing.get(kind.model_fields["kind"].default)
        if keys is None:
            return found
        return list({tuple(getattr(record, key) for key in keys): record for record in found}.values())

    def last(self, kind: type[R]) -> R | None:
        """The newest record of one kind."""
        return next((record for record in reversed(self.records) if isinstance(record, kind)), None)


def parse_line(line: str, *, place: str = "input") -> Record:
    """One record. Raises InputError, naming the place, for a line that is no record."""
    hint = "every line is one JSON object with a 'kind'; was the output of `circuit` changed on the way?"
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: no JSON: {error.msg}", hint=hint) from None
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise InputError(f"{place}: no record: {line[:60].strip()}", hint=hint)
    try:
        return KINDS.get(content["kind"], UnknownRecord).model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{place}: {content['kind']} record: {field}: {first['msg'].lower()}", hint=hint) from None


def read(lines: Iterable[str], *, name: str = "stdin") -> Stream:
    """All records of a text; blank lines are skipped. Raises InputError as `parse_line` does."""
    return Stream(
        parse_line(line, place=f"{name} line {number}") for number, line in enumerate(lines, 1) if line.strip()
    )


def to_line(record: Record) -> str:
    """One JSON object on one line, ``kind`` first, without fields that are not set."""
    content: dict[str, Any] = record.model_dump(mode="json", exclude_none=not isinstance(record, UnknownRecord))
    return json.dumps({"kind": content.pop("kind"), **content}, ensure_ascii=False, allow_nan=False)


def write(records: Iterable[Record], stream: TextIO | IO[str]) -> None:
    """Write one line for each record."""
    for record in records:
        stream.write(to_line(record) + "\n")
