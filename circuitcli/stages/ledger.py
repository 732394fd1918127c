"""What a long stage has measured so far, in a file of JSON lines that a kill leaves readable.

    {"fingerprint": "sha256:..."}
    {"step": "nodes errors, prompt 0", "values": [-3.1, -0.4, -2.2]}
    {"step": "sample 3", "kept": {"nodes": {"resid.1/17@4": 0.3}, "edges": []}}
    {"kind": "score", "name": "faithfulness", ...}

Steps are taken from it when the same command goes on; scores are there to be looked at meanwhile.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from circuitcli import records
from circuitcli.errors import CircuitError, InputError
from circuitcli.reading import parse_object
from circuitcli.records import Record
from circuitcli.runs import atomic, write_error

T = TypeVar("T")


class Ledger:
    """The file of one piece of work, while it is open; what an earlier, killed run of the same work left is kept."""

    def __init__(self, path: Path, fingerprint: str, *, resumes: bool) -> None:
        self.path, self.fingerprint = path, fingerprint
        self._kept: dict[str, Any] = _steps(path, fingerprint) if resumes else {}
        self._stream: IO[str] | None = None

    def __enter__(self) -> "Ledger":
        # Written anew, so that a line that a kill cut off is gone.
        with atomic(self.path) as stream:
            stream.write(json.dumps({"fingerprint": self.fingerprint}) + "\n")
            for step, values in self._kept.items():
                stream.write(_line(step, values))
        self._stream = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()
        if isinstance(error, CircuitError) and not self._kept:
            # Nothing was measured before the input was refused, so nothing is left to go on with.
            self.path.unlink(missing_ok=True)

    def take(self, step: str, make: Callable[[], list[float]]) -> list[float]:
        """The numbers of a step: those that are kept, or those that are made now, and kept from now on."""
        return self._take(step, make)

    def keep(self, step: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """`take` of an object of JSON in place of numbers."""
        return self._take(step, make)

    def _take(self, step: str, make: Callable[[], T]) -> T:
        if step not in self._kept:
            self._kept[step] = make()
            self._append(_line(step, self._kept[step]))
        found: T = self._kept[step]
        return found

    def add(self, record: Record) -> None:
        """Keep a record that was made, for whoever looks."""
        self._append(records.to_line(record) + "\n")

    def _append(self, line: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write(line)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise write_error(self.path, error) from None


def _line(step: str, values: Any) -> str:
    return json.dumps({"step": step, "kept" if isinstance(values, dict) else "values": values}) + "\n"


def _steps(path: Path, fingerprint: str) -> dict[str, Any]:
    """The steps in a file of this fingerprint, up to the first line that is not whole."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for number, line in enumerate(lines):
        try:
            content = parse_object(line, name=path.name, finite=False)
        except InputError:
            break
        if number == 0 and content.get("fingerprint") != fingerprint:
            break
        if "step" in content and isinstance(content.get("kept"), dict):
            found[str(content["step"])] = content["kept"]
        elif "step" in content:
            found[str(content["step"])] = _values(content.get("values"))
    return found


def _values(content: Any) -> list[float]:
    return [float(value) for value in content] if isinstance(content, list) else []
