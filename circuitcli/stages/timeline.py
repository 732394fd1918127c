"""The page with a time slider: what it is drawn from, and its files."""

import json
from collections.abc import Sequence
from pathlib import Path

from circuitcli.errors import SettingsError
from circuitcli.faults import checked
from circuitcli.reading import read_object
from circuitcli.records import FigureRecord, Record
from circuitcli.records.through import TimelineReport
from circuitcli.render.multiples import write_multiples
from circuitcli.render.timeline_page import timeline_page
from circuitcli.render.write import Writer
from circuitcli.runs import Run, atomic
from circuitcli.stages.render import recorded
from circuitcli.stages.request import Request
from circuitcli.stages.timeline_charts import charts

REPORT = "reports/circuits.json"
DEFAULT = "figures/development.html"
SUFFIXES = (".html", ".svg", ".png", ".pdf", ".json")


def write_report(run: Run, report: TimelineReport) -> None:
    """Keep what the page is drawn from."""
    with atomic(run.path / REPORT) as stream:
        json.dump(report.model_dump(mode="json", exclude_none=True), stream, ensure_ascii=False)
        stream.write("\n")


def read_report(run: Run) -> TimelineReport:
    """What `write_report` kept, with charts of all that the run holds by now. Raises InputError if there is none, or if
    it is damaged."""
    path, hint = run.path / REPORT, "run `circuit develop --prompts FILE` again, with --force"
    report = checked(TimelineReport, read_object(path, hint=hint), place=str(path), hint=hint)
    return report.model_copy(update={"charts": charts(run, [frame.circuit for frame in report.frames])})


def run(request: Request, *, stdout: Writer) -> list[Record]:
    """``circuit render`` on a run with circuits through training: the files that the settings name, by default the
    page in the run. Raises InputError without circuits, SettingsError for a file that nothing draws."""
    return [*write_files(request.run, request.settings.render.output)]


def write_files(run: Run, outputs: Sequence[str]) -> list[FigureRecord]:
    """The page, pictures of small multiples, or the numbers, by suffix. Raises SettingsError for another one."""
    for name in outputs:
        if Path(name).suffix.lower() not in SUFFIXES:
            raise SettingsError(f"cannot draw '{name}'", hint=f"files end in {' '.join(SUFFIXES)}")
    report = read_report(run)
    made = []
    for name in outputs or [str(run.path / DEFAULT)]:
        path = Path(name)
        _write(report, path)
        made.append(FigureRecord(path=recorded(path, run.path)))
    return made


def _write(report: TimelineReport, path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in (".html", ".json"):
        text = (
            timeline_page(report) if suffix == ".html" else report.model_dump_json(indent=1, exclude_none=True) + "\n"
        )
        with atomic(path) as stream:
            stream.write(text)
        return
    write_multiples(report, path)
