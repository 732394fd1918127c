"""Names of places in the network: hook points, features, nodes; slices of layers and pins.

A hook point prints as ``resid.9``, a feature as ``resid.9/23433``, a node as ``resid.9/23433@4`` (at a position),
``resid.9/23433@verb`` (at a named span of positions), ``resid.9/error@4`` (what the SAE misses there),
``embed/token@4`` (what the embedding of a token writes), ``logit/464`` (an output token) or ``output``.

The keys of gpt-circuits name hook points too: ``0_mlpin`` is ``mlp_in.0``, and ``4_act``, the input of block 4, is
``resid.3``; see `KEYS`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from circuitcli.errors import InputError, SettingsError
from circuitcli.reading import whole_number

# In the order in which a block computes them.
SITES = ("embed", "resid_pre", "attn_in", "attn", "resid_mid", "mlp_in", "mlp", "resid")

ERROR, TOKEN = "error", "token"
OUTPUT, LOGIT = "output", "logit/"
# What gpt-circuits calls the sites of a block, in keys such as 0_mlpin; act and residpre are the input of the block.
KEYS = {
    "act": "resid_pre",
    "residpre": "resid_pre",
    "attnin": "attn_in",
    "attnout": "attn",
    "residmid": "resid_mid",
    "mlpin": "mlp_in",
    "mlpout": "mlp",
    "residpost": "resid",
}
# Of numbers a position has at most 18 digits.
_PAST_NUMBERS = 10**18


@dataclass(frozen=True)
class HookPoint:
    """A place in the network where activations are read or written; prints as ``resid.9``.

    Hook points sort in the order in which the model computes them. ``embed`` has no layer and prints alone.
    """

    layer: int
    site: str

    def __post_init__(self) -> None:
        check_site(self.site)
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
        """The hook point that prints as ``text``, or has that key. Raises SettingsError if there is none."""
        if text == "embed":
            return cls(0, "embed")
        if (keyed := _KEY.fullmatch(text)) is not None:
            return cls._of_key(int(keyed["layer"]), keyed["value"])
        site, dot, written = text.partition(".")
        layer = whole_number(written)
        if not dot or layer is None:
            raise SettingsError(f"'{text}' is not a hook point", hint="write SITE.LAYER, for example resid.9")
        return cls(layer, site)

    @classmethod
    def _of_key(cls, layer: int, value: str) -> "HookPoint":
        """Of a key's parts. Of what enters a block and leaves the one before, what leaves it, of which there is one
        more: so a model's last key is a hook point, and one activation has one name."""
        if value not in KEYS:
            keys = " ".join(f"{layer}_{known}" for known in KEYS)
            raise SettingsError(f"'{layer}_{value}' is not a hook point", hint=f"keys are {keys}; or write resid.9")
        site = KEYS[value]
        return cls(layer - 1, "resid") if site == "resid_pre" and layer else cls(layer, site)


def check_site(name: str) -> None:
    """Raise SettingsError for a name that no site has."""
    if name not in SITES:
        raise SettingsError(f"unknown site '{name}'", hint=f"sites are {' '.join(SITES)}")


def is_hook(text: str) -> bool:
    """Whether a text is the name of a hook point, as it prints."""
    try:
        return str(HookPoint.parse(text)) == text
    except SettingsError:
        return False


# Whole numbers are ASCII digits, as many as 64 bits hold.
_NUMBER = "[0-9]{1,18}"
# Names of spans begin with a letter, so that none is a number.
_SPAN = re.compile("[A-Za-z][A-Za-z0-9_-]{0,63}")
_KEY = re.compile(rf"(?P<layer>{_NUMBER})_(?P<value>[A-Za-z_]{{1,32}})")
_NODE = re.compile(
    rf"(?P<hook>[a-z_]+(?:\.{_NUMBER})?|{_NUMBER}_[a-z]+)/(?P<name>{_NUMBER}|{ERROR}|{TOKEN})"
    rf"(?:@(?P<position>{_NUMBER}|{_SPAN.pattern}))?"
)
_SLICE_PART = re.compile(rf"\s*(?P<number>[+-]?{_NUMBER})?\s*")


Position = int | str | None
NodeOrder = tuple[tuple[int, int], tuple[int, str], int]


def is_span_name(text: str) -> bool:
    """Whether a text can name a span of positions: a letter, then up to 63 letters, digits, ``_`` or ``-``."""
    return _SPAN.fullmatch(text) is not None


