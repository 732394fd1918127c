"""The gradient graph: which nodes and edges are kept (Marks et al. 2024, arXiv:2403.19647).

From the hook points with a direct path to the output, the ``down`` most positive and most negative nodes by effect;
then, hook point by hook point upwards, the sources of the ``up`` most positive and most negative edges into each kept
node, cut to ``down`` of each sign and hook point by node effect. Nodes without a path to the output are dropped. Of
several prompts effects and edges are means.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.activity import activity
from circuitcli.attribution.averages import Average, Tally, average
from circuitcli.attribution.contributions import Contributions
from circuitcli.attribution.edges import Incoming, Target, ends_of, incoming, needs_one_position, sources_of, to_output
from circuitcli.attribution.gradients import Effects, attribution_patching, integrated_gradients
from circuitcli.attribution.panel import Panel, wide
from circuitcli.attribution.subject import Subject, check_finite
from circuitcli.graphs import CircuitGraph, Edge, Node, connected_to_output, sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.progress import task
from circuitcli.records import GraphRecord
from circuitcli.saes.base import CODES_AT_ONCE
from circuitcli.settings.graph import GraphSettings

Key = tuple[HookPoint, Target]
P = TypeVar("P")
# Numbers of the sums over prompts that are in memory at once, three times over.
SUMS_AT_ONCE = 2**24


@dataclass(frozen=True)
class _Piece:
    """Some features of a hook point from ``start`` on, or its error (None)."""

    hook: HookPoint
    start: int | None
    width: int


@dataclass(frozen=True)
class Total:
    """What the nodes of a hook point add up to, the mean over prompts, and what integration missed; None for what is
    not there."""

    features: float | None
    errors: float | None
    gap: float | None


@dataclass(frozen=True)
class Circuit:
    """What a search kept; ``totals`` of all nodes of each hook point, kept or not."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    totals: Mapping[HookPoint, Total]

    def graph(self, head: GraphRecord) -> CircuitGraph:
        """The nodes with a path to the output, and their edges."""
        return sorted_graph(connected_to_output(CircuitGraph(head, self.nodes, self.edges)))


@dataclass
class _Kept:
    """What the search has kept so far."""

    candidates: dict[HookPoint, set[Target]] = field(default_factory=dict)
    nodes: dict[Key, Node] = field(default_factory=dict)
    edges: list[tuple[Key, Key | None, Average]] = field(default_factory=list)
    totals: dict[HookPoint, Total] = field(default_factory=dict)


def find_circuit(panel: Panel, settings: GraphSettings) -> Circuit:
    """The circuit behind what the panel's prompts have in common.

    Raises SettingsError for attribution patching of a metric that is flat at the clean run, InputError for effects that
    are not finite.
    """
    search = _Search(panel, settings)
    with task("effects and edges", total=len(panel.hooks), unit="hook points") as advance:
        for hook in reversed(panel.hooks):
            search.add_totals(hook)
            search.begin_at(hook)
            targets = search.select(hook)
            search.follow(hook, targets)
            advance(1, note=f"{hook}")
    return search.circuit()


