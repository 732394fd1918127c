"""The typed JSON lines that pass through pipes.

A stage forwards every line that it read, unchanged, and appends its own. ``kind`` comes first; fields may be added but
are never renamed; a kind that nobody knows passes through.
"""

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
    TrainedRecord,
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
from circuitcli.records.lines import KINDS, json_text, parse_line, read, read_file, to_line, write
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

__all__ = [
    "KINDS",
    "ActivationsRecord",
    "AttentionRecord",
    "AttributionsRecord",
    "BaselineRecord",
    "ChangeRecord",
    "CheckpointRecord",
    "ChoicesRecord",
    "CircuitRecord",
    "ComparisonRecord",
    "CrosscoderRecord",
    "CurveRecord",
    "DevelopmentRecord",
    "EdgeRecord",
    "EvaluationRecord",
    "ExportRecord",
    "FeatureRecord",
    "FeaturesRecord",
    "FigureRecord",
    "GraphRecord",
    "InspectionRecord",
    "InteractionComparisonRecord",
    "InteractionRecord",
    "LabelScoreRecord",
    "LabelsRecord",
    "MatchRecord",
    "ModelRecord",
    "NodeRecord",
    "PairRecord",
    "Record",
    "ReleaseRecord",
    "ReplacementRecord",
    "ReportRecord",
    "ResponseRecord",
    "RunRecord",
    "SaeRecord",
    "ScoreRecord",
    "SearchRecord",
    "ShiftRecord",
    "StabilityRecord",
    "StageRecord",
    "SteeringRecord",
    "Stream",
    "SweepRecord",
    "SyntheticRecord",
    "TokenRecord",
    "ToyRecord",
    "TraceRecord",
    "TrainedRecord",
    "UnknownRecord",
    "VerdictRecord",
    "json_text",
    "parse_line",
    "read",
    "read_file",
    "to_line",
    "write",
]