def position_order(position: Position, span_names: Sequence[str] = ()) -> tuple[int, str]:
    """Sort key: no position, then numbers, then names in the order given, and others by name."""
    if isinstance(position, str):
        rank = span_names.index(position) if position in span_names else len(span_names)
        return _PAST_NUMBERS + rank, position
    return -1 if position is None else position, ""


def logit_name(token: int) -> str:
    """The name of an output token: ``logit/464``."""
    return f"{LOGIT}{token}"


def logit_token(name: str) -> int | None:
    """The output token that a text names; None if it names none."""
    return whole_number(name.removeprefix(LOGIT)) if name.startswith(LOGIT) else None


@dataclass(frozen=True)
class NodeId:
    """A feature (``index`` set) or an SAE error term (``index`` None), at a position or over all of them; or what the
    embedding of the token at a position writes, where no SAE explains that.

    A position is a number, or the name of a span of positions that several prompts have in common.
    """

    hook: HookPoint
    index: int | None
    position: Position = None
    is_token: bool = False

    @property
    def is_error(self) -> bool:
        """Whether this is what the SAE misses rather than a feature."""
        return self.index is None and not self.is_token

    @property
    def feature(self) -> str:
        """The id without its position: ``resid.9/23433``, ``resid.9/error`` or ``embed/token``."""
        return f"{self.hook}/{(TOKEN if self.is_token else ERROR) if self.index is None else self.index}"

    def __str__(self) -> str:
        return self.feature if self.position is None else f"{self.feature}@{self.position}"

    @property
    def number(self) -> int | None:
        """The position where it is a number. Raises InputError for the name of a span."""
        if isinstance(self.position, str):
            raise InputError(
                f"{self} is at a named span, which a single text does not have",
                hint="give the prompts with their spans: --prompts FILE",
            )
        return self.position

    @property
    def order(self) -> NodeOrder:
        """Sort key: model order, then position, then feature index with the error last."""
        return self.order_among(())

    def order_among(self, span_names: Sequence[str]) -> NodeOrder:
        """`order` with named positions in the order of these names."""
        index = 2**62 if self.index is None else self.index
        return self.hook.order, position_order(self.position, span_names), index

    @classmethod
    def parse(cls, text: str) -> "NodeId":
        """The node that prints as ``text``. Raises SettingsError if there is none; ``output`` is no NodeId."""
        match = _NODE.fullmatch(text)
        if match is None:
            raise SettingsError(
                f"'{text}' is not a feature",
                hint="write HOOK/INDEX, for example resid.9/23433 or resid.9/23433@4",
            )
        written, name, hook = match["position"], match["name"], HookPoint.parse(match["hook"])
        position = written if written is None or is_span_name(written) else int(written)
        if name == TOKEN and hook.site != "embed":
            raise SettingsError(f"'{text}' is not a feature", hint="tokens are at the embedding: embed/token@4")
        return cls(hook, None if name in (ERROR, TOKEN) else int(name), position, is_token=name == TOKEN)


