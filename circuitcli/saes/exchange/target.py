"""A directory that an export fills: with all of its files or, if it breaks off, with none.

All files are written into a hidden folder inside the directory and synced. Then a mark makes that final, and each file
takes its place by a rename. A signal that Python sees undoes an export before the mark and completes it after. What a
killed process leaves, the next export into the directory does away with in the same manner: folders without a mark are
removed, those with one are completed. A lock tells them from those of processes that are at work.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from circuitcli.errors import InputError

# Beginning of the names of folders in which files are written before they take their places.
ASIDE = ".circuit-export-"
_LOCK, _FILES, _MARK = "lock", "files", "complete"


def sweep(directory: Path) -> None:
    """Do away with what killed exports left in a directory. Raises InputError if another process exports into it."""
    for aside in sorted(directory.glob(f"{ASIDE}*")) if directory.is_dir() else ():
        try:
            lock = (aside / _LOCK).open("rb")
        except FileNotFoundError:
            shutil.rmtree(aside, ignore_errors=True)
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another process exports into {directory}", hint="wait for it, or name another directory with -o"
                ) from None
            _finish(aside, directory)


def is_empty(directory: Path) -> bool:
    """Whether a directory holds nothing; call `sweep` before."""
    return not any(directory.iterdir())


def filled(directory: Path, write: Callable[[Path], list[Path]]) -> list[Path]:
    """Let ``write`` write into a folder that is handed to it; returns the paths that it returns, in their places.

    Other files of the directory stay. Raises OSError, also for a folder where a file is to be, or a file where a folder
    is.
    """
    with _made(directory), _aside(directory) as aside:
        folder = aside / _FILES
        folder.mkdir()
        made = write(folder)
        for file in _files(folder):
            _sync(file)
            target = directory / file.relative_to(folder)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            target.parent.mkdir(parents=True, exist_ok=True)
        (aside / _MARK).touch()
        _sync(aside)
        return [directory / path.relative_to(folder) for path in made]


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """The directory, and those above it; those that were not there go again if an error leaves nothing in them."""
    new = [place for place in (directory, *directory.parents) if not place.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in new:
            with suppress(OSError):
                place.rmdir()


@contextmanager
def _aside(directory: Path) -> Iterator[Path]:
    """A folder that is locked, and finished and removed in the end."""
    aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=directory))
    try:
        with (aside / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield aside
            finally:
                try:
                    _finish(aside, directory)
                except (KeyboardInterrupt, SystemExit):
                    # Renames take no time worth a second signal.
                    _finish(aside, directory)
                    raise
    finally:
        if not (aside / _MARK).exists():
            shutil.rmtree(aside, ignore_errors=True)


def _finish(aside: Path, directory: Path) -> None:
    """Let files that are final take their places, and remove the folder."""
    folder = aside / _FILES
    if (aside / _MARK).exists():
        for file in _files(folder):
            target = directory / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    else:
        _remove_empty(directory, folder)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_empty(directory: Path, folder: Path) -> None:
    """Remove the directories that were made for files which are not to come."""
    for made in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):
            (directory / made.relative_to(folder)).rmdir()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
