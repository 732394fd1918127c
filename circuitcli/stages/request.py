"""What every stage is asked, and the steps that all stages share."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from circuitcli import group, processes
from circuitcli.errors import CircuitError, InputError
from circuitcli.records import Record, Stream
from circuitcli.runs import Fingerprint, Run
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import flatten

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Request:
    """One call of a stage: settings, the records that it read, the run that it works on."""

    settings: Settings
    records: Stream
    run: Run
    force: bool = False


def fingerprint(
    request: Request, prefixes: Iterable[str], inputs: Mapping[str, str], *, without: Iterable[str] = ()
) -> Fingerprint:
    """The fingerprint over the settings whose dotted names begin with one of the prefixes."""
    chosen, left_out = tuple(prefixes), frozenset(without)
    values = {
        name: value
        for name, value in flatten(request.settings).items()
        if name.startswith(chosen) and name not in left_out
    }
    return Fingerprint(values, dict(inputs))


def resumable(
    request: Request,
    name: str,
    print_: Fingerprint,
    work: Callable[[bool], tuple[list[Record], dict[str, Any]]],
    *,
    partial: Path | None = None,
) -> list[Record]:
    """The stage's records: those kept from a finished run of the same fingerprint, or those that ``work`` makes.

    ``work(resumes)`` is told whether earlier, unfinished work of the same fingerprint may be there, and returns records
    and facts for the manifest. The run is locked while it works. ``partial`` is where unfinished work lies; where an
    error left none, or changed nothing, the manifest is as it was before, so that a mistyped setting needs no ``force``
    to be mended and costs nothing that was there.

    Of several processes the main one decides, holds the lock and writes the manifest; all of them work.
    """
    if not processes.is_main():
        return _helping(work)
    with request.run.lock():
        if not request.force and (kept := request.run.finished(name, print_)) is not None:
            request.run.touch(name)
            group.share({"works": False})
            return kept
        before = request.run.stage(name)
        resumes = request.run.begin(name, print_, force=request.force)
        start = time.perf_counter()
        group.share({"works": True, "resumes": resumes})
        try:
            made, facts = work(resumes)
        except BaseException as error:
            if isinstance(error, CircuitError) and (error.changed_nothing or partial is None or not partial.exists()):
                request.run.restore(name, before)
            else:
                request.run.interrupt(name, seconds=time.perf_counter() - start)
            raise
        request.run.finish(name, made, seconds=time.perf_counter() - start, **facts)
        return made


def _helping(work: Callable[[bool], tuple[list[Record], dict[str, Any]]]) -> list[Record]:
    """What a process does that is not the main one: the work, if the main one finds that it is needed."""
    decision = group.share({"works": False})
    if not decision["works"]:
        return []
    return work(decision["resumes"])[0]


@contextmanager
def changing_nothing() -> Iterator[None]:
    """Around what a stage does before it changes the run: an error in here leaves the run as it was."""
    try:
        yield
    except CircuitError as error:
        error.changed_nothing = True
        raise


def needed(request: Request, kind: type[R], *, stage: str, hint: str) -> list[R]:
    """The records of one kind. Raises InputError if the stage read none."""
    found = request.records.of(kind)
    if not found:
        raise InputError(f"{stage} read no '{kind.model_fields['kind'].default}' record", hint=hint)
    return found
