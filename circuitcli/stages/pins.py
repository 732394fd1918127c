"""Pinned features ablated together: on prompts, or on whole blocks of the run's own text."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from circuitcli import graphs
from circuitcli.attribution.asked import asked_examples
from circuitcli.attribution.examples import Example, LeftOut, as_line
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, NodeId, parse_pins
from circuitcli.progress import note
from circuitcli.records import ActivationsRecord, Record, ScoreRecord, ShiftRecord
from circuitcli.settings.graph import GraphSettings
from circuitcli.stages.behaviours import of_prompts
from circuitcli.stages.prompts import graph_examples
from circuitcli.stages.report import write_report
from circuitcli.stages.request import Request, resumable
from circuitcli.stages.saes import SaeSource, check_indices, hook_of_pin, sae_sources
from circuitcli.stages.trials import Bench, Plan

if TYPE_CHECKING:
    from circuitcli.validation.tally import JointAblation, Shift, Tally

logger = logging.getLogger(__name__)

NAME = "pins"


def run(request: Request) -> list[Record]:
    """The effect of the pinned features, and what changed most, measured now or before.

    Raises SettingsError for what judges a circuit, InputError for pins that are not there or active nowhere.
    """
    plan = _plan(request).named()
    return resumable(request, plan.entry, plan.fingerprint(), lambda resumes: _work(plan), keeps=True)


def _plan(request: Request) -> Plan:
    settings = request.settings
    if settings.validation.at_least is not None:
        raise SettingsError(
            "validate --pin ablates features, which gives no faithfulness for --at-least to judge",
            hint="leave one of them out",
        )
    pins, sources = pinned(request)
    left_out = LeftOut(allowed=settings.graph.skip_bad)
    examples, metric = _behaviour(request, left_out)
    return Plan(
        request=request,
        name=NAME,
        graph=None,
        nodes=tuple(NodeId(hook, index) for hook, indices in pins.items() for index in indices),
        hooks=tuple(sorted(pins)),
        sources=sources,
        examples=examples,
        metric=metric,
        baseline=settings.validation.baseline or "zero",
        left_out=left_out,
    )


def pinned(request: Request) -> tuple[dict[HookPoint, tuple[int, ...]], dict[HookPoint, SaeSource]]:
    """The pins by the hook points of SAEs, and the SAEs; see `hook_of_pin`. Raises InputError where there is none."""
    pins = parse_pins(request.settings.validation.pin)
    sources = sae_sources(request, stage="validate", layers={hook.layer for hook in pins})
    found = {hook_of_pin(hook, sources): indices for hook, indices in pins.items()}
    for hook in found:
        if hook not in sources:
            there = " ".join(str(known) for known in sources)
            raise InputError(f"no SAE at pinned hook point {hook}", hint=f"there are SAEs at {there}")
    check_indices(request, (NodeId(hook, index) for hook, indices in found.items() for index in indices))
    return found, sources


def _behaviour(request: Request, left_out: LeftOut) -> tuple[tuple[Example, ...], GraphSettings]:
    """Prompts and metric: those asked for; without a prompt none, for the run's own text and its cross-entropy; where
    no text was collected those of the last graph. Raises SettingsError for what only a prompt has, without one."""
    settings = request.settings
    asked = asked_examples(settings.graph, path=settings.validation.prompts, left_out=left_out)
    if asked is not None:
        return asked, settings.graph
    if (named := of_prompts(settings.graph) or ("--foil" if settings.graph.foil is not None else None)) is not None:
        raise SettingsError(f"{named} needs a prompt, but validate --pin has none", hint="add --prompt TEXT")
    chosen = settings.graph.metric if "metric" in settings.graph.model_fields_set else None
    if request.records.of(ActivationsRecord):
        if chosen not in ("cross-entropy", None):
            raise SettingsError(
                f"on the run's own text pins are judged by cross-entropy, not by {chosen}",
                hint="add --prompt TEXT, or leave out --metric",
            )
        return (), settings.graph.model_copy(update={"metric": "cross-entropy"})
    made = graphs.from_records(request.records)
    if not made:
        raise SettingsError(
            "validate --pin has no prompt, and the run has no collected text",
            hint="add --prompt TEXT, or run `circuit collect`",
        )
    head = made[-1].head
    plural = "s" if head.n_prompts > 1 else ""
    note(f"the pins are ablated on the prompt{plural} of graph {head.name}; --prompt names another")
    return graph_examples(made[-1], request.run.path), settings.graph.model_copy(
        update={"metric": chosen or head.metric}
    )


def _work(plan: Plan) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.validation.tally import Tally

    bench = Bench.of(plan)
    top = plan.request.settings.validation.top
    tally = Tally(plan.nodes, bench.later, bench.language_model.tokenizer, top=top)
    facts = _on_prompts(bench, tally) if plan.examples else _on_text(bench, tally)
    joint = tally.result()
    _check_changes(plan, joint)
    about = plan.about(path=f"reports/{plan.name}.json", what="ablated together", **facts)
    effect = ScoreRecord(name="effect", value=joint.effect, standard_error=joint.standard_error, **about)
    made = [effect, *_shifts(plan, joint)]
    write_report(
        plan,
        prompts=[{"prompt": example.prompt, **as_line(example)} for example in plan.examples],
        scores=[effect.model_dump(exclude_none=True)],
        ablated_together=asdict(joint),
    )
    return made, {}


def _check_changes(plan: Plan, joint: "JointAblation") -> None:
    """Raise InputError for pins that are active and change nothing."""
    if joint.is_nothing:
        names = " ".join(str(node) for node in plan.nodes)
        raise InputError(
            f"ablating {names} changes nothing: the effect on the metric is exactly 0, and no later feature changes",
            hint="pin other features",
        )


def _on_prompts(bench: Bench, tally: "Tally") -> dict[str, Any]:
    """Ablate on each prompt. Raises InputError if no pin is active in any."""
    from circuitcli.progress import track
    from circuitcli.validation.pinned import Activity

    plan, activity = bench.plan, Activity(bench.plan.nodes)
    cases = bench.cases()
    for number, case in enumerate(track(cases, "prompts", total=len(cases), unit="batches")):
        if number == 0:
            bench.warn_of_misfits(case)
        activity.see(case)
        tally.add(case, [prompt.text for prompt in case.subject.prompts])
    n_prompts = cases.panel.n_prompts
    where = "in the prompt" if n_prompts == 1 else f"in the {n_prompts} prompts"
    _check_active(plan, activity.silent, where, activity.alive)
    return {"n_prompts": n_prompts, "unit": cases[0].subject.metric.unit}


def _on_text(bench: Bench, tally: "Tally") -> dict[str, Any]:
    """Ablate in blocks of the run's text, last ones first: training holds these out. Raises as `_on_prompts`."""
    from circuitcli.progress import task
    from circuitcli.validation.pinned import Activity, pieces

    plan, activity = bench.plan, Activity(bench.plan.nodes)
    wanted = plan.request.settings.validation.sequences
    n_blocks, n_active, n_tokens = 0, 0, 0
    with task("text", total=wanted, unit="blocks") as advance:
        for piece in pieces(plan.request.run.path / "activations", bench.language_model, bench.coders):
            case = piece.case(bench.rule(piece.subject, (n_blocks,)), plan.nodes)
            if n_blocks == 0:
                bench.warn_of_misfits(case)
            n_blocks, n_tokens = n_blocks + 1, n_tokens + piece.n_tokens
            if activity.see(case, piece.has_row):
                tally.add_text(case, piece.has_row)
                n_active += 1
                advance()
            else:
                tally.add_unchanged()
            if n_active == wanted:
                break
    _check_active(plan, activity.silent, f"on {n_tokens:,} tokens of the run's text", activity.alive)
    return {"n_blocks": n_blocks, "n_active_blocks": n_active, "n_tokens": n_tokens, "unit": "nats"}


