"""Which modules of a guessed model give what is added to the residual stream, found on a few tokens.

In each block the modules behind attention and MLP are tried, outermost first, until ``a`` times the one and ``m`` times
the other is what the block adds to the stream: the modules themselves, norms and dropouts behind them (OLMo 2), or a
projection inside, where the module adds the residual itself (BLOOM). `checking` then tests the places by changing them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.layout import Layout, text_config
from circuitcli.models.taps import first_of, given

# A multiplier within this of one that the configuration or the block has is that one; the more the number type rounds,
# the less exactly it is found.
_SNAP, _SNAP_ROUNDED = 2e-3, 0.03


@dataclass
class _Seen:
    """What passed through one block: inputs and outputs of its modules that are as large as its own, in the order in
    which the modules ended."""

    entering: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def placed(adapter: ModelAdapter, input_ids: Int[Tensor, "row position"], *, tolerance: float) -> ModelAdapter:
    """The adapter with each block's attn_out and mlp_out, their multipliers and norms as the numbers say; blocks where
    nothing fits keep their guess. tolerance: relative, that of the number type."""
    layouts = list(adapter.layouts)
    flat: set[str] = set()

    def end(layer: int, seen: _Seen, leaving: Tensor) -> None:
        layouts[layer] = _placed_block(adapter, layer, seen, leaving, tolerance)
        flat.update(_flat_sites(layouts[layer], seen))

    with torch.no_grad(), _watched(adapter, end):
        adapter.logits(input_ids)
    return ModelAdapter(adapter.model, layouts, replace(adapter.findings, flat=frozenset(flat)))


def _placed_block(adapter: ModelAdapter, layer: int, seen: _Seen, leaving: Tensor, tolerance: float) -> Layout:
    layout, block = adapter.layouts[layer], adapter.blocks[layer]
    layout = replace(
        layout, attn_norm=_giving(seen, layout.attention, block), mlp_norm=_giving(seen, layout.feed_forward, block)
    )
    attentions, mlps = (list(_outputs_behind(part, seen)) for part in (layout.attn_out, layout.mlp_out))
    pairs = list(product(attentions or (None,), mlps or (None,)))
    whole = _best([_Fit.of(seen, leaving, attention=attention, mlp=mlp) for attention, mlp in pairs], tolerance)
    # Where something else is added too, what the MLP's norm reads still is the stream with attention's part.
    middles = [seen.inputs[name] for name in _run_beside(layout.attn_out, seen) if name in seen.inputs]
    found = whole or _best(
        [_Fit.of(seen, middle, attention=attention, mlp=None) for attention in attentions for middle in middles],
        tolerance,
    )
    if found is None:
        return layout
    named, share = _named_numbers(block, adapter), _SNAP if torch.finfo(adapter.dtype).bits > 16 else _SNAP_ROUNDED
    layout = replace(layout, attn_out=found.attention, attn_scale=_snapped(found.attn_scale, named, share))
    return replace(layout, mlp_out=found.mlp, mlp_scale=_snapped(found.mlp_scale, named, share)) if whole else layout


def _best(fits: "list[_Fit]", tolerance: float) -> "_Fit | None":
    """The first that fits as well as any: what only passes through, such as a dropout, fits too, and the outermost is
    taken. None if none fits."""
    best = min((fit.missed for fit in fits), default=float("inf"))
    return next((fit for fit in fits if fit.missed <= 2 * best + 1e-5 and fit.missed < tolerance), None)


def _outputs_behind(part: str | None, seen: _Seen) -> Iterator[str]:
    """Modules that may give what a part of the block adds: the part, what ran after it beside it, what is in it."""
    if part is None or part not in seen.outputs:
        return
    yield part
    yield from _run_beside(part, seen)
    yield from (name for name in reversed(seen.outputs) if name.startswith(part + "."))


def _run_beside(part: str | None, seen: _Seen) -> list[str]:
    """Modules of the same parent that ended after a part."""
    names = list(seen.outputs)
    if part not in names:
        return []
    later = names[names.index(part) + 1 :]
    return [name for name in later if name.rpartition(".")[0] == part.rpartition(".")[0]]


@dataclass(frozen=True)
class _Fit:
    """How well two parts of a block, times a factor each, sum to what the block adds to the stream."""

    attention: str | None
    mlp: str | None
    attn_scale: float
    mlp_scale: float
    missed: float

    @classmethod
    def of(cls, seen: _Seen, leaving: Tensor, *, attention: str | None, mlp: str | None) -> "_Fit":
        """By least squares; what is missed is relative to what is added."""
        wanted = (leaving - seen.entering).reshape(-1, 1).cpu().double()
        parts = [seen.outputs[name].reshape(-1).cpu().double() for name in (attention, mlp) if name is not None]
        if not parts:
            return cls(None, None, 1.0, 1.0, float("inf"))
        columns = torch.stack(parts, dim=1)  # (number, part)
        scales = torch.linalg.lstsq(columns, wanted).solution
        missed = float((columns @ scales - wanted).norm() / wanted.norm())
        attn_scale = 1.0 if attention is None else float(scales[0])
        return cls(attention, mlp, attn_scale, 1.0 if mlp is None else float(scales[-1]), missed)


def _named_numbers(block: nn.Module, adapter: ModelAdapter) -> list[float]:
    attributes = {**vars(text_config(adapter.model)), **vars(block)}.values()
    return [1.0, *(value for value in attributes if isinstance(value, float) and value != 0.0)]


def _snapped(scale: float, named: Iterable[float], share: float) -> float:
    """The multiplier that a model has by name, in place of one that was fitted to rounded numbers."""
    nearest = min(named, key=lambda value: abs(value - scale))
    return nearest if abs(nearest - scale) < share * abs(scale) else scale


def _giving(seen: _Seen, reader: str | None, block: nn.Module) -> str | None:
    """The norm whose output a module reads."""
    if reader is None or reader not in seen.inputs:
        return None
    read = seen.inputs[reader].flatten()
    weights = dict(block.named_modules())
    names = (name for name, output in seen.outputs.items() if torch.equal(output.flatten(), read))
    return next((name for name in names if "norm" in type(weights[name]).__name__.lower()), None)


def _flat_sites(layout: Layout, seen: _Seen) -> Iterator[str]:
    ends = {"attn_in": layout.attention, "attn": layout.attn_out, "mlp_in": layout.feed_forward, "mlp": layout.mlp_out}
    for site, name in ends.items():
        tensors: Mapping[str, Tensor] = seen.inputs if site.endswith("_in") else seen.outputs
        if name is not None and name in tensors and tensors[name].ndim < seen.entering.ndim:
            yield site


class _Watch:
    """Hooks that see what passes through each block; ``end(layer, seen, output)`` is called after each."""

    def __init__(self, end: Callable[[int, _Seen, Tensor], None]) -> None:
        self._end = end
        self._now: dict[int, _Seen] = {}

    def begin(self, layer: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pre-hook of a block."""
        entering = given(args, kwargs)
        if entering is not None:
            self._now[layer] = _Seen(entering.clone())

    def inside(self, layer: int, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A forward hook of a part of a block; one that several blocks have counts for that under way."""
        if layer not in self._now:
            return
        seen, output = self._now[layer], first_of(output)
        # Copies, since the model may change them in place.
        if isinstance(output, Tensor) and output.numel() == seen.entering.numel():
            seen.outputs[name] = output.clone()
        read = given(args, kwargs)
        if read is not None and read.numel() == seen.entering.numel():
            seen.inputs[name] = read.clone()

    def over(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook of a block."""
        seen, leaving = self._now.pop(layer, None), first_of(output)
        if seen is not None and isinstance(leaving, Tensor) and leaving.shape == seen.entering.shape:
            self._end(layer, seen, leaving)


@contextmanager
def _watched(adapter: ModelAdapter, end: Callable[[int, _Seen, Tensor], None]) -> Iterator[None]:
    watch, handles = _Watch(end), []
    try:
        for layer, block in enumerate(adapter.blocks):
            handles.append(block.register_forward_pre_hook(partial(watch.begin, layer), with_kwargs=True))
            for name, module in block.named_modules():
                if name:
                    handles.append(module.register_forward_hook(partial(watch.inside, layer, name), with_kwargs=True))
            handles.append(block.register_forward_hook(partial(watch.over, layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()
