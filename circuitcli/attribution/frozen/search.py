"""Finding the frozen graph of a prompt: all edges into active features, or into those that matter most, then pruning.

Where more features are active than edges are wanted into, those are taken in turn that have the most influence on the
logits by what is known so far, a few batches at a time, as circuit-tracer does; the others are left out in the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from circuitcli.attribution.frozen.checking import EdgeChecks, check_edges
from circuitcli.attribution.frozen.heads import with_heads
from circuitcli.attribution.frozen.linear import FrozenModel
from circuitcli.attribution.frozen.nodes import Nodes, check_frozen, explained_logits
from circuitcli.attribution.frozen.rows import Chunk, EdgeRows, assembled, effects
from circuitcli.attribution.memory import budget_of, in_batches, rows_at_once
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.subject import Subject
from circuitcli.attribution.traces import with_traces
from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph
from circuitcli.graphs.influence import FEATURE, LOGIT, Pruned, Rows, Scores, influence, prune, scores
from circuitcli.hookpoints import logit_name
from circuitcli.progress import Advance, note, task
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import GraphSettings

# Features after which influence is taken anew; whatever the batch size, so that graphs do not depend on that.
UPDATE = 256


@dataclass
class FrozenSearch:
    """The search on one prompt. logits: tokens that are explained, by default the likeliest ones."""

    subject: Subject
    settings: GraphSettings
    logits: tuple[int, ...] = ()
    chunks: list[Chunk] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Raises InputError for coders without pre-activations."""
        check_frozen(self.subject)

    @classmethod
    def of(cls, panel: Panel, settings: GraphSettings) -> "FrozenSearch":
        """The search on a panel of one prompt: a target that the prompt names is the logit, with the foil that it is
        compared with.

        Raises InputError for several prompts, SettingsError for a metric or baseline that makes no sense.
        """
        if panel.n_prompts != 1:
            raise InputError(
                f"a frozen graph is of one prompt, and there are {panel.n_prompts}",
                hint="name one with --prompt; --n-prompts 1 takes the first of a file",
            )
        subject, baseline = panel.subject(0)
        if subject.metric.is_flat_at_clean:
            raise SettingsError(
                f"the metric {subject.metric.name} has no gradient at the clean run, so that no node has an effect",
                hint="use the metric log-prob or logit-diff",
            )
        if any(bool(value.any()) for value in (*baseline.codes.values(), *baseline.errors.values())):
            raise SettingsError("a frozen graph takes nodes away whole", hint="use the baseline zero")
        prompt, metric = subject.prompts[0], subject.metric.name
        foils = (prompt.foil,) if metric == "logit-diff" and prompt.foil is not None else ()
        named = foils or prompt.target is not None
        return cls(subject, settings, (*subject.targets[:1], *foils) if named else ())

    @cached_property
    def model(self) -> FrozenModel:
        """The frozen model. Raises InputError if it is not linear; says which features have no incoming edges."""
        model = FrozenModel(self.subject)
        model.check_affine()
        ends = [str(hook) for hook, read in model.seen.reads.items() if hook.site == "mlp" and not read.requires_grad]
        if ends:
            note(
                f"in a frozen graph MLPs are constant, so that nothing leads to features of {' '.join(ends)}; "
                "transcoders would stand in for the MLPs"
            )
        return model

    @cached_property
    def nodes(self) -> Nodes:
        """All that may become a node."""
        return Nodes.of(self.model, explained_logits(self.subject, self.logits))

    @cached_property
    def edges(self) -> EdgeRows:
        """Where edges come from."""
        return EdgeRows(self.model, self.nodes)

    @property
    def batch_size(self) -> int:
        """How many targets one backward pass takes."""
        fitting = budget_of(self.subject.adapter) // self.model.bytes_of_target
        return max(1, min(self.settings.batch_size, fitting))

    @property
    def n_expanded(self) -> int:
        """Into how many features edges are taken."""
        return min(self.nodes.n_features, self.settings.max_nodes)

    @cached_property
    def rows(self) -> Rows:
        """All edges, or those between the features that were chosen."""
        self.chunks = [self.edges.into_logits()]
        with task("edges of features", total=self.n_expanded, unit="features") as advance:
            if self.n_expanded == self.nodes.n_features:
                self._expand(np.arange(self.nodes.n_features), advance)
                return self._assembled()
            expanded = self._most_influential(advance)
        rows = self._assembled()
        return rows.kept((expanded | (rows.kinds != FEATURE))[rows.sources])

    def _assembled(self) -> Rows:
        """All rows; the chunks that they come from are not needed any more."""
        rows = assembled(self.nodes, self.chunks)
        self.chunks = []
        return rows

    def _most_influential(self, advance: Advance) -> NDArray[np.bool_]:
        expanded = np.zeros(self.nodes.n, dtype=bool)
        while (left := self.n_expanded - int(expanded.sum())) > 0:
            found = influence(assembled(self.nodes, self.chunks))[: self.nodes.n_features]
            found[expanded[: self.nodes.n_features]] = -1.0
            chosen = np.argsort(-found, kind="stable")[: min(left, UPDATE)]
            expanded[chosen] = True
            self._expand(np.sort(chosen), advance)
        return expanded

    def _expand(self, numbers: NDArray[np.int64], advance: Advance) -> None:
        """Take the edges into features of these numbers."""
        for active in self.nodes.active:
            here = numbers[(numbers >= active.start) & (numbers < active.start + len(active))] - active.start
            taken = partial(self.edges.into_features, active)
            for chunk in in_batches(here.tolist(), taken, size=self.batch_size):
                self.chunks.append(chunk)
                advance(len(chunk.targets))

    @cached_property
    def pruned(self) -> Pruned:
        """What is kept."""
        return prune(self.rows, **self.settings.shares_of_influence)

    @cached_property
    def scores(self) -> Scores:
        """How much of the whole graph features explain."""
        return scores(self.rows)

    @cached_property
    def effects(self) -> Tensor:
        """What each source contributes to the metric."""
        return effects(self.edges)

    def checks(self, seed: int) -> EdgeChecks | None:
        """What intervening on some of the edges that are kept shows, if that is asked for."""
        rows, n = self.pruned.rows, self.settings.check_edges
        if n == 0 or rows.n_edges == 0:
            return None
        size = rows_at_once(self.subject, 0, backward=False, at_most=self.settings.batch_size)
        return check_edges(self.edges, rows, n, batch_size=size, seed=seed)

    def facts(self, tokens: Sequence[str], checks: EdgeChecks | None) -> dict[str, Any]:
        """What the head tells of the whole graph. tokens: the logits'."""
        found = self.scores
        return {
            "method": "frozen",
            "logits": dict(zip(map(logit_name, self.nodes.logits), tokens, strict=True)),
            "checks": None if checks is None else checks.facts(),
            "n_active": self.nodes.n_features,
            "n_expanded": self.n_expanded,
            **self.settings.shares_of_influence,
            "replacement": found.replacement,
            "completeness": found.completeness,
            "completeness_of_inputs": found.completeness_of_inputs,
        }

    def graph(self, head: GraphRecord) -> CircuitGraph:
        """The graph of what is kept."""
        nodes, pruned = self.nodes, self.pruned
        kept = np.nonzero(pruned.nodes)[0].tolist()
        names = {number: nodes.name(number) for number in kept}
        made = tuple(self._node(number, names[number]) for number in kept)
        targets = pruned.rows.edge_targets.tolist()
        triples = zip(pruned.rows.sources.tolist(), targets, pruned.rows.values.tolist(), strict=True)
        edges = tuple(
            Edge(names[source], names[target], weight, "logits" if target >= nodes.n_sources else "pre-activation")
            for source, target, weight in triples
        )
        if self.settings.heads and edges:
            size = self.settings.batch_size
            edges = tuple(with_heads(self.subject, edges, batch_size=size))
        return with_traces(sorted_graph(CircuitGraph(head, made, edges)), [((0,), self.subject)])

    def _node(self, number: int, name: str) -> Node:
        nodes, found = self.nodes, float(self.pruned.influence[number])
        if nodes.kinds[number] == LOGIT:
            return Node(name, probability=float(nodes.weights[number]))
        effect, unit = float(self.effects[number]), self.subject.metric.unit
        return Node(name, nodes.activation(number), effect, unit, influence=found)
