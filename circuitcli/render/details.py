"""What is known about single features: contexts, quantiles, logit effects; read for the features of one graph only."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph
from circuitcli.hookpoints import NodeId
from circuitcli.records import FeatureRecord, Stream

# Quotation marks inside JSON strings are escaped, so that this matches keys only.
_ID = re.compile(r'"id":\s*"([^"\\]+)"')
_HINT = "run `circuit interp --force`, or move the file away to draw without contexts"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Context(_Frozen):
    """A piece of text on which the feature is active; one activation for each token, ``peak`` is the strongest."""

    tokens: tuple[str, ...]
    activations: tuple[FiniteFloat, ...]
    peak: int
    block: int | None = None
    position: int | None = None


class Details(_Frozen):
    """All that is known about one feature; activations in activation units, promoted and suppressed in logits."""

    id: str
    label: str = ""
    density: FiniteFloat | None = None
    n_active: int | None = None
    max: FiniteFloat | None = None
    mean: FiniteFloat | None = None
    quantiles: Mapping[str, FiniteFloat] = {}
    contexts: tuple[Context, ...] = ()
    promoted: tuple[tuple[str, FiniteFloat], ...] = ()
    suppressed: tuple[tuple[str, FiniteFloat], ...] = ()
    sae: str | None = None


def read_details(graph: CircuitGraph, stream: Stream, run: Path | None) -> dict[str, Details]:
    """Details by feature id, for the graph's features about which something is known.

    They come from the files that ``feature`` records name (relative to the run directory) or else from
    ``RUN/features/HOOK.jsonl``; a label on the stream goes before the file's. Details of another SAE than the graph's
    are left out. Raises InputError for a file with a damaged line about one of the features.
    """
    wanted = {place.feature: str(place.hook) for node in graph.nodes if (place := node.place) and not place.is_error}
    told = {record.id: record for record in stream.of(FeatureRecord) if _fits(graph, wanted.get(record.id), record)}
    found = {name: Details.model_validate(record.model_dump(exclude_none=True)) for name, record in told.items()}
    for path in _files(wanted, told.values(), run):
        for name, details in _read(path, wanted.keys()).items():
            sae = graph.head.saes.get(wanted[name])
            if sae is None or details.sae is None or details.sae == sae:
                label = told[name].label if name in told else ""
                found[name] = details.model_copy(update={"label": label or details.label})
    return {name: found[name] for name in sorted(found, key=lambda name: NodeId.parse(name).order)}


def _fits(graph: CircuitGraph, hook: str | None, record: FeatureRecord) -> bool:
    if hook is None:
        return False
    mine, expected = record.sae, graph.head.saes.get(hook)
    return mine is None or expected is None or mine == expected


def _files(wanted: Mapping[str, str], told: Iterable[FeatureRecord], run: Path | None) -> list[Path]:
    if run is None:
        return []
    named = {record.id.partition("/")[0]: run / record.path for record in told}
    paths = {hook: named.get(hook, run / "features" / f"{hook}.jsonl") for hook in wanted.values()}
    return [path for path in dict.fromkeys(paths.values()) if path.is_file()]


def _read(path: Path, wanted: Iterable[str]) -> dict[str, Details]:
    names, found = frozenset(wanted), {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                match = _ID.search(line)
                if match is not None and match[1] in names:
                    found[match[1]] = _parse(line, place=f"{path} line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", hint=_HINT) from None
    return found


def _parse(line: str, *, place: str) -> Details:
    try:
        return Details.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{place}: damaged feature: {field or 'line'}: {first['msg'].lower()}", hint=_HINT) from None
