"""What is wrong with a command line by itself; looked for before any record is read or any run is sought.

So a malformed option is told as such (exit status 2), whether or not there is a run to work on (3).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import NodeId
from circuitcli.reading import as_path
from circuitcli.settings.section import reachable

if TYPE_CHECKING:
    from circuitcli.cli.jobs import Call


def check(call: "Call") -> None:
    """Raise SettingsError for options that no run could make sense of."""
    if (file := call.extras.get("file")) not in (None, "-"):
        as_path(file, error=SettingsError)
    _CHECKS.get(call.command, lambda call: None)(call)


def _pretrain(call: "Call") -> None:
    from circuitcli.stages.pretrain import check as check_pretraining

    check_pretraining(call.loaded.settings)


def _train(call: "Call") -> None:
    from circuitcli.stages.sweep import variants
    from circuitcli.training.plan import check_objective

    for settings in variants(call.loaded.settings).values():
        check_objective(settings)


def _interp(call: "Call") -> None:
    for text in call.extras["feature"] or ():
        NodeId.parse(text)
    if call.extras["explain"]:
        from circuitcli.stages.explainer import check as check_explainer

        check_explainer(call.loaded.settings.explain, asks=not call.extras["dry_run"])


def _graph(call: "Call") -> None:
    from circuitcli.attribution.asked import check_prompts
    from circuitcli.stages.graph_task import check_settings

    settings = call.loaded.settings.graph
    check_prompts(settings, settings.prompts)
    check_settings(settings)


def _validate(call: "Call") -> None:
    from circuitcli.attribution.asked import check_prompts
    from circuitcli.stages.modes import check_modes
    from circuitcli.stages.steering import check as check_steering

    settings = call.loaded.settings
    check_prompts(settings.graph, settings.validation.prompts or settings.graph.prompts)
    check_modes(settings.validation)
    check_steering(settings.validation, settings.graph)


def _render(call: "Call") -> None:
    outputs = call.loaded.settings.render.output
    if call.extras["curves"] or call.extras["sweep"]:
        from circuitcli.stages.curves import checked_curves

        checked_curves(outputs)
    else:
        from circuitcli.render.write import checked

        checked(outputs, call.loaded.settings.render.form)


def _inspect(call: "Call") -> None:
    if call.extras["sae"] is not None:
        reachable(call.extras["sae"])
        return
    measuring = ("inspect.tokens", "data.text", "model.name", "model.revision", "model.device", "model.dtype")
    if given := [name for name in measuring if call.loaded.origins.get(name) == "flag"]:
        raise SettingsError(
            f"--{given[0].rpartition('.')[2].replace('name', 'model')} is for looking at SAEs, but no SAE is named",
            hint="name them, for example `circuit inspect runs/gpt2`; without an SAE the run is listed",
        )


def _export(call: "Call") -> None:
    from circuitcli.stages.export import Choice, wanted

    wanted(call.extras["to"], call.extras["output"])
    Choice.of(call.extras["layers"], call.extras["sites"])


def _toy(call: "Call") -> None:
    from circuitcli.settings.toy import check

    check(call.loaded.settings.toy)


_CHECKS: "dict[str, Callable[[Call], None]]" = {
    "pretrain": _pretrain,
    "train": _train,
    "toy": _toy,
    "interp": _interp,
    "graph-grad": _graph,
    "graph-naive": _graph,
    "validate": _validate,
    "render": _render,
    "inspect": _inspect,
    "export": _export,
}
