"""A feature's card as text, and as a piece of HTML in which tokens are shaded by activation."""

from collections.abc import Iterator, Mapping
from html import escape

from circuitcli.features.lines import Context, Details, Negative
from circuitcli.render.text import number, quoted, signed, visible

# Backgrounds of tokens at full activation, above and below zero; weaker ones fade.
SHADE, NEGATIVE_SHADE = "255, 140, 0", "70, 130, 255"


def card_text(card: Details) -> str:
    """The card in lines of plain text; the strongest token of each context stands in «»."""
    lines = [f"{card.id}  {visible(card.label)}".rstrip(), *_side_lines(card)]
    if card.negative is not None:
        lines += ["", f"negative  {visible(card.negative.label)}".rstrip(), *_side_lines(card.negative)]
    for name, pairs in (("promoted", card.promoted), ("suppressed", card.suppressed)):
        if pairs:
            lines += ["", f"{name}  " + "  ".join(f"{quoted(token)} {signed(effect)}" for token, effect in pairs)]
    if card.decoder_norms:
        lines += ["", f"written to  {written_to(card.decoder_norms)}"]
    return "\n".join(lines)


def written_to(norms: Mapping[str, float]) -> str:
    """Where a feature writes, and how much for each unit of its activation: the lengths of its decoder rows."""
    return "  ".join(f"{visible(name)} {number(norm)}" for name, norm in norms.items())


def _side_lines(side: Details | Negative) -> Iterator[str]:
    yield "  ".join(_facts(side))
    for context in side.contexts:
        shown = [visible(token) for token in context.tokens]
        if 0 <= context.peak < len(shown):
            shown[context.peak] = f"«{shown[context.peak]}»"
        yield f"{number(_peak(context)):>8}  {''.join(shown)}"


def _facts(side: Details | Negative) -> Iterator[str]:
    furthest = ("max", side.max) if isinstance(side, Details) else ("min", side.min)
    for name, value in (("density", side.density), furthest, ("mean", side.mean)):
        if value is not None:
            yield f"{name} {number(value)}"
    for share, value in side.quantiles.items():
        yield f"q{share} {number(value)}"


def _peak(context: Context) -> float:
    return context.activations[context.peak] if 0 <= context.peak < len(context.activations) else 0.0


def card_html(card: Details) -> str:
    """The card as a piece of HTML that needs no script and no style of the page around it."""
    parts = [f"<b>{escape(card.id)}</b> {escape(visible(card.label))}", _side_html(card, largest=card.max or 0.0)]
    if card.negative is not None:
        parts.append(f"<b>negative</b> {escape(visible(card.negative.label))}")
        parts.append(_side_html(card.negative, largest=abs(card.negative.min or 0.0)))
    for name, pairs in (("promoted", card.promoted), ("suppressed", card.suppressed)):
        if pairs:
            shown = " &ensp;".join(
                f"<code>{escape(quoted(token))}</code> <small>{escape(signed(effect))}</small>"
                for token, effect in pairs
            )
            parts.append(f"{name} &ensp;{shown}")
    if card.decoder_norms:
        parts.append(f"written to &ensp;{escape(written_to(card.decoder_norms))}")
    style = "font-family: sans-serif; font-size: 13px; line-height: 1.6"
    return f'<div style="{style}">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def _side_html(side: Details | Negative, *, largest: float) -> str:
    facts = f'<small style="color: #666">{escape("  ".join(_facts(side)))}</small>'
    return "".join([facts, *(_context_html(context, largest) for context in side.contexts)])


def _context_html(context: Context, largest: float) -> str:
    tokens = [
        _token_html(token, activation, largest, is_peak=place == context.peak)
        for place, (token, activation) in enumerate(zip(context.tokens, context.activations, strict=True))
    ]
    value = f'<small style="color: #666">{number(_peak(context))}</small>'
    return f'<div>{value} <span style="font-family: monospace; white-space: pre-wrap">{"".join(tokens)}</span></div>'


def _token_html(token: str, activation: float, largest: float, *, is_peak: bool) -> str:
    share = min(abs(activation) / largest, 1.0) if largest else 0.0
    shade = SHADE if activation > 0 else NEGATIVE_SHADE
    weight = "; font-weight: bold" if is_peak else ""
    style = f"background: rgba({shade}, {share:.2f}){weight}" if share or is_peak else ""
    return f'<span style="{style}" title="{number(activation)}">{escape(visible(token))}</span>'
