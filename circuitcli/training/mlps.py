"""What lies between the ends of Jacobian pairs, taken from the model that the activations came from."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.plan import hook_groups

if TYPE_CHECKING:
    import torch

    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.adapter import ModelAdapter
    from circuitcli.models.mlp import Mlp

# Rows on which the MLP is held against the cache. Number types change activations by a few per cent at most.
CHECKED_ROWS = 256
LARGEST_GAP = 0.1


def mlps_between(
    load: "Callable[[], ModelAdapter]",
    cache: "ActivationCache",
    variants: Iterable[Settings],
    device: "torch.device",
) -> "dict[tuple[HookPoint, ...], Mlp]":
    """The MLP of each pair that is trained, by its hook points; the model is not loaded if there is none.

    Raises SettingsError for a model whose MLP is not known, InputError if it does not give the cached activations.
    """
    architectures = {settings.sae.architecture for settings in variants}
    needing = sorted(name for name in architectures if DESCRIPTIONS[name].needs_mlp)
    pairs = [pair for architecture in needing for pair in hook_groups(architecture, cache.hooks)]
    if not pairs:
        return {}
    import torch

    from circuitcli.models.mlp import mlp_between

    adapter = load()
    found: dict[tuple[HookPoint, ...], Mlp] = {}
    for pair in pairs:
        reads, writes = pair
        mlp = mlp_between(adapter, reads, writes, device=device, dtype=torch.float32)
        _check(mlp, cache, reads, writes, device)
        found[pair] = mlp
    return found


def _check(mlp: "Mlp", cache: "ActivationCache", reads: HookPoint, writes: HookPoint, device: "torch.device") -> None:
    """Raise InputError if the second hook point's activations do not follow from the first one's."""
    x, y = (cache.rows(hook, 0, min(CHECKED_ROWS, cache.n_tokens)).to(device) for hook in (reads, writes))
    gap = float((mlp(x) - y).norm() / y.norm())
    if gap > LARGEST_GAP:
        raise InputError(
            f"{writes} does not follow from {reads} by the MLP's weights: {gap:.0%} of it differs",
            hint="the model has changed since `circuit collect`, or its blocks do more than is known of them",
        )
