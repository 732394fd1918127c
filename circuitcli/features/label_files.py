"""Labels from elsewhere than the rules, and which of several counts: one file for each source; torch-free.

    RUN/labels/hand.jsonl         what a person wrote, taken over by `interp --labels FILE`
    RUN/labels/model.jsonl        what a language model made of contexts, `interp --explain`
    RUN/labels/neuronpedia.jsonl  what Neuronpedia has, `interp --neuronpedia`

They lie beside the descriptions of features, so that describing these again does not lose what was written or paid for.
A label of one SAE is not shown for a feature of another.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from circuitcli import runs
from circuitcli.errors import InputError, SettingsError
from circuitcli.faults import checked
from circuitcli.features.lines import Details
from circuitcli.hookpoints import NodeId
from circuitcli.reading import json_lines, parse_object, text_lines
from circuitcli.schema import LONGEST_TEXT, FeatureName

FOLDER = "labels"
HAND, MODEL, NEURONPEDIA, RULES = "hand", "model", "neuronpedia", "rules"
# Those before win over those behind.
SOURCES = (HAND, MODEL, NEURONPEDIA, RULES)
_HINT = 'write one feature a line: its id, a tab and the label; or {"id": "resid.9/331", "label": "..."}'


class Label(BaseModel):
    """A label from one source; ``label_score``: balanced accuracy of where it says that its feature is active."""

    # What else a source tells of a label stays in its file.
    model_config = ConfigDict(frozen=True, extra="allow")

    id: FeatureName
    label: str = Field(max_length=LONGEST_TEXT)
    label_source: str = HAND
    label_score: FiniteFloat | None = None
    sae: str | None = None


@dataclass(frozen=True)
class LabelBook:
    """The labels of features by id, from one source each, the sources that win first.

    Of those that are of the feature's own SAE, or do not say of which, the first counts; where that is empty, or there
    is none, the rules' own label stands.
    """

    labels: tuple[Mapping[str, Label], ...]

    @classmethod
    def of(cls, run: Path | None, files: Iterable[str | Path] = ()) -> "LabelBook":
        """The labels of a run and, before all others, of files by hand, of which later ones win.

        Raises InputError for a file that cannot be read.
        """
        named: dict[str, Label] = {}
        for path in files:
            named |= read_by_hand(Path(path))
        return cls((named, *(read_kept(run, source) for source in SOURCES if run is not None)))

    def of_feature(self, name: str, *, sae: str | None = None) -> Label | None:
        """The label that counts for a feature of this SAE; None where the rules' own does."""
        own = (label for labels in self.labels if (label := labels.get(name)) and _same(label.sae, sae))
        found = next(own, None)
        # An empty one by hand takes those of other sources away.
        return found if found is not None and found.label else None

    def line(self, content: dict[str, Any]) -> dict[str, Any]:
        """A line of a features file with the label that counts."""
        found = self.of_feature(str(content.get("id")), sae=content.get("sae"))
        return content if found is None or _is_weaker(found, content.get("label_source")) else content | _shown(found)

    def details(self, details: Details) -> Details:
        """What is known of a feature with the label that counts."""
        found = self.of_feature(details.id, sae=details.sae)
        weaker = found is None or _is_weaker(found, details.label_source)
        return details if found is None or weaker else details.model_copy(update=_shown(found))


def read_kept(run: Path, source: str) -> dict[str, Label]:
    """The labels of one source that a run keeps, by feature. Raises InputError for a damaged file."""
    path = kept_in(run, source)
    if not path.is_file():
        return {}
    return {label.id: label for place, line in json_lines(path) if (label := _label(line, place=place))}


def keep(run: Path, source: str, labels: Iterable[Label]) -> Path:
    """Put labels of one source beside those that the run keeps, in place of older ones of the same features."""
    merged = read_kept(run, source) | {label.id: label for label in labels}
    path = kept_in(run, source)
    with runs.atomic(path) as stream:
        for name in sorted(merged, key=lambda name: NodeId.parse(name).order):
            content = merged[name].model_dump(exclude_none=True)
            stream.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def kept_in(run: Path, source: str) -> Path:
    """Where a run keeps the labels of one source."""
    return run / FOLDER / f"{source}.jsonl"


def read_by_hand(path: Path) -> dict[str, Label]:
    """Labels that a person wrote, by feature: tab-separated (id, label) or JSON lines, told apart by each line.

    A first line without a feature is a heading; # begins a comment; a position in an id is left out; an empty label
    takes an older one away. Raises InputError for anything else, and for a feature with two labels.
    """
    found: dict[str, Label] = {}
    for number, (place, line) in enumerate(text_lines(path, hint=_HINT)):
        label = _json_label(line, place) if line.lstrip().startswith("{") else _tab_label(line, place, first=not number)
        if label is None:
            continue
        if found.get(label.id, label).label != label.label:
            raise InputError(f"{place} is a second label of {label.id}", hint="leave one of them out")
        found[label.id] = label
    return found


def _json_label(line: str, place: str) -> Label | None:
    content = parse_object(line, name=place, hint=_HINT)
    return _label({**content, "id": _feature(content.get("id"), place), "label_source": HAND}, place=place)


def _tab_label(line: str, place: str, *, first: bool) -> Label | None:
    if line.startswith("#"):
        return None
    name, tab, text = line.rstrip("\r\n").partition("\t")
    if first and tab and "/" not in name:
        return None
    if not tab:
        raise InputError(f"{place} has no tab between a feature and its label", hint=_HINT)
    return _label({"id": _feature(name.strip(), place), "label": text.strip()}, place=place)


def _feature(written: Any, place: str) -> str:
    try:
        node = NodeId.parse(written if isinstance(written, str) else "")
    except SettingsError:
        raise InputError(f"{place}: '{str(written)[:60]}' is not a feature", hint=_HINT) from None
    if node.index is None:
        raise InputError(f"{place}: {node.feature} is not a feature, which alone have labels", hint=_HINT)
    return node.feature


def _label(content: Mapping[str, Any], *, place: str) -> Label:
    return checked(Label, content, place=f"{place}: damaged label", hint=_HINT)


def _same(mine: str | None, other: str | None) -> bool:
    return mine is None or other is None or mine == other


def _is_weaker(label: Label, shown: str | None) -> bool:
    """Whether what is shown already comes from a source that wins."""
    return shown in SOURCES and SOURCES.index(label.label_source) > SOURCES.index(shown)


def _shown(label: Label) -> dict[str, Any]:
    return {"label": label.label, "label_source": label.label_source, "label_score": label.label_score}
