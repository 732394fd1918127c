"""What the page of a coder says: how good it is, how often its features are active, how they lie, how it learned."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.features.documents import shortened
from circuitcli.hookpoints import HookPoint
from circuitcli.reading import json_lines, read_object
from circuitcli.records import EvaluationRecord, SaeRecord
from circuitcli.stages.feature_facts import Row
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource

if TYPE_CHECKING:
    from circuitcli.saes.base import SparseCoder

METRICS, CONFIG = "metrics.jsonl", "config.json"
CURVES = ("step", "tokens", "loss", "fvu", "l0", "dead", "learning_rate")
# Points of a curve at most.
POINTS = 400
# Of densities four bins are a power of ten.
DENSITY_BINS = 4
# (name in config.json and reports, what people read, kind of number)
NUMBERS = (
    ("explained_variance", "explained variance", "share"),
    ("cosine", "cosine of reconstruction", ""),
    ("l0", "features active at a token (L0)", ""),
    ("dead", "dead in training", "share"),
    ("silent", "silent on held-out text", "share"),
    ("loss_recovered", "loss recovered when spliced", "share"),
    ("ce_clean", "loss of the model", "nats"),
    ("ce_spliced", "loss with the reconstruction in its place", "nats"),
    ("ce_increase", "loss that it costs", "nats"),
    ("kl_spliced", "KL of the spliced model", "nats"),
    ("n_eval_tokens", "held-out tokens measured", ""),
    ("trained_tokens", "tokens trained on", ""),
)


def coder_facts(
    request: Request,
    hook: HookPoint,
    source: SaeSource,
    *,
    coder: "SparseCoder",
    rows: Sequence[Row],
    nearest: Sequence[float],
) -> dict[str, Any]:
    """What a coder's page shows. nearest: cosine of each described feature's decoder with its nearest other."""
    known = _measured(request, hook, source)
    n_live = len(rows)
    read, written = (" ".join(map(str, hooks)) for hooks in (coder.reads, coder.writes))
    facts: list[tuple[str, Any, str]] = [
        ("reads", read, ""),
        ("writes", written, ""),
        ("width of activations", coder.d_in, ""),
        ("features", coder.d_sae, ""),
        ("active on the tokens that were looked at", n_live, ""),
        ("never active there", coder.d_sae - n_live, ""),
        ("share that is never active", 1 - n_live / coder.d_sae, "share"),
        *((text, known[name], kind) for name, text, kind in NUMBERS if _is_number(known.get(name))),
    ]
    return {
        "places": read if read == written else f"{read} → {written}",
        "architecture": coder.architecture,
        "facts": shortened(facts),
        "histograms": shortened(
            {
                "density": densities([row.density for row in rows if row.density]),
                "decoder": cosines(nearest),
                "encoder": cosines(_encoder_cosines(coder)),
            }
        ),
        "curves": shortened(_curves(source)),
    }


def summary(request: Request, hook: HookPoint, source: SaeSource) -> dict[str, Any]:
    """What the index says of a coder."""
    known = _measured(request, hook, source)
    record = next((one for one in request.records.of(SaeRecord) if one.hook == str(hook)), None)
    numbers = {name: known[name] for name in ("explained_variance", "l0") if _is_number(known.get(name))}
    places = record.places if source.is_own and record is not None else str(hook)
    told = shortened({"places": places, **numbers})
    assert isinstance(told, dict)
    return told


def densities(shares: Sequence[float]) -> dict[str, list[float]] | None:
    """A histogram of shares of tokens on a logarithmic axis; None for none."""
    places = [math.floor(math.log10(share) * DENSITY_BINS + 1e-9) for share in shares]
    # A feature that is always active belongs to the last bin.
    return _binned([min(place, -1) for place in places], lambda place: 10 ** (place / DENSITY_BINS))


def cosines(values: Sequence[float]) -> dict[str, list[float]] | None:
    """A histogram of cosines in bins of 0.05; None for none."""
    places = [min(math.floor(value * 20 + 1e-9), 19) for value in values]
    return _binned(places, lambda place: place / 20)


def _binned(places: Sequence[int], edge: Any) -> dict[str, list[float]] | None:
    if not places:
        return None
    first, last = min(places), max(places)
    counts = [0] * (last - first + 1)
    for place in places:
        counts[place - first] += 1
    return {"edges": [edge(first + at) for at in range(len(counts) + 1)], "counts": list(map(float, counts))}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _measured(request: Request, hook: HookPoint, source: SaeSource) -> Mapping[str, Any]:
    """Numbers that are known of the coder: from its own config, and from the last evaluation of it."""
    found: dict[str, Any] = {}
    path = source.place.path / CONFIG
    if source.is_own and path.is_file():
        found |= read_object(path)
    for record in request.records.of(EvaluationRecord):
        if record.hook == str(hook) and record.digest == source.digest:
            found |= record.model_dump(exclude_none=True, exclude={"kind", "hook", "path", "report", "digest"})
    return found


def _curves(source: SaeSource) -> dict[str, list[Any]] | None:
    """The training's log, thinned; None without one."""
    path = source.place.path / METRICS
    if not source.is_own or not path.is_file():
        return None
    steps = _steps(path)
    thinned = steps[:: max(1, -(-len(steps) // POINTS))]
    found = {name: [_number(step.get(name)) for step in thinned] for name in CURVES}
    kept = {name: values for name, values in found.items() if any(value is not None for value in values)}
    return kept if "step" in kept and None not in kept["step"] else None


def _steps(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut short ends it, for no page fails over a curve."""
    steps: list[dict[str, Any]] = []
    try:
        for _, step in json_lines(path, finite=False):
            steps.append(step)
    except InputError:
        pass
    return steps


def _number(value: Any) -> float | int | None:
    return value if _is_number(value) and math.isfinite(value) else None


def _encoder_cosines(coder: "SparseCoder") -> list[float]:
    """Of each feature, the cosine of its encoder and decoder; none of a coder that writes something else."""
    import torch
    import torch.nn.functional as F

    if coder.is_transcoder or coder.W_enc.shape != coder.W_dec.T.shape:
        return []
    with torch.no_grad():
        found = F.cosine_similarity(coder.W_enc.T.float(), coder.W_dec.float(), dim=1)
    return [float(value) for value in found]
