"""Backward rules: other derivatives of a model, whose forward pass gives the same numbers to the last bit."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.rules.calls import Around
from circuitcli.models.rules.frozen import parts as frozen_parts
from circuitcli.models.rules.gim import parts as gim_parts
from circuitcli.models.rules.relp import parts as relp_parts
from circuitcli.models.taps import around

RULES: Mapping[str, Callable[[ModelAdapter], Iterator[tuple[nn.Module, Around]]]] = {
    "frozen": frozen_parts,
    "relp": relp_parts,
    "gim": gim_parts,
}
# Methods that take the model's own derivative.
OWN = frozenset({"ig", "atp", "exact"})


@contextmanager
def applied(adapter: ModelAdapter, name: str) -> Iterator[None]:
    """While this is open, the model's derivatives are those of a rule, and its numbers its own.

    name: relp, gim or frozen; with ig, atp and exact nothing changes. Taps see the tensors with the rule's gradients.
    Raises InputError, now or when the model runs, if it has a part for which the rule is not known.
    """
    # Blocks may share a module; it is still run in one other way.
    parts = {} if name in OWN else dict(RULES[name](adapter))
    with ExitStack() as stack:
        for module, call in parts.items():
            stack.enter_context(around(module, call))
        yield
