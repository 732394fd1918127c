"""What a training that is under way has made beside its checkpoints: SAEs that were measured, not given out yet.

RUN/saes/checkpoint/step-00000244/    the state of the training
RUN/saes/checkpoint/saes/PLACE/       SAEs that are to take the place of finished ones
RUN/saes/checkpoint/measured/PLACE    what was measured of one SAE, which is in its place then
RUN/saes/checkpoint/measured.json     the same of all: from here on the new SAEs are those that count
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from circuitcli.errors import InputError
from circuitcli.faults import checked
from circuitcli.hookpoints import is_hook
from circuitcli.reading import read_object
from circuitcli.records import EvaluationRecord, Record
from circuitcli.runs import Run, atomic, make_folder
from circuitcli.saes.folder import CONFIG, WEIGHTS, is_recorded
from circuitcli.schema import PathInRun, Table, Word
from circuitcli.training.log import METRICS

CHECKPOINT, EVALUATION = "checkpoint", "evaluate"
SAES, ONE, ALL = "saes", "measured", "measured.json"
_AGAIN = "train again with --force"


@dataclass(frozen=True)
class Finished:
    """A trained SAE that was measured and saved: its variant, and what records tell of it."""

    variant: str
    fields: Mapping[str, Any]

    @property
    def path(self) -> str:
        """Where it is, or is to be, below the run."""
        return str(self.fields["path"])


class _Measured(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    fingerprint: Word
    measuring: Table


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")
    path: PathInRun
    digest: Word


class _One(_Measured):
    variant: Word
    fields: _Fields


class _Each(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    variant: Word
    fields: _Fields


class _All(_Measured):
    saes: list[_Each]


@dataclass(frozen=True)
class Unfinished:
    """The unfinished work of one training.

    folder: of all SAEs. digest: of the training; measuring: the settings by which its SAEs are measured. is_aside:
    whether what is finished counts until the new SAEs do.
    """

    run: Path
    folder: Path
    digest: str
    measuring: Mapping[str, Any]
    is_aside: bool

    @property
    def directory(self) -> Path:
        """All that is unfinished."""
        return self.run / self.folder / CHECKPOINT

    @property
    def saes(self) -> Path:
        """Where new SAEs and the metrics of the training are written, by the places of SAEs."""
        return self.directory / SAES if self.is_aside else self.run / self.folder

    def keep(self, place: str, finished: Finished) -> None:
        """Remember what was measured of one SAE."""
        _write(self._one(place), {**self._head(), **asdict(finished)})

    def known(self, place: str) -> Finished | None:
        """What was measured of an SAE before a kill, if its files are there."""
        path = self._one(place)
        if not path.is_file() or not all((self.saes / place / name).is_file() for name in (WEIGHTS, CONFIG)):
            return None
        content = _read(path, _One)
        return Finished(content["variant"], content["fields"]) if self._is_own(content, measured=True) else None

    def keep_all(self, finished: Iterable[Finished]) -> None:
        """Remember that all SAEs are trained and measured."""
        _write(self.directory / ALL, {**self._head(), "saes": [asdict(one) for one in finished]})

    def all_known(self, *, measured: bool) -> list[Finished] | None:
        """All SAEs, if all were trained and, where it matters, ``measured`` as is asked for now."""
        path = self.directory / ALL
        if not path.is_file():
            return None
        content = _read(path, _All)
        return [Finished(**one) for one in content["saes"]] if self._is_own(content, measured=measured) else None

    @property
    def has_results(self) -> bool:
        """Whether anything was measured."""
        return (self.directory / ONE).exists() or (self.directory / ALL).exists()

    def give_out(self) -> None:
        """Put the files of new SAEs in the place of old ones. A kill in between is made up for by another call."""
        made = self.directory / SAES
        for file in sorted(path for path in made.rglob("*") if path.is_file()):
            target = self.run / self.folder / file.relative_to(made)
            make_folder(target.parent)
            file.replace(target)

    def remove(self) -> None:
        """Remove all that is unfinished, at once as far as anybody sees."""
        gone = self.directory.with_name(f"{CHECKPOINT}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        if self.directory.exists():
            self.directory.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _head(self) -> dict[str, Any]:
        return {"fingerprint": self.digest, "measuring": dict(self.measuring)}

    def _one(self, place: str) -> Path:
        return self.directory / ONE / f"{place}.json"

    def _is_own(self, content: Mapping[str, Any], *, measured: bool) -> bool:
        is_own = content["fingerprint"] == self.digest
        return is_own and (not measured or content["measuring"] == json.loads(json.dumps(dict(self.measuring))))


def remove_others(run: Run, folder: Path, finished: Iterable[Finished], *, pattern: str) -> None:
    """Remove what an earlier training left: SAEs of other hook points or variants, and what was measured of them.

    Those that it did not make, which have no metrics, stay. pattern: of the folders of SAEs below ``folder``.
    """
    kept = {one.path for one in finished}
    for metrics in sorted((run.path / folder).glob(f"{pattern}/{METRICS}")):
        place = metrics.parent
        if is_hook(place.name) and place.relative_to(run.path).as_posix() not in kept:
            shutil.rmtree(place)
            if place.parent != run.path / folder and not any(place.parent.iterdir()):
                place.parent.rmdir()
    done = [name for name, entry in run.stages().items() if entry.get("state") == "finished"]
    measured = [name for name in done if name.partition(":")[0] == EVALUATION]
    run.forget(name for name in measured if not all(_is_there(run, record) for record in run.stage_records(name)))


def _is_there(run: Run, record: Record) -> bool:
    """Whether an SAE that was measured is still what it was; those of other runs are not looked at."""
    if not isinstance(record, EvaluationRecord) or not record.path.startswith("saes/"):
        return True
    try:
        return is_recorded(run.path / record.path, record.digest)
    except InputError:
        return False


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as stream:
        json.dump(content, stream, indent=1, allow_nan=False)
        stream.write("\n")


def _read(path: Path, schema: type[_Measured]) -> dict[str, Any]:
    content = read_object(path, hint=_AGAIN)
    checked(schema, content, place=str(path), hint=_AGAIN)
    return content
