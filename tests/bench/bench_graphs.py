"""Graphs beside the plain way to make them, and what no way can avoid: node effects, edges, single ablations.

    python -m tests.bench.bench_graphs [effects edges naive] [--tokens 64] [--d-sae 24576] [--n-layers 12] [--rounds 1]

A random GPT-2-small with TopK autoencoders at attn, mlp and resid of its last four blocks; zero baseline, nodes at all
positions (of single ablations: summed over them), ten of each sign at a hook point and five edges of each sign into a
node. The best round of each counts.

effects: of every feature and error, and their sums, beside integrated gradients by whole passes (one for each step),
and the same partial passes without autoencoders. edges: a search whose effects are there, by attribution patching (of
integrated gradients each point of the path takes as long), beside one pass for each pair of hook points with the others
held, then one vector-Jacobian product and one projection for each node and pair; and one batched product through the
blocks between, without autoencoders. naive: some ablations at each hook point, beside one whole pass each, and the same
partial passes with the metric's logits, with the encoders' products and without.

    python -m tests.bench.bench_graphs --scaling [tokens nodes layers prompts] [--most 500] -o FILE.png

measures time and memory along these axes, each point in a process of its own, and draws them.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from circuitcli.allocator import keep_freed_memory
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.attribution.naive import NaivePart, NaiveSearch
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.selection import Circuit, find_circuit
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.partial import first_block
from circuitcli.models.taps import keep
from circuitcli.settings.graph import GraphSettings
from tests.bench.graph_scaling import AXES, Point, scaled
from tests.bench.random_graphs import Drawn, Node, Plain, Setting, Sizes, is_direct

R = TypeVar("R")
PARTS = ("effects", "edges", "naive")
# The change of an activation by each ablated feature of a hook point: (position, d_model).
Moves = Mapping[HookPoint, Mapping[int, Tensor]]


@dataclass(frozen=True)
class Compared:
    """Numbers beside those of the plain way; ``difference`` is the largest, of the largest number."""

    n: int
    difference: float

    @classmethod
    def of(cls, found: Tensor, expected: Tensor) -> "Compared":
        """These numbers."""
        return cls(found.numel(), float((found - expected).abs().max() / expected.abs().max()))

    @classmethod
    def edges(cls, found: Mapping[tuple[str, str], float], expected: Mapping[tuple[str, str], float]) -> "Compared":
        """Edges by their ends, those of either; what one lacks is zero there."""
        ends = sorted(found.keys() | expected.keys())
        return cls.of(*(torch.tensor([edges.get(end, 0.0) for end in ends]) for edges in (found, expected)))


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    seconds: float
    compared: Compared | None = None


@dataclass(frozen=True)
class Watch:
    """Takes the best of some rounds; by the processor's time where the machine has other work to do."""

    rounds: int = 1
    read: Callable[[], float] = time.perf_counter

    def once(self, run: Callable[[], R]) -> tuple[float, R]:
        """Seconds that something takes, and what it makes."""
        start = self.read()
        made = run()
        return self.read() - start, made

    def best(self, run: Callable[[], object]) -> float:
        """Seconds of the best round."""
        return min(self.once(run)[0] for _ in range(self.rounds))


def all_effects(panel: Panel, settings: GraphSettings) -> PanelEffects:
    """Effects of all features and errors, added up."""
    effects = PanelEffects(panel, settings)
    for hook in panel.hooks:
        effects.total(hook)
    return effects


def warmed(setting: Setting, settings: GraphSettings, *, positions: str = "all") -> Panel:
    """The prompts, run."""
    panel = setting.panel(batch_size=settings.batch_size, positions=positions)
    panel.subject(0)
    return panel


def bare_effects(subject: Subject, settings: GraphSettings) -> None:
    """The passes of integrated gradients, forward and back, and that which the gap takes."""
    for hook in subject.coders:
        x = subject.activation(hook)
        for rows in torch.arange(settings.ig_steps).split(settings.batch_size):
            with torch.enable_grad():
                leaf = x.repeat(len(rows), 1, 1).requires_grad_()
                value = subject.metric_of({hook: lambda _, leaf=leaf: leaf}, texts=subject.copies(len(rows)))
                torch.autograd.grad(value.sum(), leaf)
        with torch.no_grad():
            subject.metric_of({hook: lambda _, x=x: x})


def effects_part(setting: Setting, settings: GraphSettings, *, watch: Watch) -> list[Row]:
    """Node effects."""
    panel = warmed(setting, settings)
    subject, _ = panel.subject(0)
    plain, hooks = Plain(subject), list(setting.coders)
    ours = watch.best(lambda: all_effects(warmed(setting, settings), settings))
    warm = watch.best(lambda: warmed(setting, settings))
    whole, expected = watch.once(lambda: [plain.effects(hook, steps=settings.ig_steps) for hook in hooks])
    effects = PanelEffects(panel, settings)
    found = [effects.of(0, hook).features[0] for hook in hooks]
    return [
        Row(f"plain: {len(hooks) * settings.ig_steps} whole passes", whole),
        Row("node effects", ours - warm, Compared.of(torch.stack(found), torch.stack(expected))),
        Row("floor: the partial passes alone", watch.best(lambda: bare_effects(subject, settings))),
    ]


