"""What a frozen graph will take: edges are counted, time is measured on a few passes, memory follows from both."""

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuitcli.attribution.frozen.counting import expected_edges, expected_features
from circuitcli.attribution.frozen.nodes import Active
from circuitcli.attribution.frozen.search import UPDATE, FrozenSearch
from circuitcli.errors import InputError
from circuitcli.graphs.influence import Rows, influence, prune, scores

# Of an edge: a source and a value, and what pruning makes of them (measured); where all nodes are kept, of all edges.
EDGE_BYTES, EDGE_BYTES_OF_ALL = 26, 43
# Of which the time of influence, pruning and scores is measured.
_SAMPLE_EDGES = 2**20
_STATUS, _MEMORY = Path("/proc/self/status"), Path("/proc/meminfo")
# Of containers; "max" where there is none.
_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Estimate:
    """Time in seconds and memory in bytes; the memory is all that the process will hold."""

    n_features: int
    n_expanded: int
    n_edges: int
    seconds: float
    n_bytes: int
    available_bytes: int

    def lines(self) -> list[tuple[str, str]]:
        """The numbers in words."""
        fits = self.n_bytes <= self.available_bytes
        return [
            ("active features", f"{self.n_features:,}"),
            ("expanded", f"{self.n_expanded:,}"),
            ("edges before pruning", f"about {self.n_edges:,}"),
            ("time", _duration(self.seconds)),
            ("beside", "loading, --check-edges and --heads"),
            ("memory", f"about {self.n_bytes / 1e9:.3g} GB of {self.available_bytes / 1e9:.3g} GB"),
            *([] if fits else [("does not fit", "lower --max-nodes, or use fewer --layers or a shorter prompt")]),
        ]


def estimated(search: FrozenSearch) -> Estimate:
    """What the search of a graph will take, by measuring a pass at a few depths."""
    nodes, batch, chosen = search.nodes, search.batch_size, expected_features(search)
    n_edges = expected_edges(search, chosen)
    passes = float(sum(count / batch * one for count, one in zip(chosen, _seconds_of_batches(search), strict=True)))
    updates = 0 if search.n_expanded == nodes.n_features else search.n_expanded / UPDATE
    # Influence of what is known so far, of half of the edges on average.
    of_influence, of_pruning = _seconds_of_edges(search)
    total = passes + n_edges * (of_pruning + updates / 2 * of_influence)
    needed = needed_bytes(search, n_edges)
    return Estimate(nodes.n_features, search.n_expanded, n_edges, total, needed, available_bytes())


def needed_bytes(search: FrozenSearch, n_edges: int) -> int:
    """All that the process will hold."""
    return held_bytes() + search.edges.sources.bytes_to_keep() + n_edges * _edge_bytes(search)


def _edge_bytes(search: FrozenSearch) -> int:
    return EDGE_BYTES if search.settings.shares_of_influence["node_threshold"] < 1 else EDGE_BYTES_OF_ALL


def check_fits(search: FrozenSearch) -> None:
    """Raise InputError, saying what would make it fit, for a graph that needs more memory than there is."""
    n_edges = expected_edges(search)
    needed, there = needed_bytes(search, n_edges), available_bytes()
    if needed <= there:
        return
    room = max(there - held_bytes() - search.edges.sources.bytes_to_keep(), 0) // _edge_bytes(search)
    most = int(search.n_expanded * room / n_edges)
    fewer = f"--max-nodes {most}, " if most >= 1 else ""
    raise InputError(
        f"the frozen graph has {search.n_expanded:,} features with about {n_edges:,} edges, which need "
        f"{needed / 1e9:.3g} GB; {there / 1e9:.3g} GB are there",
        hint=f"{fewer}fewer --layers or a shorter prompt would fit",
    )


def _seconds_of_batches(search: FrozenSearch) -> list[float]:
    """Of one batch into features of each coder: measured at the first, middle and last, and between them in line."""
    places = [number for number, active in enumerate(search.nodes.active) if len(active)]
    if not places:
        return [0.0] * len(search.nodes.active)
    some = sorted({places[0], places[len(places) // 2], places[-1]})
    # What features write is gathered once, by the first pass that needs it.
    _measured(search, search.nodes.active[some[-1]])
    measured = [_measured(search, search.nodes.active[number]) for number in some]
    return list(np.interp(range(len(search.nodes.active)), some, measured))


def _measured(search: FrozenSearch, active: Active) -> float:
    begin = time.perf_counter()
    chosen = range(min(len(active), search.batch_size))
    search.edges.into_features(active, chosen)
    return (time.perf_counter() - begin) * search.batch_size / len(chosen)


def _seconds_of_edges(search: FrozenSearch) -> tuple[float, float]:
    """Of an edge in one pass of influence, and in pruning and scores."""
    nodes, settings = search.nodes, search.settings
    n_rows, width = 64, _SAMPLE_EDGES // 64
    rng = np.random.default_rng(0)
    rows = Rows(
        nodes.kinds,
        nodes.orders,
        nodes.weights,
        targets=np.full(n_rows, nodes.n - 1),
        starts=np.arange(n_rows + 1) * width,
        sources=rng.integers(0, nodes.n_sources, size=n_rows * width).astype(np.int32),
        values=rng.normal(size=n_rows * width).astype(np.float32),
    )
    begin = time.perf_counter()
    influence(rows)
    between = time.perf_counter()
    prune(rows, **settings.shares_of_influence)
    scores(rows)
    return (between - begin) / rows.n_edges, (time.perf_counter() - between) / rows.n_edges


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return "less than 0.1 s"
    return f"about {seconds:.1f} s" if seconds < 120 else f"about {seconds / 60:.1f} min"


def held_bytes() -> int:
    """What the process holds now."""
    if _STATUS.exists():
        return _kilobytes(_STATUS, "VmRSS:")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int:
    """What the process may hold in all: what it has and what is free."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _kilobytes(_MEMORY, "MemAvailable:") + held_bytes() if _MEMORY.exists() else physical
    try:
        return min(free, int(_LIMIT.read_text()))
    except (OSError, ValueError):
        return free


def _kilobytes(path: Path, name: str) -> int:
    return 1024 * next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))
