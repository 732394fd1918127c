"""``circuit interp --html``: pages of all features of a run in a directory, or of single ones in one file.

A directory is worked on as a run is: what it was made from is written down in it, so that the same command goes on
where it was interrupted, a finished one is not made again, and other files than its own are not touched.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from circuitcli import progress, runs
from circuitcli.errors import InputError, SettingsError
from circuitcli.features.label_files import SOURCES, kept_in
from circuitcli.features.lines import Details, checked, first_lines
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.records import FigureRecord, Record
from circuitcli.render import feature_pages as pages
from circuitcli.render.write import Writer
from circuitcli.runs import Fingerprint, Run
from circuitcli.stages import interp
from circuitcli.stages.coder_facts import coder_facts, summary
from circuitcli.stages.feature_facts import FeatureFacts, Row
from circuitcli.stages.render import recorded
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, sae_sources

NAME, STDOUT = "pages", "-"
# Of the layout of the directory; another one is made again.
FORMAT = 1
# Features that are looked up at once: as many as a few files hold.
AT_ONCE = 20 * pages.CHUNK

Sources = Mapping[HookPoint, SaeSource]


def run(request: Request, output: str, *, describes: bool = True) -> list[Record]:
    """Write pages of all described features into a directory, and return a record of the index.

    Features are described first if they are not; describes: also if they were with other settings, which is refused
    as `circuit interp` does. Raises InputError for a directory with other files in it, unless it is forced: then these
    stay, and those of the same names are replaced.
    """
    folder = _folder(output)
    made = [] if not describes and _is_described(request) else interp.run(replace(request, force=False))
    sources = _sources(request)
    site = Run(folder, option="--html")
    _check_free(site, force=request.force)
    inputs = {f"features at {hook}": runs.file_digest(interp.file_of(request, hook)) for hook in sources}
    inputs |= {f"SAE at {hook}": source.digest for hook, source in sources.items()} | _labels(request)
    print_ = _fingerprint(request, inputs)
    asked, is_ours = replace(request, run=site), NAME in site.stages()
    resumable(
        asked,
        NAME,
        print_,
        lambda resumes: _work(request, sources, folder, starts_over=is_ours and not resumes),
        begins=True,
    )
    return [*made, FigureRecord(path=recorded(folder / pages.INDEX, request.run.path))]


def single(request: Request, ids: Sequence[str], output: str, *, stdout: Writer) -> list[Record]:
    """Write one page, whole in itself, about these features: to a file, or to ``stdout`` for ``-``.

    Raises as `interp.describe`, and SettingsError for a file that is no .html.
    """
    if output != STDOUT and Path(output).suffix.lower() not in (".html", ".htm"):
        raise SettingsError(
            f"'{output}' is not a name of a page", hint="with --feature name a file that ends in .html, or - for stdout"
        )
    lines = [checked(line, place=f"feature {line['id']}") for line in interp.describe(request, ids)]
    sources = _sources(request)
    facts = FeatureFacts(request, sources, ablates=request.settings.pages.ablate is not False)
    documents = [next(facts.documents(HookPoint.parse(one.id.partition("/")[0]), [one])) for one in lines]
    text = pages.feature_page(documents, run=str(request.run.path))
    if output == STDOUT:
        stdout.write(text)
        return []
    place = Path(output)
    pages.write_page(place.parent, place.name, text)
    return [FigureRecord(path=recorded(place, request.run.path))]


def _folder(output: str) -> Path:
    if output == STDOUT:
        raise SettingsError("pages of all features are a directory", hint="name one: --html DIR; - is for --feature")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a directory", hint="name a directory that is new or empty")
    return folder


def _check_free(site: Run, *, force: bool) -> None:
    if force or NAME in site.stages() or not site.path.is_dir():
        return
    there = sorted(path.name for path in site.path.iterdir() if path.name != "lock")
    if there:
        raise InputError(
            f"{site.path} exists and holds other files: {' '.join(there[:3])}{' ...' if len(there) > 3 else ''}",
            hint="name a directory that is new or empty, or use --force to write among them",
        )


def _sources(request: Request) -> Sources:
    """The coders whose features are described. Raises InputError if there is none."""
    sources = sae_sources(request, stage="interp")
    found = {hook: source for hook, source in sources.items() if interp.file_of(request, hook).is_file()}
    if not found:
        raise InputError(f"{request.run.path} has no described features", hint="run `circuit interp` first")
    return found


def _is_described(request: Request) -> bool:
    """Whether there is a file for each of the coders, of whatever settings."""
    files = [interp.file_of(request, hook) for hook in sae_sources(request, stage="interp")]
    return bool(files) and all(path.is_file() for path in files)


def _labels(request: Request) -> dict[str, str]:
    """Digests of the files of labels that are not the rules'."""
    kept = {f"labels from {source}": kept_in(request.run.path, source) for source in SOURCES}
    named = {f"labels in {path}": Path(path) for path in request.settings.explain.labels}
    return {name: runs.file_digest(path) for name, path in {**kept, **named}.items() if path.is_file()}