def nodes_of(circuit: Circuit) -> dict[HookPoint, list[Node]]:
    """What edges lead into, by hook point."""
    found: dict[HookPoint, list[Node]] = {}
    for node in circuit.nodes:
        if node.id != OUTPUT:
            name = NodeId.parse(node.id)
            found.setdefault(name.hook, []).append((name.index, name.number or 0))
    return found


def plain_edges(
    plain: Plain,
    targets: Mapping[HookPoint, list[Node]],
    slopes: Mapping[HookPoint, Tensor],
    found: Mapping[tuple[str, str], float],
    *,
    up: int,
) -> dict[tuple[str, str], float]:
    """The weights of edges that were found; on the way the strongest of each sign are searched for."""
    by_target: dict[str, list[NodeId]] = {}
    for source, target in found:
        by_target.setdefault(target, []).append(NodeId.parse(source))
    weights = {}
    for source, end, (index, at), features, errors in plain.edges(targets, slopes):
        for sign in (1, -1):
            (features.flatten() * sign).topk(up)
        target = str(NodeId(end, index, at))
        for name in by_target.get(target, []):
            if name.hook == source:
                place = name.number or 0
                weight = errors[place] if name.index is None else features[place, name.index]
                weights[str(name), target] = float(weight)
    return weights


def bare_edges(subject: Subject, targets: Mapping[HookPoint, list[Node]]) -> None:
    """For each hook point one pass through the blocks before it, and one batched product for all its nodes."""
    for end, nodes in targets.items():
        sources = [hook for hook in subject.coders if is_direct(hook, end)]
        if not sources:
            continue
        leaves: dict[HookPoint, Tensor] = {}
        seen: dict[HookPoint, Tensor] = {}
        plain = Plain(subject)
        taps = {hook: plain.held(hook, leaves) for hook in sources} | {end: keep(seen, end)}
        with torch.enable_grad():
            subject.run(taps, start=first_block(sources[0]), stop=end.layer + 1)
            rows = torch.zeros(len(nodes), *seen[end].shape)
            for row, (_, at) in enumerate(nodes):
                rows[row, :, at] = 1.0
            torch.autograd.grad(seen[end], list(leaves.values()), rows, is_grads_batched=True)


def edges_part(setting: Setting, settings: GraphSettings, *, watch: Watch) -> list[Row]:
    """Edges into the nodes of a circuit, as many as the quotas allow: derivatives at the clean run, as the plain way
    takes them; and averaged over the path between two runs, as those of integrated gradients are."""
    averaged = settings.model_copy(update={"min_share": 0.0})
    settings = averaged.model_copy(update={"method": "atp"})
    panel = warmed(setting, settings)
    subject, _ = panel.subject(0)
    effects = all_effects(panel, settings)
    ours = watch.best(lambda: find_circuit(panel, settings))
    circuit = find_circuit(panel, settings)
    other = warmed(setting, averaged)
    all_effects(other, averaged)
    along = watch.best(lambda: find_circuit(other, averaged))
    targets = nodes_of(circuit)
    slopes = {hook: effects.of(0, hook).gradients[hook] for hook in targets}
    plain = Plain(subject)
    found = {(edge.source, edge.target): edge.weight for edge in circuit.edges if edge.target != OUTPUT}
    took, expected = watch.once(lambda: plain_edges(plain, targets, slopes, found, up=settings.up))
    n_nodes = sum(map(len, targets.values()))
    return [
        Row(f"plain: a pass for each pair, a product for each of {n_nodes} nodes and pair", took),
        Row("edges and selection", ours, Compared.edges(found, expected)),
        Row("floor: one batched product a hook point", watch.best(lambda: bare_edges(subject, targets))),
        Row(f"edges and selection, averaged over {averaged.edge_points} points of the path", along),
    ]


def moves_of(search: Drawn) -> Moves:
    """The change of the activation by each ablation."""
    subject, _ = search.panel.subject(0)
    found: dict[HookPoint, dict[int, Tensor]] = {}
    for hook, coder in subject.coders.items():
        indices = [source.index or 0 for source in search.sources(hook)]
        found[hook] = {index: -subject.codes[hook][0, :, index, None] * coder.W_dec[index] for index in indices}
    return found


def all_parts(search: NaiveSearch) -> list[NaivePart]:
    """What `graph-naive` finds."""
    return [search.part(hook) for hook in search.panel.hooks]


def bare_ablations(search: NaiveSearch, moves: Moves, *, rows: int, encodes: bool) -> None:
    """The partial passes of ablations, with the metric; ``encodes``: and the products of the encoders that measure."""
    subject, _ = search.panel.subject(0)
    for hook, here in moves.items():
        measured = search.measured(hook)
        for some in torch.stack(list(here.values())).split(rows):
            seen: dict[HookPoint, Tensor] = {}
            taps = {other: keep(seen, other) for other in measured}
            with torch.no_grad():
                subject.metric_of(taps | {hook: lambda x, some=some: x + some}, texts=subject.copies(len(some)))
                for other, x in seen.items() if encodes else ():
                    coder = subject.coders[other]
                    torch.addmm(coder.b_enc, x.flatten(0, 1), coder.W_enc)


