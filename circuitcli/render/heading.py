"""The heading of a Graphviz drawing: what is explained, the prompt, scores, and the legend with its numbers."""

import math

from circuitcli.graphs import CircuitGraph
from circuitcli.records import GraphRecord, ScoreRecord
from circuitcli.render.drawing import Drawing
from circuitcli.render.findings import findings
from circuitcli.render.labels import GREY, cell, row, span, table
from circuitcli.render.scales import Scale, sign_colour
from circuitcli.render.sites import INK, kinds_in
from circuitcli.render.strongest import strength_of
from circuitcli.render.text import number, percent, quoted, shortened, signed, visible, width, wrapped
from circuitcli.schema import UNKNOWN

LINE_COLUMNS = 110
TOKEN_COLUMNS = 24
# Of what a test came to, with the reasons of the verdict.
OUTCOME_COLUMNS, OUTCOME_LINES = 140, 2
# Of a longer prompt the beginning and the end are shown.
PROMPT_LINES = 20
Column = tuple[int, list[str]]
# Metrics of a target, which each of several prompts may have for itself.
_OF_TARGETS = ("log-prob", "logit-diff")
# Heads of edges as characters, and the points of a dash.
POINTED, BLUNT, DASH = "▶", "┫", 9
READING = "An edge says what its lower end contributes to its upper end."


def heading(drawing: Drawing) -> str:
    """The HTML-like label of the whole drawing."""
    head = drawing.graph.head
    rows = [row(cell(span(head.name, bold=True, size=18)))]
    rows += [row(cell(span(line, size=11))) for line in facts(head)]
    rows += [row(cell(line)) for line in _prompt(head)]
    rows += [row(cell(line)) for line in _findings(drawing)]
    rows += [row(cell(_legend(scale))) for scale in drawing.scales.values()]
    rows += [row(cell(_kinds(kinds))) for kinds in [kinds_in(drawing.nodes)] if len(kinds) > 1]
    rows += [row(cell(span(line, size=10, colour=GREY))) for line in notes(drawing)]
    return f"<{table(*rows, cellpadding=3)}>"


def facts(head: GraphRecord) -> list[str]:
    """What is explained and how, in lines of plain text."""
    told = {name: getattr(head, name) for name in ("model", "method", "baseline", "positions")}
    known = [f"{name} {value}" for name, value in told.items() if value != UNKNOWN]
    made = [] if head.origin is None else [f"made by {head.origin}"]
    return [
        *([f"{measured_metric(head)}: {values}"] if (values := levels(head)) else []),
        *([over_prompts(head)] if head.n_prompts > 1 else []),
        ", ".join([*made, *known, *([head.dtype] if head.dtype != UNKNOWN else [])]),
        *([explained(head)] if head.n_active is not None else []),
    ]


def levels(head: GraphRecord) -> str:
    """The metric of the clean model, and with everything at baseline, as far as they are known, in plain text."""
    told = {"clean": head.metric_clean, "with everything at baseline": head.metric_baseline}
    known = [(name, value) for name, value in told.items() if value is not None]
    return ", ".join(f"{signed(value, head.unit if value is known[-1][1] else None)} {name}" for name, value in known)


def explained(head: GraphRecord) -> str:
    """How much of a frozen graph features explain, before pruning, and what pruning kept, in plain text."""
    told = {
        "replacement": head.replacement,
        "completeness": head.completeness,
        "of nodes with inputs": head.completeness_of_inputs,
    }
    shares = ", ".join(f"{name} {number(value)}" for name, value in told.items() if value is not None)
    of_active = f"{head.n_expanded or 0:,} of {head.n_active or 0:,} active features"
    kept = " and ".join(percent(share or 0) for share in (head.node_threshold, head.edge_threshold))
    return f"{shares} ({of_active}, before pruning); kept {kept} of the influence of nodes and of edges"


def measured_metric(head: GraphRecord) -> str:
    """What is measured, and of which target against which foil, in plain text."""
    target = "" if head.target is None else f" of {quoted(head.target)}"
    foil = "" if head.foil is None else f" against {quoted(head.foil)}"
    if head.n_prompts > 1 and head.metric in _OF_TARGETS:
        target = target or " of each prompt's target"
        foil = foil or (" against its foil" if head.metric == "logit-diff" else "")
    return f"{'metric' if head.metric == UNKNOWN else head.metric}{target}{foil}"


def over_prompts(head: GraphRecord) -> str:
    """Over which prompts numbers are means, in plain text."""
    where = "" if head.prompts is None else f" of {visible(head.prompts)}"
    return f"means over {head.n_prompts:,} prompts{where} ± standard error; the first: {quoted(head.prompt)}"


def _counted(n: int, name: str) -> str:
    return f"{n} {name}{'' if n == 1 else 's'}"


def notes(drawing: Drawing) -> list[str]:
    """How to read the drawing and what it leaves out, in lines of plain text."""
    n_nodes = len(drawing.nodes)
    size = f"{_counted(n_nodes, 'node')}, {_counted(len(drawing.edges), 'edge')}."
    lines = [f"{size} {READING}" if drawing.edges else size]
    which = "" if drawing.max_nodes is not None else "the weakest "
    for left in drawing.left_out:
        if left.n_left_out:
            lines.append(
                f"Left out: {which}{left.n_left_out} of {left.n_edges} edges in {left.unit}, "
                f"{percent(left.share)} of their total |weight|."
            )
    if drawing.n_hidden_nodes:
        lines.append(_hidden_nodes(drawing))
    if any(node.activation == 0 and node.effect for node in drawing.nodes):
        lines.append(
            f"Activation 0 with an effect: silent here, active at the {drawing.graph.head.baseline} baseline; "
            "the effect is that of being silent."
        )
    if drawing.whole is not None:
        lines.append(_as_left(drawing, drawing.whole))
    return lines


