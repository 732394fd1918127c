"""Records of what was measured of a circuit, or of a model without some features."""

from circuitcli.records.base import Record
from circuitcli.schema import BaselineName, Count, Flag, Name, NodeName, Number, PolicyName, Text, UnitName, Word


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
