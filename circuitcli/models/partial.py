"""Running only a part of a model: blocks from a given residual on, with the arguments of a full pass.

What a block needs beside the residual (mask, rotary embeddings, positions) is caught once in a clean pass, so partial
execution needs no knowledge of the family.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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

    With one text, later passes may have any number of edited copies of it; with several, as many rows as texts or, if
    it was made for that, any number of copies of each.
    residuals: by the block that each enters; the last is the output of the last block. axes: of a pass that is made for
    copies of several texts, for each block the axis of each argument that grows with the texts.
    """

    input_ids: Int[Tensor, "text position"]
    attention_mask: Int[Tensor, "text position"] | None
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    residuals: Mapping[int, Float[Tensor, "text position d_model"]]
    activations: Mapping[HookPoint, Float[Tensor, "text position d_model"]]
    axes: tuple[Mapping[str, int], ...] | None = field(default=None, kw_only=True)

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
    starts: Iterable[int] | None = None,
    for_copies: bool = False,
) -> BlockPass:
    """`clean_pass` over several texts, without what takes the most memory: their logits, and the residuals before other
    blocks than ``starts``, those that later passes are to start from; by default all are kept.

    for_copies: later passes may have any number of copies of each text.
    """
    between = _between_blocks(adapter)
    wanted = between if starts is None else {*starts, adapter.n_layers}
    between = {block: between[block] for block in sorted(wanted) if block >= 0}
    with torch.no_grad(), block_arguments(adapter) as arguments:
        seen = read(adapter, input_ids, attention_mask, {*hooks, *between.values()})
    axes = None
    if for_copies and len(input_ids) > 1:
        mask = None if attention_mask is None else attention_mask[:1]
        with torch.no_grad(), block_arguments(adapter) as of_one:
            read(adapter, input_ids[:1], mask, [between[adapter.n_layers]])
        axes = tuple(
            growing_axes(one, several, rows=len(input_ids)) for one, several in zip(of_one, arguments, strict=True)
        )
    return BlockPass(
        input_ids=input_ids,
        attention_mask=attention_mask,
        arguments=tuple(arguments),
        residuals={block: seen[hook] for block, hook in between.items()},
        activations={hook: seen[hook] for hook in hooks},
        axes=axes,
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
    texts: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch position d_model"]:
    """The residual after blocks start .. stop - 1, from that before block ``start``; ``texts`` as in `rerun`."""
    # Copies of one text share their memory, and some families reshape what enters a block.
    residual = residual.contiguous()
    for layer in range(start, adapter.n_layers if stop is None else stop):
        args, kwargs = clean.arguments[layer]
        if texts is not None and clean.axes is not None:
            args, kwargs = _chosen((args, kwargs), "", texts, len(clean.input_ids), clean.axes[layer])
        elif clean.input_ids.shape[0] == 1 and residual.shape[0] > 1:
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
    texts: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch position d_model"]:
    """The residual before block ``stop`` (by default: after the last) of ``rows`` copies of the text, with taps; of
    each text if the clean pass had as many. texts: which text each row is a copy of, of several.

    Blocks before ``start`` are taken from the clean pass; -1 starts at the embedding. A tap at the output of block
    ``start - 1`` or at the input of block ``start`` is applied to the residual that the run starts from.
    """
    with tapped(adapter, callbacks):
        if start < 0:
            return _from_embedding(adapter, clean, rows, texts)
        residual = clean.residuals[start]
        residual = residual.expand(rows, -1, -1) if texts is None else residual[texts]
        entering = callbacks.get(HookPoint(start - 1, "resid")) if start > 0 else None
        if entering is not None:
            changed = entering(residual)
            residual = residual if changed is None else changed
        return run_blocks(adapter, clean, residual, start=start, stop=stop, texts=texts)


def _from_embedding(adapter: ModelAdapter, clean: BlockPass, rows: int, texts: Tensor | None) -> Tensor:
    def copied(value: Tensor) -> Tensor:
        return value.expand(rows, -1) if texts is None else value[texts]

    last, mask = HookPoint(adapter.n_layers - 1, "resid"), clean.attention_mask
    return read(adapter, copied(clean.input_ids), None if mask is None else copied(mask), [last])[last]


def _chosen(value: Any, path: str, texts: Tensor, n_texts: int, axes: Mapping[str, int]) -> Any:
    """What a block got beside the residual of several texts, for copies of them; what does not grow is for all."""
    if isinstance(value, Tensor):
        if (axis := axes.get(path)) is None:
            return value
        # Batch and heads may be one axis.
        apart = value.unflatten(axis, (n_texts, -1)).index_select(axis, texts.to(value.device))
        return apart.flatten(axis, axis + 1)
    if isinstance(value, tuple | list):
        items = (_chosen(item, f"{path}.{number}", texts, n_texts, axes) for number, item in enumerate(value))
        return type(value)(items)
    if isinstance(value, dict):
        return {name: _chosen(item, f"{path}.{name}", texts, n_texts, axes) for name, item in value.items()}
    return value


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
