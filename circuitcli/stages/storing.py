"""How activations are stored where the settings leave it open: chosen once, then kept for whoever goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from circuitcli import group, processes
from circuitcli.hookpoints import HookPoint
from circuitcli.progress import note
from circuitcli.stages.estimates import BYTES
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from circuitcli.activations.choosing import NumberType

AUTO = "auto"
# What a dry run counts with: the type that is chosen most often.
USUAL = "float16"


def with_data(request: Request, **changes: Any) -> Request:
    """The request with other settings of the data."""
    data = request.settings.data.model_copy(update=changes)
    return replace(request, settings=request.settings.model_copy(update={"data": data}))


def number_types(
    request: Request,
    stage: str,
    hooks: Sequence[HookPoint],
    *,
    choose: "Callable[[], Mapping[HookPoint, NumberType]]",
    resumes: bool,
) -> dict[HookPoint, str]:
    """In what each hook point is stored: as set, else what ``choose`` finds.

    What was found is kept in the run's manifest: an unfinished collection goes on with it, whatever is found later. Of
    several processes the main one chooses.
    """
    if request.settings.data.dtype != AUTO:
        return dict.fromkeys(hooks, request.settings.data.dtype)
    kept = _kept(request.run.stage(stage).get("dtype"), hooks) if resumes else {}
    if not kept and processes.is_main():
        chosen = choose()
        kept = {str(hook): found.dtype for hook, found in chosen.items()}
        reasons = {str(hook): found.reason for hook, found in chosen.items() if found.reason}
        request.run.update_stage(stage, dtype=kept, dtype_reasons=reasons)
        _tell(kept, reasons)
    kept = group.share(kept)
    return {hook: kept[str(hook)] for hook in hooks}


def _kept(entry: Any, hooks: Sequence[HookPoint]) -> dict[str, str]:
    """What a manifest says, if it says it of all hook points."""
    names = [str(hook) for hook in hooks]
    is_whole = isinstance(entry, dict) and all(entry.get(name) in BYTES for name in names)
    return {name: entry[name] for name in names} if is_whole else {}


def _tell(kept: Mapping[str, str], reasons: Mapping[str, str]) -> None:
    """Say what is stored in another type than usual, and why of the first of it."""
    for dtype in dict.fromkeys(kept.values()):
        names = [name for name, chosen in kept.items() if chosen == dtype]
        if dtype != USUAL:
            note(f"{' '.join(names)} {'is' if len(names) == 1 else 'are'} stored as {dtype}: {reasons[names[0]]}")
