"""Records as lines of JSON, checked when they are read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, TextIO

from circuitcli.errors import InputError
from circuitcli.faults import checked
from circuitcli.printable import json_steady
from circuitcli.reading import parse_json, text_lines
from circuitcli.records.base import Record, UnknownRecord
from circuitcli.records.coders import (
    BaselineRecord,
    EvaluationRecord,
    ExportRecord,
    FeatureRecord,
    FeaturesRecord,
    InspectionRecord,
    LabelScoreRecord,
    LabelsRecord,
    ReleaseRecord,
    ReplacementRecord,
    SaeRecord,
    SweepRecord,
    TokenRecord,
)
from circuitcli.records.development import DevelopmentRecord, MatchRecord
from circuitcli.records.graph import (
    AttentionRecord,
    EdgeRecord,
    GraphRecord,
    NodeRecord,
    PairRecord,
    ResponseRecord,
    TraceRecord,
)
from circuitcli.records.models import CheckpointRecord, ModelRecord
from circuitcli.records.run import ActivationsRecord, FigureRecord, ReportRecord, RunRecord, StageRecord
from circuitcli.records.scores import (
    AttributionsRecord,
    ChangeRecord,
    ChoicesRecord,
    ComparisonRecord,
    CurveRecord,
    InteractionComparisonRecord,
    InteractionRecord,
    ScoreRecord,
    ShiftRecord,
    StabilityRecord,
    SteeringRecord,
    VerdictRecord,
)
from circuitcli.records.search import SearchRecord
from circuitcli.records.stream import Stream
from circuitcli.records.synthetic import SyntheticRecord
from circuitcli.records.through import CircuitRecord, CrosscoderRecord
from circuitcli.records.toys import ToyRecord

KINDS: dict[str, type[Record]] = {
    "run": RunRecord,
    "model": ModelRecord,
    "checkpoint": CheckpointRecord,
    "match": MatchRecord,
    "development": DevelopmentRecord,
    "activations": ActivationsRecord,
    "sae": SaeRecord,
    "sweep": SweepRecord,
    "evaluation": EvaluationRecord,
    "baseline": BaselineRecord,
    "replacement": ReplacementRecord,
    "inspection": InspectionRecord,
    "synthetic": SyntheticRecord,
    "release": ReleaseRecord,
    "export": ExportRecord,
    "features": FeaturesRecord,
    "feature": FeatureRecord,
    "token": TokenRecord,
    "labels": LabelsRecord,
    "label-score": LabelScoreRecord,
    "search": SearchRecord,
    "graph": GraphRecord,
    "node": NodeRecord,
    "trace": TraceRecord,
    "edge": EdgeRecord,
    "attention": AttentionRecord,
    "pair": PairRecord,
    "response": ResponseRecord,
    "score": ScoreRecord,
    "shift": ShiftRecord,
    "curve": CurveRecord,
    "verdict": VerdictRecord,
    "stability": StabilityRecord,
    "steering": SteeringRecord,
    "choices": ChoicesRecord,
    "comparison": ComparisonRecord,
    "change": ChangeRecord,
    "interaction": InteractionRecord,
    "interactions": InteractionComparisonRecord,
    "attributions": AttributionsRecord,
    "toy": ToyRecord,
    "circuit": CircuitRecord,
    "crosscoder": CrosscoderRecord,
    "figure": FigureRecord,
    "report": ReportRecord,
    "stage": StageRecord,
}


def parse_line(line: str, *, place: str = "input") -> Record:
    """One record. Raises InputError, naming the place, for a line that is no record."""
    hint = "every line is one JSON object with a 'kind'; was the output of `circuit` changed on its way here?"
    content = parse_json(line, name=f"{place}: this line", hint=hint)
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise InputError(f"{place}: this line is not a record: {line[:60].strip()}", hint=hint)
    kind = content["kind"]
    return checked(KINDS.get(kind, UnknownRecord), content, place=f"{place}: {kind} record", hint=hint)


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
    return json_steady(json.dumps(content, ensure_ascii=False, allow_nan=False))


def write(records: Iterable[Record], stream: TextIO | IO[str]) -> None:
    """Write one line for each record."""
    for record in records:
        stream.write(to_line(record) + "\n")
