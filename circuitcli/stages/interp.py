"""What the features of the SAEs mean: one file and one record for each hook point, one line for each live feature."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from circuitcli import runs
from circuitcli.errors import InputError
from circuitcli.features.label_files import LabelBook
from circuitcli.features.lines import first_lines, wanted_lines
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.manifest import NEXT
from circuitcli.reading import parse_object, text_lines
from circuitcli.records import ActivationsRecord, FeaturesRecord, Record, SaeRecord
from circuitcli.runs import Fingerprint
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.inputs import activation_records, collecting, open_cache
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseCoder

Sources = Mapping[HookPoint, SaeSource]

NAME = "interp"
FOLDER = "features"
# Where files are made that are to take the place of finished ones.
ASIDE = f"{FOLDER}/next"


def run(request: Request) -> list[Record]:
    """One record for each hook point whose features were described, now or before.

    Raises InputError if SAEs or activations are missing or do not fit together.
    """
    sources = _sources(request)
    print_ = _fingerprint(request, sources)
    return resumable(
        request,
        NAME,
        print_,
        lambda resumes: _work(request, sources, resumes=resumes),
        keeps=True,
        clean=lambda: shutil.rmtree(request.run.path / ASIDE, ignore_errors=True),
    )


def describe(request: Request, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of these features, as they are kept.

    Raises SettingsError for an id that cannot be read, InputError for a feature of which nothing is known: it never
    fired, its SAE is narrower, or nothing was described at its hook point.
    """
    lines = [_line(request, NodeId.parse(text)) for text in ids]
    book = LabelBook.of(request.run.path, request.settings.explain.labels)
    return [book.line(line) for line in lines]


def described(request: Request) -> tuple[list[Record], Request]:
    """Records of the descriptions that are made where there are none, and the request with them."""
    made = [] if request.records.of(FeaturesRecord) else run(request)
    return made, replace(request, records=request.records + made)


def _sources(request: Request) -> Sources:
    """The SAEs of the hook points of which there are activations."""
    collected = activation_records(request, stage=NAME)
    hooks = {record.hook for record in collected}
    sources = sae_sources(request, stage=NAME)
    chosen = {hook: source for hook, source in sources.items() if hooks.issuperset(reads_of(request, hook, source))}
    if not chosen:
        raise InputError(
            f"{NAME} read SAEs at {' '.join(map(str, sources))} and activations at {' '.join(sorted(hooks))}",
            hint=f"collect activations for the SAEs: {collecting(request, sources)}",
        )
    return chosen


def reads_of(request: Request, hook: HookPoint, source: SaeSource) -> Sequence[str]:
    """Names of what a coder reads: of the run's crosscoders several hook points."""
    record = next((record for record in request.records.of(SaeRecord) if record.hook == str(hook)), None)
    return record.hooks if source.is_own and record is not None and record.hooks else (str(hook),)


def _fingerprint(request: Request, sources: Sources) -> Fingerprint:
    digests = {record.hook: record.digest for record in request.records.of(ActivationsRecord)}
    inputs = {f"SAE at {hook}": source.digest for hook, source in sources.items()}
    read = {name for hook, source in sources.items() for name in reads_of(request, hook, source)}
    inputs |= {f"activations at {name}": digests[name] for name in sorted(read)}
    return fingerprint(request, ("interp.",), inputs, without=("interp.batch_size",))


