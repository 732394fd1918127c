"""What the fields of a record may hold: the one schema by which all that comes from outside is checked on reading.

A field is typed with one of these; pydantic then refuses, naming the field, what is of another type, not finite, too
long, no hook point or node, or, in what becomes a path, points outside the run directory.
"""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, Field

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId, Position, is_span_name, logit_name, logit_token
from circuitcli.settings.graph import Baseline, Metric

# How a graph's numbers were found: of those from gradients some have exact effects of the strongest nodes.
_OF_GRADIENTS = ("grad-ig", "grad-atp", "grad-relp", "grad-gim")
_OF_SEARCHES = tuple(f"search-{name}" for name in ("nearest", "random", "zero", "mean"))
METHODS = (
    "naive",
    *_OF_GRADIENTS,
    *(f"{name}-refined" for name in _OF_GRADIENTS),
    "grad-exact",
    "frozen",
    *_OF_SEARCHES,
    # Between attention heads and MLPs, as EAP-IG and MIB write them; graphs made elsewhere only.
    "eap",
)
POSITIONS = ("all", "last", "sum", "spans")
# Of graphs made elsewhere, whose files do not say it.
UNKNOWN = "unknown"
# A score is in the unit of a metric that is not known.
UNITS = ("nats", "logits", "activation", "pre-activation", "ratio", "probability", "score")
# What happens to error terms while a circuit is tested: they are nodes like others, all kept, or all removed.
POLICIES = ("nodes", "kept", "removed")
# What a test of a circuit comes to, the least first.
LEVELS = ("refuted", "proposed", "supported", "validated")

# More than any model, prompt or graph has; what is longer is no record but an attack on memory.
LONGEST_TEXT, LONGEST_WORD, LONGEST_LIST, LONGEST_TABLE = 2**20, 4096, 2**20, 2**16
MOST_ALTERNATIVES = 3
# File systems take 255 bytes, and names get endings.
LONGEST_NAME_BYTES = 200
LARGEST_COUNT = 2**63 - 1
LARGEST_LAYER = 2**31 - 1
# Contexts at this quantile of a feature's activations and above show where it is strongest.
STRONG = 0.95

Place = TypeVar("Place", HookPoint, NodeId)


def name_problem(name: str) -> str | None:
    """What keeps a text from being the name of a graph or report, whose files are named after it; None if nothing."""
    if not name:
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it contains a path separator"
    if name.startswith("."):
        return "it begins with a dot"
    if not name.isprintable():
        return "it contains a character that cannot be printed"
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME_BYTES:
        return f"it is longer than {LONGEST_NAME_BYTES} bytes"
    return None


def _name(text: str) -> str:
    if problem := name_problem(text):
        raise ValueError(f"{text[:60]!r} cannot name a file: {problem}")
    return text


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path cannot contain a NUL character")
    return text


def _path_inside(text: str) -> str:
    path = PurePosixPath(_path(text))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text[:60]!r} points outside the run directory")
    if not text.isprintable():
        raise ValueError(f"{text[:60]!r} contains a character that cannot be printed")
    return text


def _hook(text: str) -> str:
    _same(text, _parsed(text, HookPoint.parse))
    return text


def _node(text: str) -> str:
    if text == OUTPUT:
        return text
    token = logit_token(text)
    if token is None:
        return _feature_or_error(text)
    if logit_name(token) != text:
        raise ValueError(f"{text[:60]!r} should be written {logit_name(token)!r}")
    return text


def _feature_or_error(text: str) -> str:
    _same(text, _parsed(text, NodeId.parse))
    return text


def _span(text: str) -> str:
    if not is_span_name(text):
        raise ValueError(f"{text[:60]!r} cannot name a span: write a letter, then letters, digits, _ or -")
    return text


def _parsed(text: str, parse: Callable[[str], Place]) -> Place:
    """What a text names. Raises ValueError if that is nothing, or nothing that any model has."""
    try:
        parsed = parse(text)
    except SettingsError as error:
        raise ValueError(error.message[:200]) from None
    hook = parsed if isinstance(parsed, HookPoint) else parsed.hook
    numbers = (0, 0) if isinstance(parsed, HookPoint) else (parsed.index or 0, _number(parsed.position))
    if hook.layer > LARGEST_LAYER or max(numbers) > LARGEST_COUNT:
        raise ValueError(f"{text[:60]!r} is beyond the size of any model")
    return parsed


