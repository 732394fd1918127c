"""The model's loss with all that trained transcoders explain replaced at once, as the graphs of these do it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitcli import processes
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ReplacementRecord
from circuitcli.saes.folder import read_config
from circuitcli.stages.measure import held_out
from circuitcli.stages.measuring import finite
from circuitcli.training.plan import training_plan

if TYPE_CHECKING:
    from circuitcli.stages.training import Training
    from circuitcli.stages.unfinished import Finished

# What a set's coders know of it themselves, if they were measured together.
REPLACED = "replaced"
_PREFIXES = ("ce_", "kl_", "loss_")
_NAMES = (REPLACED, "n_predictions")


def replacements(training: "Training", finished: "Sequence[Finished]") -> list[ReplacementRecord]:
    """A record for each variant with several coders that write elsewhere than they read; none where nothing is read.

    Layers of a cross-layer transcoder have been measured so; of transcoders, the model is run through all at once.
    """
    request = training.request
    if not processes.is_main() or not request.settings.train.loss_tokens:
        return []
    records = []
    for variant in dict.fromkeys(one.variant for one in finished):
        coders = [one for one in finished if one.variant == variant and "target" in one.fields]
        if len(coders) > 1:
            of_first = read_config(request.run.path / coders[0].path)
            facts = replacement_facts(of_first) if REPLACED in of_first else _measured(training, coders)
            named = {"variant": variant} if variant else {}
            records.append(replacement_record([str(one.fields["hook"]) for one in coders], facts, **named))
    return [record for record in records if record is not None]


def replacement_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of all that was measured of a coder together with others, the losses with all replaced."""
    return {name: value for name, value in facts.items() if name.startswith(_PREFIXES) or name in _NAMES}


def replacement_record(hooks: Sequence[str], facts: Mapping[str, Any], **named: str) -> ReplacementRecord | None:
    """The record of coders that read these hook points; None if there was no text to measure them on."""
    if REPLACED not in facts:
        return None
    return ReplacementRecord.model_validate({"hooks": list(hooks), **replacement_facts(facts), **named})


def _measured(training: "Training", coders: "Sequence[Finished]") -> dict[str, Any]:
    from circuitcli.saes import files
    from circuitcli.stages.inputs import open_cache

    request = training.request
    loaded = [files.load(request.run.path / one.path) for one in coders]
    hooks = sorted({hook for coder in loaded for hook in (coder.hook, *coder.writes)})
    cache = open_cache(request, hooks, purpose="train")
    rows = training_plan(request.settings, n_rows=cache.n_tokens).held_out_rows
    measure = held_out(request, cache, rows)
    by_hook: dict[HookPoint, Any] = {coder.hook: coder.to(measure.device) for coder in loaded}
    facts: dict[str, Any] = finite(measure.replacement(by_hook))
    return facts
