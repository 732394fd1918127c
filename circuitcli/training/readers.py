"""Which settings a training reads: changing the others changes nothing. Needs no torch."""

from collections.abc import Iterable

from circuitcli.settings.sae import SaeSettings
from circuitcli.settings.settings import Settings
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.plan import END_TO_END, JOINT

# Settings that all architectures read.
_OF_ALL = ("architecture", "d_sae", "expansion")
_OF_JOINT = ("train.regularisation", "train.model_rate")
_OF_END_TO_END = ("train.local_share", "train.local_weight", "train.downstream_weight")


def unread(variants: Iterable[Settings]) -> frozenset[str]:
    """Names of the settings that none of these variants reads."""
    return frozenset.intersection(*map(_unread, variants))


def _unread(settings: Settings) -> frozenset[str]:
    reads = DESCRIPTIONS[settings.sae.architecture].settings.union(_OF_ALL)
    # Where it begins from coders these say which architecture they have.
    is_known = settings.train.start is None
    names = {f"sae.{name}" for name in SaeSettings.model_fields if name not in reads} if is_known else set()
    if settings.sae.d_sae is not None or not is_known:
        names.add("sae.expansion")
    if settings.train.objective != END_TO_END:
        names.update(_OF_END_TO_END)
    if settings.train.objective != JOINT:
        names.update(_OF_JOINT)
    return frozenset(names)
