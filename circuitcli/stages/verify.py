"""``circuit collect --verify``: whether the run's activations are what was written."""

import logging

from circuitcli import processes
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, is_hook
from circuitcli.records import ActivationsRecord, Record
from circuitcli.runs import Run
from circuitcli.stages import collect

logger = logging.getLogger(__name__)


def run(of: Run) -> list[Record]:
    """The records of the run's activations, all of which were read. Files are not changed.

    Raises InputError if any is damaged or missing, after a warning that names it; the manifest remembers them, and the
    next ``circuit collect`` makes those alone.
    """
    if not processes.is_main():
        return []
    with of.lock():
        entry = of.stage(collect.NAME)
        if not entry:
            raise InputError(f"{of.path} has no activations", hint="run `circuit collect` first, or name another --run")
        made = of.stage_records(collect.NAME) if entry["state"] in ("finished", "damaged") else []
        found = [HookPoint.parse(record.hook) for record in made if isinstance(record, ActivationsRecord)]
        _check(of, entry["state"], found or _hooks_there(of))
    return [of.record(), *made]


def _check(of: Run, state: str, hooks: list[HookPoint]) -> None:
    from circuitcli.activations.storage.verification import verify

    root = of.path / collect.FOLDER
    is_finished = state in ("finished", "damaged")
    verified = verify(root, hooks, is_finished=is_finished)
    for complaint in verified.damage.values():
        logger.warning(complaint)
    if is_finished:
        state = "damaged" if verified.damage else "finished"
    names = [path.relative_to(root).as_posix() for path in verified.damage]
    of.update_stage(collect.NAME, state=state, damaged=names)
    if verified.damage:
        raise InputError(
            f"{len(verified.damage)} of {verified.n_files} files in {root} are damaged or missing",
            hint="run the same `circuit collect` without --verify: it makes these again, and only these",
        )


def _hooks_there(of: Run) -> list[HookPoint]:
    """The hook points of an unfinished collection."""
    folders = sorted((of.path / collect.FOLDER).glob("*/"))
    return [HookPoint.parse(folder.name) for folder in folders if is_hook(folder.name)]
