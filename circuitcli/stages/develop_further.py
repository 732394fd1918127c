"""What `circuit develop` makes behind the coders: a crosscoder over checkpoints, circuits, and the page of both."""

from dataclasses import replace

from circuitcli.records import Record
from circuitcli.stages import develop_circuits, develop_crosscoder, timeline
from circuitcli.stages.develop_crosscoder import FOLDER
from circuitcli.stages.request import Request
from circuitcli.stages.through import asked, has_prompts


def run(request: Request) -> list[Record]:
    """The records of what the settings ask for, made now or before; each part goes on where it stopped.

    Raises SettingsError for prompts that cannot be followed through training, and what the parts raise.
    """
    asked = replace(request, records=request.run.stream())
    made: list[Record] = []
    if request.settings.develop.crosscoder:
        made += develop_crosscoder.run(asked)
    if has_prompts(request.settings):
        made += develop_circuits.run(asked)
        made += timeline.write_files(request.run, [])
    return made


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people."""
    settings = request.settings
    told = []
    if settings.develop.crosscoder:
        told.append(("crosscoder", f"of all checkpoints, at each hook point, in {FOLDER}"))
    if has_prompts(settings):
        told.append(("circuits", f"of {len(asked(settings))} prompts at each checkpoint, drawn in {timeline.DEFAULT}"))
    return told
