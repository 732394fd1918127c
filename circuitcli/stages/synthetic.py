"""``circuit toy --synthetic``: SAEs and baselines on a benchmark whose features are known."""

import csv
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import __version__
from circuitcli.progress import note
from circuitcli.reading import read_object
from circuitcli.records import FigureRecord, Record, SyntheticRecord
from circuitcli.render.bars import bars_picture, found_bars
from circuitcli.runs import Fingerprint, atomic
from circuitcli.stages.request import Request, fingerprint, resumable

if TYPE_CHECKING:
    from circuitcli.saes.base import SparseCoder
    from circuitcli.toys.synthetic.coders import Bench

FORMAT = 1
PROBE = "probe"
RESULTS = "results"
_AGAIN = "run it again with --force"
# Settings that change no number; and those that may change from call to call, as each coder has a result of its own.
_NO_MATTER = (
    "train.checkpoint_tokens",
    "train.log",
    "train.parallel",
    "train.sweep",
    "train.baselines",
    "synthetic.name",
)
_WHICH = ("synthetic.architectures", "synthetic.baselines")
_READ = ("synthetic.", "sae.", "train.", "seed")
_EVAL_ROWS, _PROBE_ROWS = 2048, 2048


def run(request: Request) -> list[Record]:
    """A record for each coder, trained and measured now or before; a killed command goes on in the middle of one.

    Raises CircuitError if a loss stops being finite.
    """
    name = request.settings.synthetic.name
    folder = Path("toys") / name
    print_ = fingerprint(request, _READ, {"format": str(FORMAT)}, without=_NO_MATTER)
    # What is trained before is the same whichever coders are asked for together.
    own = fingerprint(request, _READ, {"format": str(FORMAT)}, without=(*_NO_MATTER, *_WHICH))
    entry = request.run.stage(f"toy {name}")
    before = entry.get("settings", {})
    known = {key: value for key, value in before.items() if key not in _WHICH}
    others_asked = known == own.settings and before != print_.settings
    made = resumable(
        replace(request, force=request.force or others_asked),
        f"toy {name}",
        print_,
        lambda resumes: _work(request, folder, own),
        partial=request.run.path / folder / RESULTS,
        keeps=True,
        begins=True,
    )
    return [request.run.record(), *made]


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people."""
    from circuitcli.toys.synthetic.recipe import Recipe
    from circuitcli.toys.synthetic.training import settings_for

    synthetic = request.settings.synthetic
    recipe, sae = Recipe(shrink=synthetic.shrink), settings_for(request.settings, "topk").sae
    return [
        ("planted", f"{recipe.n_features:,} features in {recipe.d_model} dimensions"),
        ("coders", " ".join([*synthetic.architectures, *synthetic.baselines])),
        ("features", f"{sae.d_sae:,} each, {sae.k} active"),
        ("rows", f"{synthetic.samples:,} for each, {synthetic.eval_samples:,} to measure on"),
    ]


def _work(request: Request, folder: Path, own: Fingerprint) -> tuple[list[Record], dict[str, Any]]:
    """Each coder's result is kept for good: it is the same whichever others are asked for."""
    from circuitcli.toys.synthetic.coders import Bench

    synthetic = request.settings.synthetic
    results = request.run.path / folder / RESULTS
    if request.force:
        shutil.rmtree(results, ignore_errors=True)
    bench = Bench(request.settings, results, own.digest)
    names = [*synthetic.architectures, *synthetic.baselines, *([PROBE] if synthetic.probe_samples else [])]
    facts = [_known(bench, name) or _measured(bench, request.run.path / folder, name) for name in names]
    return _written(request, facts, own)


def _known(bench: "Bench", name: str) -> dict[str, Any] | None:
    """What was measured of a coder before, with the same settings."""
    path = bench.folder / f"{name}.json"
    found = read_object(path, hint=_AGAIN) if path.is_file() else {}
    return dict(found["facts"]) if found.get("fingerprint") == bench.fingerprint else None


