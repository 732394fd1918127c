"""The model's loss with all that trained coders explain replaced at once, as the graphs of transcoders do it."""

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
_PREFIXES, _CE = ("ce_", "kl_", "loss_"), {"ce_spliced", "ce_clean"}
_NAMES = (REPLACED, "n_predictions")


def replacements(training: "Training", finished: "Sequence[Finished]") -> list[ReplacementRecord]:
    """A record for each variant with several coders that write elsewhere than they read, and of others where that is
    asked for; none where nothing is read.

    Layers of a cross-layer transcoder have been measured so; of others, the model is run through all at once.
    """
    train = training.request.settings.train
    if not processes.is_main() or not train.loss_tokens:
        return []
    records = []
    for variant in dict.fromkeys(one.variant for one in finished):
        all_ = [one for one in finished if one.variant == variant and "hooks" not in one.fields]
        coders = all_ if train.compound else [one for one in all_ if "target" in one.fields]
        if len(coders) > (0 if train.compound else 1):
            records.append(_of_variant(training, coders, compound=train.compound))
    return [record for record in records if record is not None]


def _of_variant(training: "Training", coders: "Sequence[Finished]", *, compound: bool) -> ReplacementRecord | None:
    """compound: whether what each costs alone is told too."""
    configs = {str(one.fields["hook"]): read_config(training.request.run.path / one.path) for one in coders}
    of_first = next(iter(configs.values()))
    facts = replacement_facts(of_first) if REPLACED in of_first else _measured(training, coders)
    if compound and REPLACED in facts:
        alone = {hook: found["ce_spliced"] - found["ce_clean"] for hook, found in configs.items() if set(found) >= _CE}
        facts |= {"ce_increase": facts["ce_spliced"] - facts["ce_clean"], "ce_increases": alone}
    named = {"variant": coders[0].variant} if coders[0].variant else {}
    return replacement_record(list(configs), facts, **named)


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
