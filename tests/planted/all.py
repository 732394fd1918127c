"""All planted circuits by name."""

from collections.abc import Callable, Mapping
from functools import cache

from . import boolean, cancelling, copying, gated, greater_than, induction, saturated, self_repair, shortcut, two_hop
from .planted import Planted

BUILDERS: Mapping[str, Callable[[], Planted]] = {
    "copying": copying.build,
    "induction": induction.build,
    "induction-query": induction.build_query,
    "two-hop": two_hop.build,
    "boolean": boolean.build,
    "cancelling": cancelling.build,
    "self-repair": self_repair.build,
    "saturated-steep": saturated.build,
    "saturated-blind": saturated.build_blind,
    "gated": gated.build,
    "greater-than": greater_than.build,
    "clt": shortcut.build_honest,
    "clt-shortcut": shortcut.build_short,
}


@cache
def planted_circuit(name: str) -> Planted:
    """The one of this name, made once."""
    return BUILDERS[name]()
