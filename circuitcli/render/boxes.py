"""The boxes of a Graphviz drawing: one HTML-like label for each node."""

from circuitcli.features.lines import Context, Details
from circuitcli.graphs import Node
from circuitcli.records import GraphRecord
from circuitcli.render.drawing import Drawing
from circuitcli.render.heading import measured_metric
from circuitcli.render.labels import GREY, cell, row, span, table, token_cell
from circuitcli.render.scales import sign_colour
from circuitcli.render.text import measured, number, quoted, shortened, signed, visible, width, wrapped
from circuitcli.settings.render import RenderSettings

COLUMNS = 34
TOKEN_COLUMNS = 16


def box(node: Node, drawing: Drawing, settings: RenderSettings) -> str:
    """The label of a feature's, an error term's or the output's box."""
    place = node.place
    title, numbers = _title(node, drawing), _numbers(node)
    if place is None:
        return f"<{_output(drawing.graph.head) if node.token_id is None else _logit(title, numbers)}>"
    if place.is_error or place.is_token:
        return f"<{table(row(cell(span(title, size=9))), *_rows(numbers))}>"
    head = row(cell(span(place.feature, bold=True) + span(title.removeprefix(place.feature), colour=GREY)))
    known = drawing.known(node)
    trace = drawing.trace(place.feature)
    lines = [] if known is None else _known(known, settings, activation=node.activation or 0.0, prompt=trace)
    if known is None and trace is not None:
        lines = _prompt(trace, 0.0)
    return f"<{table(head, *_rows(numbers), *lines)}>"


def summary(node: Node, drawing: Drawing) -> str:
    """The node in one line of plain text, for tooltips."""
    parts = [_title(node, drawing)]
    known = drawing.known(node)
    if known is not None and known.label:
        parts.append(visible(known.label))
    if node.probability is not None:
        parts.append(f"probability {number(node.probability)}")
    if node.influence is not None:
        parts.append(f"influence {number(node.influence)}")
    if node.activation is not None:
        parts.append(f"activation {number(node.activation)}")
    if node.effect is not None:
        parts.append(f"effect {measured(node.effect, node.unit, standard_error=node.standard_error)}")
    if node.active is not None:
        parts.append(share_of_prompts(node.active))
    return ", ".join(parts)


def share_of_prompts(share: float) -> str:
    """In how many of the prompts something is active, in plain text."""
    return f"in {round(100 * share)} % of prompts"


def _title(node: Node, drawing: Drawing) -> str:
    token = drawing.token(node)
    return node.id if token is None else f"{node.id} {quoted(shortened(token, TOKEN_COLUMNS))}"


def _rows(content: str) -> list[str]:
    return [row(cell(content))] if content else []


def _numbers(node: Node) -> str:
    parts = []
    if node.probability is not None:
        parts.append(span(f"probability {number(node.probability)}", size=9))
    if node.effect is not None:
        told = measured(node.effect, node.unit, standard_error=node.standard_error)
        parts.append(span("effect ", size=9) + span(told, colour=sign_colour(node.effect), size=9))
    if node.activation is not None:
        parts.append(span(f"activation {number(node.activation)}", size=9))
    if node.active is not None:
        parts.append(span(share_of_prompts(node.active), size=9))
    return span("   ", size=9).join(parts)


def _known(known: Details, settings: RenderSettings, *, activation: float, prompt: Context | None) -> list[str]:
    """Label, contexts and tokens of a feature, first the prompt itself; contexts of the sign that its activation has,
    if there are some."""
    lines = [row(cell(f"<I>{span(line)}</I>")) for line in wrapped(known.label, COLUMNS, lines=2)]
    below = known.negative.contexts if known.negative else ()
    contexts = (below or known.contexts) if activation < 0 else (known.contexts or below)
    sizes = [max(map(abs, context.activations), default=0.0) for context in contexts]
    largest = (known.max if contexts is known.contexts else 0.0) or max(sizes, default=0.0)
    if prompt is not None:
        lines += _prompt(prompt, largest)
    lines += [_context(context, largest) for context in contexts[: settings.contexts]]
    lines += _logits("▲", known.promoted[: settings.logits])
    lines += _logits("▼", known.suppressed[: settings.logits])
    return lines


def _prompt(prompt: Context, largest: float) -> list[str]:
    """The prompt, around where the feature is furthest from zero; on the scale of the contexts, unless it is further
    there. Nothing where it is silent."""
    most = max(map(abs, prompt.activations), default=0.0)
    return [_context(prompt, max(largest, most), mark="▸")] if most else []


def _context(context: Context, largest: float, *, mark: str = "") -> str:
    first, last = _window(context)
    pairs = list(zip(context.tokens, context.activations, strict=False))[first:last]
    cells = [token_cell(shortened(token, TOKEN_COLUMNS), activation, largest) for token, activation in pairs]
    before = [cell(span("…", size=9, colour=GREY))] if first > 0 else []
    after = [cell(span("…", size=9, colour=GREY))] if last < len(context.tokens) else []
    sign = [cell(span(mark, size=9, colour=GREY))] if mark else []
    line = table(row(*sign, *before, *cells, *after)) if cells else span("")
    return row(cell(line))


def _window(context: Context) -> tuple[int, int]:
    """Tokens around the peak that fit the box, more before it than after it."""
    n_tokens = min(len(context.tokens), len(context.activations))
    peak = min(max(context.peak, 0), max(n_tokens - 1, 0))
    widths = [max(width(shortened(token, TOKEN_COLUMNS)), 1) for token in context.tokens[:n_tokens]]
    first, last = peak, min(peak + 1, n_tokens)
    room = COLUMNS - sum(widths[first:last])
    for step in ("before", "before", "after") * n_tokens:
        index = first - 1 if step == "before" else last
        if 0 <= index < n_tokens and widths[index] <= room:
            room -= widths[index]
            first, last = (index, last) if step == "before" else (first, index + 1)
    return first, last


def _logits(sign: str, pairs: tuple[tuple[str, float], ...]) -> list[str]:
    if not pairs:
        return []
    colour = "#e3eaff" if sign == "▲" else "#ffe6e6"
    cells, room = [cell(span(sign, size=9, colour=GREY))], COLUMNS + 4
    for token, value in pairs:
        shown = shortened(token, TOKEN_COLUMNS)
        room -= width(shown) + 5
        if room < 0 and len(cells) > 1:
            break
        cells.append(cell(span(shown, size=9), bgcolor=colour) + cell(span(signed(value), size=7, colour=GREY)))
    return [row(cell(table(row(*cells))))]


def _logit(title: str, numbers: str) -> str:
    return table(row(cell(span("output ", bold=True) + span(title))), *_rows(numbers))


def _output(head: GraphRecord) -> str:
    told = {"clean": head.metric_clean, "everything at baseline": head.metric_baseline}
    return table(
        row(cell(span("output", bold=True) + span(f" {measured_metric(head)}"))),
        *(
            row(cell(span(f"{name} {signed(value, head.unit)}", size=9)))
            for name, value in told.items()
            if value is not None
        ),
    )