def _number(position: Position) -> int:
    return position if isinstance(position, int) else 0


def _same(text: str, parsed: HookPoint | NodeId) -> None:
    """Two texts of one node would be two nodes."""
    if str(parsed) != text:
        raise ValueError(f"{text[:60]!r} should be written {str(parsed)[:60]!r}")


def one_of(known: Sequence[str]) -> AfterValidator:
    """A text of a few that are known."""

    def check(text: str) -> str:
        if text not in known:
            raise ValueError(f"{text[:60]!r} is not one of {' '.join(known)}")
        return text

    return AfterValidator(check)


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)]
Flag = Annotated[bool, Field(strict=True)]
# A prompt, a label: of any characters; a digest, a data type, the name of a model.
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Word = Annotated[str, Field(max_length=LONGEST_WORD)]
Texts = Annotated[tuple[Text, ...], Field(max_length=LONGEST_LIST)]
Numbers = Annotated[tuple[Number, ...], Field(max_length=LONGEST_LIST)]
Counts = Annotated[tuple[Count, ...], Field(max_length=LONGEST_LIST)]
# For each position a few tokens that prompts have there.
Alternatives = Annotated[
    tuple[Annotated[tuple[Text, ...], Field(max_length=MOST_ALTERNATIVES)], ...], Field(max_length=LONGEST_LIST)
]
# Tokens with their probabilities.
TokenShares = Annotated[tuple[tuple[Text, Share], ...], Field(max_length=LONGEST_TABLE)]
SpanNames = Annotated[tuple[Annotated[Word, AfterValidator(_span)], ...], Field(max_length=LONGEST_TABLE)]

Name = Annotated[str, AfterValidator(_name)]
AnyPath = Annotated[Word, AfterValidator(_path)]
PathInRun = Annotated[Word, AfterValidator(_path_inside)]

HookName = Annotated[Word, AfterValidator(_hook)]
HookNames = Annotated[tuple[HookName, ...], Field(max_length=LONGEST_TABLE)]
NodeName = Annotated[Word, AfterValidator(_node)]
FeatureName = Annotated[Word, AfterValidator(_feature_or_error)]
# Whatever JSON holds, by name; what it is about says which types.
# Features with how active they are and what they mean.
ActiveFeatures = Annotated[tuple[tuple[FeatureName, Number, Text], ...], Field(max_length=LONGEST_TABLE)]
Table = Annotated[dict[Word, Any], Field(max_length=LONGEST_TABLE)]
DigestsByHook = Annotated[dict[HookName, Word], Field(max_length=LONGEST_TABLE)]
# Parts of an edge by head: 5.3 or 5.3/qk, and what no head of these carries.
NumbersByHead = Annotated[dict[Word, Number], Field(max_length=LONGEST_TABLE)]
# Names of hook points written, by the hook point read.
HooksByHook = Annotated[dict[HookName, Annotated[HookNames, Field(min_length=1)]], Field(max_length=LONGEST_TABLE)]
NumbersByHook = Annotated[
    dict[HookName, Annotated[dict[Word, Number | None], Field(max_length=100)]], Field(max_length=LONGEST_TABLE)
]
NumbersByName = Annotated[dict[Word, Number | None], Field(max_length=100)]
TextsByNode = Annotated[dict[NodeName, Text], Field(max_length=LONGEST_TABLE)]

MethodName = Annotated[Word, one_of(METHODS)]
MetricName = Annotated[Word, one_of((*get_args(Metric), UNKNOWN))]
BaselineName = Annotated[Word, one_of((*get_args(Baseline), UNKNOWN))]
PositionsName = Annotated[Word, one_of(POSITIONS)]
UnitName = Annotated[Word, one_of(UNITS)]
PolicyName = Annotated[Word, one_of(POLICIES)]
LevelName = Annotated[Word, one_of(LEVELS)]
