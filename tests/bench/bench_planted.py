"""Whether methods find circuits that are known: those of hand-built transformers, in tests/planted.

    python -m tests.bench.bench_planted [--methods ig,exact,frozen] [--down 10 --up 5] [--transcoders] [--set N=V]

For each model and baseline: AUROC of the true nodes among all that differ from their baseline, and of the true edges
among all that there can be; size of the graph, and what share of it is below a thousandth of the behaviour; true nodes
and edges that it lacks, and those that the method puts below that; its faithfulness; and the largest gap of
integration, as a share of the behaviour. With --transcoders neurons stand in the place of SAEs at MLPs. Of frozen
graphs, which take nodes away whole, AUROC alone.
"""

import argparse
from collections.abc import Iterator
from statistics import mean

from circuitcli.settings.graph import GraphSettings
from tests.planted.all import BUILDERS, planted_circuit
from tests.planted.planted import BASELINES, Planted
from tests.planted.scores import Judged, auroc, frozen_scores, judged
from tests.planted.transcoded import transcoded

HEAD = ("circuit", "nodes", "edges", "graph", "noise", "lost", "faint", "faithful", "gap")


def row(name: str, found: Judged, n_true: tuple[int, int]) -> tuple[str, ...]:
    """What people are shown of one circuit."""
    nodes, edges = found.n_nodes, found.n_edges
    return (
        name,
        f"{found.node_auroc:.3f}",
        f"{found.edge_auroc:.3f}",
        f"{nodes} / {edges}",
        f"{found.noise_nodes / max(1, nodes):.0%} / {found.noise_edges / max(1, edges):.0%}",
        f"{len(found.lost_nodes)} of {n_true[0]}, {len(found.lost_edges)} of {n_true[1]}",
        f"{found.faint_nodes}, {found.faint_edges}",
        f"{found.faithfulness:.2f}",
        f"{found.gap:.2f}",
    )


def circuits(*, are_transcoded: bool) -> Iterator[Planted]:
    """All of them; through transcoders those whose coders are SAEs."""
    for name in BUILDERS:
        planted = planted_circuit(name)
        is_mixed = any(coder.is_transcoder for coder in planted.coders.values())
        if not are_transcoded:
            yield planted
        elif not is_mixed:
            yield transcoded(planted)


def frozen_table(*, are_transcoded: bool) -> None:
    """Print how frozen graphs rank the true nodes and edges."""
    print("frozen, baseline zero\n\n| circuit | nodes | edges |\n|---|---|---|")
    for planted in circuits(are_transcoded=are_transcoded):
        (nodes, edges), truth = frozen_scores(planted), planted.truth["zero"]
        found = auroc(nodes, truth.nodes | truth.unseen), auroc(edges, truth.edges)
        print(f"| {planted.name} | {found[0]:.3f} | {found[1]:.3f} |", flush=True)
    print()


def table(settings: GraphSettings, kind: str, *, are_transcoded: bool) -> None:
    """Print what a method makes of every circuit, and the means."""
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    all_found = []
    for name in BUILDERS:
        planted = planted_circuit(name)
        truth = planted.truth[kind]
        found = judged(planted, kind, settings)
        all_found.append(found)
        print(
            "| " + " | ".join(row(name, found, (len(truth.nodes | truth.unseen), len(truth.edges)))) + " |", flush=True
        )
    ratio = tuple(
        sum(getattr(one, f"noise_{part}") for one in all_found) / sum(getattr(one, f"n_{part}") for one in all_found)
        for part in ("nodes", "edges")
    )
    print(
        f"| **all** | {mean(one.node_auroc for one in all_found):.3f} | "
        f"{mean(one.edge_auroc for one in all_found):.3f} | | {ratio[0]:.0%} / {ratio[1]:.0%} | "
        f"{sum(len(one.lost_nodes) for one in all_found)}, {sum(len(one.lost_edges) for one in all_found)} | "
        f"{sum(one.faint_nodes for one in all_found)}, {sum(one.faint_edges for one in all_found)} | "
        f"{mean(one.faithfulness for one in all_found):.2f} | {max(one.gap for one in all_found):.2f} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="ig,atp")
    parser.add_argument("--down", type=int, default=10)
    parser.add_argument("--up", type=int, default=5)
    parser.add_argument("--transcoders", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="another setting of graphs, NAME=VALUE")
    chosen = parser.parse_args()
    others = dict(pair.split("=", 1) for pair in chosen.set)
    for method in chosen.methods.split(","):
        if method == "frozen":
            frozen_table(are_transcoded=chosen.transcoders)
            continue
        settings = GraphSettings.model_validate({"method": method, "down": chosen.down, "up": chosen.up, **others})
        for kind in BASELINES:
            print(f"{method}, baseline {kind}, --down {chosen.down} --up {chosen.up} {' '.join(chosen.set)}\n")
            table(settings, kind, are_transcoded=chosen.transcoders)


if __name__ == "__main__":
    main()
