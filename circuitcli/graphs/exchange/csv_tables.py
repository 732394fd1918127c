"""Two tables in CSV: edges in the file that is named, nodes in another beside it; as pandas, R and Gephi read them."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from circuitcli.graphs.exchange.rows import Row, Typed
from circuitcli.graphs.exchange.shared import Shared


def files(shared: Shared, path: Path) -> Iterator[tuple[Path, str]]:
    """Paths and texts: of the nodes, then of the edges."""
    typed = Typed.of(shared)
    yield path.with_name(f"{path.stem}-nodes{path.suffix}"), table(typed.nodes, typed.node_rows())
    yield path, table(typed.edges, typed.edge_rows())


def table(columns: Iterable[str], rows: Iterable[Row]) -> str:
    """The rows under their columns; what is not known is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(columns), restval="")
    writer.writeheader()
    writer.writerows(map(_plain, rows))
    return stream.getvalue()


def _plain(row: Mapping[str, object]) -> dict[str, object]:
    return {name: repr(value) if isinstance(value, float) else value for name, value in row.items()}
