"""How often features are active: a histogram of densities for each coder, and the share of features that never are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from circuitcli.hookpoints import SITES, HookPoint
from circuitcli.render.plots import Axis, Band, Panel, Plot, Series

# Of a decade.
BINS = 5
_DENSITY = Axis("share of tokens on which a feature is active", "log")
_FEATURES = Axis("features", from_zero=True, is_count=True)


@dataclass(frozen=True)
class Densities:
    """The densities of one coder's features; those that are never active are counted only."""

    hook: str
    values: Sequence[float]
    n_dead: int

    @property
    def dead(self) -> float:
        """The share of features that are never active."""
        n_features = self.n_dead + len(self.values)
        return self.n_dead / n_features if n_features else 0.0


def densities_plot(coders: Sequence[Densities], *, title: str) -> Plot:
    """A panel for each site with a histogram for each layer, over decades; below it the dead share of each layer where
    there are several."""
    by_site: dict[str, list[tuple[HookPoint, Densities]]] = {}
    for coder in coders:
        hook = HookPoint.parse(coder.hook)
        by_site.setdefault(hook.site, []).append((hook, coder))
    sites = {site: sorted(by_site[site], key=lambda one: one[0].order) for site in sorted(by_site, key=SITES.index)}
    histograms = [_histograms(site, found) for site, found in sites.items()]
    dead = [_dead(found) for found in sites.values()]
    rows = [histograms, dead] if any(len(found) > 1 for found in sites.values()) else [histograms]
    return Plot(rows, title=title, width=4.2, height=2.6)


def _histograms(site: str, coders: Sequence[tuple[HookPoint, Densities]]) -> Panel:
    n_dead = sum(coder.n_dead for _, coder in coders)
    n_features = n_dead + sum(len(coder.values) for _, coder in coders)
    series, bands = [], []
    for hook, coder in coders:
        x, y = steps(coder.values)
        series.append(Series(x, y, f"layer {hook.layer}"))
        if len(coders) == 1:
            bands.append(Band(x, [0.0] * len(x), y, f"layer {hook.layer}"))
    return Panel(series, _DENSITY, _FEATURES, f"{site}: {n_features:,} features, {n_dead:,} dead", bands)


def steps(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The outline of the histogram over decades: places, and how many values lie there; nothing for no value."""
    places = [math.floor(math.log10(value) * BINS) for value in values if value > 0]
    if not places:
        return [], []
    counts = [0] * (max(places) - min(places) + 1)
    for place in places:
        counts[place - min(places)] += 1
    edges = [10 ** ((min(places) + number) / BINS) for number in range(len(counts) + 1)]
    x = [edge for edge in edges for _ in range(2)]
    return x, [0.0, *(float(count) for count in counts for _ in range(2)), 0.0]


def _dead(coders: Sequence[tuple[HookPoint, Densities]]) -> Panel:
    layers = [hook.layer for hook, _ in coders]
    # Points are marked where they have names.
    shares = Series(layers, [coder.dead for _, coder in coders], names=[""] * len(layers))
    return Panel([shares], Axis("layer", is_count=True), Axis("share of dead features", from_zero=True))
