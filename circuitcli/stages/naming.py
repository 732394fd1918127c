"""The name of a graph or report in its run: the one that was asked for, or a default one that hits nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from circuitcli.errors import InputError, SettingsError
from circuitcli.manifest import NEXT
from circuitcli.progress import note
from circuitcli.runs import Fingerprint, Run
from circuitcli.schema import name_problem
from circuitcli.stages.request import Request


@dataclass(frozen=True)
class Named:
    """What is named: ``stage`` begins its entry in the manifest, ``folder/NAME.suffix`` is its file in the run."""

    word: str
    stage: str
    folder: str
    suffix: str

    def entry(self, name: str) -> str:
        """The name of its entry in the manifest."""
        return f"{self.stage}:{name}"

    def path(self, run: Run, name: str) -> Path:
        """Its file."""
        return run.path / self.folder / f"{name}{self.suffix}"


GRAPH = Named("graph", "graph", "graphs", ".jsonl")
REPORT = Named("report", "validate", "reports", ".json")


def chosen_name(
    run: Run, what: Named, *, asked: str | None, default: str, fingerprint: Fingerprint, force: bool
) -> str:
    """The name to use: that which was asked for; else what already has this fingerprint; else the first that is free.

    Default names are ``default``, ``default-2`` and so on; what was taken is said where it is not the first. With
    ``force`` the first is free. Raises SettingsError for what cannot be a name, InputError for a file that no command
    of this run has made.
    """
    if asked is not None:
        name = valid_name(asked, what=what)
        if not force and not run.stage(what.entry(name)) and what.path(run, name).exists():
            raise InputError(
                f"{what.path(run, name)} exists, and the run does not know from what it was made",
                hint="use --force to replace it, or another --name",
            )
        return name
    names = [*_taken(run, what, default)]
    for name in names:
        entry = run.stage(what.entry(name))
        if fingerprint.is_of(entry) or fingerprint.is_of(entry.get(NEXT, {})):
            if name != default:
                note(f"these settings have already made the {what.word} {name}")
            return name
    if force or not names:
        return default
    free = next(name for name in _numbered(default) if name not in names)
    entry = run.stage(what.entry(default))
    why = f" with other settings: {fingerprint.first_difference(entry)}" if entry else ""
    note(f"this {what.word} is named {free}, since the run already has {default}{why}")
    return free


@dataclass(frozen=True)
class Reported:
    """What a request makes a report of, and the report's places in the run."""

    request: Request
    name: str

    @property
    def entry(self) -> str:
        """The name of the report's entry in the manifest."""
        return REPORT.entry(self.name)

    @property
    def report(self) -> Path:
        """The report's file."""
        return REPORT.path(self.request.run, self.name)

    @property
    def partial(self) -> Path:
        """What was measured before the report is whole."""
        return self.report.with_suffix(".partial.jsonl")


def report_name(request: Request, *, asked: str | None, default: str, fingerprint: Fingerprint) -> str:
    """The name of a request's report, as `chosen_name` chooses."""
    return chosen_name(request.run, REPORT, asked=asked, default=default, fingerprint=fingerprint, force=request.force)


def valid_name(name: str, *, what: Named = GRAPH) -> str:
    """The name, if a file can have it. Raises SettingsError."""
    if problem := name_problem(name):
        raise SettingsError(
            f"'{name}' cannot be the name of a {what.word}: {problem}", hint="use letters, digits, '-' and '_'"
        )
    return name


def _numbered(default: str) -> Iterator[str]:
    yield default
    yield from (f"{default}-{number}" for number in count(2))


def _taken(run: Run, what: Named, default: str) -> Iterator[str]:
    """The default names that are in use, up to the first free one."""
    for name in _numbered(default):
        if not run.stage(what.entry(name)) and not what.path(run, name).exists():
            return
        yield name
