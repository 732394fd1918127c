"""The options by which `circuit interp` gets labels that are not made by rules, and what it does for them."""

from circuitcli.cli.jobs import Call, Job, show_plan
from circuitcli.cli.options import Flag, switch
from circuitcli.errors import SettingsError
from circuitcli.records import Record

FLAGS = (
    Flag("explain.features", "--features", metavar="WHICH"),
    Flag("explain.model", "--explainer", metavar="MODEL"),
    Flag("explain.base_url", "--base-url", metavar="URL"),
    Flag("explain.max_usd", "--max-usd", metavar="USD"),
    Flag("explain.labels", "--labels", metavar="FILE", repeats=True),
    Flag("explain.neuronpedia", "--neuronpedia"),
)
# Of these options those that ask for labels by themselves.
_OTHERS = ("explain.labels", "explain.neuronpedia")
EXTRAS = (
    switch("explain", "--explain", help="Ask a language model what features mean, and score its answers."),
    switch("dry_run", "--dry-run", "-n", help="With --explain, count questions, tokens and dollars, and ask nothing."),
)


def check_single(call: Call) -> None:
    """Raise SettingsError where a text or single features are shown and labels are to be made too: that is another
    command."""
    asked = [
        name
        for name, is_asked in (
            ("--explain", call.extras["explain"]),
            ("--dry-run", call.extras["dry_run"]),
            ("--neuronpedia", call.loaded.origins.get("explain.neuronpedia") == "flag"),
        )
        if is_asked
    ]
    shown = "--text" if call.extras["text"] is not None else "--feature" if call.extras["feature"] else None
    if asked and shown:
        way = "name those to explain with --features" if shown == "--feature" else f"make labels first, without {shown}"
        raise SettingsError(f"{asked[0]} makes labels, and {shown} shows what there is", hint=way)


def wants_labels(call: Call) -> bool:
    """Whether labels are to be had from elsewhere. Raises SettingsError for options that then mean nothing."""
    settings = call.loaded.settings.explain
    if call.extras["dry_run"] and not call.extras["explain"]:
        raise SettingsError("interp has nothing to estimate without --explain", hint="add --explain, or drop --dry-run")
    for flag in FLAGS:
        serves = call.extras["explain"] or flag.setting in _OTHERS
        serves = serves or (settings.neuronpedia and flag.setting == "explain.features")
        if call.loaded.origins.get(flag.setting) == "flag" and not serves:
            raise SettingsError(
                f"{flag.name} is about a language model's labels", hint="add --explain, or leave it out"
            )
    return bool(call.extras["explain"] or settings.neuronpedia or "explain.labels" in call.loaded.origins)


def label(call: Call, job: Job) -> list[Record]:
    """The records of all labels that were asked for: first those by hand, for they cost nothing."""
    from circuitcli.stages import labels

    made: list[Record] = []
    if job.request.settings.explain.labels:
        made += labels.run(job.request)
    if job.request.settings.explain.neuronpedia:
        from circuitcli.stages import neuronpedia

        made += neuronpedia.run(job.request)
    if call.extras["explain"]:
        made += _explained(job)
    return made


def _explained(job: Job) -> list[Record]:
    """What a language model says, of features that are described first if they are not yet."""
    from circuitcli.stages import explain, interp

    described, request = interp.described(job.request)
    return [*described, *explain.run(request)]


def show_estimate(job: Job) -> None:
    """Tell what explaining would ask and cost."""
    from circuitcli.stages import explain

    show_plan(explain.plan(job.request))
