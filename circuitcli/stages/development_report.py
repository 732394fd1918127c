"""reports/development.json: all that `circuit develop` found; its shape is told in `circuitcli.development.lives`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from circuitcli.development.found import Found
from circuitcli.hookpoints import HookPoint
from circuitcli.records import DevelopmentRecord, MatchRecord, Record, SaeRecord
from circuitcli.runs import atomic
from circuitcli.saes.folder import read_config
from circuitcli.stages.checkpoint_run import CheckpointRun
from circuitcli.stages.request import Request

REPORT = "reports/development.json"
_FIELDS = ("explained_variance", "l0", "loss_recovered", "dead", "ce_clean", "ce_spliced")


def write_report(
    request: Request, runs: Sequence[CheckpointRun], found: Mapping[HookPoint, Found], made: Sequence[Record]
) -> None:
    """Write what was found at all hook points, and the records that were made of it."""
    settings = request.settings.develop
    content = {
        "checkpoints": [run.record.model_dump(exclude_none=True) for run in runs],
        "by": settings.by,
        "assignment": settings.assignment,
        "least": settings.least,
        "n_tokens": min(settings.tokens, runs[0].record.n_tokens or 0),
        "coders": [*_coders(runs, found)],
        "matches": [one.model_dump(exclude_none=True) for one in made if isinstance(one, MatchRecord)],
        "development": [one.model_dump() for one in made if isinstance(one, DevelopmentRecord)],
        "lives": {str(hook): [life.content() for life in one.lives] for hook, one in found.items()},
    }
    with atomic(request.run.path / REPORT) as stream:
        json.dump(content, stream, ensure_ascii=False)
        stream.write("\n")


def _coders(runs: Sequence[CheckpointRun], found: Mapping[HookPoint, Found]) -> Iterator[dict[str, Any]]:
    """How good the coders are, and how many of the features of each checkpoint's first are live, or of tokens."""
    for number, run in enumerate(runs):
        for seed, (path, records) in enumerate(run.coders.items()):
            for record in records.of(SaeRecord):
                config = read_config(path / record.path)
                told = {name: config.get(name) for name in _FIELDS}
                about = {"checkpoint": run.checkpoint.name, "seed": seed, "hook": record.hook}
                one = found.get(HookPoint.parse(record.hook)) if seed == 0 else None
                live = {} if one is None else {"n_live": one.live[number], "n_token_level": one.token_level[number]}
                yield {**about, **told, **live}
