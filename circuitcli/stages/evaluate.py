"""``circuit train --eval``: finished SAEs, the run's own or others, measured on tokens that training left out."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import __version__, group, processes, progress
from circuitcli.evaluation.held_out import HeldOut
from circuitcli.faults import checked
from circuitcli.hookpoints import HookPoint
from circuitcli.manifest import NEXT
from circuitcli.reading import read_object
from circuitcli.records import ActivationsRecord, BaselineRecord, EvaluationRecord, Record
from circuitcli.runs import atomic
from circuitcli.stages import measure
from circuitcli.stages.baselines import Baselines
from circuitcli.stages.inputs import activation_digests, activation_records, open_cache
from circuitcli.stages.measuring import finite, measured_together
from circuitcli.stages.replacement import replacement_record
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources
from circuitcli.stages.train import NAME as TRAIN
from circuitcli.stages.training import FOLDER, SWEEP
from circuitcli.stages.unfinished import EVALUATION as STAGE
from circuitcli.training.plan import n_held_out

if TYPE_CHECKING:
    from circuitcli.saes.exchange.tensors import Foreign

NAME = "train --eval"
REPORTS = Path("reports")
FORMAT = 1
_READ = ("train.eval_tokens", "train.loss_tokens", "train.baselines", "train.baseline_tokens", "sae_path", "seed")
# What baselines that are trained read beside, but for what their SAE decides.
_TRAINED_BASELINES = frozenset({"frozen-decoder", "random-model"})
_OF_TRAINING = (
    *("sae.", "train.batch_size", "train.learning_rate", "train.warmup", "train.decay", "train.clip"),
    *("train.auxk_weight", "train.dead_tokens"),
)
_DECIDED = ("sae.architecture", "sae.d_sae", "sae.expansion", "sae.k")
_AGAIN = "measure again: `circuit train --eval --force`"
# What training alone can tell of an SAE.
_KEPT = ("dead", "dead_tokens", "trained_tokens", "kept_tokens")

logger = logging.getLogger(__name__)


def run(request: Request) -> list[Record]:
    """A record for each SAE of ``--sae``, or of the run, measured now or before; all numbers are in one report.

    Raises InputError without SAEs or without cached activations of their hook points.
    """
    found = activation_records(request, stage=NAME)
    sources = sae_sources(request, stage=NAME)
    inputs = {f"SAE at {hook}": source.digest for hook, source in sources.items()} | activation_digests(request)
    print_ = fingerprint(request, _read(request), inputs, without=_unread(request))
    name = _named(request, STAGE)
    # Measuring again takes nothing away, so other settings need no --force.
    entry = request.run.stage(name)
    is_other = not print_.is_of(entry) and not print_.is_of(entry.get(NEXT, {}))
    rows = held_out_rows(request, sources, n_rows=found[0].n_tokens)
    return resumable(
        replace(request, force=request.force or is_other),
        name,
        print_,
        lambda resumes: _work(request, sources, rows, resumes=resumes),
        partial=_partial(request),
        keeps=True,
        clean=lambda: shutil.rmtree(_partial(request), ignore_errors=True),
    )


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people."""
    found = activation_records(request, stage=NAME)
    sources = sae_sources(request, stage=NAME)
    rows = held_out_rows(request, sources, n_rows=found[0].n_tokens)
    read = min(len(rows), request.settings.train.loss_tokens)
    return [
        ("autoencoders", f"{len(sources)}: {' '.join(map(str, sources))}"),
        ("tokens", f"{len(rows):,} cached"),
        ("model", f"reads {read:,} tokens up to {1 + 3 * len(sources)} times"),
        ("report", str(_report(request))),
    ]


def held_out_rows(request: Request, sources: Mapping[HookPoint, SaeSource], *, n_rows: int) -> range:
    """The last rows of the cache: as many as are asked for, and of SAEs of this run those that none was trained on."""
    asked = n_held_out(request.settings, n_rows=n_rows)
    saes = request.run.path / FOLDER
    own = [source.place.path for source in sources.values() if _is_within(source.place.path, saes)]
    stages = {SWEEP if _is_within(path, saes / SWEEP) else TRAIN for path in own}
    kept = min((int(request.run.stage(stage).get("held_out", asked)) for stage in stages), default=asked)
    if kept < asked:
        logger.warning("training left %d tokens out: SAEs are measured on these, not on %d", kept, asked)
    return range(n_rows - min(asked, kept), n_rows)


def _work(
    request: Request, sources: Mapping[HookPoint, SaeSource], rows: range, *, resumes: bool
) -> tuple[list[Record], dict[str, Any]]:
    """Several processes share the SAEs out; what was measured before a kill is not measured again."""
    from circuitcli.evaluation.together import sets_of

    partial = _partial(request)
    if not resumes and processes.is_main():
        shutil.rmtree(partial, ignore_errors=True)
    group.barrier()
    sets = sets_of({hook: source.place.writes or (hook,) for hook, source in sources.items()})
    missing = [hooks for hooks in sets if not all(_entry(partial, hook).exists() for hook in hooks)]
    transcoders = [hook for hook, source in sources.items() if source.place.writes not in ((), (hook,))]
    group.barrier()
    collected = [HookPoint.parse(record.hook) for record in request.records.of(ActivationsRecord)]
    held_out = cache(lambda: measure.held_out(request, open_cache(request, collected, purpose=NAME), rows))
    for hooks in progress.track(missing[processes.rank() :: processes.count()], "measure", unit="SAEs"):
        group.check()
        for hook, facts in _measured(request, held_out(), {hook: sources[hook] for hook in hooks}).items():
            _write(_entry(partial, hook), finite(facts))
    group.barrier()
    measured = [read_object(_entry(partial, hook), hint=_AGAIN) for hook in sources]
    beside = Baselines(request, held_out, rows, partial).facts(measured) if processes.is_main() else []
    report, replaced = _report(request), None
    if len(transcoders) > 1 and request.settings.train.loss_tokens and processes.is_main():
        facts = _replaced(request, held_out, {hook: sources[hook] for hook in transcoders}, sets, partial)
        replaced = replacement_record([str(hook) for hook in transcoders], facts)
    group.barrier()
    if processes.is_main():
        content = {"format": FORMAT, "version": __version__, "rows": [rows.start, rows.stop], "saes": measured}
        content |= {"baselines": beside} if beside else {}
        content |= {} if replaced is None else {"replacement": replaced.model_dump(exclude={"kind"}, exclude_none=True)}
        _write(request.run.path / report, content)
    records: list[Record] = [_record(entry, report) for entry in measured]
    records += [BaselineRecord.model_validate({"report": report.as_posix(), **_flat(facts)}) for facts in beside]
    return [*records, *([] if replaced is None else [replaced])], {"report": report.as_posix()}


