"""Pairs of hook points between whose SAEs edges are sought, by hook points or by the name of a kind."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.section import PAIRS

Pair = tuple[HookPoint, HookPoint]

_STREAM = ("resid_pre", "resid")


def pairs_of(asked: Iterable[str], hooks: Iterable[HookPoint]) -> tuple[Pair, ...]:
    """The pairs that are asked for by hook points or by name, of the hook points that have SAEs.

    Raises InputError for a name of which there is no pair, and for a hook point without an SAE.
    """
    there, found = set(hooks), dict[Pair, None]()
    for text in asked:
        if text in PAIRS:
            named = [pair for name in (PAIRS[:-1] if text == "all" else (text,)) for pair in _named(name, there)]
            if not named:
                raise InputError(f"there are no {text} between SAEs", hint=_there(there))
        else:
            first, second = map(HookPoint.parse, text.split(","))
            for hook in (first, second):
                if hook not in there:
                    raise InputError(f"no SAE at {hook}", hint=_there(there))
            named = [(first, second)]
        found |= dict.fromkeys(named)
    return tuple(found)


def _there(hooks: Iterable[HookPoint]) -> str:
    return f"there are SAEs at {' '.join(map(str, sorted(hooks)))}"


def _named(name: str, there: set[HookPoint]) -> Iterator[Pair]:
    """All pairs of a kind among hook points with SAEs, in the order of the model."""
    if name == "blocks":
        # Before block l, and behind the last: resid_pre.l is resid.l-1.
        stream = {hook.layer + (hook.site == "resid"): hook for hook in sorted(there) if hook.site in _STREAM}
        yield from ((stream[a], stream[b]) for a, b in pairwise(sorted(stream)) if b == a + 1)
        return
    reads, writes = ("resid_mid", "resid") if name == "mlp-blocks" else ("mlp_in", "mlp")
    for hook in sorted(there):
        if hook.site == reads and (other := HookPoint(hook.layer, writes)) in there:
            yield hook, other
