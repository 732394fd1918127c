"""``circuit validate``."""

from dataclasses import replace
from pathlib import Path

from circuitcli.cli.console import console
from circuitcli.cli.jobs import Call
from circuitcli.cli.options import BEHAVIOUR, FILE, MODEL_OF_RUN, RUN, SAE, SEED, Flag
from circuitcli.cli.told import told
from circuitcli.cli.verdict import verdict

FLAGS = (
    Flag("validate.graph", "--graph"),
    Flag("validate.pin", "--pin", repeats=True),
    Flag("validate.prompts", "--prompts", metavar="FILE"),
    Flag("validate.sequences", "--sequences"),
    Flag("validate.at_least", "--at-least"),
    Flag("validate.baseline", "--baseline"),
    Flag("validate.ablations", "--ablations", metavar="NAMES"),
    Flag("validate.control_graph", "--control-graph"),
    Flag("validate.basis", "--basis"),
    Flag("validate.curve", "--curve"),
    Flag("validate.errors", "--errors"),
    Flag("validate.name", "--name"),
    Flag("validate.stability", "--stability"),
    Flag("validate.rival", "--rival"),
    Flag("validate.sae_seeds", "--sae-seeds", metavar="PATH", repeats=True),
    Flag("validate.against", "--against", metavar="GRAPH"),
    Flag("validate.interaction", "--interaction", metavar="HOOK,HOOK", repeats=True),
    Flag("validate.scale", "--scale", metavar="FEATURE=FACTOR", repeats=True),
    Flag("validate.choices", "--choices", metavar="FILE"),
    Flag("validate.shots", "--shots"),
    Flag("validate.generate", "--generate"),
    Flag("validate.temperature", "--temperature"),
    *BEHAVIOUR,
    *SAE,
    *MODEL_OF_RUN,
    *RUN,
    *SEED,
)
EXTRAS = (FILE,)


def validate(call: Call) -> None:
    """Measure how much of a behaviour a circuit explains.

    With --pin, ablate these features together instead: without a prompt, in the run's own text.

    \b
    circuit validate --at-least 0.8
    circuit validate --pin 6:8339,14104
    circuit validate circuit --against circuit-2
    circuit validate --scale 6:8339=3 --generate 40 --prompt "The weather today is"
    circuit validate --choices questions.jsonl --scale 6:8339=0
    """
    job = _graph_by_name(call).open()
    from circuitcli.stages import validate as stage

    emitted = stage.run(job.request)
    job.emit(emitted)
    for line in (*told(emitted), *verdict(emitted)):
        console.say(line)
    stage.check(emitted, job.request.settings)


def _graph_by_name(call: Call) -> Call:
    """The call with the graph that it names first, ``A --against B``, in the place of a file of records."""
    settings, file = call.loaded.settings, call.extras.get("file")
    if settings.validation.against is None or file in (None, "-") or Path(file).exists():
        return call
    section = settings.validation.model_copy(update={"graph": file})
    loaded = replace(call.loaded, settings=settings.model_copy(update={"validation": section}))
    return replace(call, loaded=loaded, extras={**call.extras, "file": None})
