"""``circuit inspect`` of cross-layer transcoders: what headers tell of their layers, what these explain together."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitcli.hookpoints import HookPoint
from circuitcli.records import InspectionRecord
from circuitcli.saes.exchange.outline import Outline, across_layers, outlined
from circuitcli.saes.exchange.place import Place
from circuitcli.stages.fitting import RECORDED, number
from circuitcli.stages.measuring import finite
from circuitcli.stages.saes import SaeSource, fold_gain, load_sae

if TYPE_CHECKING:
    from circuitcli.evaluation.quality import Reconstruction
    from circuitcli.saes.exchange.tensors import Foreign
    from circuitcli.stages.inspect_bench import Bench

# Layers that are larger together are not loaded to be held against activations.
MOST_BYTES = 2**34


def outlines(places: Sequence[Place]) -> dict[Place, InspectionRecord]:
    """What is told of the layers of cross-layer transcoders, several of which are named, without reading weights."""
    made = {}
    for place in across_layers(places) if len(places) > 1 else ():
        outline = outlined(place)
        if outline is not None:
            made[place] = _record(place, outline)
    return made


def _record(place: Place, outline: Outline) -> InspectionRecord:
    return InspectionRecord(
        hook=str(place.hook),
        target=str(place.writes[0]),
        writes=[str(hook) for hook in place.writes],
        architecture=outline.architecture,
        **(outline.options or {}),
        d_in=outline.d_in,
        d_sae=outline.d_sae,
        d_out=outline.d_out,
        skip=outline.skip or None,
        n_bytes=outline.n_bytes,
        dtype=outline.dtype,
        format=place.format,
        path=str(place.path),
        model=place.model,
        problems=(),
    )


def held_together(made: Mapping[Place, InspectionRecord], bench: "Bench") -> list[InspectionRecord]:
    """The same with how much all layers together explain of what each is the first to write.

    Only where the user names a run or a model; their weights are read for that, unless they are very large or no one
    set of layers.
    """
    records = list(made.values())
    by_hook = {place.hook: place for place in made if place.hook is not None}
    if not made or not bench.is_chosen or len(by_hook) < len(made):
        return records
    if sum(_size(record) for record in records) > MOST_BYTES:
        return [record.model_copy(update={"problems": (_TOO_LARGE,)}) for record in records]
    wrong: list[str] = []
    found = _together(by_hook, bench, wrong)
    if found is None:
        return [record.model_copy(update={"problems": tuple(wrong)}) for record in records]
    return [record.model_copy(update=found[HookPoint.parse(record.hook)]) for record in records]


_TOO_LARGE = f"its layers are larger than {MOST_BYTES >> 30} GiB together: it was not held against activations"


def _size(record: InspectionRecord) -> int:
    told = record.model_dump().get("n_bytes")
    return told if isinstance(told, int) else 0


def _together(
    by_hook: Mapping[HookPoint, Place], bench: "Bench", wrong: list[str]
) -> dict[HookPoint, dict[str, Any]] | None:
    """What is added to each record: how all fit activations; None, and in ``wrong`` why, if they cannot."""
    from circuitcli.evaluation.fit import BATCH, n_tokens
    from circuitcli.evaluation.together import hooks_of, reconstruction_together

    loaded = {hook: load_sae(SaeSource(place, "", is_own=False)) for hook, place in by_hook.items()}
    coders = {hook: found.sae for hook, found in loaded.items()}
    hooks = hooks_of(coders)
    found = bench.rows(hooks, min(map(n_tokens, coders.values())), wrong)
    if found is None:
        return None
    origin, (rows, _, _) = found
    for hook, coder in coders.items():
        for end, width in ((hook, coder.d_in), *((hook, coder.d_out) for hook in coder.writes)):
            if rows[end].shape[1] != width:
                wrong.append(f"it is for width {width} at {end}, where the model has {rows[end].shape[1]}")
                return None
        if loaded[hook].about.before_gain:
            fold_gain(coder, bench.model.adapter)
    n_rows = len(rows[hooks[0]])
    pieces = ({hook: rows[hook][start : start + BATCH] for hook in hooks} for start in range(0, n_rows, BATCH))
    qualities = reconstruction_together(coders, pieces).coders
    return {hook: _told(qualities[hook], loaded[hook], origin) for hook in coders}


def _told(quality: "Reconstruction", found: "Foreign", origin: str) -> dict[str, Any]:
    from circuitcli.evaluation.fit import Fit

    explained = quality.explained_variance
    facts = {"of": origin, "n_tokens": quality.n_tokens, RECORDED: explained, "l0": quality.l0}
    is_bad = Fit(quality, radius=0.0, recorded=number(found.about, RECORDED)).is_bad
    told = f"the layers together explain {explained or 0.0:.2f} of the variance of {found.sae.target}"
    return {"activations": finite(facts), "problems": (told,) if is_bad else ()}
