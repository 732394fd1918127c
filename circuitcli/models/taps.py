"""The only place that registers hooks: reading and replacing activations at hook points while a model runs."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter

Callback = Callable[[Tensor], Tensor | None]

# Where a site's activation passes: the part of the block whose output it is.
OUTPUT_OF = {"attn_in": "attn_norm", "attn": "attn_out", "mlp_in": "mlp_norm", "mlp": "mlp_out"}


class _Stop(Exception):
    """Ends a forward pass whose remaining part is not needed."""


@contextmanager
def tapped(adapter: ModelAdapter, callbacks: Mapping[HookPoint, Callback]) -> Iterator[None]:
    """While this is open, each callback sees its hook point's activation (batch, position, d_model).

    A tensor that it returns replaces the activation; None keeps it. Hook points of one place are served in model order.
    Raises SettingsError for a hook point that the model lacks.
    """
    with ExitStack() as stack:
        for hook in sorted(callbacks):
            adapter.check(hook)
            for handle in _register(adapter, hook, _on_one_device(adapter, callbacks[hook])):
                stack.callback(handle.remove)
        yield


def _on_one_device(adapter: ModelAdapter, callback: Callback) -> Callback:
    """The callback sees every activation where the model takes its input, also if its blocks are on several GPUs."""

    def moved(activation: Tensor) -> Tensor | None:
        changed = callback(activation.to(adapter.device))
        return None if changed is None else changed.to(activation.device)

    return moved


def _register(adapter: ModelAdapter, hook: HookPoint, callback: Callback) -> list[RemovableHandle]:
    if hook.site == "embed":
        return [adapter.embedding.register_forward_hook(_on_output(callback))]
    block = adapter.blocks[hook.layer]
    if hook.site == "resid_pre":
        return [block.register_forward_pre_hook(_on_input(callback), with_kwargs=True)]
    if hook.site == "resid":
        return [block.register_forward_hook(_on_output(callback))]
    if hook.site == "resid_mid":
        return _register_middle(adapter, hook.layer, callback)
    return [adapter.module(hook.layer, OUTPUT_OF[hook.site]).register_forward_hook(_on_output(callback))]


def _register_middle(adapter: ModelAdapter, layer: int, callback: Callback) -> list[RemovableHandle]:
    """The stream between attention and MLP is no module's output: it is rebuilt as block input plus attention output,
    and a change of it travels on as a change of the attention output."""
    # Several threads may run the model at once.
    entering = threading.local()

    def remember(residual: Tensor) -> None:
        entering.residual = residual

    def change(attention: Tensor) -> Tensor | None:
        middle = entering.residual + attention
        changed = callback(middle)
        return None if changed is None else attention + (changed - middle)

    return [
        adapter.blocks[layer].register_forward_pre_hook(_on_input(remember), with_kwargs=True),
        adapter.module(layer, "attn_out").register_forward_hook(_on_output(change)),
    ]


def _on_output(callback: Callback) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            changed = callback(output[0])
            return None if changed is None else (changed, *output[1:])
        return callback(output)

    return hook


def _on_input(callback: Callback) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = callback(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return hook


@contextmanager
def block_arguments(adapter: ModelAdapter) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Collects what the model passes to each block, block by block: (arguments after the residual, keywords)."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))

    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in adapter.blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def keep(into: dict[HookPoint, Tensor], hook: HookPoint) -> Callback:
    """A callback that stores what it sees and changes nothing."""

    def callback(activation: Tensor) -> None:
        into[hook] = activation

    return callback


def read(
    adapter: ModelAdapter,
    input_ids: Int[Tensor, "batch position"],
    attention_mask: Int[Tensor, "batch position"] | None,
    hooks: Iterable[HookPoint],
) -> dict[HookPoint, Float[Tensor, "batch position d_model"]]:
    """Activations at the hook points, from one forward pass that ends after the deepest block that is needed."""
    found: dict[HookPoint, Tensor] = {}
    with reading(adapter, hooks) as run:
        run(input_ids, attention_mask, found.__setitem__)
    return found


See = Callable[[HookPoint, Tensor], None]


@contextmanager
def reading(
    adapter: ModelAdapter, hooks: Iterable[HookPoint]
) -> Iterator[Callable[[Tensor, Tensor | None, See], None]]:
    """While this is open, ``run(input_ids, attention_mask, see)`` runs the model up to the deepest block that is needed
    and gives each hook point and its activation to ``see`` as soon as it is there. Several threads may run at once."""
    chosen = list(hooks)
    deepest = max(hook.layer for hook in chosen)
    under_way = threading.local()

    def stop(activation: Tensor) -> None:
        raise _Stop

    def run(input_ids: Tensor, attention_mask: Tensor | None, see: See) -> None:
        under_way.see = see
        try:
            adapter.logits(input_ids, attention_mask)
        except _Stop:
            pass
        finally:
            del under_way.see

    with tapped(adapter, {hook: _shown(hook, under_way) for hook in chosen}):
        # Hooks run in the order they were added: this one comes last, when the block's output was already seen.
        handle = adapter.blocks[deepest].register_forward_hook(_on_output(stop))
        try:
            yield run
        finally:
            handle.remove()


def _shown(hook: HookPoint, under_way: threading.local) -> Callback:
    def callback(activation: Tensor) -> None:
        under_way.see(hook, activation)

    return callback


def leaf(activation: Tensor) -> Tensor:
    """The same numbers, cut off from what made them, and open to gradients."""
    # Rows that share their memory (expanded) are copied: some families reshape what a tap returns.
    return activation.detach().contiguous().requires_grad_(torch.is_grad_enabled())
