"""``circuit interp --text``: which features of the run's coders are active in a text, token by token."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import progress
from circuitcli.errors import InputError, SettingsError
from circuitcli.features.label_files import LabelBook
from circuitcli.features.lines import wanted_lines
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.reading import read_text
from circuitcli.records import FigureRecord, Record, SaeRecord, TokenRecord
from circuitcli.render import feature_pages as pages
from circuitcli.render.write import Writer
from circuitcli.stages.interp import file_of
from circuitcli.stages.render import recorded
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource, load_saes, recorded_widths, sae_sources

if TYPE_CHECKING:
    from circuitcli.features.texts import ReadText

STDOUT = "-"
# Activations that a page holds, at most: features are left out from the weakest on.
MOST = 200_000
TITLE_LENGTH = 80
# One word with the suffix of a text's file.
_LIKE_A_FILE = re.compile(r"\S+\.(txt|md|py|jsonl?|csv|tsv|parquet|html?)")


@dataclass(frozen=True)
class Asked:
    """What is asked of a text: of which features (of all if none is named), and a page to write, - for stdout."""

    text: str
    features: tuple[NodeId, ...] = ()
    html: str | None = None

    @classmethod
    def of(cls, text: str, ids: Sequence[str] = (), *, html: str | None = None) -> "Asked":
        """Of features by their names. Raises SettingsError for what is none, and for a page that is no .html."""
        features = tuple(map(NodeId.parse, ids))
        for node in features:
            if node.index is None:
                raise SettingsError(f"{node} is an error term, which is active everywhere", hint="name a feature")
        if html not in (None, STDOUT) and Path(str(html)).suffix.lower() not in (".html", ".htm"):
            raise SettingsError(
                f"'{html}' is not a name of a page", hint="with --text name a file that ends in .html, or - for stdout"
            )
        return cls(text, features, html)


def of_source(text: str, *, stdin: str | None = None) -> str:
    """The text that was meant: what came through stdin, the text of a file of that name, or the text itself.

    Raises InputError if there is nothing in it.
    """
    found, place = _found(text) if stdin is None else (stdin, "stdin")
    if not found:
        raise InputError(f"{place} is empty", hint='give a text in which there is something: --text "..."')
    return found


def _found(text: str) -> tuple[str, str]:
    """The text, and where it is from."""
    if _names_file(text):
        progress.note(f"the text is that of the file {text}")
        return read_text(text, hint="name a text file, or give the text itself with --text"), text
    if _LIKE_A_FILE.fullmatch(text):
        progress.note(f"there is no file {text}: its name is taken as the text")
    return text, "the text"


def _names_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def run(request: Request, asked: Asked, *, stdout: Writer) -> list[Record]:
    """A record for each token with the strongest features of each coder; a page too if it is asked for.

    With features named, these alone are told of, wherever they are active. Raises InputError for a text without a
    token and for features that the coders lack.
    """
    settings = request.settings
    sources = _sources(request, asked.features)
    _check_there(asked.features, recorded_widths(request))
    from circuitcli.features.texts import read_text as read_by_model
    from circuitcli.models.loading import load_model

    model = load_model(settings.model)
    loaded = load_saes(sources, sources, model=settings.model.name, adapter=model.adapter)
    coders = {hook: one.sae.to(model.adapter.device).requires_grad_(False) for hook, one in loaded.items()}
    _check_there(asked.features, {hook: coder.d_sae for hook, coder in coders.items()})
    found = read_by_model(model, coders, asked.text)
    labels = _Labels(request, sources)
    made = _records(found, labels, n=settings.pages.per_token, wanted={node.feature for node in asked.features})
    if asked.html is None:
        return [*made]
    page = pages.text_page(_content(request, asked, found, labels))
    if asked.html == STDOUT:
        stdout.write(page)
        return []
    place = Path(asked.html)
    pages.write_page(place.parent, place.name, page)
    return [*made, FigureRecord(path=recorded(place, request.run.path))]


def _sources(request: Request, features: Sequence[NodeId]) -> dict[HookPoint, SaeSource]:
    sources = sae_sources(request, stage="interp")
    for node in features:
        if node.hook not in sources:
            there = " ".join(map(str, sources))
            raise InputError(f"no coder reads {node.hook}", hint=f"there are coders at {there}")
    wanted = {node.hook for node in features}
    return {hook: source for hook, source in sources.items() if not wanted or hook in wanted}


def _check_there(features: Sequence[NodeId], widths: Mapping[HookPoint, int]) -> None:
    for node in features:
        if node.hook in widths and (node.index or 0) >= widths[node.hook]:
            last = widths[node.hook] - 1
            raise InputError(
                f"there is no feature {node.feature}", hint=f"the coder at {node.hook} has features 0 to {last}"
            )


class _Labels:
    """The labels that count for features of the run's descriptions, as far as there are any."""

    def __init__(self, request: Request, sources: Mapping[HookPoint, SaeSource]) -> None:
        self._request, self._sources = request, sources
        self._book = LabelBook.of(request.run.path, request.settings.explain.labels)

    def of(self, ids: Sequence[str]) -> dict[str, str]:
        """By id, of those that have one."""
        found: dict[str, str] = {}
        for hook, source in self._sources.items():
            own = [name for name in ids if name.partition("/")[0] == str(hook)]
            path = file_of(self._request, hook)
            known = dict.fromkeys(own, "")
            if path.is_file() and own:
                lines = (details for _, details in wanted_lines(path, own) if details.sae == source.digest)
                known |= {details.id: details.label for details in lines}
            for name in own:
                label = self._book.of_feature(name, sae=source.digest)
                found[name] = known[name] if label is None else label.label
        return found


