"""Which coders make a circuit, of those that there are; needs no torch, and reads no weights."""

from collections.abc import Collection, Iterable, Mapping

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.naming import by_hook, named
from circuitcli.saes.exchange.place import Place


def resolve(texts: Iterable[str], *, hooks: Collection[HookPoint] = ()) -> dict[HookPoint, Place]:
    """The coders that texts name, by the hook point that each reads, in model order; of whole releases those at hooks.

    Each text is what ``--sae`` takes; see `naming`. Raises InputError if two read one hook point, and as `named` does.
    """
    return by_hook(place for text in texts for place in named(text, hooks=hooks))


def chosen(
    places: Mapping[HookPoint, Place],
    *,
    layers: Collection[int] | None = None,
    sites: Collection[str] | None = None,
) -> dict[HookPoint, Place]:
    """The coders of a circuit, by the hook point that each reads, in model order; none of a kind chooses all.

    A coder is in if the layer that it reads is among ``layers``, and the site that it reads or first writes among
    ``sites``. What it writes in other layers is cut off, so that its decoders are not read. Raises InputError if a hook
    point is explained twice.
    """
    inside = places if layers is None else within(places, layers)
    found = {
        hook: inside[hook]
        for hook in sorted(inside)
        if sites is None or {hook.site, inside[hook].writes[0].site} & {*sites}
    }
    check_explained_once(found)
    return found


def within(places: Mapping[HookPoint, Place], layers: Collection[int]) -> dict[HookPoint, Place]:
    """The coders that read and write in these layers, cut to what they write there."""
    found = {}
    for hook, whole in places.items():
        place = whole.cut([written for written in whole.writes if written.layer in layers])
        if place is not None and hook.layer in layers:
            found[hook] = place
    return found


def check_explained_once(places: Mapping[HookPoint, Place]) -> None:
    """Raise InputError, naming both, if one of two coders that write a hook point is an SAE.

    Several transcoders may write one: their outputs add up, as those of a cross-layer transcoder do.
    """
    for hook, sae in places.items():
        if hook not in sae.writes:
            continue
        other = next((place for place in places.values() if place is not sae and hook in place.writes), None)
        if other is not None:
            raise InputError(
                f"{hook} is explained twice: by the SAE in {sae.path} and by the transcoder at {other.hook} in "
                f"{other.path}",
                hint=f"choose the transcoders with --sites {other.hook.site if other.hook else 'mlp_in'}, "
                "or name the coders with --sae PATH,PATH",
            )
