"""Time and memory of graphs against tokens, nodes, layers and prompts, each point in a process of its own.

Of graph-grad, graph-naive and the three runs that faithfulness and completeness come from. Memory is the peak of each
of them, over what the process has with the model and the autoencoders loaded.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from circuitcli.attribution.panel import Panel
from circuitcli.attribution.selection import find_circuit
from circuitcli.hookpoints import OUTPUT, NodeId
from circuitcli.render.plots import Axis, Plot, Series, write_plot
from circuitcli.render.plots import Panel as Axes
from circuitcli.settings.graph import GraphSettings
from circuitcli.training.memory import peak_process_bytes
from circuitcli.validation.scores import PanelCases, measure
from tests.bench.random_graphs import Drawn, Setting, Sizes

COMMANDS = ("graph-grad", "graph-naive", "validate")
# What is varied, and how far.
AXES = {
    "tokens": (16, 64, 256, 512, 1024, 1500),
    "nodes": (10, 100, 500, 1000, 5000),
    "layers": (1, 2, 4, 8, 12),
    "prompts": (1, 10, 100, 1000),
}


@dataclass(frozen=True)
class Point:
    """What one process measures. nodes: about so many in the circuit, and so many single ablations."""

    sizes: Sizes
    nodes: int = 100
    method: str = "ig"
    steps: int = 5
    threads: int = 1

    @classmethod
    def read(cls, text: str) -> "Point":
        """The point as `written`."""
        told = json.loads(text)
        sizes = told.pop("sizes")
        return cls(Sizes(**{**sizes, "sites": tuple(sizes["sites"])}), **told)

    def written(self) -> str:
        """The point as text."""
        return json.dumps(asdict(self))

    def at(self, axis: str, value: int) -> "Point":
        """The same point elsewhere on an axis."""
        if axis == "nodes":
            return replace(self, nodes=value)
        name = {"layers": "blocks"}.get(axis, axis)
        return replace(self, sizes=replace(self.sizes, **{name: value}))


@dataclass(frozen=True)
class Cost:
    """Processor seconds and bytes that a command takes, and what it found."""

    seconds: float
    n_bytes: int
    n_nodes: int
    n_edges: int


def measured(point: Point) -> dict[str, Cost]:
    """The costs of the three commands, one after the other in this process."""
    torch.set_num_threads(point.threads)
    setting = Setting(point.sizes)
    n_hooks, kind = len(point.sizes.hooks), "all" if point.sizes.prompts == 1 else "sum"
    # As many nodes as are asked for, however small their effects.
    settings = GraphSettings(
        method=point.method,
        ig_steps=point.steps,
        baseline="zero",
        down=max(1, point.nodes // (2 * n_hooks)),
        up=5,
        min_share=0.0,
    )
    costs: dict[str, Cost] = {}
    nodes: list[NodeId] = []

    def grad(panel: Panel) -> tuple[int, int]:
        circuit = find_circuit(panel, settings)
        nodes[:] = [NodeId.parse(node.id) for node in circuit.nodes if node.id != OUTPUT]
        return len(nodes), len(circuit.edges)

    def naive(panel: Panel) -> tuple[int, int]:
        search = Drawn(panel, settings, {}, 0, max(1, point.nodes // n_hooks))
        parts = [search.part(hook) for hook in panel.hooks]
        return sum(len(search.sources(hook)) for hook in panel.hooks), sum(len(part.edges) for part in parts)

    def validate(panel: Panel) -> tuple[int, int]:
        measure(PanelCases(panel, nodes), policy="nodes", batch_size=settings.batch_size)
        return len(nodes), 0

    for name, run, positions in (
        ("graph-grad", grad, kind),
        ("graph-naive", naive, "sum"),
        ("validate", validate, kind),
    ):
        costs[name] = _cost(run, lambda positions=positions: setting.panel(positions=positions))
    return costs


def _cost(run: Callable[[Panel], tuple[int, int]], panel: Callable[[], Panel]) -> Cost:
    before, start = _fresh_peak(), time.process_time()
    n_nodes, n_edges = run(panel())
    return Cost(time.process_time() - start, peak_process_bytes() - before, n_nodes, n_edges)


def _fresh_peak() -> int:
    """What the process holds; from now on the peak is counted anew, where the system can do that."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return peak_process_bytes()


def in_own_process(point: Point) -> dict[str, Cost]:
    """`measured` in a new process."""
    words = [sys.executable, "-m", "tests.bench.graph_scaling", point.written()]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr[-2000:]}")
    return {name: Cost(**cost) for name, cost in json.loads(done.stdout.splitlines()[-1]).items()}


def scaled(base: Point, axes: Sequence[str], *, most: int | None, output: Path) -> None:
    """Print a table, a line as soon as it is measured, and draw it. most: how far axes go at most."""
    print(f"{base.sizes}, about {base.nodes} nodes, {base.method} with {base.steps} steps, {base.threads} threads")
    columns = " | ".join(f"{name}: CPU s, MiB" for name in COMMANDS)
    print(f"| | nodes, edges | {columns} |\n|---|---|{'---|' * len(COMMANDS)}", flush=True)
    found: dict[str, list[tuple[int, dict[str, Cost]]]] = {}
    for axis in axes:
        for value in AXES[axis]:
            if most is None or value <= most:
                costs = in_own_process(base.at(axis, value))
                found.setdefault(axis, []).append((value, costs))
                print(_line(axis, value, costs), flush=True)
    write_plot(plot(found), output, dpi=110)


def _line(axis: str, value: int, costs: dict[str, Cost]) -> str:
    grad = costs["graph-grad"]
    cells = " | ".join(f"{costs[name].seconds:.1f}, {costs[name].n_bytes / 2**20:,.0f}" for name in COMMANDS)
    return f"| {value:,} {axis} | {grad.n_nodes}, {grad.n_edges} | {cells} |"


def plot(found: dict[str, list[tuple[int, dict[str, Cost]]]]) -> Plot:
    """Time above memory, a column for each axis."""
    rows = []
    for label, read in (("CPU seconds", lambda cost: cost.seconds), ("MiB", lambda cost: cost.n_bytes / 2**20)):
        rows.append(
            [
                Axes(
                    [
                        Series([value for value, _ in points], [read(costs[name]) for _, costs in points], name)
                        for name in COMMANDS
                    ],
                    Axis(axis, "log"),
                    Axis(label, "auto"),
                )
                for axis, points in found.items()
            ]
        )
    return Plot(rows, title="Time and memory of graphs", width=3.2, height=2.6)


if __name__ == "__main__":
    print(json.dumps({name: asdict(cost) for name, cost in measured(Point.read(sys.argv[1])).items()}))
