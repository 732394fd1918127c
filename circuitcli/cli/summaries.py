"""What a command made, in a few lines for people, and what to type next."""

import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from circuitcli.cli import coders_view, explain_view, interaction_view
from circuitcli.cli.attention_view import score_tables
from circuitcli.cli.coders_view import four_digits
from circuitcli.cli.console import Rows
from circuitcli.cli.development_view import developments
from circuitcli.cli.labels import SHOWN, described, examples, labels
from circuitcli.cli.search_view import search_sizes, searched_hooks
from circuitcli.cli.through_view import circuits, crosscoders
from circuitcli.cli.toy_view import synthetic_rows, toy_grid
from circuitcli.records import (
    ActivationsRecord,
    ChangeRecord,
    ChoicesRecord,
    ComparisonRecord,
    EdgeRecord,
    ExportRecord,
    FeaturesRecord,
    FigureRecord,
    GraphRecord,
    InteractionRecord,
    LabelsRecord,
    ModelRecord,
    NodeRecord,
    Record,
    ResponseRecord,
    ScoreRecord,
    ShiftRecord,
    StabilityRecord,
    SteeringRecord,
)
from circuitcli.runs import Run

# What is written where people say, in the run or not; so many of them are named one by one.
_ANYWHERE, _NAMED = (FigureRecord, ExportRecord), 3

NEXT = {
    "collect": "circuit train",
    "train": "circuit interp",
    "interp": 'circuit graph-grad --prompt "..."',
    "graph-naive": "circuit validate",
    "graph-grad": "circuit validate",
    "validate": "circuit render",
}


def next_step(command: str, made: Sequence[Record] = ()) -> str | None:
    """The command to type after this one, if what it made is something to go on with: what is no test of a graph is
    not drawn."""
    others = (ShiftRecord, SteeringRecord, InteractionRecord, ComparisonRecord, ChoicesRecord)
    if command == "validate" and any(isinstance(record, others) for record in made):
        return None
    if model := next((record for record in made if isinstance(record, ModelRecord)), None):
        text = "" if model.text is None else f" --text {shlex.quote(model.text)}"
        return f"circuit collect --model {shlex.quote(model.path)}{text}"
    return NEXT.get(command)


def sentence(command: str, made: Sequence[Record], run: str, seconds: float) -> str:
    """One line: how many records of which kind, where, in what time; of files that lie elsewhere their own places."""
    away = [record for record in made if isinstance(record, _ANYWHERE) and not _is_in(run, record.path)]
    elsewhere = {id(record) for record in away}
    here = [record for record in made if id(record) not in elsewhere]
    parts = [f"{_counted(here) or 'nothing new'} in {run}"] if here or not away else []
    parts += [_counted(away) + _placed([record.path for record in away])] if away else []
    return f"{command}: {'; '.join(parts)} ({seconds:.1f} s)"


def _is_in(run: str, path: str) -> bool:
    """Whether a file lies in a run; without one it lies wherever it was asked for."""
    return not Path(path).is_absolute() and Run(Path(run)).exists and (Path(run) / path).exists()


def _counted(made: Sequence[Record]) -> str:
    counts = Counter[str]()
    for record in made:
        counts[record.kind] += _counts_for(record)
    return ", ".join(f"{count} {_plural(kind) if count > 1 else _singular(kind)}" for kind, count in (+counts).items())


def _placed(paths: Sequence[str]) -> str:
    """Where files are: each by its path, of many the folder that they have in common."""
    if len(paths) <= _NAMED:
        return f": {', '.join(paths)}"
    return f" in {os.path.commonpath([str(Path(path).resolve()) for path in paths])}"


def _counts_for(record: Record) -> int:
    """How many things a record is about."""
    if isinstance(record, LabelsRecord):
        return record.n_new
    return record.n_live if isinstance(record, FeaturesRecord) else record.kind not in ("run", "label-score")


def _singular(kind: str) -> str:
    """Two kinds of records are named by the many things that one holds."""
    return kind[:-1] if kind in ("features", "labels") else kind


def _plural(kind: str) -> str:
    if kind.endswith("y") and kind[-2:-1] not in "aeiou":
        return f"{kind[:-1]}ies"
    if kind.endswith(("ch", "sh")):
        return f"{kind}es"
    return kind if kind.endswith("s") else f"{kind}s"