def _work(request: Request, sources: Sources, *, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    """Describe the hook points that have no file of the same fingerprint yet.

    Where finished files are to be replaced, they stay until all new ones are there.
    """
    run, aside = request.run, request.run.path / ASIDE
    is_aside = NEXT in run.stage(NAME)
    if not resumes:
        shutil.rmtree(aside, ignore_errors=True)
    elif not is_aside:
        _give_out(request)
    folder = aside if is_aside else run.path / FOLDER
    prints = {hook: _fingerprint(request, {hook: source}).digest for hook, source in sources.items()}
    starts_over = request.force and not resumes
    widths = {} if starts_over else {hook: _made_width(folder / _name(hook), prints[hook]) for hook in sources}
    missing = [hook for hook in sources if widths.get(hook) is None]
    if missing:
        widths |= _describe(request, sources, {hook: prints[hook] for hook in missing}, folder)
    run.promote(NAME)
    _give_out(request)
    made = [_record(request, hook, source, d_sae=widths[hook] or 0) for hook, source in sources.items()]
    return [*made], {"n_features": sum(record.n_live for record in made)}


def _give_out(request: Request) -> None:
    """Put new files in the place of old ones."""
    for path in sorted((request.run.path / ASIDE).glob("*.jsonl")):
        path.replace(request.run.path / FOLDER / path.name)


def _describe(
    request: Request, sources: Sources, prints: Mapping[HookPoint, str], folder: Path
) -> dict[HookPoint, int]:
    """Write the files of these hook points into a folder. Returns how many features their SAEs have."""
    from circuitcli.models.loading import load_model

    # Of coders that read one hook point what is missing is said before a model is loaded.
    open_cache(request, prints, purpose=NAME)
    model = load_model(request.settings.model)
    loaded = load_saes(sources, prints, model=request.settings.model.name, adapter=model.adapter)
    reads = sorted({hook for found in loaded.values() for hook in found.sae.reads})
    cache = open_cache(request, reads, purpose=NAME)
    warn_of_misfits(request, sources, loaded, model)
    widths = {hook: loaded[hook].sae.d_sae for hook in prints}
    for hook, digest in prints.items():
        place = {"path": f"{FOLDER}/{hook}.jsonl", "sae": sources[hook].digest}
        facts = place | {"interp": digest, "d_sae": widths[hook]}
        lines = _lines(request, loaded[hook].sae, cache, model)
        with runs.atomic(folder / _name(hook)) as stream:
            for line in lines:
                stream.write(json.dumps(line | facts, ensure_ascii=False, allow_nan=False) + "\n")
    return widths


def _lines(
    request: Request, sae: "SparseCoder", cache: "ActivationCache", model: "LanguageModel"
) -> Iterator[dict[str, Any]]:
    from circuitcli.features import cards

    settings = request.settings.interp
    return cards.lines(
        sae.to(model.adapter.device),
        cache,
        model=model,
        n_tokens=settings.tokens,
        batch_size=settings.batch_size,
        n_scored=settings.score_tokens,
        n_contexts=settings.contexts,
        window=settings.window,
        n_quantiles=settings.quantiles,
        n_logits=settings.logits,
    )


def _name(hook: HookPoint) -> str:
    return f"{hook}.jsonl"


def file_of(request: Request, hook: HookPoint) -> Path:
    """Where the lines about features of a hook point are, or would be."""
    return request.run.path / FOLDER / _name(hook)


def _made_width(path: Path, digest: str) -> int | None:
    """How many features the SAE has, if a file was made with this fingerprint; files are whole or not there, so the
    first line tells."""
    return width_of(path) if _first(path).get("interp") == digest else None


def width_of(path: Path) -> int | None:
    """How many features the SAE has that a file is about; None where that cannot be told."""
    width = _first(path).get("d_sae")
    return width if isinstance(width, int) else None


def _first(path: Path) -> dict[str, Any]:
    """What the first line of a file says; nothing where there is none."""
    try:
        place, line = next(text_lines(path))
        return parse_object(line, name=place)
    except (InputError, StopIteration):
        return {}


def _record(request: Request, hook: HookPoint, source: SaeSource, *, d_sae: int) -> FeaturesRecord:
    path = file_of(request, hook)
    n_live, scores = _counted(path) if request.settings.interp.score_tokens else (_n_lines(path), {})
    place = path.relative_to(request.run.path).as_posix()
    return FeaturesRecord(
        hook=str(hook),
        n_live=n_live,
        n_dead=d_sae - n_live,
        path=place,
        digest=runs.file_digest(path),
        sae=source.digest,
        **scores,
    )


def _n_lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def _counted(path: Path) -> tuple[int, dict[str, Any]]:
    """How many lines a file has, and the means of the scores in them."""
    own, exchanged, n_lines = [], [], 0
    for details in first_lines(path):
        n_lines += 1
        if details.score is not None and details.score.balanced_accuracy is not None:
            own.append(details.score.balanced_accuracy)
            exchanged += [] if details.score.exchanged is None else [details.score.exchanged]
    if not own:
        return n_lines, {"n_scored": 0}
    mean = fmean(own)
    scores = {"label_score": mean, "n_scored": len(own)}
    if exchanged:
        scores["label_score_exchanged"] = fmean(exchanged)
    if len(own) > 1:
        # By the normal approximation: there are hundreds of features, or the interval is wide anyway.
        reach = 1.96 * stdev(own) / len(own) ** 0.5
        scores |= {"label_score_low": mean - reach, "label_score_high": mean + reach}
    return n_lines, scores


def _line(request: Request, node: NodeId) -> dict[str, Any]:
    path = file_of(request, node.hook)
    if not path.is_file():
        raise _unknown_hook(request, node)
    found = next(wanted_lines(path, [node.feature]), None)
    sae = next((record for record in request.records.of(SaeRecord) if record.hook == str(node.hook)), None)
    if found is None:
        raise _unknown_feature(node, sae)
    content, details = found
    if sae is not None and details.sae != sae.digest:
        raise InputError(
            f"the features of {node.hook} were described with another SAE", hint="run `circuit interp --force`"
        )
    return content


def _unknown_hook(request: Request, node: NodeId) -> InputError:
    known = sorted((request.run.path / FOLDER).glob("*.jsonl"))
    if not known:
        return InputError(f"{request.run.path} has no described features", hint="run `circuit interp` first")
    names = sorted(HookPoint.parse(path.stem) for path in known)
    return InputError(
        f"nothing is known about features of {node.hook}",
        hint=f"features were described at {' '.join(map(str, names))}",
    )


def _unknown_feature(node: NodeId, sae: SaeRecord | None) -> InputError:
    if node.index is None:
        return InputError(f"{node} is an error term, which has no meaning of its own", hint="name a feature")
    if sae is not None and node.index >= sae.d_sae:
        return InputError(
            f"there is no feature {node.feature}", hint=f"the SAE at {node.hook} has features 0 to {sae.d_sae - 1}"
        )
    return InputError(
        f"feature {node.feature} never fired on the tokens that were looked at",
        hint="choose a live feature, or look at all cached tokens with `circuit interp --force`",
    )
