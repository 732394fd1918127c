"""How activations are stored where the settings leave it open: chosen once, then kept for whoever goes on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from circuitcli import group, processes
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.progress import note
from circuitcli.settings.data import BLOCK_LENGTH
from circuitcli.stages.estimates import BYTES
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from circuitcli.activations.choosing import NumberType
    from circuitcli.models.adapter import ModelAdapter
    from circuitcli.models.loading import LanguageModel
    from circuitcli.text.blocks import Block

AUTO = "auto"
# What a dry run counts with: the type that is chosen most often.
USUAL = "float16"
# Rows by which a number type is chosen.
LOOKED_AT = 2048


def with_data(request: Request, **changes: Any) -> Request:
    """The request with other settings of the data."""
    data = request.settings.data.model_copy(update=changes)
    return replace(request, settings=request.settings.model_copy(update={"data": data}))


def with_block_length(request: Request, adapter: "ModelAdapter") -> Request:
    """The request with the length of blocks: as set, else as usual, or the model's window where that is shorter.

    Raises SettingsError for a length that is past the window.
    """
    from circuitcli.models.window import window

    asked, longest = request.settings.data.block_length, window(adapter.model.config)
    if asked is None:
        return with_data(request, block_length=min(BLOCK_LENGTH, longest or BLOCK_LENGTH))
    if longest is not None and asked > longest:
        raise SettingsError(
            f"data.block_length={asked} is longer than the {longest} tokens that this model reads",
            hint=f"--set data.block_length={longest} or less",
        )
    return request


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


def types_for(
    model: "LanguageModel", hooks: Sequence[HookPoint], blocks: "Iterable[Block]"
) -> "dict[HookPoint, NumberType]":
    """The number types that suit what the model has at the hook points of some blocks."""
    import torch

    from circuitcli.activations.choosing import Spread, suited
    from circuitcli.models.taps import read
    from circuitcli.text.blocks import padded

    spreads = {hook: Spread() for hook in hooks}
    for block in blocks:
        batch = padded([block], pad_id=model.tokenizer.pad_id)
        with torch.no_grad():
            found = read(model.adapter, batch.input_ids.to(model.adapter.device), None, list(hooks))
        for hook, activation in found.items():
            spreads[hook].add(batch.stored(activation, torch.float32).cpu())
    return {hook: suited(hook, spread) for hook, spread in spreads.items()}


def first_blocks(blocks: "Iterable[Block]") -> "list[Block]":
    """Blocks with as many rows as a number type is chosen by, or all."""
    taken: list[Block] = []
    for block in blocks:
        taken.append(block)
        if sum(each.n_rows for each in taken) >= LOOKED_AT:
            break
    return taken