def _measured(bench: "Bench", folder: Path, name: str) -> dict[str, Any]:
    begun = time.perf_counter()
    facts = _probed(bench) if name == PROBE else _tried(bench, folder, name)
    facts |= {"coder": name, "seconds": round(time.perf_counter() - begun, 1)}
    with atomic(bench.folder / f"{name}.json") as stream:
        json.dump({"fingerprint": bench.fingerprint, "facts": facts}, stream)
    shutil.rmtree(bench.folder / name, ignore_errors=True)
    note(f"{name}: F1 {facts['f1']:.3f}" + (f", MCC {facts['mcc']:.3f}" if "mcc" in facts else ""))
    return facts


def _tried(bench: "Bench", folder: Path, name: str) -> dict[str, Any]:
    """Train a coder or work it out, keep it, and measure it."""
    from circuitcli.toys.synthetic.scores import found

    settings = bench.settings.synthetic
    coder = bench.coder(name)
    n_batches = max(1, settings.eval_samples // _EVAL_ROWS)

    def batches() -> "Iterator[Any]":
        for index in range(n_batches):
            x, sample = bench.world.batch("held out", index, _EVAL_ROWS)
            yield x, sample.is_active(bench.world.recipe.n_features)

    scores = vars(found(coder, bench.world.directions, batches()))
    detection = vars(scores.pop("detection"))
    is_trained = name in settings.architectures or name in ("frozen-decoder", "random-model")
    return {
        "group": "sae" if name in settings.architectures else "baseline",
        **detection,
        **scores,
        "d_sae": coder.d_sae,
        "samples": settings.samples if is_trained else 0,
        "n_eval": n_batches * _EVAL_ROWS,
        **_kept(coder, folder, name),
    }


def _kept(coder: "SparseCoder", folder: Path, name: str) -> dict[str, Any]:
    """Where a coder of a kind that files can hold is kept."""
    from circuitcli.saes import files
    from circuitcli.saes.architectures import ARCHITECTURES

    if coder.architecture not in ARCHITECTURES:
        return {}
    files.save(coder, folder / name)
    return {"path": f"toys/{folder.name}/{name}"}


def _probed(bench: "Bench") -> dict[str, Any]:
    from circuitcli.toys.synthetic.probes import probe_ceiling
    from circuitcli.toys.synthetic.training import settings_for

    settings = bench.settings.synthetic
    n_probes = settings_for(bench.settings, "topk").sae.d_sae
    assert n_probes is not None
    n_tests = max(1, settings.eval_samples // _PROBE_ROWS)
    found = probe_ceiling(
        bench.world,
        n_probes=n_probes,
        n_steps=max(1, settings.probe_samples // _PROBE_ROWS),
        batch_size=_PROBE_ROWS,
        n_test_batches=n_tests,
    )
    return {
        "group": "ceiling",
        **vars(found),
        "d_sae": n_probes,
        "samples": settings.probe_samples,
        "n_eval": n_tests * _PROBE_ROWS,
    }


def _written(request: Request, facts: list[dict[str, Any]], print_: Fingerprint) -> tuple[list[Record], dict[str, Any]]:
    """Records, table, figure and report of all that was measured."""
    from circuitcli.toys.synthetic.recipe import Recipe
    from circuitcli.toys.synthetic.world import World

    synthetic, run = request.settings.synthetic, request.run
    recipe = Recipe(shrink=synthetic.shrink)
    world = World.of(recipe, seed=request.settings.seed)
    _, sample = world.batch("held out", 0, _EVAL_ROWS)
    about = {"n_features": recipe.n_features, "d_model": recipe.d_model, "true_l0": len(sample.rows) / _EVAL_ROWS}
    table = f"reports/{synthetic.name}.csv"
    records = [SyntheticRecord.model_validate({**about, **one, "csv": table}) for one in facts]
    lines = [record.model_dump(exclude={"kind", "csv"}) for record in records]
    with atomic(run.path / table) as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    report = f"reports/{synthetic.name}.json"
    with atomic(run.path / report) as stream:
        content = {"format": FORMAT, "version": __version__, "settings": print_.settings, "coders": lines}
        json.dump(content, stream, indent=1, allow_nan=False)
    title = f"{recipe.n_features:,} planted features in {recipe.d_model} dimensions, {synthetic.samples:,} rows"
    figure = f"figures/{synthetic.name}.svg"
    with atomic(run.path / figure, "wb") as stream:
        stream.write(bars_picture(found_bars(records, title=title), ".svg"))
    return [*records, FigureRecord(path=figure)], {"report": report}