def without_numbers(nodes: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """The nodes on other prompts than their own: numbers of positions mean other words there, so a node counts at all
    of them; names of spans stay."""
    return tuple(
        dict.fromkeys(replace(node, position=None) if isinstance(node.position, int) else node for node in nodes)
    )


def parse_slice(text: str, *, hint: str = "write a Python slice, for example 3:5 for layers 3 and 4") -> slice:
    """The Python slice that a text writes, such as ``3:5``, ``:``, ``-2:``, ``::2``; of ``7``, what ``7:8`` is.

    Raises SettingsError, with the hint, if it is none or steps downwards.
    """
    parts = [_SLICE_PART.fullmatch(part) for part in text.split(":")]
    numbers = [int(part["number"]) if part["number"] else None for part in parts if part is not None]
    if len(numbers) < len(parts) or len(numbers) > 3 or numbers == [None]:
        raise SettingsError(f"'{text}' is not a slice of layers", hint=hint)
    if len(numbers) == 1:
        first = numbers[0] or 0
        return slice(first, first + 1 if first != -1 else None)
    if len(numbers) == 3 and numbers[2] is not None and numbers[2] <= 0:
        raise SettingsError(f"layer slice '{text}' has to step upwards", hint=hint)
    return slice(*numbers)


def parse_layers(text: str, *, n_layers: int) -> list[int]:
    """Block indices of a Python slice such as ``3:5`` (3 and 4), ``:``, ``-2:``, ``::2``; or one index, ``7``.

    Raises SettingsError if the text is no slice, reaches past the model or names no layer.
    """
    hint = f"this model has layers 0 to {n_layers - 1}; write a Python slice, for example 3:5 for layers 3 and 4"
    wanted = parse_slice(text, hint=hint)
    for number in (wanted.start, wanted.stop):
        if number is not None and not -n_layers <= number <= n_layers:
            raise SettingsError(f"layer slice '{text}' goes past the last layer of the model", hint=hint)
    layers = list(range(n_layers)[wanted])
    if not layers:
        raise SettingsError(f"layer slice '{text}' selects no layers", hint=hint)
    return layers


def hook_points(layers: Iterable[int], sites: Iterable[str]) -> list[HookPoint]:
    """All hook points of these layers and sites, in model order; ``embed`` counts once."""
    chosen = {HookPoint(0, site) if site == "embed" else HookPoint(layer, site) for layer in layers for site in sites}
    return sorted(chosen)


def parse_scales(texts: Iterable[str]) -> dict[HookPoint, dict[int, float]]:
    """Factors of features, written as pins with a number behind: ``6:8339=3``, ``attn.6:12,13=0``; several add up.

    Raises SettingsError for anything else, and for a feature with two factors.
    """
    scales: dict[HookPoint, dict[int, float]] = {}
    for text in texts:
        pin, _, written = text.rpartition("=")
        hint = "write LAYER:FEATURE=FACTOR or SITE.LAYER:FEATURE=FACTOR, for example 6:8339=3"
        try:
            factor = float(written)
            ((hook, indices),) = parse_pins([pin]).items()
        except (ValueError, SettingsError):
            raise SettingsError(f"'{text}' is not a scale", hint=hint) from None
        if not math.isfinite(factor):
            raise SettingsError(f"'{text}' scales by no number", hint=hint)
        for index in indices:
            if index in scales.setdefault(hook, {}):
                raise SettingsError(f"{hook}/{index} is scaled twice", hint="name each feature once")
            scales[hook][index] = factor
    return {hook: scales[hook] for hook in sorted(scales)}


def parse_pins(texts: Iterable[str]) -> dict[HookPoint, tuple[int, ...]]:
    """Features named by ``6:8339,14104`` (site ``resid``) or ``attn.6:12``; several texts add up.

    Raises SettingsError for anything else.
    """
    pins: dict[HookPoint, list[int]] = {}
    for text in texts:
        name, colon, indices = text.strip().partition(":")
        numbers = [number for part in indices.split(",") if (number := whole_number(part.strip())) is not None]
        if not colon or len(numbers) < len(indices.split(",")):
            raise SettingsError(
                f"'{text}' is not a pin",
                hint="write LAYER:FEATURE,FEATURE or SITE.LAYER:FEATURE, for example 6:8339,14104",
            )
        layer = whole_number(name)
        hook = HookPoint.parse(name) if layer is None else HookPoint(layer, "resid")
        pins.setdefault(hook, []).extend(numbers)
    return {hook: tuple(dict.fromkeys(pins[hook])) for hook in sorted(pins)}


@dataclass(frozen=True, order=True)
class AttentionScore:
    """How much a head at one position looks at another one; prints as ``5.3:12,4``: layer, head, query, key."""

    layer: int
    head: int
    query: int
    key: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}:{self.query},{self.key}"

    @classmethod
    def parse(cls, text: str) -> "AttentionScore":
        """The score that prints as ``text``. Raises SettingsError if there is none, or if the key comes later."""
        head, _, positions = text.strip().partition(":")
        numbers = [whole_number(part.strip()) for part in (*head.split("."), *positions.split(","))]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers) or len(numbers) != 4 or head.count(".") != 1:
            raise SettingsError(
                f"'{text}' is not an attention score", hint="write LAYER.HEAD:QUERY,KEY, for example 5.3:12,4"
            )
        found = cls(*known)
        if found.key > found.query:
            raise SettingsError(
                f"'{text}': position {found.query} cannot look at position {found.key}, which comes later",
                hint="write LAYER.HEAD:QUERY,KEY, with the key at the query or before it",
            )
        return found
