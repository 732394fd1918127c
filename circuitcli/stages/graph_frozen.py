"""The attribution graph of a prompt: direct effects in the frozen model, pruned by influence."""

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from circuitcli.errors import SettingsError
from circuitcli.records import Record, ScoreRecord
from circuitcli.runs import atomic
from circuitcli.settings.graph import OF_FROZEN, READ_BY_FROZEN, GraphSettings
from circuitcli.stages.graph_task import Task, task_of
from circuitcli.stages.graphing import Prepared, finish, head_of, prepare
from circuitcli.stages.request import Request, resumable

if TYPE_CHECKING:
    from circuitcli.attribution.frozen.checking import EdgeChecks
    from circuitcli.attribution.frozen.search import FrozenSearch

logger = logging.getLogger(__name__)

# Of the settings that a frozen graph does not read, those whose name is another on the command line.
_FLAGS = {"ig_steps": "steps"}
# Settings with which another graph would be meant, and the only value that they can have.
_OTHERWISE = {
    "method": None,
    "baseline": "zero",
    "positions": "all",
    "counterfactual": None,
    "counterfactual_ids": None,
    "pin": (),
    "extend": None,
}
# What each number of the checks of edges is called where people read it.
_CHECKS = {
    "relative_error": "edges: relative error",
    "rank_correlation_doubled": "edges: rank correlation, doubled",
    "rank_correlation_zeroed": "edges: rank correlation, zeroed",
    "sign_agreement_doubled": "edges: sign agreement, doubled",
    "rank_correlation_doubled_coded": "edges out of features and errors: rank correlation, doubled",
    "rank_correlation_zeroed_coded": "edges out of features and errors: rank correlation, zeroed",
    "sign_agreement_doubled_coded": "edges out of features and errors: sign agreement, doubled",
}


def run(request: Request) -> list[Record]:
    """Head, nodes and edges of the graph, and the checks of its edges, found now or before.

    Raises SettingsError for settings that it does not read, InputError for several prompts or for what does not fit
    into memory.
    """
    task = _task(request)
    return resumable(request, task.entry, task.fingerprint(), lambda resumes: _work(task), keeps=True)


def plan(request: Request) -> list[tuple[str, str]]:
    """What the graph will take, by measuring a few passes: features, edges, time and memory, in text for people."""
    from circuitcli.attribution.frozen.estimate import estimated

    task = _task(request)
    return estimated(_search(task, prepare(task))).lines()


def check_unused(settings: GraphSettings) -> None:
    """Raise SettingsError for a setting that only frozen graphs read."""
    # Settings that were printed hold all of them, most as they are anyway.
    given = [name for name in OF_FROZEN if name in _changed(settings) and name != "frozen"]
    if given:
        raise SettingsError(f"{_flag(given[0])} is of frozen graphs", hint="add --frozen, or leave it out")


def _changed(settings: GraphSettings) -> set[str]:
    """The settings that are not as they are by default."""
    usual = type(settings)()
    return {name for name in type(settings).model_fields if getattr(settings, name) != getattr(usual, name)}


def _flag(name: str) -> str:
    return f"--{_FLAGS.get(name, name).replace('_', '-')}"


def _task(request: Request) -> Task:
    settings = request.settings.graph
    unread = sorted(_changed(settings) - set(READ_BY_FROZEN))
    for name in unread:
        if name in _OTHERWISE and getattr(settings, name) != _OTHERWISE[name]:
            only = f"; it is {_OTHERWISE[name]}" if _OTHERWISE[name] else ""
            raise SettingsError(f"a frozen graph reads no {_flag(name)}{only}", hint=f"leave out {_flag(name)}")
    if rest := [_flag(name) for name in unread if name not in _OTHERWISE]:
        # A file or the environment may hold them for other graphs.
        logger.warning("a frozen graph reads no %s: nothing changes", " ".join(rest))
    if settings.metric == "kl":
        raise SettingsError(
            "the metric kl has no gradient at the clean run, so that no node of a frozen graph has an effect",
            hint="use --metric log-prob or logit-diff",
        )
    if settings.sequences > 1:
        raise SettingsError(
            f"a frozen graph is of one prompt, not of {settings.sequences}", hint="leave --sequences out"
        )
    foreign = [name for name in type(settings).model_fields if name not in READ_BY_FROZEN]
    return task_of(request, "graph-grad", name="circuit", positions="all", baseline="zero", foreign=foreign)


def _search(task: Task, prepared: Prepared) -> "FrozenSearch":
    from circuitcli.attribution.frozen.search import FrozenSearch

    return FrozenSearch.of(prepared.panel, task.settings)


def _work(task: Task) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.attribution.attention.records import score_records
    from circuitcli.attribution.frozen.estimate import check_fits
    from circuitcli.models.attention import check_heads

    prepared = prepare(task)
    search = _search(task, prepared)
    if task.settings.heads:
        check_heads(prepared.language_model.adapter)
    check_fits(search)
    tokens = prepared.language_model.tokenizer.token_strings(list(search.nodes.logits))
    checks = search.checks(task.request.settings.seed)
    head = head_of(task, prepared, **search.facts(tokens, checks))
    more = score_records(prepared.panel, task.settings.qk, count=task.settings.pairs, graph=task.name)
    return finish(task, search.graph(head), prepared, more=[*_scores(task, checks), *more])


def _scores(task: Task, checks: "EdgeChecks | None") -> list[Record]:
    """What intervening on edges has shown, with a report of each edge."""
    if checks is None:
        return []
    path = task.request.run.path / "reports" / f"{task.name}.edges.json"
    with atomic(path) as stream:
        edges = [{**asdict(check), "relative_error": check.relative_error} for check in checks.checks]
        json.dump({"graph": task.name, **checks.facts(), "checks": edges}, stream, indent=1)
        stream.write("\n")
    found = checks.facts()
    return [
        ScoreRecord(name=title, value=value, unit="ratio", graph=task.name, samples=len(checks.checks))
        for name, title in _CHECKS.items()
        if (value := found[name]) is not None
    ]
