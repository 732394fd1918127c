"""Names of places in the network: hook points, features, nodes; slices of layers and pins.

A hook point prints as ``resid.9``, a feature as ``resid.9/23433``, a node as ``resid.9/23433@4``
(at a position), ``resid.9/error@4`` (what the SAE misses there) or ``output``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from circuitcli.errors import SettingsError

# In the order in which a block computes them.
SITES = ("embed", "resid_pre", "attn_in", "attn", "resid_mid", "mlp_in", "mlp", "resid")

ERROR = "error"
OUTPUT = "output"


@dataclass(frozen=True)
class HookPoint:
    """A place in the network where activations are read or written; prints as ``resid.9``.

    Hook points sort in the order in which the model computes them. ``embed`` has no layer and prints alone.
    """

    layer: int
    site: str

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise SettingsError(f"unknown site '{self.site}'", hint=f"sites are {' '.join(SITES)}")
        if self.layer < 0:
            raise SettingsError(f"hook point {self.site}.{self.layer} has a negative layer", hint="layers count from 0")

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: ``embed`` first, then block by block."""
        return (-1 if self.site == "embed" else self.layer, SITES.index(self.site))

    def __lt__(self, other: "HookPoint") -> bool:
        return self.order < other.order

    def __le__(self, other: "HookPoint") -> bool:
        return self.order <= other.order

    def __str__(self) -> str:
        return self.site if self.site == "embed" else f"{self.site}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "HookPoint":
        """The hook point that prints as ``text``. Raises SettingsError if there is none."""
        if text == "embed":
            return cls(0, "embed")
        site, dot, layer = text.partition(".")
        if not dot or not layer.isdigit():
            raise SettingsError(f"'{text}' is no hook point", hint="write SITE.LAYER, for example resid.9")
        return cls(int(layer), site)


def is_hook(text: str) -> bool:
    """Whether a text names a hook point."""
    try:
        HookPoint.parse(text)
    except SettingsError:
        return False
    return True


_NODE = re.compile(r"^(?P<hook>[a-z_]+(?:\.\d+)?)/(?P<name>\d+|error)(?:@(?P<position>\d+))?$")


@dataclass(frozen=True)
class NodeId:
    """A feature (``index`` set) or an SAE error term (``index`` None), at a position or over all of them."""

    hook: HookPoint
    index: int | None
    position: int | None = None

    @property
    def is_error(self) -> bool:
        """Whether this is what the SAE misses rather than a feature."""
        return self.index is None

    @property
    def feature(self) -> str:
        """The id without its position: ``resid.9/23433`` or ``resid.9/error``."""
        return f"{self.hook}/{ERROR if self.index is None else self.index}"

    def __str__(self) -> str:
        return self.feature if self.position is None else f"{self.feature}@{self.position}"

    @property
    def order(self) -> tuple[tuple[int, int], int, int]:
        """Sort key: model order, then position, then feature index with the error last."""
        return (
            self.hook.order,
            -1 if self.position is None else self.position,
            2**62 if self.index is None else self.index,
        )

    @classmethod
    def parse(cls, text: str) -> "NodeId":
        """The node that prints as ``text``. Raises SettingsError if there is none; ``output`` is no NodeId."""
        match = _NODE.match(text)
        if match is None:
            raise SettingsError(
                f"'{text}' names no feature",
                hint="write HOOK/INDEX, for example resid.9/23433 or resid.9/23433@4",
            )
        position = match["position"]
        return cls(
            HookPoint.parse(match["hook"]),
            None if match["name"] == ERROR else int(match["name"]),
            None if position is None else int(position),
        )


def parse_layers(text: str, *, n_layers: int) -> list[int]:
    """Block indices of a Python slice such as ``3:5`` (3 and 4), ``:``, ``-2:``, ``::2``; or one index, ``7``.

    Raises SettingsError if the text is no slice, reaches past the model or names no layer.
    """
    hint = f"this model has layers 0 to {n_layers - 1}; write a Python slice, for example 3:5 for layers 3 and 4"
    parts = text.strip().split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        raise SettingsError(f"'{text}' is no slice of layers", hint=hint) from None
    if len(parts) > 3 or (len(parts) == 1 and numbers[0] is None):
        raise SettingsError(f"'{text}' is no slice of layers", hint=hint)
    if len(parts) == 1:
        first = numbers[0] or 0
        numbers = [first, first + 1 if first != -1 else None]
    if len(numbers) == 3 and numbers[2] is not None and numbers[2] <= 0:
        raise SettingsError(f"layer slice '{text}' must step upwards", hint=hint)
    for number in numbers[:2]:
        if number is not None and not -n_layers <= number <= n_layers:
            raise SettingsError(f"layer slice '{text}' reaches past the model", hint=hint)
    layers = list(range(n_layers))[slice(*numbers)]
    if not layers:
        raise SettingsError(f"layer slice '{text}' names no layer", hint=hint)
    return layers


def hook_points(layers: Iterable[int], sites: Iterable[str]) -> list[HookPoint]:
    """All hook points of these layers and sites, in model order; ``embed`` counts once."""
    chosen = {HookPoint(0, site) if site == "embed" else HookPoint(layer, site) for layer in layers for site in sites}
    return sorted(chosen)


def parse_pins(texts: Iterable[str]) -> dict[HookPoint, tuple[int, ...]]:
    """Features named by ``6:8339,14104`` (site ``resid``) or ``attn.6:12``; several texts add up.

    Raises SettingsError for anything else.
    """
    pins: dict[HookPoint, list[int]] = {}
    for text in texts:
        place, colon, indices = text.strip().partition(":")
        parts = [part.strip() for part in indices.split(",")]
        if not colon or not all(part.isdigit() for part in parts):
            raise SettingsError(
                f"'{text}' is no pin",
                hint="write LAYER:FEATURE,FEATURE or SITE.LAYER:FEATURE, for example 6:8339,14104",
            )
        hook = HookPoint(int(place), "resid") if place.isdigit() else HookPoint.parse(place)
        pins.setdefault(hook, []).extend(int(part) for part in parts)
    return {hook: tuple(dict.fromkeys(pins[hook])) for hook in sorted(pins)}