def _records(found: "ReadText", labels: _Labels, *, n: int, wanted: set[str]) -> list[TokenRecord]:
    """With features named, all of them that are active at a token."""
    tokens = found.strongest(max(codes.d_sae for codes in found.codes.values()) if wanted else n)
    kept = [[one for one in token.features if not wanted or one.id in wanted] for token in tokens]
    known = labels.of(sorted({one.id for own in kept for one in own}))
    return [
        TokenRecord(
            number=number,
            position=token.position,
            token=token.token,
            features=tuple((one.id, one.activation, known.get(one.id, "")) for one in own),
        )
        for number, (token, own) in enumerate(zip(tokens, kept, strict=True))
    ]


def _content(request: Request, asked: Asked, found: "ReadText", labels: _Labels) -> dict[str, Any]:
    """What a page of a text carries: every feature that is active in it, strongest first, with its activations."""
    wanted = {node.feature for node in asked.features}
    active = {name: pairs for name, pairs in _by_feature(found).items() if not wanted or name in wanted}
    order = sorted(active, key=lambda name: -max(abs(value) for _, value in active[name]))
    kept, size = [], 0
    for name in order:
        size += len(active[name])
        if size > MOST:
            break
        kept.append(name)
    known = labels.of(kept)
    records = {record.hook for record in request.records.of(SaeRecord)}
    title = " ".join(asked.text.split())[:TITLE_LENGTH]
    return {
        "run": str(request.run.path) if records else str(request.settings.model.name),
        "title": title,
        "tokens": found.tokens,
        "positions": found.positions,
        "features": [
            {"id": name, "hook": name.partition("/")[0], "label": known.get(name, ""), "activations": active[name]}
            for name in kept
        ],
        "left_out": len(order) - len(kept),
    }


def _by_feature(found: "ReadText") -> dict[str, list[tuple[int, float]]]:
    """Of each feature the tokens at which it is active, and how strongly."""
    active: dict[str, list[tuple[int, float]]] = {}
    for hook, codes in found.codes.items():
        counts = codes.edges.diff().tolist()
        at = (token for token, count in enumerate(counts) for _ in range(count))
        for token, feature, value in zip(at, codes.features.tolist(), codes.values.tolist(), strict=True):
            active.setdefault(f"{hook}/{feature}", []).append((token, float(f"{value:.4g}")))
    return active
