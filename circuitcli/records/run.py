"""Records about a run: where it is, its cached activations, its stages and what they drew and wrote."""

from circuitcli.records.base import Record
from circuitcli.schema import AnyPath, Count, Flag, HookName, Number, PathInRun, Text, Word


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


class StageRecord(Record):
    """A stage that worked on a run: by which command, and whether it is finished."""

    kind: str = "stage"
    name: Word
    state: Word
    command: Text = ""
    started: Word | None = None
    seconds: Number | None = None


class FigureRecord(Record):
    """A picture that was drawn."""

    kind: str = "figure"
    path: AnyPath


class ReportRecord(Record):
    """A report that lies in the run."""

    kind: str = "report"
    path: PathInRun
