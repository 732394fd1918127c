"""One feature as the JSON that its page shows: what its line says, and what it has to do with other features."""

from collections.abc import Callable, Mapping
from typing import Any

from circuitcli.features.lines import Details

DIGITS = 4
Pairs = list[tuple[str, float]]


def document(
    details: Details,
    *,
    decoders: Mapping[str, Pairs],
    codes: Mapping[str, Pairs],
    label_of: Callable[[str], str],
    ablation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a page shows of a feature.

    decoders, codes: by hook point the features whose decoder directions and codes are most like this one's, each with
    the cosine or correlation; they get their labels beside them. ablation: what the model does without it.
    """
    told = details.model_dump(mode="json", exclude={"sae"}, exclude_none=True)
    for side in (told, told.get("negative") or {}):
        for context in side.get("contexts", ()):
            # Most are zero, which is shorter without its point.
            context["activations"] = [activation or 0 for activation in context["activations"]]
    near = {
        name: [
            {"hook": hook, "features": [[other, _rounded(value), label_of(other)] for other, value in pairs]}
            for hook, pairs in found.items()
            if pairs
        ]
        for name, found in (("decoders", decoders), ("codes", codes))
    }
    return {**told, **near, "ablation": None if ablation is None else shortened(dict(ablation))}


def shortened(value: Any) -> Any:
    """The value with its numbers in four digits, as many as a page shows."""
    if isinstance(value, float):
        return _rounded(value)
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(inner) for inner in value]
    return value


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
