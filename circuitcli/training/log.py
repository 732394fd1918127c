"""metrics.jsonl: one line of numbers for a step, appended while training. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from circuitcli.runs import atomic, write_error

METRICS = "metrics.jsonl"
# By name; where types are checked at run time, an int is no float.
Numbers = Mapping[str, float | int]
REQUIRED = ("step", "tokens")
# Parts of the loss by name have lines' keys of this beginning.
PART = "loss_"


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
        found = read_metrics(self.path) if step else []
        with atomic(self.path) as stream:
            stream.writelines(json.dumps(line) + "\n" for line in found if line["step"] <= step)
        return int(found[-1]["step"]) if found else 0

    def append(self, numbers: Numbers) -> None:
        """Add a line, which says at least ``step`` and ``tokens``. Raises ValueError if it does not."""
        if missing := [name for name in REQUIRED if name not in numbers]:
            raise ValueError(f"a line of metrics lacks {' '.join(missing)}")
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(numbers)) + "\n")
        except OSError as error:
            raise write_error(self.path, error) from None


def read_metrics(path: Path) -> list[Numbers]:
    """The lines of a file up to the first that is no whole line; none if there is no file."""
    if not path.is_file():
        return []
    lines: list[Numbers] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or any(name not in line for name in REQUIRED):
            break
        lines.append(line)
    return lines
