"""One feature as people read it in a terminal: contexts shaded by activation, quantiles, promoted tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitcli.cli.console import console
from circuitcli.printable import printable
from circuitcli.records import json_text

if TYPE_CHECKING:
    from rich.text import Text

# Background of a token at full activation, above and below zero; weaker ones fade to white.
SHADE, NEGATIVE_SHADE = (255, 140, 0), (90, 150, 255)


def show_features(features: Iterable[Mapping[str, Any]]) -> None:
    """Print features for people, or as JSON lines where stdout is no terminal."""
    if console.prints_records:
        return console.records(map(json_text, features))
    for feature in features:
        console.view(feature_text(feature, marks=console.is_plain))


def feature_text(feature: Mapping[str, Any], *, marks: bool) -> "Text":
    """The view of one line of a features file. ``marks`` puts the strongest token in «» instead of colours."""
    from rich.text import Text

    text = Text(overflow="fold")
    text.append(feature["id"], style="bold")
    text.append(f"  {printable(feature.get('label', ''))}\n")
    if feature.get("label_source"):
        text.append(f"label: {_source(feature)}\n", style="dim")
    elif (feature.get("score") or {}).get("balanced_accuracy") is not None:
        text.append(f"label says where it is active: {feature['score']['balanced_accuracy']:.2f} (0.5 is chance)\n")
    text.append_text(_side(feature, marks=marks))
    if feature.get("negative"):
        text.append(f"\n\nnegative  {printable(feature['negative'].get('label', ''))}\n", style="bold")
        text.append_text(_side(feature["negative"], marks=marks))
    for name in ("promoted", "suppressed"):
        if feature.get(name):
            text.append(f"\n\n{name}  ", style="bold")
            text.append(_effects(feature[name]))
    if feature.get("decoder_norms"):
        text.append("\n\nwritten to  ", style="bold")
        text.append("  ".join(f"{printable(name)} {norm:.3g}" for name, norm in feature["decoder_norms"].items()))
    return text.append("\n")


def _source(feature: Mapping[str, Any]) -> str:
    """Where a label comes from, and how well it tells where its feature is active."""
    by = {"model": "by a language model", "hand": "by hand", "neuronpedia": "from Neuronpedia", "rules": "by rules"}
    source, score = str(feature["label_source"]), feature.get("label_score")
    told = f"; says where it is active: {score:.2f} (0.5 is chance)" if isinstance(score, float) else ""
    return f"{by.get(source, printable(source))}{told}"


def _side(side: Mapping[str, Any], *, marks: bool) -> "Text":
    """Statistics and contexts of the codes of one sign."""
    from rich.text import Text

    text = Text()
    text.append(_facts(side) + "\n", style="dim")
    for context in side.get("contexts", ()):
        text.append(f"\n{_peak(context):8.3g}  ")
        text.append_text(_context(context, scale=abs(side.get("max") or side.get("min") or 0.0), marks=marks))
    return text


def _peak(context: Mapping[str, Any]) -> float:
    activations, place = context["activations"], context["peak"]
    return activations[place] if 0 <= place < len(activations) else 0.0


def _facts(feature: Mapping[str, Any]) -> str:
    facts = [f"density {feature['density']:.3g}"] if "density" in feature else []
    facts += [f"{name} {feature[name]:.3g}" for name in ("max", "min", "mean") if name in feature]
    quantiles = feature.get("quantiles", {})
    return "  ".join([*facts, *(f"q{name} {value:.3g}" for name, value in quantiles.items())])


def _context(context: Mapping[str, Any], *, scale: float, marks: bool) -> "Text":
    from rich.text import Text

    text = Text()
    for number, (token, activation) in enumerate(zip(context["tokens"], context["activations"], strict=True)):
        is_peak, shown = number == context["peak"], printable(token)
        if marks:
            text.append(f"«{shown}»" if is_peak else shown)
        else:
            text.append(shown, style=_style(activation / scale if scale else 0.0, is_peak=is_peak))
    return text


def _style(strength: float, *, is_peak: bool) -> str:
    shade, strength = SHADE if strength > 0 else NEGATIVE_SHADE, min(abs(strength), 1.0)
    if not strength:
        return "bold underline" if is_peak else ""
    red, green, blue = (round(255 - strength * (255 - full)) for full in shade)
    return f"{'bold underline ' if is_peak else ''}black on rgb({red},{green},{blue})"


def _effects(pairs: Sequence[Sequence[Any]]) -> str:
    return "  ".join(f"{printable(token)!r} {effect:+.2f}" for token, effect in pairs)
