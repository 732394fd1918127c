"""What every stage is asked, and the steps that all stages share."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from circuitcli import group, processes
from circuitcli.errors import CircuitError, InputError, is_out_of_memory
from circuitcli.manifest import NEXT
from circuitcli.records import Record, Stream
from circuitcli.runs import Fingerprint, Run, check_there
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
    request: Request,
    prefixes: Iterable[str],
    inputs: Mapping[str, str],
    *,
    without: Iterable[str] = (),
    measuring: Iterable[str] = (),
) -> Fingerprint:
    """The fingerprint over the settings whose dotted names begin with one of the prefixes.

    measuring: those of them on which only the measuring at the end depends.
    """
    everything, of_measuring = flatten(request.settings), frozenset(measuring)
    chosen, left_out = tuple(prefixes), frozenset(without) | of_measuring
    values = {name: value for name, value in everything.items() if name.startswith(chosen) and name not in left_out}
    return Fingerprint(values, dict(inputs), {name: everything[name] for name in of_measuring})


def resumable(
    request: Request,
    name: str,
    print_: Fingerprint,
    work: Callable[[bool], tuple[list[Record], dict[str, Any]]],
    *,
    partial: Path | None = None,
    keeps: bool = False,
    begins: bool = False,
    clean: Callable[[], None] = lambda: None,
) -> list[Record]:
    """The stage's records: those kept from a finished run of the same fingerprint, or those that ``work`` makes.

    ``work(resumes)`` is told whether earlier, unfinished work of the same fingerprint may be there, and returns records
    and facts for the manifest. The run is locked while it works. ``partial`` is where unfinished work lies; where an
    error left none, or changed nothing, the manifest is as it was before, so that a mistyped setting needs no ``force``
    to be mended and costs nothing that was there. With ``keeps`` what is finished counts until the new work is.
    ``clean`` removes what is not needed any more once all is finished. A run is made only where it ``begins`` here.

    Of several processes the main one decides, holds the lock and writes the manifest; all of them work.
    """
    if not processes.is_main():
        return _helping(work)
    run = request.run
    with run.lock(begins=begins):
        if not request.force and (kept := run.finished(name, print_)) is not None:
            run.touch(name)
            group.share({"works": False})
            unfinished = run.stage(name).get(NEXT)
            # What is unfinished with other settings stays; with these it would make the same again.
            if unfinished is None or print_.is_of(unfinished):
                run.give_up(name)
                clean()
            return kept
        before = run.stages()
        resumes = run.begin(name, print_, force=request.force, keeps=keeps)
        start = time.perf_counter()
        group.share({"works": True, "resumes": resumes})
        try:
            made, facts = work(resumes)
        except BaseException as error:
            check_there(run.manifest_path)
            if _leaves_nothing(error, partial):
                run.restore(name, before if _changed_nothing(error) else _without_unfinished(before, name))
            else:
                run.interrupt(name, seconds=time.perf_counter() - start)
            raise
        run.finish(name, made, seconds=time.perf_counter() - start, **facts)
        clean()
        return made


def _changed_nothing(error: BaseException) -> bool:
    return isinstance(error, CircuitError) and error.changed_nothing


def _leaves_nothing(error: BaseException, partial: Path | None) -> bool:
    """Whether there is nothing to go on with, so that the stage may as well never have begun.

    What does not fit into memory is asked for again with other settings, as what was refused is.
    """
    is_refused = isinstance(error, CircuitError) or is_out_of_memory(error)
    return _changed_nothing(error) or (is_refused and (partial is None or not partial.exists()))


def _without_unfinished(stages: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The stages as they were, but for unfinished work of this one, which made way for that which failed."""
    entry = {key: value for key, value in stages.get(name, {}).items() if key != NEXT}
    return {**stages, name: entry} if name in stages else dict(stages)


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
