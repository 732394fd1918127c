"""How fast the page of a circuit is in headless Chromium: until it is drawn, and at a step of its slider of edges.

    python -m tests.bench.bench_page --nodes 64 107 1000 10000 --old CHECKOUT

CHECKOUT is a work tree of an earlier revision, whose page of the same circuits is measured beside this one. Times are
those that a reader waits, and in brackets those of the page's thread alone, which a busy machine does not change much.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from browser import PAINTED, Tab, launched, thread_ms, worked  # noqa: E402

# Nodes and edges of a circuit.
SIZES = ((64, 300), (107, 900), (1000, 5000), (1200, 46_320), (10_000, 50_000))
WRITE = """
import sys
from pathlib import Path
from tests.bench.page_graphs import random_drawing
from circuitcli.render.page import page
Path(sys.argv[3]).write_text(page(random_drawing(int(sys.argv[1]), int(sys.argv[2]))), encoding="utf-8")
"""
STEP = """([slider, value]) => new Promise(done => {
    const begun = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begun)));
})"""
SHARES = (0.1, 0.9, 0.3, 0.7, 0.5, 0.2, 1.0, 0.4, 0.8, 0.6)


@dataclass(frozen=True)
class Times:
    """Milliseconds: what a reader waits, and what the page's thread works."""

    waited: float
    worked: float

    def __str__(self) -> str:
        return f"{self.waited:,.0f} ({self.worked:,.0f})"


@dataclass(frozen=True)
class Row:
    """A page of one size: until it is drawn, the median and the slowest of some steps, boxes and edges drawn."""

    name: str
    n_nodes: int
    n_edges: int
    megabytes: float
    paint: Times
    step: Times
    slowest: Times


def measured(tab: Tab, path: Path, *, name: str, size: tuple[int, int]) -> Row:
    """Open a page and move its slider."""
    tab.page.goto(path.resolve().as_uri())
    paint = Times(tab.page.evaluate(PAINTED), thread_ms(tab))
    steps = [_step(tab, share) for share in SHARES]
    slow = max(steps, key=lambda one: one.worked)
    middle = Times(median(one.waited for one in steps), median(one.worked for one in steps))
    return Row(name, *size, path.stat().st_size / 1e6, paint, middle, slow)


def _step(tab: Tab, share: float) -> Times:
    # The first version called it so.
    slider = tab.page.query_selector("#edge-share") or tab.page.query_selector("#slider")
    assert slider is not None
    most = float(slider.get_attribute("max") or 100)
    with worked(tab) as done:
        waited = tab.page.evaluate(STEP, [slider, str(round(share * most))])
    return Times(waited, done.ms)


def write(checkout: Path, size: tuple[int, int], path: Path, *, timeout_s: float) -> float:
    """Let the code of a checkout write the page of a random circuit; returns the seconds, infinite if it gave up."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (checkout, ROOT)))}
    begun = time.monotonic()
    try:
        command = [sys.executable, "-c", WRITE, *map(str, size), str(path)]
        subprocess.run(command, check=True, env=environment, cwd=path.parent, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return float("inf")
    return time.monotonic() - begun


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = "| | nodes | edges | MB | drawn, ms | slider step, ms | slowest step, ms |\n|---|---|---|---|---|---|---|"
    lines = [
        f"| {row.name} | {row.n_nodes:,} | {row.n_edges:,} | {row.megabytes:.1f} | {row.paint} | {row.step} "
        f"| {row.slowest} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[nodes for nodes, _ in SIZES])
    parser.add_argument("--old", type=Path, help="a work tree of an earlier revision")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for writing a page")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, launched() as chromium:
        for size in [size for size in SIZES if size[0] in options.nodes]:
            for name, checkout in (("now", ROOT), ("old", options.old)):
                path = Path(folder) / f"{name}-{size[0]}.html"
                seconds = write(checkout, size, path, timeout_s=options.timeout) if checkout else float("inf")
                print(f"{name}: {size[0]} nodes, {size[1]} edges written in {seconds:.1f} s", file=sys.stderr)
                if seconds < float("inf"):
                    with chromium.tab() as tab:
                        rows.append(measured(tab, path, name=name, size=size))
    print(table(rows))


if __name__ == "__main__":
    main()
