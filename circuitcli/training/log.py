"""metrics.jsonl: one line of numbers for a step, appended while training."""

import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from circuitcli.runs import atomic, write_error


@dataclass(frozen=True)
class Line:
    """State of one autoencoder after ``step`` steps.

    fvu: share of the variance that the batch's reconstruction misses. l0: active features per token. dead: share of
    dead features. tokens_per_s: through all hook points together. memory: peak of the process, of the GPU on CUDA, MiB.
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


class MetricsLog:
    """The file of one hook point."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Forget all after ``step`` steps, and a line that a killed run left half written."""
        kept = []
        if step and self.path.is_file():
            for text in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    break
                if line["step"] <= step:
                    kept.append(text)
        with atomic(self.path) as stream:
            stream.writelines(text + "\n" for text in kept)

    def append(self, line: Line) -> None:
        """Add a line."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(line)) + "\n")
        except OSError as error:
            raise write_error(self.path, error) from None


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: on the GPU if it works there, else by the process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
