"""The features of all checkpoints matched, hook point by hook point; a killed command goes on with the next pair."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from circuitcli import progress
from circuitcli.development.found import SHUFFLED, Found, Pair, pairs_of
from circuitcli.development.lives import Life, lives, table
from circuitcli.hookpoints import HookPoint
from circuitcli.records import MatchRecord, Record, SaeRecord
from circuitcli.render.development import plot_of
from circuitcli.runs import atomic, digest
from circuitcli.settings.develop import DevelopSettings
from circuitcli.stages.checkpoint_run import CheckpointRun
from circuitcli.stages.development_report import REPORT, write_report
from circuitcli.stages.figures import drawn
from circuitcli.stages.ledger import Ledger
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from circuitcli.stages.sides import Sides

PARTIAL = "reports/development.steps.jsonl"


def matched(request: Request, runs: Sequence[CheckpointRun], *, fingerprint: str) -> list[Record]:
    """Records of all matches and of what became of features, with the report, a table and a figure for each hook
    point."""
    from circuitcli.stages.sides import FOLDER

    root = request.run.path
    coders = [one for run in runs for one in run.coders.values()]
    inputs = [record.digest for one in coders for record in one.of(SaeRecord)]
    found: dict[HookPoint, Found] = {}
    with Ledger(root / PARTIAL, digest([fingerprint, inputs]), resumes=True) as ledger:
        hooks = _hooks(runs)
        for number, hook in enumerate(hooks):
            with progress.within(f"{hook} ({number + 1}/{len(hooks)})"):
                found[hook] = _found(request, runs, hook, ledger)
    made = [record for hook, one in found.items() for record in _told(request, hook, one)]
    write_report(request, runs, found, made)
    (root / PARTIAL).unlink(missing_ok=True)
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    return made


def _hooks(runs: Sequence[CheckpointRun]) -> list[HookPoint]:
    """Where the coders of all checkpoints read."""
    each = [{HookPoint.parse(record.hook) for record in one.own.of(SaeRecord)} for one in runs]
    return sorted(set.intersection(*each))


def _found(request: Request, runs: Sequence[CheckpointRun], hook: HookPoint, ledger: Ledger) -> Found:
    """Compares all that is not in the ledger yet."""
    from circuitcli.stages.sides import Sides

    sides = Sides(request, runs, hook)
    names = [run.checkpoint.name for run in runs]
    told = [ledger.keep(f"{hook} {name}", partial(sides.facts, number)) for number, name in enumerate(names)]
    wanted = pairs_of([len(run.coders) for run in runs])
    kept = [
        ledger.keep(f"{hook} {pair.name}", partial(_compare, sides, request.settings.develop, pair))
        for pair in progress.track(wanted, "match", unit="pairs")
    ]
    matches = [
        MatchRecord(hook=str(hook), source=names[pair.source[0]], target=names[pair.target[0]], **_tuples(facts))
        for pair, one in zip(wanted, kept, strict=True)
        for facts in one["measures"]
    ]
    steps = [
        {source: (target, cosine) for source, target, cosine in one["pairs"]}
        for pair, one in zip(wanted, kept, strict=True)
        if pair.links
    ]
    return Found(
        checkpoints=tuple(run.checkpoint for run in runs),
        matches=tuple(matches),
        lives=tuple(_labelled(lives([one["live"] for one in told], steps), runs, hook)),
        live=tuple(len(one["live"]) for one in told),
        token_level=tuple(one["token_level"] for one in told),
    )


def _tuples(facts: dict[str, Any]) -> dict[str, Any]:
    """Lists, which JSON has, as records have them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}


def _compare(sides: "Sides", settings: DevelopSettings, pair: Pair) -> dict[str, Any]:
    """The numbers of a comparison by each measure; of neighbours the pairs that count as one feature too."""
    from circuitcli.development.comparing import compared

    source, target, seed = sides.of(*pair.source), sides.of(*pair.target), sides.seed(pair.name)
    if pair.control == SHUFFLED:
        source = source.shuffled(seed)
    by = "activation" if settings.by == "decoder" else settings.by
    found = compared(source, target, by=by, assignment=settings.assignment)
    about = {
        "control": pair.control,
        "is_step": pair.is_step,
        "assignment": settings.assignment,
        "n_tokens": source.codes.n_tokens,
    }
    return {
        "measures": [about | one.facts(least=settings.least, seed=seed) for one in found.values()],
        "pairs": found[settings.by].pairs.listed(settings.least) if pair.links else [],
    }


def _labelled(found: Sequence[Life], runs: Sequence[CheckpointRun], hook: HookPoint) -> Iterator[Life]:
    """Lives with the label that `circuit interp` gave the feature at its last checkpoint, where it was asked to."""
    names = [run.labels(hook) for run in runs]
    for one in found:
        yield replace(one, label=names[one.last].get(one.features[-1], ""))


def _told(request: Request, hook: HookPoint, found: Found) -> list[Record]:
    """The records of a hook point, whose table and figure are written."""
    path = f"reports/development-{hook}.csv"
    with atomic(request.run.path / path) as stream:
        stream.write(table(found.lives, found.names))
    record = found.record(request.settings.develop, hook, report=REPORT, table=path)
    return [*found.matches, record, *drawn(request.run, f"development-{hook}", plot_of(record, found.matches))]