def _replaced(
    request: Request,
    held_out: Callable[[], HeldOut],
    sources: Mapping[HookPoint, SaeSource],
    sets: Sequence[tuple[HookPoint, ...]],
    partial: Path,
) -> dict[str, Any]:
    """The losses with all that these transcoders explain replaced at once; a set that is all of them knows them."""
    if tuple(sorted(sources)) in sets:
        return read_object(_entry(partial, min(sources)), hint=_AGAIN)
    loaded = _loaded(request, held_out(), sources)
    facts: dict[str, Any] = finite(held_out().replacement({hook: found.sae for hook, found in loaded.items()}))
    return facts


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as stream:
        json.dump(content, stream, indent=1, allow_nan=False)
        stream.write("\n")


def _partial(request: Request) -> Path:
    """Where what was measured lies until all is."""
    return request.run.path / _report(request).with_suffix(".partial")


def _entry(partial: Path, hook: HookPoint) -> Path:
    return partial / f"{hook}.json"


def _measured(
    request: Request, held_out: HeldOut, sources: Mapping[HookPoint, SaeSource]
) -> dict[HookPoint, dict[str, Any]]:
    """All that is known of the coders of a set, which are in memory no longer than this takes."""
    loaded = _loaded(request, held_out, sources)
    together = measured_together(held_out, {hook: found.sae for hook, found in loaded.items()})
    return {hook: _facts(request, held_out, sources[hook], found, together) for hook, found in loaded.items()}


def _loaded(request: Request, held_out: HeldOut, sources: Mapping[HookPoint, SaeSource]) -> "dict[HookPoint, Foreign]":
    """Coders on the device where they are measured."""
    model = request.run.manifest().get("model", request.settings.model.name)
    adapter = None if held_out.spliced_loss is None else held_out.spliced_loss.adapter
    loaded = load_saes(sources, list(sources), model=model, adapter=adapter)
    for found in loaded.values():
        found.sae.to(held_out.device)
    return loaded


def _facts(
    request: Request,
    held_out: HeldOut,
    source: SaeSource,
    found: "Foreign",
    together: Mapping[HookPoint, Mapping[str, Any]],
) -> dict[str, Any]:
    sae = found.sae
    return {
        "hook": str(sae.hook),
        **({"target": str(sae.target)} if sae.is_transcoder else {}),
        **({"further": [str(hook) for hook in sae.config.further]} if sae.config.further else {}),
        "architecture": sae.architecture,
        "d_sae": sae.d_sae,
        "path": _shown(source.place.path, request.run.path),
        "digest": source.digest,
        **(together[sae.hook] if sae.hook in together else held_out.facts(sae, chunk=_chunk(found))),
        **{name: found.about.training[name] for name in _KEPT if name in found.about.training},
    }


def _chunk(found: "Foreign") -> int | None:
    """How many features make a step, of an SAE that was trained as one of a staircase."""
    features = found.about.training.get("chunk_features")
    return features if isinstance(features, int) and features > 0 and found.sae.d_sae % features == 0 else None


def _record(entry: Mapping[str, Any], report: Path) -> EvaluationRecord:
    """The numbers that fit on a line."""
    content = {"report": report.as_posix(), **_flat(entry)}
    return checked(EvaluationRecord, content, place="what was measured before a kill is damaged", hint=_AGAIN)


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if not isinstance(value, dict)}


def _read(request: Request) -> tuple[str, ...]:
    """Settings that what is measured depends on; baselines that are trained depend on those of training too."""
    return (*_READ, *_OF_TRAINING) if _TRAINED_BASELINES & {*request.settings.train.baselines} else _READ


def _unread(request: Request) -> tuple[str, ...]:
    """Settings that nothing is made from: those of baselines where none is asked for, and what an SAE decides."""
    return _DECIDED if request.settings.train.baselines else ("train.baselines", "train.baseline_tokens", "seed")


def _named(request: Request, name: str) -> str:
    """A name of its own for what ``--sae`` names, so that the run's own SAEs keep theirs."""
    path = request.settings.sae_path
    if path is None:
        return name
    slug = re.sub(r"[^\w.=-]+", "-", path).strip("-.")
    return f"{name}:{slug[-80:]}"


def _report(request: Request) -> Path:
    return REPORTS / f"{_named(request, STAGE).replace(':', '-')}.json"


def _is_within(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())


def _shown(path: Path, run: Path) -> str:
    """Relative to the run if it lies there, else whole."""
    return path.resolve().relative_to(run.resolve()).as_posix() if _is_within(path, run) else str(path.resolve())