def whole_ablations(search: NaiveSearch, moves: Moves) -> dict[tuple[str, str], float]:
    """One whole pass for each ablation, and the edges above the threshold."""
    subject, _ = search.panel.subject(0)
    edges = {}
    for hook, here in moves.items():
        measured = search.measured(hook)
        for index, move in here.items():
            seen: dict[HookPoint, Tensor] = {}
            taps = {other: keep(seen, other) for other in measured}
            with torch.no_grad():
                logits = subject.logits(taps | {hook: lambda x, move=move: x + move}, start=-1)
                subject.metric.value(logits)
                for other, x in seen.items():
                    weights = (subject.codes[other] - subject.coders[other].encode(x))[0].sum(dim=0)
                    for feature in (weights.abs() > search.threshold).nonzero()[:, 0].tolist():
                        edges[f"{hook}/{index}", f"{other}/{feature}"] = float(weights[feature])
    return edges


def naive_part(setting: Setting, settings: GraphSettings, *, watch: Watch, n: int) -> list[Row]:
    """Single ablations."""
    search = Drawn(warmed(setting, settings, positions="sum"), settings, {}, 0, n)
    moves = moves_of(search)
    whole, expected = watch.once(lambda: whole_ablations(search, moves))
    ours = watch.best(lambda: all_parts(search))
    edges = [edge for part in all_parts(search) for edge in part.edges if edge.target != OUTPUT]
    found = {(edge.source, edge.target): edge.weight for edge in edges}
    rows, n_all = min(settings.batch_size, 16), sum(map(len, moves.values()))
    passes = watch.best(lambda: bare_ablations(search, moves, rows=rows, encodes=False))
    floor = watch.best(lambda: bare_ablations(search, moves, rows=rows, encodes=True))
    return [
        Row(f"plain: one whole pass for each of {n_all} ablations", whole),
        Row("naive", ours, Compared.edges(found, expected)),
        Row("floor: the partial passes, and the encoders' products", floor),
        Row("the partial passes alone", passes),
    ]


def measured(part: str, setting: Setting, settings: GraphSettings, *, watch: Watch, n_ablations: int) -> list[Row]:
    """The plain way, this package's, the floor, and what else there is."""
    if part == "effects":
        return effects_part(setting, settings, watch=watch)
    if part == "edges":
        return edges_part(setting, settings, watch=watch)
    return naive_part(setting, settings, watch=watch, n=n_ablations)


def table(title: str, rows: Sequence[Row]) -> str:
    """Seconds, how many times as fast as the first row, and how many times as long as the third."""
    first, floor = rows[0].seconds, rows[2].seconds
    lines = [
        f"| {title} | s | as fast as plain | of the floor | numbers beside the plain ones |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        alike = "" if row.compared is None else f"{row.compared.n}: within {row.compared.difference:.0e} of the largest"
        ratios = f"{first / row.seconds:.2f} | {row.seconds / floor:.2f}"
        lines.append(f"| {row.name} | {row.seconds:.2f} | {ratios} | {alike} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Parts, sizes, and how long it takes."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    for field in fields(Sizes):
        if field.type is int:
            made.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    made.add_argument("--method", choices=["ig", "atp"], default="ig")
    made.add_argument("--steps", type=int, default=10)
    made.add_argument("--down", type=int, default=10)
    made.add_argument("--up", type=int, default=5)
    made.add_argument("--ablations", type=int, default=16)
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--scaling", nargs="*", choices=[*AXES, []], help="instead: time and memory along these axes")
    made.add_argument("--most", type=int, help="how far axes go at most")
    made.add_argument("--nodes", type=int, default=100, help="of the circuits that are scaled, where that is no axis")
    made.add_argument("-o", "--output", type=Path, default=Path("graph_scaling.png"), help="where the plot goes")
    made.add_argument("--busy", action="store_true", help="measure the processor's time: others use it too")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each part."""
    keep_freed_memory()
    options = parser().parse_args(words)
    torch.set_num_threads(options.threads)
    sizes = Sizes(**{name: value for name, value in vars(options).items() if name in Sizes.__dataclass_fields__})
    if options.scaling is not None:
        base = Point(sizes, options.nodes, options.method, options.steps, options.threads)
        scaled(base, options.scaling or list(AXES), most=options.most, output=options.output)
        return
    settings = GraphSettings(
        method=options.method, ig_steps=options.steps, baseline="zero", down=options.down, up=options.up
    )
    setting = Setting(sizes)
    watch = Watch(options.rounds, time.process_time if options.busy else time.perf_counter)
    print(f"{sizes}, {torch.get_num_threads()} threads")
    for part in options.parts or PARTS:
        rows = measured(part, setting, settings, watch=watch, n_ablations=options.ablations)
        print(f"\n{table(part, rows)}", flush=True)


if __name__ == "__main__":
    main()