def _check_active(plan: Plan, silent: Sequence[NodeId], where: str, alive: Sequence[NodeId]) -> None:
    """Raise InputError if none of the pins differs from its baseline anywhere; say of single ones that they do not."""
    names = " ".join(node.feature for node in silent[:12]) + (" ..." if len(silent) > 12 else "")
    if len(silent) == len(plan.nodes):
        some = " ".join(node.feature for node in alive)
        raise InputError(
            f"nothing to ablate: {names} {'is' if len(silent) == 1 else 'are'} active nowhere {where}",
            hint=f"active there: {some}" if some else "pin other features, or give a --prompt in which they are active",
        )
    if silent:
        logger.warning("%s: active nowhere %s, so this adds nothing to the effect", names, where)


def _shifts(plan: Plan, joint: "JointAblation") -> Iterator[ShiftRecord]:
    """What changed most, for people and for pipes."""
    kinds: tuple[tuple[str, Sequence[Shift], str], ...] = (
        ("token", joint.tokens, "probability"),
        ("context", joint.contexts, "probability"),
        ("feature", joint.features, "activation"),
    )
    for of, shifts, unit in kinds:
        for shift in shifts:
            yield ShiftRecord(
                of=of, name=shift.name, clean=shift.clean, ablated=shift.ablated, unit=unit, graph=plan.name
            )
