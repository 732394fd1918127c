"""The test of a circuit: faithfulness, completeness, minimality, its controls, and all its nodes ablated together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from circuitcli.attribution.examples import as_line
from circuitcli.errors import ThresholdError
from circuitcli.records import CurveRecord, FigureRecord, Record, ScoreRecord, Stream
from circuitcli.settings.settings import Settings
from circuitcli.stages import against, choices, interaction, pins, stability, steering
from circuitcli.stages.ledger import Ledger
from circuitcli.stages.modes import check_modes
from circuitcli.stages.planning import MORE_NODES, planned_test
from circuitcli.stages.report import write_report
from circuitcli.stages.request import Request, resumable
from circuitcli.stages.trials import Bench, Plan

if TYPE_CHECKING:
    from circuitcli.validation.curves import Curve
    from circuitcli.validation.scores import PanelCases
    from circuitcli.validation.trial import Trial


def run(request: Request) -> list[Record]:
    """The scores of a graph, or what ablating pinned features does, measured now or before; a killed test goes on.

    Raises InputError for nodes, SAEs or prompts that do not fit, for a metric that the nodes do not change, and for
    pins of which none is active.
    """
    check_modes(request.settings.validation)
    if request.settings.validation.pin:
        return pins.run(request)
    if request.settings.validation.choices is not None:
        return choices.run(request)
    if request.settings.validation.scale:
        return steering.run(request)
    if request.settings.validation.interaction:
        return interaction.run(request)
    if request.settings.validation.against is not None:
        return against.run(request, planned_test)
    plan = planned_test(request).named()
    # What it cannot be asked for is told before anything is run.
    further = stability.planned(request, plan)
    made = resumable(
        request, plan.entry, plan.fingerprint(), lambda resumes: _work(plan, resumes), partial=plan.partial, keeps=True
    )
    return made if further is None else stability.run(further, made)


def check(made: Sequence[Record], settings: Settings) -> None:
    """Raise ThresholdError if faithfulness is below ``validate.at_least``."""
    wanted = settings.validation.at_least
    score = _headline(made)
    if wanted is not None and (score is None or score.value < wanted):
        value = "not measured" if score is None else f"{score.value:.4f}"
        raise ThresholdError(f"faithfulness is {value}, below {wanted}", hint=MORE_NODES)


def _headline(made: Sequence[Record]) -> ScoreRecord | None:
    scores = Stream(made).of(ScoreRecord)
    return next((score for score in scores if score.name == "faithfulness" and score.judged), None)


def _trials(bench: Bench, cases: "PanelCases", ledger: Ledger) -> "dict[str, Trial]":
    """The test under each ablation, the judged one first."""
    from circuitcli.validation.scores import steps_named
    from circuitcli.validation.trial import Trial

    plan, settings = bench.plan, bench.plan.request.settings
    trial = Trial(
        cases,
        settings.validation,
        settings.seed,
        plan.metric.batch_size,
        keep=ledger.take,
        edges=bench.edges,
        means=bench.means(),
    )
    others = {
        name: replace(trial, cases=those, keep=steps_named(f"{name} ablation", ledger.take), is_main=False)
        for name, those in bench.under(plan.ablations, cases).items()
    }
    return {plan.baseline: trial, **others}


def _work(plan: Plan, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.validation.trial import scored
    from circuitcli.validation.verdict import facts_of, judge

    bench = Bench.of(plan)
    cases = bench.cases()
    bench.warn_of_misfits(cases[0])
    settings = plan.request.settings
    with Ledger(plan.partial, plan.fingerprint().digest, resumes=resumes) as ledger:
        trials = _trials(bench, cases, ledger)
        if not any(trial.has_range for trial in trials.values()):
            plan.partial.unlink(missing_ok=True)
        about = plan.about(
            n_prompts=cases.panel.n_prompts,
            n_nodes=len(cases.nodes),
            held_out=settings.validation.prompts is not None or None,
        )
        made: list[Record] = []
        for ablation, measured in scored(trials):
            score = measured.record({**about, "ablation": ablation})
            ledger.add(score)
            made.append(score)
        curves = [curve.record({**about, "errors": settings.validation.errors}) for curve in _curves(trials)]
    effect, together = _together(bench, cases)
    facts = facts_of(made)
    verdicts = [] if facts is None else [judge(facts).record({**about, "errors": settings.validation.errors})]
    write_report(
        plan,
        **_no_better(made),
        **{verdict.kind: verdict.model_dump(exclude_none=True) for verdict in verdicts},
        prompts=[{"prompt": example.prompt, **as_line(example)} for example in plan.examples],
        scores=[score.model_dump(exclude_none=True) for score in (*made, effect)],
        curves=[curve.model_dump(exclude_none=True) for curve in curves],
        ablated_together=together,
    )
    figures = _drawn(plan, curves)
    plan.partial.unlink(missing_ok=True)
    return [*made, effect, *curves, *figures, *verdicts], {}


def _together(bench: Bench, cases: "PanelCases") -> tuple[ScoreRecord, dict[str, Any]]:
    """What ablating all nodes together does: its score, and at length for the report."""
    from circuitcli.progress import track
    from circuitcli.validation.tally import Tally

    plan = bench.plan
    tally = Tally(cases.nodes, bench.later, bench.language_model.tokenizer, top=plan.request.settings.validation.top)
    for case in track(cases, "ablated together", total=len(cases), unit="batches"):
        tally.add(case, [prompt.text for prompt in case.subject.prompts])
    joint = tally.result()
    effect = ScoreRecord(
        name="effect",
        value=joint.effect,
        unit=cases[0].subject.metric.unit,
        **plan.about(
            n_prompts=cases.panel.n_prompts,
            n_nodes=len(cases.nodes),
            standard_error=joint.standard_error,
            path=f"reports/{plan.name}.json",
            what="ablated together",
        ),
    )
    return effect, asdict(joint)


def _no_better(made: Sequence[Record]) -> dict[str, list[str]]:
    """The controls that the circuit does not beat, if it does not beat some."""
    from circuitcli.validation.verdict import beside, judged_score, unbeaten

    judged = judged_score(made)
    names = [] if judged is None else unbeaten(beside(made, judged))
    return {"no_better_than": names} if names else {}


def _drawn(plan: Plan, curves: Sequence[CurveRecord]) -> list[FigureRecord]:
    """The plot of the curves, if there are any."""
    if not curves:
        return []
    from circuitcli.render.faithfulness import plot
    from circuitcli.render.plots import write_plot

    figure = f"figures/{plan.name}-faithfulness.svg"
    write_plot(plot(curves, title=f"Circuits of {plan.graph}"), plan.request.run.path / figure)
    return [FigureRecord(path=figure)]


def _curves(trials: "Mapping[str, Trial]") -> "Iterator[Curve]":
    """Of the judged ablation, if it leaves something to explain."""
    judged = next(iter(trials.values()))
    return judged.faithfulness_curves() if judged.has_range else iter(())
