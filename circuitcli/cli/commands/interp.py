"""``circuit interp``."""

from circuitcli.cli import explaining, paging
from circuitcli.cli.feature_view import show_features
from circuitcli.cli.jobs import Call
from circuitcli.cli.options import FILE, MODEL_OF_RUN, RUN, SAE, Flag, option

FLAGS = (
    Flag("interp.tokens", "--tokens"),
    Flag("interp.score_tokens", "--score"),
    *explaining.FLAGS,
    *SAE,
    *MODEL_OF_RUN,
    *RUN,
)
FEATURE = option(
    "feature",
    "--feature",
    annotation=list[str] | None,
    default=None,
    metavar="ID",
    help="Only show this feature, for example resid.9/23433; may be repeated.",
)
EXTRAS = (FILE, FEATURE, *paging.EXTRAS, *explaining.EXTRAS)


def interp(call: Call) -> None:
    """Describe features by contexts, tokens and densities.

    \b
    circuit interp
    circuit interp --score 20000 --force
    circuit interp --feature resid.2/17
    circuit interp --labels mine.tsv
    circuit interp --text "When Mary and John went to the store,"
    circuit interp --html pages
    circuit interp --feature resid.2/17 --html - > page.html
    circuit interp --explain --explainer HuggingFaceTB/SmolLM2-1.7B-Instruct --features random:20
    circuit interp --explain --base-url http://127.0.0.1:8080/v1 --explainer qwen3 --dry-run
    """
    explaining.check_single(call)
    if paging.wants_text(call):
        return paging.show_text(call)
    wants_labels = explaining.wants_labels(call)
    job = call.open()
    if call.extras["dry_run"]:
        return explaining.show_estimate(job)
    if paging.wants_pages(call):
        return paging.write(call, job, made=explaining.label(call, job) if wants_labels else [])
    from circuitcli.stages import interp as stage

    if call.extras["feature"]:
        return show_features(stage.describe(job.request, call.extras["feature"]))
    job.emit(explaining.label(call, job) if wants_labels else stage.run(job.request))
