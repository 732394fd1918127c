"""One pass over copies of a few tokens, each changed in another way, that shows what a model's hook points are.

Every copy enters each block as the first does, which is not changed. In the others, at every block:

    STREAM     resid_pre is changed; attn_in and mlp_in are held: what attention and MLP give must not change
    MIDDLE     resid_pre is changed and attn takes the change back: what the MLP reads must not change
    ATTN, MLP  attn or mlp is changed: resid must change by as much
    ATTN_IN    attn_in is changed: only attention, and what follows from it, may change
    MLP_IN     mlp_in is changed: only the MLP may change
    FREE       the first block's input is changed, and all else follows
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import Callback, attached, block_arguments, given

CLEAN, STREAM, MIDDLE, ATTN, MLP, ATTN_IN, MLP_IN, FREE = range(8)
N_ROWS = 8
# Copies that enter a block as they left the one before.
OWN_WAY = (CLEAN, FREE)
# Size of a change beside what it changes, in each token.
_CHANGE = 0.5


class NoStreamError(Exception):
    """What goes from block to block is not a vector for each token."""


@dataclass
class BlockView:
    """What passed the sites of one block in all copies, after the changes.

    arrived: the block's input before its changes; left: what the block before gave, None at the first. reads: of
    attn_in and mlp_in, whether a weight inside the module takes exactly that, and of resid_mid, whether a norm or the
    MLP does; absent if none takes as many numbers.
    """

    left: Float[Tensor, "row position d_model"] | None
    arrived: Float[Tensor, "row position d_model"] | None = None
    sites: dict[str, Float[Tensor, "row position d_model"]] = field(default_factory=dict)
    reads: dict[str, bool] = field(default_factory=dict)

    @property
    def change(self) -> Float[Tensor, "position d_model"]:
        """What resid_pre is changed by, and attn and mlp at least."""
        return self.sites["resid_pre"][STREAM] - self.sites["resid_pre"][CLEAN]

    @property
    def middle(self) -> Float[Tensor, "row position d_model"] | None:
        """resid_pre + attn, once both have passed."""
        return self.sites["resid_pre"] + self.sites["attn"] if "attn" in self.sites else None


@dataclass(frozen=True)
class Probed:
    """Sites whose tensor the model changed in place, and what each block got beside the residual."""

    edited: frozenset[str]
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


def probe(
    adapter: ModelAdapter, input_ids: Int[Tensor, "1 position"], judge: Callable[[int, BlockView], None]
) -> Probed:
    """Run the copies through the model; ``judge`` is given each block when it has run."""
    pass_ = _Pass(judge)
    callbacks: dict[HookPoint, Callback] = {HookPoint(0, "embed"): pass_.tap(0, "embed")}
    for layer in range(adapter.n_layers):
        for site in _sites(adapter, layer):
            callbacks[HookPoint(layer, site)] = pass_.tap(layer, site)
    with torch.no_grad(), attached(adapter, callbacks), _readers(adapter, pass_), block_arguments(adapter) as arguments:
        adapter.logits(input_ids.expand(N_ROWS, -1))
    return Probed(frozenset(pass_.edited), tuple(arguments))


def _sites(adapter: ModelAdapter, layer: int) -> list[str]:
    layout = adapter.layouts[layer]
    sites = ["resid_pre", "resid"]
    # Another mixer in place of attention is looked at too: the middle of the stream is behind it.
    sites += ["attn_in", "attn"] if layout.attention is not None else []
    return sites + (["mlp_in", "mlp"] if layout.feed_forward is not None else [])


class _Pass:
    """The block under way, and what was found so far."""

    def __init__(self, judge: Callable[[int, BlockView], None]) -> None:
        self._judge = judge
        self.view = BlockView(None)
        self.edited: set[str] = set()
        self._passed: dict[str, tuple[Tensor, int]] = {}

    def tap(self, layer: int, site: str) -> Callback:
        """Changes the copies at a site."""
        return partial(self._see, layer, site)

    def _see(self, layer: int, site: str, x: Tensor) -> Tensor:
        if site in ("resid_pre", "resid") and (x.ndim != 3 or x.shape[0] != N_ROWS):
            raise NoStreamError(
                f"{site}.{layer} is not a residual stream: its shape is {' x '.join(map(str, x.shape))}"
            )
        rows = x.clone()
        if site == "resid_pre":
            self.view.arrived = x.clone()
        _change(rows, site, self.view, is_first=layer == 0)
        self.view.sites[site] = rows.clone()
        if site == "resid":
            self._end(layer)
        self._passed[site] = (rows, rows._version)
        return rows

    def read(self, site: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A hook at a module that may read a site: whether it takes exactly what passed there."""
        read, expected = given(args, kwargs), self.view.middle if site == "resid_mid" else self.view.sites.get(site)
        if read is None or expected is None or read.shape[-1] != expected.shape[-1]:
            return
        # The MLP itself is tapped too, which changes other copies.
        rows = list(OWN_WAY) if site == "resid_mid" else list(range(N_ROWS))
        is_it = read.numel() == expected.numel() and torch.allclose(
            read.reshape(expected.shape).to(expected)[rows], expected[rows], rtol=1e-2, atol=1e-5
        )
        self.view.reads[site] = self.view.reads.get(site, False) or is_it

    def _end(self, layer: int) -> None:
        self.edited |= {site for site, (rows, version) in self._passed.items() if rows._version != version}
        self._passed.clear()
        self._judge(layer, self.view)
        self.view = BlockView(self.view.sites["resid"])