class _Search:
    def __init__(self, panel: Panel, settings: GraphSettings) -> None:
        self.panel, self.settings, self.kept = panel, settings, _Kept()
        self.coders = panel.coders
        self.unit = panel.subject(0)[0].metric.unit

    # Effects.

    def effects(self, batch: int, group: HookPoint) -> Effects:
        """Of one group on the prompts of a batch."""
        subject, baseline = self.panel.subject(batch)
        chosen = self.settings
        if chosen.method == "atp":
            every = self.panel.kept.take(
                ("effects", batch),
                lambda: attribution_patching(subject, baseline),
                lambda made: sum(one.n_bytes for one in made.values()),
            )
            return every[group]
        return self.panel.kept.take(
            ("effects", batch, group),
            lambda: integrated_gradients(subject, group, baseline, steps=chosen.ig_steps, batch_size=chosen.batch_size),
            lambda made: made.n_bytes,
        )

    def output(self, batch: int, group: HookPoint) -> Effects | None:
        """The group's effects along the direct path to the output; None if it has none."""
        subject, baseline = self.panel.subject(batch)
        chosen = self.settings

        def make() -> Effects | None:
            own = {group: self.effects(batch, group)}
            return to_output(
                subject, own, baseline, method=chosen.method, steps=chosen.ig_steps, batch_size=chosen.batch_size
            ).get(group)

        return self.panel.kept.take(("output", batch, group), make, lambda made: 0 if made is None else made.n_bytes)

    def groups(self, hook: HookPoint) -> list[HookPoint]:
        """The groups that nodes of this name are in: of its features, and of its error."""
        of_features = [hook] if hook in self.coders else []
        of_error = [self.coders.group_of_error(hook)] if self.coders.writers(hook) else []
        return list(dict.fromkeys([*of_features, *of_error]))

    def add_totals(self, hook: HookPoint) -> None:
        """Add up all effects of a hook point. Raises InputError if one is not finite."""
        features: list[float] = []
        errors: list[float] = []
        gaps: list[float] = []
        for batch in range(len(self.panel.batches)):
            if hook in self.coders:
                effects = self.effects(batch, hook)
                features.append(effects.parts.total())
                gaps += [] if effects.gap is None else effects.gap.tolist()
            if self.coders.writers(hook):
                effects = self.effects(batch, self.coders.group_of_error(hook))
                errors.append(float(effects.errors[hook].sum()))
        check_finite((*features, *errors, *gaps), f"an effect at {hook}")
        n = self.panel.n_prompts
        self.kept.totals[hook] = Total(
            features=sum(features) / n if features else None,
            errors=sum(errors) / n if errors else None,
            gap=sum(gaps) / n if gaps else None,
        )

    # Selection.

    def begin_at(self, hook: HookPoint) -> None:
        """Make the strongest nodes candidates if there is a direct path from them to the output."""
        groups = self.groups(hook)
        direct = set(sources_of(self.coders, None))
        best: Strongest[_Piece] = Strongest(self.settings.down)
        for group in groups:
            if not direct & set(self.coders[group].writes):
                continue
            if all(self.output(batch, group) is None for batch in range(len(self.panel.batches))):
                continue
            is_own = group == hook
            if is_own:
                for piece, mean in self._effects_of_features(hook):
                    best.add(piece, mean.flatten())
            if self.coders.writers(hook) and group == self.coders.group_of_error(hook):
                mean = self._error_effects(hook).mean(dim=0)
                best.add(_Piece(hook, None, 1), mean)
        strongest_nodes = {self._target(piece, index) for piece, index, _ in best.found()}
        self.kept.candidates.setdefault(hook, set()).update(strongest_nodes)

    def _effects_of_features(self, hook: HookPoint) -> Iterator[tuple[_Piece, Float[Tensor, "group width"]]]:
        """Mean effects of all features of a hook point, some after the other."""
        n_batches = len(self.panel.batches)
        if n_batches == 1:
            for piece, mean, _ in self._in_pieces(hook, self._rows_of(0, self.effects(0, hook).parts), n_targets=1):
                yield piece, mean[0]
            return
        sums = _Sums(self.panel, 1)
        for batch in range(n_batches):
            sums.add(hook, self._rows_of(batch, self.effects(batch, hook).parts))
        for piece, tally in sums.all():
            yield piece, tally.mean(self.panel.n_prompts)[0]

    def _rows_of(self, batch: int, parts: Contributions) -> "_Rows":
        subject, _ = self.panel.subject(batch)
        texts = torch.arange(subject.n_texts, device=subject.adapter.device)
        return _Rows(parts, self.panel.masks(subject), torch.zeros_like(texts))

    def _error_effects(self, hook: HookPoint) -> Float[Tensor, "prompt group"]:
        rows = []
        group = self.coders.group_of_error(hook)
        for batch in range(len(self.panel.batches)):
            subject, _ = self.panel.subject(batch)
            values = self.effects(batch, group).errors[hook]
            rows.append(wide(self.panel.positions.summed(values[..., None], self.panel.masks(subject))[..., 0]))
        return torch.cat(rows)

    def select(self, hook: HookPoint) -> list[Target]:
        """Keep the candidates with the largest effects of each sign."""
        candidates = sorted(self.kept.candidates.get(hook, ()), key=_rank)
        if not candidates:
            return []
        valued = [(found, target) for target, found in zip(candidates, self._values(hook, candidates), strict=True)]
        valued.sort(key=lambda pair: (-abs(pair[0].value), _rank(pair[1])))
        chosen = [pair for pair in valued if pair[0].value > 0][: self.settings.down]
        chosen += [pair for pair in valued if pair[0].value < 0][: self.settings.down]
        activities = activity(self.panel, hook, [target for _, target in chosen])
        for (effect, target), active in zip(chosen, activities, strict=True):
            self.kept.nodes[hook, target] = Node(
                self.node_id(hook, target),
                active.activation,
                effect.value,
                self.unit,
                standard_error=effect.standard_error,
                active=active.active,
            )
        return [target for _, target in chosen]

    def _values(
        self, hook: HookPoint, targets: Sequence[Target], of: Callable[[int, HookPoint], Effects | None] | None = None
    ) -> list[Average]:
        """Of each node the mean effect over the prompts; ``of`` gives other effects than those of all paths."""
        columns = [self._columns(batch, hook, targets, of or self.effects) for batch in range(len(self.panel.batches))]
        return [average(values) for values in torch.cat(columns).unbind(dim=1)]

    def _columns(
        self,
        batch: int,
        hook: HookPoint,
        targets: Sequence[Target],
        of: Callable[[int, HookPoint], Effects | None],
    ) -> Float[Tensor, "text target"]:
        """Effects of some nodes on each prompt of a batch; zero where there are none."""
        subject, _ = self.panel.subject(batch)
        masks = self.panel.masks(subject)
        columns = wide(torch.zeros(subject.n_texts, len(targets), device=masks.device))
        features = [number for number, target in enumerate(targets) if target.index is not None]
        errors = [number for number, target in enumerate(targets) if target.index is None]
        for numbers, group in (
            (features, hook),
            (errors, self.coders.group_of_error(hook) if errors else hook),
        ):
            effects = of(batch, group) if numbers else None
            if effects is None or (numbers is errors and hook not in effects.errors):
                continue
            if numbers is features:
                values = effects.parts.at([targets[number].index or 0 for number in numbers])
            else:
                values = effects.errors[hook][..., None].expand(-1, -1, len(numbers))
            where = masks[:, [targets[number].group for number in numbers]]  # (text, target, spliced)
            columns[:, numbers] = wide(torch.einsum("tnp,tpn->tn", where.to(values), values))
        return columns

    # Edges.

    def follow(self, hook: HookPoint, targets: Sequence[Target]) -> None:
        """Follow the strongest edges into the kept nodes upwards, and note their edges to the output."""
        if targets:
            self._to_output(hook, targets)
        size = self._targets_at_once(hook, targets)
        for begin in range(0, len(targets), size):
            some = targets[begin : begin + size]
            best: list[Strongest[_Piece]] = [Strongest(self.settings.up) for _ in some]
            for piece, means, spreads in self._incoming(hook, some):
                for row, one in enumerate(best):
                    one.add(piece, means[row].flatten(), None if spreads is None else spreads[:, row].flatten(1))
            for target, one in zip(some, best, strict=True):
                for piece, index, weight, spread in one.entries():
                    source = self._target(piece, index)
                    self.kept.candidates.setdefault(piece.hook, set()).add(source)
                    self.kept.edges.append(((piece.hook, source), (hook, target), Average(weight, *spread)))

    def _targets_at_once(self, hook: HookPoint, targets: Sequence[Target]) -> int:
        """Of one prompt as many as one backward pass takes, so that nothing is summed up; of several as many as there
        is room for sums of all their edges."""
        if self.panel.n_prompts == 1:
            subject, _ = self.panel.subject(0)
            masks = self.panel.masks(subject)[0]
            return self._rows_at_once(subject, hook, [masks[target.group] for target in targets])
        ends = {end for kind in (False, True) for end in ends_of(self.coders, hook, is_error=kind)}
        places = sources_of(self.coders, [end for end in ends if end in self.panel.hooks])
        readers = {coder.hook for place in places for coder in self.coders.writers(place)}
        n_sums = self.panel.positions.n_groups * sum(self.coders[reader].d_sae for reader in readers)
        return max(1, min(self.settings.batch_size, SUMS_AT_ONCE // max(1, n_sums)))

    def _to_output(self, hook: HookPoint, targets: Sequence[Target]) -> None:
        direct = set(sources_of(self.coders, None))
        if not any(direct & set(self.coders[group].writes) for group in self.groups(hook)):
            return
        for target, weight in zip(targets, self._values(hook, targets, self.output), strict=True):
            if weight.value != 0:
                self.kept.edges.append(((hook, target), None, weight))

    def _incoming(
        self, hook: HookPoint, targets: Sequence[Target]
    ) -> Iterator[tuple[_Piece, Float[Tensor, "target group node"], Tensor | None]]:
        """Mean edges into these targets from some nodes after the other, with standard errors and shares of prompts."""
        passes = (one for batch in range(len(self.panel.batches)) for one in self._incoming_of(batch, hook, targets))
        first = list(islice(passes, 2))
        # What one pass gives is never in memory at once; of several all sums are.
        sums = None if len(first) == 1 else _Sums(self.panel, len(targets))
        for found, numbers, masks in chain(first, passes):
            for source, parts in found.features.items():
                rows = _Rows(parts, masks, numbers)
                if sums is None:
                    yield from self._in_pieces(source, rows, n_targets=len(targets))
                else:
                    sums.add(source, rows)
            for place, values in found.errors.items():
                grouped = self.panel.positions.summed(values[..., None], masks)
                if sums is None:
                    tally = Tally(len(targets), self.panel.positions.n_groups, 1, grouped.device)
                    tally.add(slice(0, 1), grouped, numbers)
                    yield _Piece(place, None, 1), tally.mean(self.panel.n_prompts), self._spread(tally)
                else:
                    sums.add_errors(place, grouped, numbers)
        for piece, tally in () if sums is None else sums.all():
            yield piece, tally.mean(self.panel.n_prompts), self._spread(tally)

    def _incoming_of(
        self, batch: int, hook: HookPoint, targets: Sequence[Target]
    ) -> Iterator[tuple[Incoming, Int[Tensor, " row"], Bool[Tensor, "row group spliced"]]]:
        """Edges into the targets that are live in each prompt of a batch, some rows at once."""
        subject, baseline = self.panel.subject(batch)
        masks = self.panel.masks(subject)
        rows = self._live(subject, masks, hook, targets).nonzero().tolist()
        effects = {group: self.effects(batch, group) for group in self.groups(hook)}
        size = self._rows_at_once(subject, hook, [masks[text, targets[number].group] for text, number in rows])
        for begin in range(0, len(rows), size):
            some = rows[begin : begin + size]
            found = incoming(
                subject, hook, [(text, targets[number]) for text, number in some], effects, baseline, masks=masks
            )
            if found is not None:
                numbers = torch.tensor([number for _, number in some], device=masks.device)
                yield found, numbers, masks[[text for text, _ in some]]

    def _rows_at_once(self, subject: Subject, hook: HookPoint, where: Sequence[Tensor]) -> int:
        """Targets in one backward pass, so that their codes stay under an eighth of a gigabyte."""
        if not where:
            return 1
        readers = [coder.d_sae for coder in self.coders.writers(hook)]
        d_codes = sum(readers) if hook not in self.coders else max(self.coders[hook].d_sae, sum(readers))
        n_coded = 1 if needs_one_position(self.coders, hook, torch.stack(list(where))) else subject.n_spliced
        return max(1, min(self.settings.batch_size, CODES_AT_ONCE // (n_coded * d_codes)))

    def _live(
        self, subject: Subject, masks: Bool[Tensor, "text group spliced"], hook: HookPoint, targets: Sequence[Target]
    ) -> Bool[Tensor, "text target"]:
        """Which nodes can have incoming edges in each prompt: errors, and features that are active in the clean run."""
        where = masks[:, [target.group for target in targets]]  # (text, target, spliced)
        features = [number for number, target in enumerate(targets) if target.index is not None]
        live = where.any(dim=2)
        if features:
            codes = subject.codes[hook][:, :, [targets[number].index for number in features]]
            live[:, features] = ((codes != 0).transpose(1, 2) & where[:, features]).any(dim=2)
        return live

    def _in_pieces(
        self, hook: HookPoint, rows: "_Rows", *, n_targets: int
    ) -> Iterator[tuple[_Piece, Float[Tensor, "target group width"], Tensor | None]]:
        """Means over the prompts of one pass, some features after the other."""
        for features, values in rows.grouped(self.panel):
            width = features.stop - features.start
            tally = Tally(n_targets, self.panel.positions.n_groups, width, values.device)
            tally.add(slice(None), values, rows.targets)
            yield _Piece(hook, features.start, width), tally.mean(self.panel.n_prompts), self._spread(tally)

    def _spread(self, tally: Tally) -> Tensor | None:
        return tally.spread(self.panel.n_prompts) if self.panel.n_prompts > 1 else None

    # Assembly.

    def _target(self, piece: _Piece, flat: int) -> Target:
        """The node at an index of a piece's flattened values."""
        group, column = divmod(flat, piece.width)
        return Target(None if piece.start is None else piece.start + column, group)

    def node_id(self, hook: HookPoint, target: Target) -> str:
        """The node's name."""
        return str(NodeId(hook, target.index, self.panel.positions.names[target.group]))

    def circuit(self) -> Circuit:
        """All that was kept."""
        edges = [
            Edge(
                self.node_id(*source),
                OUTPUT if target is None else self.node_id(*target),
                weight.value,
                self.unit,
                standard_error=weight.standard_error,
                active=weight.active,
            )
            for source, target, weight in self.kept.edges
            if source in self.kept.nodes
        ]
        return Circuit((*self.kept.nodes.values(), Node(OUTPUT)), tuple(edges), dict(sorted(self.kept.totals.items())))


@dataclass(frozen=True)
class _Rows:
    """Contributions in rows, each of a prompt and for a target, with the positions of each group."""

    parts: Contributions
    masks: Bool[Tensor, "row group spliced"]
    targets: Int[Tensor, " row"]

    def grouped(self, panel: Panel) -> Iterator[tuple[slice, Float[Tensor, "row group width"]]]:
        """Some features after the other, added up over the positions of each group."""
        return ((features, panel.positions.summed(values, self.masks)) for features, values in self.parts.pieces())


class _Sums:
    """Sums over the prompts of several passes, of all nodes of each hook point for each target."""

    def __init__(self, panel: Panel, n_targets: int) -> None:
        self._panel, self._n_targets = panel, n_targets
        self._tallies: dict[tuple[HookPoint, bool], Tally] = {}

    def add(self, hook: HookPoint, rows: _Rows) -> None:
        """Add what the features that are read at a hook point contribute."""
        tally = self._tally(hook, rows.parts.coder.d_sae, rows.masks.device, is_error=False)
        for features, values in rows.grouped(self._panel):
            tally.add(features, values, rows.targets)

    def add_errors(self, hook: HookPoint, values: Float[Tensor, "row group 1"], targets: Int[Tensor, " row"]) -> None:
        """Add what the error of a written hook point contributes."""
        self._tally(hook, 1, values.device, is_error=True).add(slice(0, 1), values, targets)

    def _tally(self, hook: HookPoint, n_nodes: int, device: torch.device, *, is_error: bool) -> Tally:
        key = (hook, is_error)
        if key not in self._tallies:
            self._tallies[key] = Tally(self._n_targets, self._panel.positions.n_groups, n_nodes, device)
        return self._tallies[key]

    def all(self) -> Iterator[tuple[_Piece, Tally]]:
        """The sums of each hook point."""
        for (hook, is_error), tally in self._tallies.items():
            yield _Piece(hook, None if is_error else 0, tally.total.shape[-1]), tally


def _rank(target: Target) -> tuple[int, int]:
    return (target.group, 2**62 if target.index is None else target.index)


class Strongest(Generic[P]):
    """The ``count`` largest positive and the ``count`` most negative values of all that were added, in pieces."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[bool, list[tuple[P, int, float, tuple[float, ...]]]] = {True: [], False: []}

    def add(self, piece: P, values: Float[Tensor, " n"], more: Float[Tensor, "m n"] | None = None) -> None:
        """Take in the values of a piece, with ``more`` numbers that belong to each; of equals those that came first
        stay."""
        both = [
            (piece, index, value, () if more is None else tuple(more[:, index].tolist()))
            for index, value in extremes(values, self._count)
        ]
        for sign, found in self._found.items():
            found += [entry for entry in both if (entry[2] > 0) == sign]
            found.sort(key=lambda entry: -abs(entry[2]))
            del found[self._count :]

    def entries(self) -> list[tuple[P, int, float, tuple[float, ...]]]:
        """Piece, index in it, value and more: the positive ones, then the negative ones, strongest first."""
        return [*self._found[True], *self._found[False]]

    def found(self) -> list[tuple[P, int, float]]:
        """`entries` without more."""
        return [(piece, index, value) for piece, index, value, _ in self.entries()]


def extremes(values: Float[Tensor, " n"], count: int) -> Sequence[tuple[int, float]]:
    """Index and value of the ``count`` largest positive and the ``count`` most negative values, strongest first."""
    found: list[tuple[int, float]] = []
    size = min(count, values.numel())
    for sign in (1.0, -1.0):
        top = (values * sign).topk(size)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found += [(index, sign * value) for index, value in pairs if value > 0]
    return found
