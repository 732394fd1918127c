"""metrics.jsonl: one line of numbers for a step, appended while training. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from circuitcli.errors import InputError
from circuitcli.reading import parse_object, read_bytes
from circuitcli.runs import atomic, write_error

METRICS = "metrics.jsonl"
# By name; where types are checked at run time, an int is no float.
Numbers = Mapping[str, float | int]
REQUIRED = ("step", "tokens")
# Parts of the loss by name have lines' keys of this beginning.
PART = "loss_"
# A line for each of 250 moments has some hundred bytes.
LARGEST_BYTES = 2**28
_HINT = "move the file away, or train again with --force"


@dataclass(frozen=True)
class Line:
    """State of one autoencoder after ``step`` steps.

    loss: what is minimised; parts: what it is the sum of, where that is more than one thing. fvu: share of the variance
    that the batch's reconstruction misses. l0: active features per token. dead: share of dead features. tokens_per_s:
    through all hook points together. memory_mib: peak of the process, of the GPU on CUDA. measures: what only some
    architectures measure, by name. held_out: the loss of all SAEs that learn together on held-out tokens, at the steps
    at which these are looked at.
    """

    step: int
    tokens: int
    loss: float
    fvu: float
    l0: float
    dead: float
    learning_rate: float
    tokens_per_s: float
    memory_mib: float
    parts: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    held_out: float | None = None

    def numbers(self) -> Numbers:
        """All numbers by name; the parts of the loss are called ``loss_NAME``, as is that on held-out tokens, measures
        have their own names."""
        numbers = asdict(self)
        parts, measures, held_out = (numbers.pop(name) for name in ("parts", "measures", "held_out"))
        if held_out is not None:
            parts = {**parts, "held_out": held_out}
        return numbers | {PART + name: value for name, value in parts.items()} | measures


class MetricsLog:
    """The file of one autoencoder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> int:
        """Forget all after ``step`` steps, and a line that a killed run left half written.

        Returns the step of the last line that stood there, 0 if nothing is kept.
        """
        # A machine that lost its power may leave anything behind the checkpoint.
        lines = read_metrics(self.path, until_damaged=True) if step else []
        with atomic(self.path) as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
        return int(lines[-1]["step"]) if lines else 0

    def append(self, numbers: Numbers) -> None:
        """Add a line, which says at least ``step`` and ``tokens``. Raises ValueError if it does not."""
        if missing := [name for name in REQUIRED if name not in numbers]:
            raise ValueError(f"a line of metrics lacks {' '.join(missing)}")
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(numbers)) + "\n")
        except OSError as error:
            raise write_error(self.path, error) from None


def read_metrics(path: Path, *, until_damaged: bool = False) -> list[Numbers]:
    """The lines of a file, but for a last one that a killed training left half written; none if there is no file.

    Raises InputError, naming the line, for one that holds anything but numbers by name, or ends there if asked to;
    infinities are numbers.
    """
    if not path.is_file():
        return []
    content = read_bytes(path, limit_bytes=LARGEST_BYTES, hint=_HINT)
    whole = content[: content.rfind(b"\n") + 1]
    named = ((f"{path} line {number}", text) for number, text in enumerate(whole.split(b"\n"), 1) if text.strip())
    lines: list[Numbers] = []
    try:
        for place, text in named:
            lines.append(_checked(parse_object(text, name=place, finite=False, hint=_HINT), place))
    except InputError:
        if not until_damaged:
            raise
    return lines


def _checked(line: dict[str, Any], place: str) -> Numbers:
    wrong = [name for name, value in line.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    missing = [name for name in REQUIRED if name not in line]
    if wrong or missing:
        what = f"'{wrong[0][:60]}' is not a number" if wrong else f"it lacks '{missing[0]}'"
        raise InputError(f"{place} is not a line of metrics: {what}", hint=_HINT)
    if not 0 <= line["step"] < 2**63 or not isinstance(line["step"], int):
        raise InputError(f"{place} is not a line of metrics: step {line['step']}", hint=_HINT)
    return line
