"""The only place that registers hooks: reading and replacing activations at hook points while a model runs.

It is also the only one that has a module run in another way than its own (`around`).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
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
            for handle in _register(adapter, hook, callbacks[hook]):
                stack.callback(handle.remove)
        yield


def _register(adapter: ModelAdapter, hook: HookPoint, callback: Callback) -> list[RemovableHandle]:
    findings, layout = adapter.findings, adapter.layouts[hook.layer]
    is_middle, is_attention = hook.site == "resid_mid", hook.site in ("attn_in", "attn", "resid_mid")
    # The middle of the stream is reached by way of what attention adds.
    site = "attn" if is_middle else hook.site
    tap = _Tap(callback, device=adapter.device, copies=site in findings.edited)
    if site == "embed":
        return [adapter.embedding.register_forward_hook(tap.on_output)]
    block = adapter.blocks[hook.layer]
    if site == "resid_pre":
        return [block.register_forward_pre_hook(tap.on_input, with_kwargs=True)]
    if site == "resid":
        return [block.register_forward_hook(tap.on_output)]
    tap.is_middle, tap.is_flat = is_middle, site in findings.flat
    handles = []
    if tap.is_middle or tap.is_flat:
        handles.append(block.register_forward_pre_hook(tap.remember, with_kwargs=True))
    if site in ("attn_in", "mlp_in"):
        module = adapter.module(hook.layer, "attention" if is_attention else "feed_forward")
        return [*handles, module.register_forward_pre_hook(tap.on_input, with_kwargs=True)]
    tap.scale = layout.attn_scale if is_attention else layout.mlp_scale
    module = adapter.module(hook.layer, "attn_out" if is_attention else "mlp_out")
    return [*handles, module.register_forward_hook(tap.on_output)]


class _Tap:
    """Shows a module's input or output to a callback as the activation that it stands for.

    device: where the callback sees it: where the model takes its input, also if its blocks are on several GPUs.
    copies: what goes on is a copy, since the model changes it in place and the callback may keep what it saw.
    scale: what the model multiplies it by before it adds it. is_flat: batch and position are one axis there.
    is_middle: the stream between attention and MLP is no module's output: it is rebuilt as the block's input plus what
    attention adds, and a change of it travels on as a change of that.
    """

    def __init__(self, callback: Callback, *, device: torch.device, copies: bool) -> None:
        self._callback, self._device, self._copies = callback, device, copies
        self.scale, self.is_flat, self.is_middle = 1.0, False, False
        # Several threads may run the model at once.
        self._entering = threading.local()

    def remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what enters the block."""
        self._entering.residual = given(args, kwargs)

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A forward hook."""
        changed = self._passed(first_of(output))
        return changed if changed is None or isinstance(output, Tensor) else type(output)((changed, *output[1:]))

    def on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A forward pre-hook."""
        first, name = given(args, kwargs), None if args else _residual_name(kwargs)
        assert first is not None
        changed = self._passed(first)
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    def _passed(self, tensor: Tensor) -> Tensor | None:
        """What goes on in place of a tensor; None if it goes on itself."""
        x = tensor.to(self._device)
        x = x.view(self._entering.residual.shape) if self.is_flat else x
        x = x if self.scale == 1.0 else x * self.scale
        shown = self._entering.residual.to(self._device) + x if self.is_middle else x
        changed = self._callback(shown)
        if changed is None:
            return tensor.clone() if self._copies else None
        changed = x + (changed - shown) if self.is_middle else changed
        changed = changed if self.scale == 1.0 else changed / self.scale
        changed = changed.reshape(tensor.shape) if self.is_flat else changed
        changed = changed.to(tensor.device)
        return changed.clone() if self._copies else changed


def _residual_name(kwargs: Mapping[str, Any]) -> str | None:
    """The keyword by which a module is given the activation that it works on: the first."""
    if "hidden_states" in kwargs:
        return "hidden_states"
    return next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)


def first_of(output: Any) -> Any:
    """What a module gives as the activation, which some give together with other things."""
    return output[0] if isinstance(output, tuple | list) else output


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The activation that a module works on, from what it is called with; None if it is given no tensor first."""
    name = None if args else _residual_name(kwargs)
    argument = args[0] if args else kwargs[name] if name else None
    return argument if isinstance(argument, Tensor) else None


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def block_arguments(adapter: ModelAdapter) -> Iterator[list[Arguments]]:
    """Collects what the model passes to each block, block by block: (arguments after the residual, keywords)."""
    seen: list[Arguments] = []
    hook = partial(_collect_arguments, seen)
    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in adapter.blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _collect_arguments(seen: list[Arguments], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    residual = None if args else _residual_name(kwargs)
    seen.append((args[1:], {name: value for name, value in kwargs.items() if name != residual}))


def keep(into: dict[HookPoint, Tensor], hook: HookPoint) -> Callback:
    """A callback that stores what it sees and changes nothing."""
    return partial(into.__setitem__, hook)


def read(
    adapter: ModelAdapter,
    input_ids: Int[Tensor, "batch position"],
    attention_mask: Int[Tensor, "batch position"] | None,
    hooks: Iterable[HookPoint],
) -> dict[HookPoint, Float[Tensor, "batch position d_model"]]:
    """Activations at the hook points, from one forward pass that ends after the deepest block that is needed."""
    activations: dict[HookPoint, Tensor] = {}
    with reading(adapter, hooks) as run:
        run(input_ids, attention_mask, activations.__setitem__)
    return activations


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
    with tapped(adapter, {hook: partial(_show, under_way, hook) for hook in chosen}):
        # Hooks run in the order they were added: this one comes last, when the block's output was already seen.
        handle = adapter.blocks[deepest].register_forward_hook(_stop)
        try:
            yield partial(_run_reading, adapter, under_way)
        finally:
            handle.remove()


def _run_reading(
    adapter: ModelAdapter, under_way: threading.local, input_ids: Tensor, attention_mask: Tensor | None, see: See
) -> None:
    under_way.see = see
    try:
        adapter.logits(input_ids, attention_mask)
    except _Stop:
        pass
    finally:
        del under_way.see


def _show(under_way: threading.local, hook: HookPoint, activation: Tensor) -> None:
    under_way.see(hook, activation)


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _Stop


@contextmanager
def around(module: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """While this is open, the module gives what ``call(forward, *args, **kwargs)`` gives, with its own ``forward``.

    Hooks at the module, whenever they are registered, run outside of that: taps see what it takes and gives.
    """
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = partial(call, module.forward)
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def leaf(activation: Tensor) -> Tensor:
    """The same numbers, cut off from what made them, and open to gradients."""
    # Rows that share their memory (expanded) are copied: some families reshape what a tap returns.
    return activation.detach().contiguous().requires_grad_(torch.is_grad_enabled())
