"""Feature files of Anthropic's and Neuronpedia's pages: contexts, logits and a histogram of one feature each."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcli.graphs.exchange.neuronpedia import OWN
from circuitcli.hookpoints import NodeId
from circuitcli.schema import STRONG

TOP, BELOW = "Top activations", "Activations at quantile {}"


def content(details: Mapping[str, Any], *, number: int) -> dict[str, Any]:
    """The file of a feature, from what is known of it. number: under which pages find it."""
    contexts = details.get("contexts") or ()
    quantiles = [
        float(value) for _, value in sorted((details.get("quantiles") or {}).items(), key=lambda item: _share(item[0]))
    ]
    least = min((float(value) for one in contexts for value in one["activations"]), default=0.0)
    most = max((float(value) for one in contexts for value in one["activations"]), default=0.0)
    return {
        "transcoder_id": str(NodeId.parse(details["id"]).hook),
        "index": number,
        "examples_quantiles": _examples(contexts),
        "top_logits": [str(token) for token, _ in details.get("promoted") or ()],
        "bottom_logits": [str(token) for token, _ in details.get("suppressed") or ()],
        "act_min": min(least, 0.0),
        "act_max": max(most, float(details.get("max") or 0.0)),
        "quantile_values": quantiles,
        "histogram": [float(count) for count in (details.get("histogram") or {}).get("counts", ())],
        "activation_frequency": float(details.get("density") or 0.0),
        OWN: dict(details),
    }


def read(content: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """What a feature file tells of the feature of this name: what was written here as it was, else its contexts."""
    own = content.get(OWN)
    if isinstance(own, Mapping):
        return {**own, "id": name}
    found = [_context(one) for group in _list(content, "examples_quantiles") for one in _list(group, "examples")]
    told: dict[str, Any] = {"id": name, "contexts": [context for context in found if context is not None]}
    if isinstance(density := content.get("activation_frequency"), int | float) and not isinstance(density, bool):
        told["density"] = float(density)
    return told


def _share(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return 0.0


def _examples(contexts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The contexts by the quantile that they are from; those of the largest activations first."""
    groups: dict[str | None, list[dict[str, Any]]] = {}
    for one in contexts:
        made = {
            "tokens": list(one["tokens"]),
            "tokens_acts_list": [float(value) for value in one["activations"]],
            "train_token_ind": int(one["peak"]),
            "is_repeated_datapoint": False,
        }
        share = one.get("quantile")
        quantile = 1.0 if share is None else float(share)
        groups.setdefault(None if quantile >= STRONG else f"{quantile:.2g}", []).append(made)
    ordered = sorted(groups, key=lambda quantile: -1.0 if quantile is None else 1.0 - float(quantile))
    return [
        {"quantile_name": TOP if quantile is None else BELOW.format(quantile), "examples": groups[quantile]}
        for quantile in ordered
    ]


def _list(content: object, name: str) -> list[Any]:
    found = content.get(name) if isinstance(content, Mapping) else None
    return found if isinstance(found, list) else []


def _context(one: object) -> dict[str, Any] | None:
    """A context of another's file; None for what is none."""
    tokens, values = _list(one, "tokens"), _list(one, "tokens_acts_list")
    if not tokens or len(tokens) != len(values) or not all(isinstance(token, str) for token in tokens):
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    numbers = [float(value) for value in values]
    return {"tokens": tokens, "activations": numbers, "peak": max(range(len(numbers)), key=numbers.__getitem__)}
