"""What the features of the SAEs mean: one file for each hook point, one line for each live feature."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import runs
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.records import ActivationsRecord, FeatureRecord, Record, SaeRecord
from circuitcli.runs import Fingerprint
from circuitcli.stages.request import Request, fingerprint, needed, resumable

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.loading import LanguageModel

NAME = "interp"
FOLDER = "features"
# Only in the file; the records on the stream are short.
DETAILS = frozenset({"quantiles", "contexts", "promoted", "suppressed", "interp"})


@dataclass(frozen=True)
class _Place:
    """The SAE of a hook point, and what the features of both are described from."""

    hook: HookPoint
    directory: Path
    sae_digest: str
    activations: ActivationsRecord


def run(request: Request) -> list[Record]:
    """One record for each live feature, described now or before.

    Raises InputError if SAEs or activations are missing or do not fit together.
    """
    places = _places(request)
    return resumable(request, NAME, _fingerprint(request, places), partial(_work, request, places))


def describe(request: Request, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of these features, as they are kept.

    Raises SettingsError for an id that cannot be read, InputError for a feature of which nothing is known: it never
    fired, its SAE is narrower, or nothing was described at its hook point.
    """
    return [_line(request, NodeId.parse(text)) for text in ids]


def _places(request: Request) -> list[_Place]:
    cached = needed(request, ActivationsRecord, stage=NAME, hint="run `circuit collect` before it")
    activations = {record.hook: record for record in cached}
    saes = needed(request, SaeRecord, stage=NAME, hint="run `circuit train` before it")
    missing = [record.hook for record in saes if record.hook not in activations]
    if missing:
        raise InputError(
            f"{NAME} read SAEs but no activations of {', '.join(missing)}",
            hint="collect them too: `circuit collect --layers ... --sites ...`",
        )
    places = [
        _Place(HookPoint.parse(sae.hook), request.run.path / sae.path, sae.digest, activations[sae.hook])
        for sae in saes
    ]
    return sorted(places, key=lambda place: place.hook)


def _fingerprint(request: Request, places: Sequence[_Place]) -> Fingerprint:
    inputs = {f"SAE at {place.hook}": place.sae_digest for place in places}
    inputs |= {f"activations of {place.hook}": place.activations.digest for place in places}
    return fingerprint(request, ("interp.",), inputs, without=("interp.batch_size",))


def _work(request: Request, places: Sequence[_Place], resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    """Describe the hook points that have no file of the same fingerprint yet."""
    prints = {place.hook: _fingerprint(request, [place]).digest for place in places}
    keeps = not request.force or resumes
    missing = [place for place in places if not (keeps and _is_made(_file(request, place.hook), prints[place.hook]))]
    if missing:
        _describe(request, missing, prints)
    made = [record for place in places for record in _records(_file(request, place.hook))]
    return made, {"n_features": len(made)}


def _describe(request: Request, places: Sequence[_Place], prints: Mapping[HookPoint, str]) -> None:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.loading import load_model

    cache = ActivationCache(request.run.path / "activations", [place.hook for place in places])
    model = load_model(request.settings.model)
    for place in places:
        with runs.atomic(_file(request, place.hook)) as stream:
            for line in _lines(request, place, cache, model):
                facts = {"path": f"{FOLDER}/{place.hook}.jsonl", "sae": place.sae_digest, "interp": prints[place.hook]}
                stream.write(json.dumps(line | facts, ensure_ascii=False, allow_nan=False) + "\n")


def _lines(
    request: Request, place: _Place, cache: "ActivationCache", model: "LanguageModel"
) -> Iterator[dict[str, Any]]:
    from circuitcli.features import logits
    from circuitcli.features.describe import describe as described
    from circuitcli.features.scan import scan
    from circuitcli.saes import files

    settings = request.settings.interp
    sae = files.load(place.directory).to(model.adapter.device)
    sae.check_width(cache.d_model(place.hook))
    summary = scan(
        cache,
        sae,
        n_tokens=min(settings.tokens or cache.n_tokens, cache.n_tokens),
        batch_size=settings.batch_size,
        n_contexts=settings.contexts,
        window=settings.window,
    )
    effects = None
    if logits.writes_to_residual(place.hook):
        directions = sae.W_dec[summary.statistics.live.to(sae.W_dec.device)]
        effects = logits.logit_effects(
            model.adapter, directions, n_top=settings.logits, vocab_size=model.tokenizer.vocab_size
        )
    return described(place.hook, summary, effects, model.tokenizer)


def _file(request: Request, hook: HookPoint) -> Path:
    return request.run.path / FOLDER / f"{hook}.jsonl"


def _is_made(path: Path, digest: str) -> bool:
    """Whether a file was made with this fingerprint; files are whole or not there, so the first line tells."""
    try:
        with path.open(encoding="utf-8") as stream:
            return bool(json.loads(stream.readline() or "{}").get("interp") == digest)
    except (OSError, ValueError):
        return False


def _records(path: Path) -> list[Record]:
    with path.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    return [
        FeatureRecord.model_validate({name: value for name, value in line.items() if name not in DETAILS})
        for line in lines
    ]


def _line(request: Request, node: NodeId) -> dict[str, Any]:
    path = _file(request, node.hook)
    if not path.is_file():
        raise _unknown_hook(request, node)
    start = f'{{"kind": "feature", "id": "{node.feature}",'
    with path.open(encoding="utf-8") as stream:
        found = next((line for line in stream if line.startswith(start)), None)
    sae = next((record for record in request.records.of(SaeRecord) if record.hook == str(node.hook)), None)
    if found is None:
        raise _unknown_feature(node, sae)
    content: dict[str, Any] = json.loads(found)
    if sae is not None and content["sae"] != sae.digest:
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
        hint="look at more with `circuit interp --tokens N --force`, or choose a live feature",
    )