def _as_left(drawing: Drawing, whole: CircuitGraph) -> str:
    """What of a graph the reader of its page chose to see."""
    boxes = drawing.boxes.values()
    in_groups = sum(len(group.members) for group in boxes)
    groups = f", {in_groups} of them in {len(boxes)} group{'s' if len(boxes) > 1 else ''}" if boxes else ""
    n_nodes = len(drawing.graph.nodes) - len(boxes) + in_groups
    return (
        f"As the reader of its page left it: {n_nodes:,} of {len(whole.nodes):,} nodes{groups}; the whole has "
        f"{len(whole.edges):,} edges."
    )


def _hidden_nodes(drawing: Drawing) -> str:
    if drawing.max_nodes is None:
        return f"Left out: {drawing.n_hidden_nodes} nodes that have no edge among those drawn."
    drawn, rank = frozenset(drawing.nodes), strength_of(drawing.graph)
    every = math.fsum(rank(node) for node in drawing.graph.nodes)
    hidden = math.fsum(rank(node) for node in drawing.graph.nodes if node not in drawn)
    share = f", {percent(hidden / every)} of the total |effect|" if every > 0 else ""
    return (
        f"Left out: {drawing.n_hidden_nodes} of {len(drawing.graph.nodes)} nodes{share}; drawn are the strongest, and "
        "what lies on their ways to the output."
    )


# Told elsewhere in the picture, or in the report.
_UNSAID = (
    "graph",
    "graph_digest",
    "path",
    "digest",
    "n_nodes",
    "metric_clean",
    "metric_circuit",
    "metric_empty",
    "median",
    "overlap_features",
    "difference_low",
    "difference_high",
    "n_pool",
    "what",
)


def conditions_of(score: ScoreRecord) -> dict[str, str]:
    """What else a score record says about how it was measured."""
    return {
        name.removeprefix("n_").replace("_", " "): number(value) if isinstance(value, float) else str(value)
        for name, value in score.model_dump(exclude={"kind", "name", "value", "low", "high"}).items()
        if isinstance(value, str | int | float) and not isinstance(value, bool) and name not in _UNSAID
    }


def _findings(drawing: Drawing) -> list[str]:
    """What the circuit keeps in bold, the verdict below it."""
    lines = [wrapped(line, OUTCOME_COLUMNS, lines=OUTCOME_LINES) for line in findings(drawing.scores, drawing.verdict)]
    return [span(part, size=11, bold=number == 0) for number, parts in enumerate(lines) for part in parts]


def _prompt(head: GraphRecord) -> list[str]:
    """Tables of tokens over their positions, as many as fit a line; nothing where positions are those of no prompt."""
    if head.n_prompts > 1 and head.columns is None:
        return []
    if not head.tokens:
        return [span(line, size=12) for line in ([shortened(head.prompt, LINE_COLUMNS)] if head.prompt else [])]
    lines = _prompt_lines(head)
    if len(lines) <= PROMPT_LINES:
        return [_token_table(line) for line in lines]
    n_hidden = sum(len(line) for line in lines[PROMPT_LINES // 2 : -PROMPT_LINES // 2])
    more = span(f"… {n_hidden:,} tokens …", size=11, colour=GREY)
    tables = [_token_table(line) for line in (*lines[: PROMPT_LINES // 2], *lines[-PROMPT_LINES // 2 :])]
    return [*tables[: PROMPT_LINES // 2], more, *tables[PROMPT_LINES // 2 :]]


def _prompt_lines(head: GraphRecord) -> list[list[Column]]:
    lines: list[list[Column]] = [[]]
    room = LINE_COLUMNS
    for position in range(len(head.columns if head.columns is not None else head.tokens)):
        shown = [shortened(token, TOKEN_COLUMNS) for token in head.tokens_at(position)]
        widest = max((width(text) for text in shown), default=0)
        room -= max(widest, 3) + 1
        if room < 0:
            lines.append([])
            room = LINE_COLUMNS - widest - 1
        lines[-1].append((position, shown))
    return lines


def _token_table(line: list[Column]) -> str:
    """A row of tokens, more of them where prompts have others, and a row of positions."""
    n_rows = max(len(tokens) for _, tokens in line)
    rows = [
        row(*(cell(span(tokens[n] if n < len(tokens) else "", size=12), bgcolor="#f1f1f1") for _, tokens in line))
        for n in range(n_rows)
    ]
    positions = [cell(span(str(position), size=8, colour=GREY)) for position, _ in line]
    return table(*rows, row(*positions), cellspacing=1)


def _legend(scale: Scale) -> str:
    samples = "".join(_sample(scale, weight) for weight in scale.samples())
    return table(row(cell(span(f"edges in {scale.unit}:", size=11)), samples), cellspacing=2)


def _kinds(kinds: list[str]) -> str:
    """What the colours of boxes and hook points say."""
    names = (span(kind, colour=INK[kind], size=11) for kind in kinds)
    return span("colours of boxes and hook points: ", size=11) + span(", ", size=11).join(names)


def _sample(scale: Scale, weight: float) -> str:
    """A piece of an edge with its head, as `dot` draws it."""
    height = max(1, round(scale.width(weight)))
    look = {"fixedsize": "TRUE", "height": height, "cellpadding": 0}
    ink, gap = (
        cell("", bgcolor=scale.colour(weight), width=DASH if weight < 0 else 36, **look),
        cell("", width=4, **look),
    )
    bar = table(row(gap.join([ink] * 3) if weight < 0 else ink), cellpadding=0)
    head = span(BLUNT if weight < 0 else POINTED, colour=sign_colour(weight), size=9)
    return cell(bar, cellpadding=4) + cell(head) + cell(span(signed(weight), size=11))