def _change(rows: Tensor, site: str, view: BlockView, *, is_first: bool) -> None:
    """Change the copies at a site, in place."""
    if site == "resid_pre":
        clean = rows[CLEAN].clone()
        rows[[row for row in range(N_ROWS) if row not in OWN_WAY]] = clean
        change = _change_of(clean)
        rows[[STREAM, MIDDLE]] += change
        if is_first:
            rows[FREE] += change
    elif site == "attn":
        rows[MIDDLE] = rows[CLEAN] - view.change
        rows[ATTN] += _at_least(view.change, rows[CLEAN])
    elif site == "mlp":
        rows[MLP] += _at_least(view.change, rows[CLEAN])
    elif site in ("attn_in", "mlp_in"):
        rows[STREAM] = rows[CLEAN]
        rows[ATTN_IN if site == "attn_in" else MLP_IN] += _change_of(rows[CLEAN])


def _at_least(change: Tensor, x: Float[Tensor, "position width"]) -> Float[Tensor, "position width"]:
    """The change, made larger where it would be small beside what is there."""
    size, wanted = change.norm(dim=-1, keepdim=True), _CHANGE * x.norm(dim=-1, keepdim=True)
    return change * (wanted / size.clamp(min=1e-12)).clamp(min=1.0)


def _change_of(x: Float[Tensor, "position width"]) -> Float[Tensor, "position width"]:
    """A random vector for each token, of a size beside what is there."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    return direction * (_CHANGE * x.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True))


@contextmanager
def _readers(adapter: ModelAdapter, pass_: _Pass) -> Iterator[None]:
    """While this is open, modules are asked what they read, after the taps before them."""
    handles = [
        module.register_forward_pre_hook(partial(pass_.read, site), with_kwargs=True)
        for layer in range(adapter.n_layers)
        for site, module in _reading(adapter, layer)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reading(adapter: ModelAdapter, layer: int) -> Iterator[tuple[str, nn.Module]]:
    """Weights that may read what attention or the MLP is given, and what may read the stream between them."""
    layout, block = adapter.layouts[layer], adapter.blocks[layer]
    for site, part in (("attn_in", layout.attention), ("mlp_in", layout.feed_forward)):
        inside = block.get_submodule(part).modules() if part is not None else ()
        yield from ((site, module) for module in inside if _is_weight(module))
    yield from (("resid_mid", module) for module in block.modules() if "norm" in type(module).__name__.lower())
    if layout.feed_forward is not None:
        yield "resid_mid", block.get_submodule(layout.feed_forward)


def _is_weight(module: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in module.parameters(recurse=False))
