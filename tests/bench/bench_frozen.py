"""Attribution graphs: time and memory beside their estimate, the plain way, and what no way can avoid.

    python -m tests.bench.bench_frozen [--tokens 64] [--layers 12] [--d-sae 24576] [--k 32] [--max-nodes 7500] [--clt]

A random GPT-2-small with TopK transcoders, or a cross-layer transcoder, in all of its blocks. plain: one backward pass
for each target and a product with the decoders of all features, a few targets of the last block, times all. floor: the
batched backward passes of the edges alone, without sources. Sizes of `bench_frozen` run in a process of their own, so
that peaks of memory are theirs.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from circuitcli.allocator import keep_freed_memory
from circuitcli.attribution.frozen.estimate import estimated, held_bytes
from circuitcli.attribution.frozen.rows import batches
from circuitcli.attribution.frozen.search import FrozenSearch
from circuitcli.attribution.metrics import LogProb
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject, subject_of
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import block_pass
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.coders import Coders
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.graph import GraphSettings
from circuitcli.training.memory import peak_process_bytes
from tests.bench.random_graphs import Setting, Sizes

# Targets of the plain way.
SAMPLE = 8


@dataclass(frozen=True)
class Measured:
    """One graph: seconds of its steps, and bytes that the process held at most beyond what it held before."""

    n_features: int
    n_expanded: int
    n_edges: int
    n_expected: int
    edges_s: float
    pruning_s: float
    effects_s: float
    estimated_s: float
    estimated_bytes: int
    peak_bytes: int
    replacement: float
    completeness: float


def random_transcoder(layer: int, sizes: Sizes, *, across: bool) -> TopKSae:
    """A transcoder of a block; with ``across`` a layer of a cross-layer transcoder."""
    further = tuple(HookPoint(later, "mlp") for later in range(layer + 1, sizes.n_layers)) if across else ()
    config = SaeConfig(
        HookPoint(layer, "mlp_in"),
        sizes.d_model,
        sizes.d_sae,
        subtract_decoder_bias=False,
        target=HookPoint(layer, "mlp"),
        further=further,
    )
    coder = TopKSae(config, k=sizes.k).requires_grad_(False)
    for place in coder.writes:
        decoder = coder.decoder(place)
        decoder.normal_().div_(decoder.norm(dim=1, keepdim=True) * len(coder.writes))
    coder.W_enc.normal_().div_(coder.W_enc.norm(dim=0))
    return coder.eval()


def subject_with(sizes: Sizes, *, across: bool) -> Subject:
    """The model and a prompt through its transcoders."""
    adapter = Setting(Sizes(**{**vars(sizes), "blocks": 0})).adapter
    coders = Coders.of(random_transcoder(layer, sizes, across=across) for layer in range(sizes.n_layers))
    ids = torch.randint(sizes.vocab, (1, sizes.tokens))
    prompt = Prompt("random", tuple(ids[0].tolist()), tuple(map(str, ids[0].tolist())), 1)
    clean = block_pass(adapter, ids, None, coders.hooks, for_copies=True)
    return subject_of(adapter, coders, [prompt], clean, LogProb("log-prob", "nats", ids[0, :1]))


def measured(subject: Subject, settings: GraphSettings) -> Measured:
    """One graph, estimated and made."""
    search = FrozenSearch(subject, settings)
    told = estimated(search)
    start = time.perf_counter()
    rows = search.rows
    after_edges = time.perf_counter()
    pruned, scores = search.pruned, search.scores
    after_pruning = time.perf_counter()
    _ = search.effects
    end = time.perf_counter()
    assert pruned.rows.n_edges <= rows.n_edges
    return Measured(
        n_features=search.nodes.n_features,
        n_expanded=search.n_expanded,
        n_edges=rows.n_edges,
        n_expected=told.n_edges,
        edges_s=after_edges - start,
        pruning_s=after_pruning - after_edges,
        effects_s=end - after_pruning,
        estimated_s=told.seconds,
        estimated_bytes=told.n_bytes,
        peak_bytes=peak_process_bytes(),
        replacement=scores.replacement,
        completeness=scores.completeness,
    )


def plain_seconds(search: FrozenSearch) -> float:
    """Seconds of one target of the middle block the plain way: a backward pass of its own, and all features of all
    positions."""
    active = search.nodes.active[len(search.nodes.active) // 2]
    coders, model = search.subject.coders, search.model
    start = time.perf_counter()
    for number in np.linspace(0, len(active) - 1, SAMPLE).astype(int):
        found = model.gradients(model.seen.reads[active.hook], search.edges.seeds(active, np.array([number])))
        for place, gradient in found.items():
            for coder in coders.writers(place):
                (gradient[0] @ coder.decoder(place).T) * search.subject.codes[coder.hook][0]
    return (time.perf_counter() - start) / SAMPLE


def floor_seconds(search: FrozenSearch) -> float:
    """Seconds of the batched backward passes of all edges alone."""
    start = time.perf_counter()
    for active in search.nodes.active:
        for some in batches(np.arange(len(active)), size=search.settings.batch_size):
            search.model.gradients(search.model.seen.reads[active.hook], search.edges.seeds(active, some))
    return time.perf_counter() - start


def report(subject: Subject, settings: GraphSettings, *, plain: bool) -> list[str]:
    """Lines of the table."""
    found = measured(subject, settings)
    total = found.edges_s + found.pruning_s + found.effects_s
    lines = [
        f"{found.n_features:,} active features, {found.n_expanded:,} expanded, {found.n_edges:,} edges "
        f"(expected, with those from features left out: {found.n_expected:,}); "
        f"R {found.replacement:.3f}, C {found.completeness:.3f}",
        f"edges {found.edges_s:.1f} s, pruning and scores {found.pruning_s:.1f} s, effects {found.effects_s:.1f} s: "
        f"{total:.1f} s, estimated {found.estimated_s:.1f} s ({found.estimated_s / total:.2f}x)",
        f"memory {found.peak_bytes / 1e9:.2f} GB, estimated {found.estimated_bytes / 1e9:.2f} GB "
        f"({found.estimated_bytes / found.peak_bytes:.2f}x); held at the end {held_bytes() / 1e9:.2f} GB",
    ]
    if plain:
        search = FrozenSearch(subject, settings)
        one = plain_seconds(search)
        whole = one * found.n_expanded
        lines.append(f"plain: {one:.3f} s a target, {whole:.0f} s for all: {whole / found.edges_s:.1f}x ours")
        if found.n_expanded == found.n_features:
            floor = floor_seconds(search)
            lines.append(f"floor: {floor:.1f} s of backward passes alone; ours is {found.edges_s / floor:.2f}x")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-sae", type=int, default=24576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--max-nodes", type=int, default=7500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--clt", action="store_true")
    parser.add_argument("--plain", action="store_true", help="measure the plain way and the floor too")
    options = parser.parse_args()
    keep_freed_memory()
    sizes = Sizes(n_layers=options.layers, tokens=options.tokens, d_sae=options.d_sae, k=options.k)
    settings = GraphSettings(frozen=True, max_nodes=options.max_nodes, batch_size=options.batch_size)
    subject = subject_with(sizes, across=options.clt)
    for line in report(subject, settings, plain=options.plain):
        print(line)


if __name__ == "__main__":
    main()
