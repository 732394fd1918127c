"""The typed JSON lines that pass through pipes.

A stage forwards every line that it read, unchanged, and appends its own. ``kind`` comes first; fields may be added but
are never renamed; a kind that nobody knows passes through.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from circuitcli.errors import InputError
from circuitcli.reading import parse_json, text_lines
from circuitcli.schema import (
    Alternatives,
    AnyPath,
    BaselineName,
    Count,
    Counts,
    DigestsByHook,
    FeatureName,
    Flag,
    HookName,
    HooksByHook,
    MethodName,
    MetricName,
    Name,
    NodeName,
    Number,
    NumbersByHook,
    PathInRun,
    PolicyName,
    PositionsName,
    Share,
    SpanNames,
    Text,
    Texts,
    UnitName,
    Word,
)


class Record(BaseModel):
    """One line; fields that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str


class RunRecord(Record):
    """The run directory (absolute, or relative to the working directory) and the model it belongs to."""

    kind: str = "run"
    path: AnyPath
    model: Word
    revision: Word | None = None
    layers: Word = ":"
    version: Word


class ActivationsRecord(Record):
    """Cached activations of one hook point."""

    kind: str = "activations"
    hook: HookName
    path: PathInRun
    n_tokens: Count
    d_model: Count
    dtype: Word
    digest: Word
    bos: Flag | None = None


class TrainedRecord(Record):
    """What is told of any sparse autoencoder of a run."""

    hook: HookName
    architecture: Word
    d_in: Count
    d_sae: Count
    path: PathInRun
    digest: Word
    explained_variance: Number | None = None
    l0: Number | None = None
    loss_recovered: Number | None = None
    dead: Number | None = None
    problems: Texts | None = None


class SaeRecord(TrainedRecord):
    """One sparse autoencoder."""

    kind: str = "sae"


class SweepRecord(TrainedRecord):
    """One sparse autoencoder of a sweep; stages do not take it unless it is named with ``--sae``."""

    kind: str = "sweep"
    variant: Word


class EvaluationRecord(Record):
    """An SAE that was measured on tokens it was not trained on: further fields are numbers by name, ``report`` has all.

    ``path`` is the SAE's own, relative to the run if it lies there.
    """

    kind: str = "evaluation"
    hook: HookName
    architecture: Word
    path: AnyPath
    digest: Word
    report: PathInRun
    n_eval_tokens: Count
    explained_variance: Number | None = None
    l0: Number
    loss_recovered: Number | None = None
    cosine: Number | None = None
    ce_increase: Number | None = None
    kl_spliced: Number | None = None
    silent: Number | None = None


class InspectionRecord(Record):
    """What an SAE is and expects, and what looks wrong; ``path`` is whole, in the format that is named."""

    kind: str = "inspection"
    hook: HookName
    architecture: Word
    d_in: Count
    d_sae: Count
    format: Word
    path: AnyPath
    digest: Word
    problems: Texts


class ReleaseRecord(Record):
    """One SAE of a release of the catalogue: ``NAME/ID`` names it."""

    kind: str = "release"
    name: Word
    id: Word
    hook: HookName
    format: Word
    repository: Word
    path: AnyPath


class ExportRecord(Record):
    """An SAE that was written in the format of another library; ``path`` is whole."""

    kind: str = "export"
    hook: HookName
    format: Word
    path: AnyPath


class FeaturesRecord(Record):
    """What is known about the features of one hook point: one line a live feature in the file; ``sae`` is whose."""

    kind: str = "features"
    hook: HookName
    n_live: Count
    n_dead: Count
    path: PathInRun
    digest: Word
    sae: Word | None = None


class FeatureRecord(Record):
    """What one feature means; details are in the file. Written by versions before ``features``."""

    kind: str = "feature"
    id: FeatureName
    label: Text
    density: Number
    path: PathInRun
    sae: Word | None = None


class GraphRecord(Record):
    """Head of a circuit graph; its nodes and edges follow.

    Of several prompts, ``prompts`` names their file, ``columns`` holds alternative tokens for each position, and
    ``span_names`` the names that stand for positions, in the order of the text. ``saes`` gives the digest of the coder
    that reads each hook point, and ``writes`` what a coder writes, where that is not what it reads.
    """

    kind: str = "graph"
    name: Name
    method: MethodName
    metric: MetricName
    prompt: Text
    tokens: Texts
    ids: Counts | None = None
    chat: Flag | None = None
    metric_clean: Number
    metric_baseline: Number
    dtype: Word
    unit: UnitName
    baseline: BaselineName
    positions: PositionsName
    model: Word
    revision: Word | None = None
    target: Text | None = None
    target_id: Count | None = None
    foil: Text | None = None
    seed: Count | None = None
    bos: Flag | None = None
    n_prompts: Count = 1
    prompts: Text | None = None
    prompts_digest: Word | None = None
    n_positions: Count | None = None
    span_names: SpanNames | None = None
    columns: Alternatives | None = None
    baseline_tokens: Annotated[Count, Field(ge=1)] | None = None
    baseline_ids: Counts | None = None
    counterfactual: Text | None = None
    counterfactual_ids: Counts | None = None
    saes: DigestsByHook = {}
    writes: HooksByHook | None = None
    path: PathInRun | None = None
    steps: Count | None = None
    down: Count | None = None
    up: Count | None = None
    effects: NumbersByHook | None = None
    threshold: Number | None = None
    to: Word | None = None
    share_kept: Number | None = None

    def written(self, hook: str) -> tuple[str, ...]:
        """Names of the hook points that the coder writes that reads this one: of an SAE the same."""
        return (self.writes or {}).get(hook, (hook,))


