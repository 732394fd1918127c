"""Random circuits of any size for pages: features at layers and positions; weights fall off as real ones do."""

import random

from circuitcli.features.lines import Context, Details
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph
from circuitcli.records import GraphRecord
from circuitcli.render.drawing import Drawing, draw

N_LAYERS, N_TOKENS, D_SAE = 12, 16, 24576
WORDS = (" the", " of", " Mary", "John", " gave", " a", " drink", "to", ",", " store", "went", "ing", " 东京", " été")


def random_drawing(n_nodes: int, n_edges: int, *, seed: int = 0) -> Drawing:
    """A circuit of that many nodes, the output among them, and at most that many edges, with all its details."""
    graph = random_circuit(n_nodes, n_edges, seed=seed)
    return draw(graph, details=random_details(graph, seed=seed))


def random_circuit(n_nodes: int, n_edges: int, *, seed: int = 0) -> CircuitGraph:
    """Nodes in random places; edges go upwards, to the output first, so that every node has one while they last."""
    generator = random.Random(seed)
    ids = _ids(n_nodes - 1, generator)
    nodes = [Node(name, abs(generator.gauss(0, 3)), _heavy(generator), "nats") for name in ids]
    pairs = dict.fromkeys((name, "output") for name in ids[:n_edges])
    layers = {name: int(name.partition(".")[2].partition("/")[0]) for name in ids}
    for _ in range(8 * n_edges):
        if len(pairs) >= n_edges or len(ids) < 2:
            break
        one, other = generator.sample(ids, 2)
        if layers[one] != layers[other]:
            pairs[(one, other) if layers[one] < layers[other] else (other, one)] = None
    edges = [Edge(source, target, _heavy(generator), "nats") for source, target in pairs]
    return sorted_graph(CircuitGraph(_head(), (*nodes, Node("output")), tuple(edges)))


def _ids(n: int, generator: random.Random) -> list[str]:
    """Distinct features, an error term among them now and then."""
    found: dict[str, None] = {}
    while len(found) < n:
        index = "error" if generator.random() < 0.05 else str(generator.randrange(D_SAE))
        found[f"resid.{generator.randrange(N_LAYERS)}/{index}@{generator.randrange(1, N_TOKENS)}"] = None
    return list(found)


def _heavy(generator: random.Random) -> float:
    """A weight: few are large, most are small."""
    return generator.choice((-1, 1)) * round(generator.lognormvariate(-4, 1.6), 6)


def random_details(graph: CircuitGraph, *, seed: int = 0) -> dict[str, Details]:
    """What is known about each feature: a label, three contexts, logit effects."""
    generator = random.Random(seed)
    names = dict.fromkeys(node.place.feature for node in graph.nodes if node.place and not node.place.is_error)
    return {name: _details(name, generator) for name in names}


def _details(name: str, generator: random.Random) -> Details:
    pairs = [(generator.choice(WORDS), round(generator.uniform(0, 3), 3)) for _ in range(10)]
    contexts = tuple(_context(generator) for _ in range(3))
    label = f'{generator.choice(WORDS)!r} {generator.choice(WORDS)!r} -> "{generator.choice(WORDS)}"'
    facts = {"density": generator.uniform(1e-4, 0.05), "max": 9.0, "mean": 3.0, "n_active": generator.randrange(999)}
    return Details(
        id=name, label=label, contexts=contexts, promoted=tuple(pairs[:5]), suppressed=tuple(pairs[5:]), **facts
    )


def _context(generator: random.Random) -> Context:
    tokens = tuple(generator.choice(WORDS) for _ in range(17))
    activations = [0.0] * 17
    activations[8] = round(generator.uniform(3, 9), 3)
    return Context(tokens=tokens, activations=tuple(activations), peak=8, block=generator.randrange(500), position=8)


def _head() -> GraphRecord:
    tokens = tuple(("<s>", *(WORDS[place % len(WORDS)] for place in range(1, N_TOKENS))))
    facts = {
        "name": "circuit",
        "method": "grad-ig",
        "metric": "log-prob",
        "prompt": "".join(tokens[1:]),
        "model": "random",
    }
    values = {"metric_clean": -0.61, "metric_baseline": -9.4, "dtype": "float32", "unit": "nats", "baseline": "mean"}
    saes = {f"resid.{layer}": f"sha256:{layer}" for layer in range(N_LAYERS)}
    return GraphRecord.model_validate({**facts, **values, "tokens": tokens, "positions": "all", "saes": saes})