def _fingerprint(request: Request, inputs: Mapping[str, str]) -> Fingerprint:
    return fingerprint(
        request, ("pages.",), {**inputs, "format of the pages": str(FORMAT)}, without=("pages.per_token",)
    )


def _work(
    request: Request, sources: Sources, folder: Path, *, starts_over: bool
) -> tuple[list[Record], dict[str, Any]]:
    """Write what is missing. A coder's own file comes last, so that one that has it is whole."""
    # What lies there from elsewhere stays, whatever its name.
    if starts_over:
        shutil.rmtree(folder / pages.DATA, ignore_errors=True)
    facts = FeatureFacts(request, sources, ablates=bool(request.settings.pages.ablate))
    run_name, model = str(request.run.path), str(request.settings.model.name)
    coders = []
    for hook, source in sources.items():
        rows = facts.rows[hook]
        page = pages.coder_page(str(hook))
        if not pages.data_path(folder, f"{hook}/coder").is_file():
            _write_coder(request, facts, hook, folder)
        pages.write_page(folder, page, pages.html("coder", f"{hook} – {run_name}", {"hook": str(hook)}))
        d_sae = _width(request, hook)
        told = {"hook": str(hook), "page": page, "n_live": len(rows), "d_sae": d_sae, "dead": 1 - len(rows) / d_sae}
        told["empty"] = sorted({*range(pages.chunk_of(d_sae - 1) + 1)} - {pages.chunk_of(row.index) for row in rows})
        coders.append({**told, **summary(request, hook, source)})
    index = {"run": run_name, "model": model, "chunk": pages.CHUNK, "coders": coders}
    pages.write_data(folder, "index", index)
    pages.write_page(folder, pages.FEATURE, pages.html("feature", f"a feature – {run_name}"))
    pages.write_page(folder, pages.INDEX, pages.html("index", f"features – {run_name}"))
    return [], {"n_features": sum(len(rows) for rows in facts.rows.values())}


def _width(request: Request, hook: HookPoint) -> int:
    return interp.width_of(interp.file_of(request, hook)) or 1


def _write_coder(request: Request, facts: FeatureFacts, hook: HookPoint, folder: Path) -> None:
    """The files of one coder: features in chunks, then the rows of the index, then what its page shows."""
    rows, nearest = facts.rows[hook], list[float]()
    beside = _beside(hook, rows)
    with progress.task(f"pages of {hook}", total=len(rows), unit="features") as advance:
        for part in _parts(first_lines(interp.file_of(request, hook))):
            made: dict[int, dict[int, Any]] = {}
            for details, document in zip(part, facts.documents(hook, part), strict=True):
                number = int(details.id.rpartition("/")[2])
                made.setdefault(pages.chunk_of(number), {})[number] = {**document, **beside[number]}
                own = next((near for near in document["decoders"] if near["hook"] == str(hook)), None)
                nearest += [own["features"][0][1]] if own else []
                advance(1)
            for chunk, documents in made.items():
                pages.write_data(folder, f"{hook}/{chunk}", documents)
    pages.write_data(folder, f"{hook}/rows", _columns(rows))
    coder = facts.relations.coder(hook)
    told = coder_facts(request, hook, facts.sources[hook], coder=coder, rows=rows, nearest=nearest)
    pages.write_data(folder, f"{hook}/coder", told)


def _parts(lines: Iterator[Details]) -> Iterator[list[Details]]:
    """Some hundred features at a time, all of a chunk together; lines come by number."""
    part: list[Details] = []
    for details in lines:
        is_new = part and pages.chunk_of(_number(details)) != pages.chunk_of(_number(part[-1]))
        if is_new and len(part) >= AT_ONCE:
            yield part
            part = []
        part.append(details)
    if part:
        yield part


def _number(details: Details) -> int:
    return NodeId.parse(details.id).index or 0


def _beside(hook: HookPoint, rows: Sequence[Row]) -> dict[int, dict[str, str]]:
    """The features before and after each, for the way through all."""
    numbers = [row.index for row in rows]
    found: dict[int, dict[str, str]] = {number: {} for number in numbers}
    for one, other in pairwise(numbers):
        found[one]["after"], found[other]["before"] = f"{hook}/{other}", f"{hook}/{one}"
    return found


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """What the index shows, column by column."""
    names = ("index", "label", "density", "max", "score")
    return {name: [getattr(row, name) for row in rows] for name in names}