class NodeRecord(Record):
    """A feature, an error term or the output."""

    kind: str = "node"
    id: NodeName
    activation: Number | None = None
    effect: Number | None = None
    unit: UnitName | None = None
    standard_error: Number | None = None
    active: Share | None = None


class EdgeRecord(Record):
    """What the source contributes to the target."""

    kind: str = "edge"
    source: NodeName
    target: NodeName
    weight: Number
    unit: UnitName
    standard_error: Number | None = None
    active: Share | None = None


class ScoreRecord(Record):
    """A measured property of a circuit; ``low`` and ``high`` bound it where several prompts were run."""

    kind: str = "score"
    name: Word
    value: Number
    low: Number | None = None
    high: Number | None = None
    standard_error: Number | None = None
    errors: PolicyName | None = None
    unit: UnitName | None = None
    graph: Name | None = None
    graph_digest: Word | None = None
    judged: Flag | None = None
    ablation: BaselineName | None = None
    n_nodes: Count | None = None
    n_prompts: Count | None = None
    n_blocks: Count | None = None
    n_active_blocks: Count | None = None
    n_tokens: Count | None = None
    metric_clean: Number | None = None
    metric_circuit: Number | None = None
    metric_empty: Number | None = None
    samples: Count | None = None
    rank: Count | None = None
    overlap: Number | None = None
    node: NodeName | None = None


class ShiftRecord(Record):
    """A number before and after features were ablated: of a next token, a token in a text, or a later feature."""

    kind: str = "shift"
    of: Word
    name: Text
    clean: Number
    ablated: Number
    unit: UnitName
    graph: Name | None = None


class FigureRecord(Record):
    """A picture that was drawn."""

    kind: str = "figure"
    path: AnyPath


class ReportRecord(Record):
    """A report that lies in the run."""

    kind: str = "report"
    path: PathInRun


class StageRecord(Record):
    """A stage that worked on a run: by which command, and whether it is finished."""

    kind: str = "stage"
    name: Word
    state: Word
    command: Text = ""
    started: Word | None = None
    seconds: Number | None = None


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
    "features": FeaturesRecord,
    "feature": FeatureRecord,
    "graph": GraphRecord,
    "node": NodeRecord,
    "edge": EdgeRecord,
    "score": ScoreRecord,
    "shift": ShiftRecord,
    "figure": FigureRecord,
    "report": ReportRecord,
    "stage": StageRecord,
}

R = TypeVar("R", bound=Record)
# Controls past ASCII, and what changes the direction of the text around it; JSON escapes all other controls.
_STEERING = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Stream:
    """Records in the order in which they came; later ones of the same thing replace earlier ones."""

    same_thing: ClassVar[dict[str, tuple[str, ...]]] = {
        "activations": ("hook",),
        "sae": ("hook",),
        "evaluation": ("path",),
        "features": ("hook",),
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
    content = parse_json(line, name=f"{place}: this line", hint=hint)
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise InputError(f"{place}: no record: {line[:60].strip()}", hint=hint)
    try:
        return KINDS.get(content["kind"], UnknownRecord).model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])[:60]
        # What pydantic says begins with a capital; texts that were seen keep theirs.
        said = first["msg"].removeprefix("Value error, ")
        said = said[:1].lower() + said[1:]
        raise InputError(f"{place}: {content['kind']} record: {field}: {said}", hint=hint) from None


def read(lines: Iterable[str], *, name: str = "stdin") -> Stream:
    """All records of a text; blank lines are skipped. Raises InputError as `parse_line` does."""
    return Stream(
        parse_line(line, place=f"{name} line {number}") for number, line in enumerate(lines, 1) if line.strip()
    )


def read_file(path: Path, *, hint: str = "") -> Stream:
    """All records of a file, which is read a line at a time. Raises InputError, naming the line or the file."""
    return Stream(parse_line(line, place=place) for place, line in text_lines(path, hint=hint))


def to_line(record: Record) -> str:
    """One JSON object on one line, ``kind`` first, without fields that are not set."""
    content: dict[str, Any] = record.model_dump(mode="json", exclude_none=not isinstance(record, UnknownRecord))
    return json_text({"kind": content.pop("kind"), **content})


def json_text(content: Any) -> str:
    """One line of JSON, in which what could steer the terminal that it may come to is escaped."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text if text.isprintable() else _STEERING.sub(lambda found: json.dumps(found[0])[1:-1], text)


def write(records: Iterable[Record], stream: TextIO | IO[str]) -> None:
    """Write one line for each record."""
    for record in records:
        stream.write(to_line(record) + "\n")
