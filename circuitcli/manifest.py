"""run.json: what it may hold, checked when it is read, and the fingerprint by which a stage's work is known again.

{"format": 1, "version": "0.1.0", "model": "gpt2", "model_settings": {"model.name": "gpt2", ...},
 "stages": {"train": {"fingerprint", "settings", "inputs", "state", "command", "started", "seconds", "versions",
                      "measuring": {settings of the measuring at the end alone},
                      "next": {the same of unfinished work that is to take its place}}}}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from circuitcli.errors import InputError
from circuitcli.faults import checked
from circuitcli.reading import parse_object, read_bytes
from circuitcli.schema import LONGEST_TABLE, Count, Number, PathInRun, Table, Text, Word
from circuitcli.settings.model import ModelSettings

FORMAT_VERSION = 1
# The part of a stage's entry about work that is to take the place of what is finished.
NEXT = "next"
# Settings that are named, at most, where a stage was run with others.
_NAMED_DIFFERENCES = 4
_HINT = "choose another --run, or start again with `circuit collect --force`"


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class _Work(_Content):
    fingerprint: Word = ""
    settings: Table = {}
    inputs: Table = {}
    measuring: Table = {}
    state: Word = ""
    command: Text = ""
    started: Word = ""
    seconds: Number = 0.0
    versions: Table = {}


class _Entry(_Work):
    next: _Work | None = None
    tokens: Count | None = None
    held_out: Count | None = None
    n_tokens: Count | None = None
    report: PathInRun | None = None
    damaged: tuple[PathInRun, ...] = ()


class _Manifest(_Content):
    version: Word = ""
    model: Word = ""
    revision: Word | None = None
    layers: Word = ":"
    n_layers: Count | None = None
    d_model: Count | None = None
    model_settings: Table = {}
    stages: Annotated[dict[Word, _Entry], Field(max_length=LONGEST_TABLE)] = {}


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a run.json. Raises InputError for one that no version of this package has written."""
    text = read_bytes(path, hint=_HINT)
    _check(text, path)
    content: dict[str, Any] = json.loads(text.decode("utf-8-sig"))
    return content


@lru_cache(maxsize=4)
def _check(text: bytes, path: Path) -> None:
    """Raise InputError as `read_manifest` does; commands read the same text many times."""
    content = parse_object(text, name=str(path), hint=_HINT)
    if content.get("format") != FORMAT_VERSION:
        raise InputError(
            f"{path.parent} has run format {str(content.get('format'))[:60]}; this version reads {FORMAT_VERSION}",
            hint="choose another --run",
        )
    checked(_Manifest, content, place=str(path), hint=_HINT)
    settings = {name.removeprefix("model."): value for name, value in content.get("model_settings", {}).items()}
    checked(ModelSettings, settings, place=str(path), hint=_HINT)


def digest(content: Any) -> str:
    """``sha256:...`` of a JSON-like value, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Fingerprint:
    """What a stage's result depends on: settings by dotted name, and digests of inputs by name.

    measuring: settings on which only the measuring of what was made depends; with others, it alone is done again.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    measuring: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One digest for all of it but the measuring."""
        return digest({"settings": self.settings, "inputs": self.inputs, "format": FORMAT_VERSION})

    def is_of(self, entry: Mapping[str, Any]) -> bool:
        """Whether a stage's entry is about the same work, whatever was measured of it."""
        if not entry:
            return False
        # Versions before this one had the settings of the measuring among the others.
        settings = {name: value for name, value in entry.get("settings", {}).items() if name not in self.measuring}
        return entry.get("fingerprint") == self.digest or (
            bool(self.measuring) and _text(settings, entry.get("inputs")) == _text(self.settings, self.inputs)
        )

    def matches(self, entry: Mapping[str, Any]) -> bool:
        """Whether a stage's entry is about the same work, measured in the same way."""
        measured = {**entry.get("settings", {}), **entry.get("measuring", {})}
        return self.is_of(entry) and all(
            _text(measured.get(name)) == _text(self.measuring[name]) for name in self.measuring
        )

    def first_difference(self, other: Mapping[str, Any]) -> str:
        """The first setting or input in which a stage's manifest entry differs, and the names of more, for people."""
        first, more = "", []
        for part, now in (("settings", self.settings), ("inputs", self.inputs)):
            before = other.get(part, {})
            for name in [*now, *(name for name in before if name not in now and name not in self.measuring)]:
                if _text(before.get(name)) == _text(now.get(name)):
                    continue
                if first:
                    more.append(name)
                else:
                    first = f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        if len(more) > _NAMED_DIFFERENCES:
            more[_NAMED_DIFFERENCES - 1 :] = ["others"]
        differs = f"; {' '.join(more)} too" if more else ""
        return first + differs if first else "it was made by another version of the format"


def _text(*values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=str)
