"""What the features of the SAEs mean: one file for each hook point, one line for each live feature."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import runs
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.records import ActivationsRecord, FeatureRecord, Record, SaeRecord
from circuitcli.runs import Fingerprint
from circuitcli.stages.fitting import warn_of_misfits
from circuitcli.stages.inputs import activation_records, open_cache
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseAutoencoder

Sources = Mapping[HookPoint, SaeSource]

NAME = "interp"
FOLDER = "features"
# Only in the file; the records on the stream are short.
DETAILS = frozenset({"quantiles", "contexts", "promoted", "suppressed", "interp"})


def run(request: Request) -> list[Record]:
    """One record for each live feature, described now or before.

    Raises InputError if SAEs or activations are missing or do not fit together.
    """
    sources = _sources(request)
    return resumable(request, NAME, _fingerprint(request, sources), lambda resumes: _work(request, sources))


def describe(request: Request, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of these features, as they are kept.

    Raises SettingsError for an id that cannot be read, InputError for a feature of which nothing is known: it never
    fired, its SAE is narrower, or nothing was described at its hook point.
    """
    return [_line(request, NodeId.parse(text)) for text in ids]


def _sources(request: Request) -> Sources:
    """The SAEs of the hook points of which there are activations."""
    collected = activation_records(request, stage=NAME)
    hooks = {record.hook for record in collected}
    sources = sae_sources(request, stage=NAME)
    chosen = {hook: source for hook, source in sources.items() if str(hook) in hooks}
    if not chosen:
        raise InputError(
            f"{NAME} read SAEs at {' '.join(map(str, sources))} and activations at {' '.join(sorted(hooks))}",
            hint="collect activations for the SAEs: `circuit collect --layers ... --sites ...`",
        )
    return chosen


def _fingerprint(request: Request, sources: Sources) -> Fingerprint:
    digests = {record.hook: record.digest for record in request.records.of(ActivationsRecord)}
    inputs = {f"SAE at {hook}": source.digest for hook, source in sources.items()}
    inputs |= {f"activations at {hook}": digests[str(hook)] for hook in sources}
    return fingerprint(request, ("interp.",), inputs, without=("interp.batch_size",))


def _work(request: Request, sources: Sources) -> tuple[list[Record], dict[str, Any]]:
    """Describe the hook points that have no file of the same fingerprint yet."""
    prints = {hook: _fingerprint(request, {hook: source}).digest for hook, source in sources.items()}
    missing = [hook for hook in sources if request.force or not _is_made(_file(request, hook), prints[hook])]
    if missing:
        _describe(request, sources, {hook: prints[hook] for hook in missing})
    made = [record for hook in sources for record in _records(_file(request, hook))]
    return made, {"n_features": len(made)}


def _describe(request: Request, sources: Sources, prints: Mapping[HookPoint, str]) -> None:
    from circuitcli.models.loading import load_model

    cache = open_cache(request, prints, purpose=NAME)
    model = load_model(request.settings.model)
    loaded = load_saes(
        sources, prints, model=request.settings.model.name, adapter=model.adapter, takes_transcoders=True
    )
    warn_of_misfits(request, sources, loaded, model)
    for hook, digest in prints.items():
        facts = {"path": f"{FOLDER}/{hook}.jsonl", "sae": sources[hook].digest, "interp": digest}
        lines = _lines(request, loaded[hook].sae, cache, model)
        with runs.atomic(_file(request, hook)) as stream:
            for line in lines:
                stream.write(json.dumps(line | facts, ensure_ascii=False, allow_nan=False) + "\n")


def _lines(
    request: Request, sae: "SparseAutoencoder", cache: "ActivationCache", model: "LanguageModel"
) -> Iterator[dict[str, Any]]:
    from circuitcli.features import logits
    from circuitcli.features.describe import describe as described
    from circuitcli.features.scan import scan

    settings = request.settings.interp
    sae.check_width(cache.d_model(sae.hook))
    sae = sae.to(model.adapter.device)
    summary = scan(
        cache,
        sae,
        n_tokens=min(settings.tokens or cache.n_tokens, cache.n_tokens),
        batch_size=settings.batch_size,
        n_contexts=settings.contexts,
        window=settings.window,
    )
    effects = None
    if logits.writes_to_residual(sae.target):
        directions = sae.W_dec[summary.statistics.live.to(sae.W_dec.device)]
        effects = logits.logit_effects(
            model.adapter, directions, n_top=settings.logits, vocab_size=model.tokenizer.vocab_size
        )
    return described(sae.hook, summary, effects, model.tokenizer)


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
