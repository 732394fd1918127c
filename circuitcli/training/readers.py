"""Which settings a training reads: changing the others changes nothing. Needs no torch."""

from collections.abc import Iterable

from circuitcli.settings.settings import Settings
from circuitcli.training.plan import END_TO_END, JACOBIANS, WITHOUT_K

# Settings that one kind of architecture alone reads.
_READERS = {
    "sae.l1_weight": WITHOUT_K,
    "sae.l0_weight": ("jumprelu",),
    "sae.bandwidth": ("jumprelu",),
    "sae.jacobian_weight": JACOBIANS,
    "sae.prefixes": ("matryoshka",),
}
_OF_END_TO_END = ("train.local_share", "train.local_weight", "train.downstream_weight")


def unread(variants: Iterable[Settings]) -> frozenset[str]:
    """Names of the settings that none of these variants reads."""
    return frozenset.intersection(*map(_unread, variants))


def _unread(settings: Settings) -> frozenset[str]:
    architecture = settings.sae.architecture
    names = {name for name, readers in _READERS.items() if architecture not in readers}
    if architecture in WITHOUT_K:
        names.add("sae.k")
    if settings.sae.d_sae is not None:
        names.add("sae.expansion")
    if settings.train.objective != END_TO_END:
        names.update(_OF_END_TO_END)
    return frozenset(names)
