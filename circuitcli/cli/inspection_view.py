"""An SAE as people read about it in a terminal: what it is and expects, its health, what looks wrong."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitcli.cli.console import console
from circuitcli.printable import printable
from circuitcli.records import Record, ReleaseRecord, to_line

if TYPE_CHECKING:
    from rich.console import RenderableType

# What a fact is called, in the order in which they are shown.
_IS = {
    "architecture": "architecture",
    "k": "active features (k)",
    "hook": "reads",
    "target": "predicts",
    "source_hook": "in the source's words",
    "source_target": "and",
    "format": "format",
    "path": "path",
    "model": "model",
    "dtype": "stored as",
    "normalisation": "input normalisation",
    "bos": "BOS in front",
    "context_length": "context length",
    "dataset": "trained on",
}
# Facts of the training that people are shown; records have all.
_TRAINING = (
    "explained_variance",
    "l0",
    "loss_recovered",
    "dead",
    "dict_class",
    "training_architecture",
    "trained_as",
    "trained_tokens",
    "kept_tokens",
    "training_tokens",
    "total_training_tokens",
    "steps",
    "learning_rate",
    "lr",
    "l1_coefficient",
)
_FITS = {
    "of": "on",
    "n_tokens": "tokens",
    "explained_variance": "explained variance",
    "l0": "active per token",
    "silent": "silent on these tokens",
    "cosine": "cosine",
    "relative_bias": "relative bias (1 is best)",
}
# Of layers of which one writes with others: what all explain, and how sparse each is.
_OF_LAYERS = ("explained_variance", "l0")
_RANGES = {"decoder_norm": "lengths of decoder rows", "encoder_norm": "of encoder columns", "threshold": "thresholds"}
_WEIGHTS = {
    "encoder_decoder_cosine_mean": "encoder-decoder cosine, mean",
    "decoder_cosine_max": "nearest decoder rows, cosine",
    "share_of_duplicates": "features that another repeats",
    "cannot_fire": "features that cannot fire",
}


def show(made: Sequence[Record], *, before: Sequence[str] = ()) -> None:
    """Print what was found for people, or behind the lines that were read as records."""
    if console.prints_records:
        return console.records([*before, *map(to_line, made)])
    releases = [record for record in made if isinstance(record, ReleaseRecord)]
    if releases:
        return console.view(_release(releases))
    told = [record.model_dump() for record in made]
    outlines = [record for record in told if record.get("n_bytes") is not None]
    if outlines:
        console.view(_layers(outlines))
    for record in told:
        if record not in outlines:
            console.view(_inspection(record))


def _release(found: Sequence[ReleaseRecord]) -> "RenderableType":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", title=f"{found[0].name}: {found[0].repository}")
    for column in ("name it", "hook point"):
        table.add_column(column, overflow="fold")
    for record in found:
        table.add_row(f"{record.name}/{record.id}", record.hook or "told by its files")
    return table


def _layers(found: Sequence[Mapping[str, Any]]) -> "RenderableType":
    """The layers of cross-layer transcoders, one a row, and how to have one looked at."""
    from rich.console import Group
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", title=f"cross-layer transcoder: {found[0]['format']}")
    for name in ("reads", "writes", "architecture"):
        table.add_column(name, overflow="fold")
    is_held = any(record.get("activations") for record in found)
    for name in ("features", "width", "size", *(("explained", "active") if is_held else ())):
        table.add_column(name, justify="right")
    for record in found:
        texts = (record["hook"], written(record["writes"]), record["architecture"])
        sizes = [_said(record["d_sae"]), _said(record["d_out"]), decimal(record["n_bytes"])]
        if is_held:
            fits = record.get("activations") or {}
            sizes += [_said(fits[name]) if fits.get(name) is not None else "" for name in _OF_LAYERS]
        table.add_row(*(Text(printable(text)) for text in (*texts, *sizes)))
    total = decimal(sum(record["n_bytes"] for record in found))
    hint = f"{total} of weights; name one layer to have its own looked at: circuit inspect {found[0]['path']}"
    problems = dict.fromkeys(problem for record in found for problem in record["problems"])
    lines = [Text(f"  - {printable(problem)}") for problem in problems]
    if lines:
        lines.insert(0, Text("what looks wrong", style="bold"))
    return Group(table, *lines, Text(printable(hint)), Text(""))


def written(names: Sequence[str]) -> str:
    """Hook points in one text: the first and the last of a row of one site, one layer after the other."""
    parts = [name.rpartition(".") for name in names]
    layers = [int(layer) for _, _, layer in parts]
    is_row = len({site for site, _, _ in parts}) == 1 and layers == list(range(layers[0], layers[0] + len(layers)))
    return f"{names[0]} to {names[-1]}" if is_row and len(names) > 2 else " ".join(names)


def _inspection(record: Mapping[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(record):
        table.add_row(name, Text(printable(value)))
    problems = record["problems"]
    lines = [Text("what looks wrong" if problems else "nothing looks wrong", style="bold")]
    lines += [Text(f"  - {printable(problem)}") for problem in problems]
    return Group(table, *lines, Text(""))


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    widths = f"{record['d_in']:,} to {record['d_sae']:,} features"
    rows = [("widths", widths + (f" to {record['d_out']:,}" if record.get("d_out") else ""))]
    shown = {name: record[name] for name in _IS if record.get(name) is not None}
    if record.get("writes"):
        shown["target"] = written(record["writes"])
    if record.get("hooks"):
        shown["hook"] = f"{written(record['hooks'])}, and writes them: a crosscoder"
    if shown.get("source_hook") == record["hook"]:
        shown = {name: value for name, value in shown.items() if not name.startswith("source_")}
    rows += [(_IS[name], _said(value)) for name, value in shown.items()]
    rule = "subtracted before encoding" if record.get("subtract_decoder_bias") else "not subtracted before encoding"
    rows.append(("decoder bias", rule))
    rows += [("note", note) for note in record.get("notes") or ()]
    training = record.get("training") or {}
    rows += [(f"training: {name}", _said(training[name])) for name in _TRAINING if name in training]
    weights = record.get("weights") or {}
    rows += [(words, _range(weights[name])) for name, words in _RANGES.items() if name in weights]
    rows += [(words, _said(weights[name])) for name, words in _WEIGHTS.items() if weights.get(name) is not None]
    fits = record.get("activations") or {}
    return rows + [(words, _said(fits[name])) for name, words in _FITS.items() if fits.get(name) is not None]


def _range(values: Mapping[str, float | None]) -> str:
    return " ".join(f"{name} {_said(value)}" for name, value in values.items())


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
