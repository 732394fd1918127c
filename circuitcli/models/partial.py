"""Running only a part of a model: blocks from a given residual on, with the arguments of a full pass.

What a block needs beside the residual (mask, rotary embeddings, positions) is caught once in a clean pass, so partial
execution needs no knowledge of the family.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import Callback, block_arguments, first_of, keep, read, tapped


@dataclass(frozen=True)
class BlockPass:
    """What an unchanged pass through the blocks leaves for later partial ones; all tensors are detached.

    With one text, later passes may have any number of edited copies of it; with several, as many rows as texts.
    residuals: by the block that each enters; the last is the output of the last block.
    """

    input_ids: Int[Tensor, "text position"]
    attention_mask: Int[Tensor, "text position"] | None
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    residuals: Mapping[int, Float[Tensor, "text position d_model"]]
    activations: Mapping[HookPoint, Float[Tensor, "text position d_model"]]

    @property
    def final_residual(self) -> Float[Tensor, "text position d_model"]:
        """Output of the last block."""
        return self.residuals[len(self.arguments)]


@dataclass(frozen=True)
class CleanPass(BlockPass):
    """What an unchanged forward pass over one text leaves."""

    logits: Float[Tensor, "1 position vocab"]


def clean_pass(
    adapter: ModelAdapter, input_ids: Int[Tensor, "1 position"], hooks: tuple[HookPoint, ...] = ()
) -> CleanPass:
    """One unchanged run over a text; keeps the residual before each block and the activations at ``hooks``."""
    seen: dict[HookPoint, Tensor] = {}
    between = _between_blocks(adapter)
    with torch.no_grad(), block_arguments(adapter) as arguments:
        with tapped(adapter, {hook: keep(seen, hook) for hook in {*hooks, *between.values()}}):
            logits = adapter.logits(input_ids)
    return CleanPass(
        input_ids=input_ids,
        attention_mask=None,
        arguments=tuple(arguments),
        residuals={block: seen[hook] for block, hook in between.items()},
        activations={hook: seen[hook] for hook in hooks},
        logits=logits,
    )


def block_pass(
    adapter: ModelAdapter,
    input_ids: Int[Tensor, "text position"],
    attention_mask: Int[Tensor, "text position"] | None,
    hooks: tuple[HookPoint, ...] = (),
    *,
    starts: Iterable[int],
) -> BlockPass:
    """`clean_pass` over several texts, without what takes the most memory: their logits, and the residuals before other
    blocks than ``starts``, those that later passes are to start from."""
    between = _between_blocks(adapter)
    between = {block: between[block] for block in sorted({*starts, adapter.n_layers}) if block >= 0}
    with torch.no_grad(), block_arguments(adapter) as arguments:
        seen = read(adapter, input_ids, attention_mask, {*hooks, *between.values()})
    return BlockPass(
        input_ids=input_ids,
        attention_mask=attention_mask,
        arguments=tuple(arguments),
        residuals={block: seen[hook] for block, hook in between.items()},
        activations={hook: seen[hook] for hook in hooks},
    )


def _between_blocks(adapter: ModelAdapter) -> dict[int, HookPoint]:
    """The input of each block by its number, and the output of the last."""
    before = {layer: HookPoint(layer, "resid_pre") for layer in range(adapter.n_layers)}
    return before | {adapter.n_layers: HookPoint(adapter.n_layers - 1, "resid")}


def started_at(adapter: ModelAdapter, clean: BlockPass, start: int) -> BlockPass:
    """The pass with the residual before block ``start``, run on from the nearest that it has; of the others the first
    and the last are kept. -1 needs none."""
    if start in clean.residuals or start < 0:
        return clean
    nearest = max(block for block in clean.residuals if block < start)
    with torch.no_grad():
        residual = run_blocks(adapter, clean, clean.residuals[nearest], start=nearest, stop=start)
    kept = {block: clean.residuals[block] for block in (min(clean.residuals), adapter.n_layers)}
    return replace(clean, residuals=kept | {start: residual})


def first_block(hook: HookPoint) -> int:
    """The block at which a run that changes this hook point may start; -1 means before the blocks, at the embedding."""
    if hook.site == "embed":
        return -1
    return hook.layer + 1 if hook.site == "resid" else hook.layer


def run_blocks(
    adapter: ModelAdapter,
    clean: BlockPass,
    residual: Float[Tensor, "batch position d_model"],
    *,
    start: int,
    stop: int | None = None,
) -> Float[Tensor, "batch position d_model"]:
    """The residual after blocks start .. stop - 1, from the residual before block ``start``."""
    # Copies of one text share their memory, and some families reshape what enters a block.
    residual = residual.contiguous()
    for layer in range(start, adapter.n_layers if stop is None else stop):
        args, kwargs = clean.arguments[layer]
        if clean.input_ids.shape[0] == 1 and residual.shape[0] > 1:
            args, kwargs = expanded((args, kwargs), rows=residual.shape[0], axes=adapter.findings.axes_of(layer))
        residual = first_of(adapter.blocks[layer](residual, *args, **kwargs))
    return residual.to(adapter.device)


def rerun(
    adapter: ModelAdapter,
    clean: BlockPass,
    callbacks: Mapping[HookPoint, Callback],
    *,
    rows: int,
    start: int,
    stop: int | None = None,
) -> Float[Tensor, "batch position d_model"]:
    """The residual before block ``stop`` (by default: after the last) of ``rows`` copies of the text, with taps; of
    each text if the clean pass had as many.

    Blocks before ``start`` are taken from the clean pass; -1 starts at the embedding. A tap at the output of block
    ``start - 1`` or at the input of block ``start`` is applied to the residual that the run starts from.
    """
    with tapped(adapter, callbacks):
        if start < 0:
            return _from_embedding(adapter, clean, rows)
        residual = clean.residuals[start].expand(rows, -1, -1)
        entering = callbacks.get(HookPoint(start - 1, "resid")) if start > 0 else None
        if entering is not None:
            changed = entering(residual)
            residual = residual if changed is None else changed
        return run_blocks(adapter, clean, residual, start=start, stop=stop)


def _from_embedding(adapter: ModelAdapter, clean: BlockPass, rows: int) -> Tensor:
    last, mask = HookPoint(adapter.n_layers - 1, "resid"), clean.attention_mask
    ids = clean.input_ids.expand(rows, -1)
    return read(adapter, ids, None if mask is None else mask.expand(rows, -1), [last])[last]


def expanded(arguments: Any, *, rows: int, axes: Mapping[str, int]) -> Any:
    """What a block got beside the residual of one text, for several copies of it.

    axes: which axis of a tensor grows with the texts, by its path in the arguments. Of tensors that it does not name
    the first axis does, if it is one of several and has size 1.
    """

    return _expanded(arguments, "", rows, axes)


def _expanded(value: Any, path: str, rows: int, axes: Mapping[str, int]) -> Any:
    if isinstance(value, Tensor):
        return _repeated(value, rows, axes.get(path, 0 if value.ndim > 1 and value.shape[0] == 1 else None))
    if isinstance(value, tuple | list):
        return type(value)(_expanded(item, f"{path}.{number}", rows, axes) for number, item in enumerate(value))
    if isinstance(value, dict):
        return {name: _expanded(item, f"{path}.{name}", rows, axes) for name, item in value.items()}
    return value


def _repeated(value: Tensor, rows: int, axis: int | None) -> Tensor:
    if axis is None:
        return value
    sizes = [1 if number != axis else rows for number in range(value.ndim)]
    # Views where they can be: masks of long texts are large.
    return value.expand([-1 if n == 1 else n for n in sizes]) if value.shape[axis] == 1 else value.repeat(sizes)


def growing_axes(one: Any, several: Any, *, rows: int) -> dict[str, int]:
    """Axes for `expanded`: those by which a block's arguments for several texts differ from those for one."""
    sizes, found = _shapes(several, ""), {}
    for path, shape in _shapes(one, "").items():
        wide = sizes.get(path, shape)
        grown = [axis for axis, size in enumerate(shape) if len(wide) == len(shape) and wide[axis] == rows * size]
        if grown and wide != shape:
            found[path] = grown[0]
    return found


def _shapes(value: Any, path: str) -> dict[str, tuple[int, ...]]:
    if isinstance(value, Tensor):
        return {path: tuple(value.shape)}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    return {name: shape for key, item in items for name, shape in _shapes(item, f"{path}.{key}").items()}