def tables(made: Sequence[Record], run: Path) -> list[Rows]:
    """A short table for each kind of record that people read; figures with paths that can be opened."""
    found = (
        *(table(made) for table in _TABLES),
        examples(made, run),
        _graphs(made),
        _frozen(made),
        _effects(made),
        _nodes(made, run),
    )
    others = (_responses(made), _scores(made), _shifts(made), *score_tables(made, run), _figures(made, run))
    return [rows for rows in (*found, *others) if rows.rows]


def _activations(made: Sequence[Record]) -> Rows:
    found = [record for record in made if isinstance(record, ActivationsRecord)]
    rows = [(record.hook, f"{record.n_tokens:,}", str(record.d_model), record.dtype) for record in found]
    return Rows(("hook point", "tokens", "width", "type"), rows)


def _nodes(made: Sequence[Record], run: Path) -> Rows:
    """The nodes of the largest effects; of several prompts with standard errors, and in how many they are active."""
    found = [record for record in made if isinstance(record, NodeRecord) and record.effect is not None]
    known = labels(made, run) if found else {}
    found.sort(key=lambda record: -abs(record.effect or 0))
    shown = found[:SHOWN]
    counts_prompts = any(record.active is not None for record in shown)
    rows = []
    for record in shown:
        error = "" if record.standard_error is None else f" ± {record.standard_error:.2g}"
        share = [_share(record.active)] if counts_prompts else []
        label = known.get(record.id.partition("@")[0], "")
        effect = f"{four_digits(record.effect)}{error} {record.unit or ''}"
        rows.append((record.id, effect, four_digits(record.activation), *share, label))
    title = _first(len(rows), len(found), "nodes by effect")
    return Rows(("node", "effect", "activation", *(["active in"] if counts_prompts else []), ""), rows, title)


def _share(active: float | None) -> str:
    return "" if active is None else f"{100 * active:.0f} % of prompts"


def _graphs(made: Sequence[Record]) -> Rows:
    found = [record for record in made if isinstance(record, GraphRecord)]
    rows = [
        (
            record.name,
            f"{record.metric} of {record.explained_target}",
            four_digits(record.metric_clean),
            record.explained,
        )
        for record in found
    ]
    return Rows(("graph", "metric", "clean", "prompt"), rows)


def _effects(made: Sequence[Record]) -> Rows:
    """What effects add up to at the hook points where they miss most of the change that they ought to add up to."""
    found = [
        (abs(sums["gap"] or 0.0), hook, sums, record)
        for record in made
        if isinstance(record, GraphRecord)
        for hook, sums in (record.effects or {}).items()
        if sums.get("gap") is not None
    ]
    found.sort(key=lambda one: -one[0])
    rows = [
        (
            hook,
            *(four_digits(sums.get(name)) for name in ("features", "errors", "gap")),
            _of_behaviour(gap, record),
            "" if (steps := sums.get("steps")) is None else f"{steps:,.0f}",
        )
        for gap, hook, sums, record in found[:SHOWN]
    ]
    title = _first(len(rows), len(found), "hook points by what effects miss of the change when all nodes are away")
    return Rows(("hook point", "features", "errors", "gap", "of the behaviour", "steps"), rows, title)


def _of_behaviour(gap: float, record: GraphRecord) -> str:
    behaviour = abs((record.metric_clean or 0.0) - (record.metric_baseline or 0.0))
    return f"{100 * gap / behaviour:.1f} %" if behaviour else ""


def _frozen(made: Sequence[Record]) -> Rows:
    """Of attribution graphs how much of them there is, and how much of the logits features explain."""
    found = [record for record in made if isinstance(record, GraphRecord) and record.n_active is not None]
    rows = [
        (
            f"{record.n_expanded or 0:,} of {record.n_active or 0:,}",
            f"{sum(isinstance(one, NodeRecord) for one in made):,}",
            f"{sum(isinstance(one, EdgeRecord) for one in made):,}",
            *(four_digits(getattr(record, name)) for name in ("replacement", "completeness", "completeness_of_inputs")),
        )
        for record in found
    ]
    columns = ("active features", "nodes kept", "edges kept", "replacement", "completeness", "of nodes with inputs")
    return Rows(columns, rows, "before pruning: shares of influence that come from tokens, and that are not errors")


def _scores(made: Sequence[Record]) -> Rows:
    found = [record for record in made if isinstance(record, ScoreRecord)]
    several = len({record.ablation for record in found}) > 1
    rows = [
        (
            record.name,
            four_digits(record.value),
            _interval(record),
            _conditions(record),
            *([record.ablation or ""] if several else []),
        )
        for record in found
    ]
    return Rows(("score", "value", "interval", "errors", *(["ablation"] if several else [])), rows)


