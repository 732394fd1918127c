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


class _Stop(Exception):
    """Ends a forward pass whose remaining part is not needed."""


@contextmanager
def tapped(adapter: ModelAdapter, callbacks: Mapping[HookPoint, Callback]) -> Iterator[None]:
    """While this is open, each callback sees its hook point's activation (batch, position, d_model).

    A tensor that it returns replaces the activation; None keeps it. Hook points of one place are served in model order.
    Raises SettingsError for a hook point that the model lacks, or that is not what its name says.
    """
    for hook in callbacks:
        adapter.check(hook)
    with attached(adapter, callbacks):
        yield


@contextmanager
def attached(adapter: ModelAdapter, callbacks: Mapping[HookPoint, Callback]) -> Iterator[None]:
    """`tapped` for hook points of which it is not yet known whether they are what their names say."""
    with ExitStack() as stack:
        for hook in sorted(callbacks):
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
    copies = hook.site in adapter.findings.edited
    if hook.site == "embed":
        return [adapter.embedding.register_forward_hook(_on_output(callback, copies=copies))]
    block = adapter.blocks[hook.layer]
    if hook.site == "resid_pre":
        return [block.register_forward_pre_hook(_on_input(callback, copies=copies), with_kwargs=True)]
    if hook.site == "resid":
        return [block.register_forward_hook(_on_output(callback, copies=copies))]
    # Several threads may run the model at once.
    entering = threading.local()
    handles = []
    if hook.site == "resid_mid" or hook.site in adapter.findings.flat:
        handles.append(block.register_forward_pre_hook(_on_input(_remembering(entering)), with_kwargs=True))
    if hook.site == "resid_mid":
        callback = _middle(callback, entering)
    return [*handles, _register_inside(adapter, hook, callback, entering)]


def _register_inside(
    adapter: ModelAdapter, hook: HookPoint, callback: Callback, entering: threading.local
) -> RemovableHandle:
    """A tap at what attention or MLP read, or at what they add to the stream."""
    layout, is_attention = adapter.layouts[hook.layer], hook.site in ("attn_in", "attn", "resid_mid")
    # The middle of the stream is reached by way of what attention adds.
    site = "attn" if hook.site == "resid_mid" else hook.site
    copies = site in adapter.findings.edited
    if site in adapter.findings.flat:
        callback = _unflattened(callback, entering)
    if site in ("attn_in", "mlp_in"):
        module = adapter.module(hook.layer, "attention" if is_attention else "feed_forward")
        return module.register_forward_pre_hook(_on_input(callback, copies=copies), with_kwargs=True)
    scale = layout.attn_scale if is_attention else layout.mlp_scale
    module = adapter.module(hook.layer, "attn_out" if is_attention else "mlp_out")
    return module.register_forward_hook(_on_output(_scaled(callback, scale), copies=copies))


def _remembering(entering: threading.local) -> Callback:
    def remember(residual: Tensor) -> None:
        entering.residual = residual

    return remember


def _middle(callback: Callback, entering: threading.local) -> Callback:
    """The stream between attention and MLP is no module's output: it is rebuilt as block input plus attention output,
    and a change of it travels on as a change of the attention output."""

    def change(attention: Tensor) -> Tensor | None:
        middle = entering.residual + attention
        changed = callback(middle)
        return None if changed is None else attention + (changed - middle)

    return change


def _scaled(callback: Callback, scale: float) -> Callback:
    """For a module whose output is multiplied before it is added to the stream."""
    if scale == 1.0:
        return callback

    def change(output: Tensor) -> Tensor | None:
        changed = callback(output * scale)
        return None if changed is None else changed / scale

    return change


def _unflattened(callback: Callback, entering: threading.local) -> Callback:
    """For a module that sees batch and position in one axis."""

    def change(rows: Tensor) -> Tensor | None:
        changed = callback(rows.view(entering.residual.shape))
        return None if changed is None else changed.reshape(rows.shape)

    return change


def _on_output(callback: Callback, *, copies: bool = False) -> Callable[[nn.Module, Any, Any], Any]:
    """copies: what goes on is a copy, since the model changes it in place and the callback may keep what it saw."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        changed = callback(first)
        if copies:
            changed = (first if changed is None else changed).clone()
        return (changed, *output[1:]) if isinstance(output, tuple) and changed is not None else changed

    return hook


def _on_input(
    callback: Callback, *, copies: bool = False
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, name = given(args, kwargs), None if args else _residual_name(kwargs)
        assert first is not None
        changed = callback(first)
        if copies:
            changed = (first if changed is None else changed).clone()
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    return hook


def _residual_name(kwargs: Mapping[str, Any]) -> str | None:
    """The keyword by which a module is given the activation that it works on: the first."""
    if "hidden_states" in kwargs:
        return "hidden_states"
    return next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The activation that a module works on, from what it is called with; None if it is given no tensor first."""
    name = None if args else _residual_name(kwargs)
    found = args[0] if args else kwargs[name] if name else None
    return found if isinstance(found, Tensor) else None


@contextmanager
def block_arguments(adapter: ModelAdapter) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Collects what the model passes to each block, block by block: (arguments after the residual, keywords)."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residual = None if args else _residual_name(kwargs)
        seen.append((args[1:], {name: value for name, value in kwargs.items() if name != residual}))

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