def _stability(made: Sequence[Record]) -> Rows:
    found = [record for record in made if isinstance(record, StabilityRecord)]
    rows = [
        (
            " ".join(filter(None, (record.of, record.coders))),
            record.what,
            four_digits(record.value),
            f"{record.low:.4g} to {record.high:.4g}" if len(record.values) > 1 else "",
            four_digits(record.rank),
            f"{len(record.values):,}",
        )
        for record in found
    ]
    title = "circuits found again: what two have in common (Jaccard), and how their ranks go together (Spearman)"
    return Rows(("found again by", "of", "in common", "95 % of pairs", "ranks", "pairs"), rows, title)


def _changes(made: Sequence[Record]) -> Rows:
    """The strongest changes that make another graph of one."""
    found = sorted((r for r in made if isinstance(r, ChangeRecord)), key=lambda record: -abs(record.strength))
    rows = [(r.action, r.id or f"{r.source} -> {r.target}", four_digits(r.strength)) for r in found[:SHOWN]]
    return Rows(("", "node or edge", "strength"), rows, _first(len(rows), len(found), "changes by strength"))


def _steering(made: Sequence[Record]) -> Rows:
    """The two continuations side by side, token by token, with the divergence before each."""
    found = [record for record in made if isinstance(record, SteeringRecord)][-1:]
    rows = []
    for record in found:
        sides = ((record.tokens_clean, record.kl_clean), (record.tokens_steered, record.kl_steered))
        for number in range(max(len(record.tokens_clean), len(record.tokens_steered))):
            cells = [(repr(t[number]), four_digits(k[number])) if number < len(t) else ("", "") for t, k in sides]
            rows.append((str(number + 1), *cells[0], *cells[1]))
    title = "the next token's KL(clean || steered) in nats, before each token of both continuations"
    return Rows(("", "clean", "KL", "steered", "KL"), rows, title)


def _responses(made: Sequence[Record]) -> Rows:
    """Of each curve where it begins and ends, and what the model itself has."""
    found = [record for record in made if isinstance(record, ResponseRecord)]
    rows = [
        (record.source, record.of, *(four_digits(value) for value in _ends(record)), record.unit) for record in found
    ]
    span = f"{found[0].coefficients[0]:g} to {found[0].coefficients[-1]:g}" if found else ""
    return Rows(("feature", "response of", "first", "as it is", "last", "unit"), rows, f"the feature times {span}")


def _ends(record: ResponseRecord) -> tuple[float, float | None, float]:
    """The first value, that of the feature as it is, and the last."""
    own = dict(zip(record.coefficients, record.values, strict=True))
    return record.values[0], own.get(1.0), record.values[-1]


def _shifts(made: Sequence[Record]) -> Rows:
    found = [record for record in made if isinstance(record, ShiftRecord)]
    rows = [
        (record.of, record.name, four_digits(record.clean), four_digits(record.ablated), record.unit)
        for record in found
    ]
    return Rows(("", "changed most", "before", "after", "unit"), rows)


def _figures(made: Sequence[Record], run: Path) -> Rows:
    paths = [record.path for record in made if isinstance(record, FigureRecord)]
    return Rows(("figure",), [(str(run / path) if (run / path).exists() else path,) for path in paths])


_TABLES: tuple[Callable[[Sequence[Record]], Rows], ...] = (
    coders_view.models,
    _activations,
    coders_view.saes,
    coders_view.sweep,
    searched_hooks,
    search_sizes,
    toy_grid,
    synthetic_rows,
    coders_view.evaluations,
    coders_view.baseline_rows,
    coders_view.replacements,
    coders_view.exports,
    described,
    explain_view.kept_labels,
    explain_view.label_scores,
    _stability,
    _steering,
    interaction_view.interactions,
    interaction_view.sets,
    _changes,
    developments,
    circuits,
    crosscoders,
)


def _interval(record: ScoreRecord) -> str:
    if record.standard_error is not None:
        return f"± {record.standard_error:.2g}"
    return "" if record.low is None or record.high is None else f"{record.low:.4g} to {record.high:.4g}"


def _conditions(record: ScoreRecord) -> str:
    """How error terms were treated; ``nodes`` means that they are kept where the circuit has them."""
    return record.errors or ""


def _first(shown: int, total: int, what: str) -> str:
    return f"first {shown} of {total:,} {what}" if shown < total else ""
