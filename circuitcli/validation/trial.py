"""The whole test of a circuit: under each ablation and error policy, and beside what it is to be compared with."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.records import ScoreRecord
from circuitcli.schema import POLICIES
from circuitcli.settings.validation import ValidationSettings
from circuitcli.validation import controls, curves, scores
from circuitcli.validation.controls import Chance
from circuitcli.validation.curves import Curve
from circuitcli.validation.edges import Edge
from circuitcli.validation.others import Means, Other, Others
from circuitcli.validation.ranking import Ranking, positions_of
from circuitcli.validation.scores import Keeper, PanelCases, Resamples, Runs, Score, anew, counted
from circuitcli.validation.verdict import WITHOUT_ERRORS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A score by its name and error policy, and what else is to be told of it."""

    name: str
    policy: str
    score: Score
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def record(self, about: Mapping[str, Any]) -> ScoreRecord:
        """The score as a record; what is to be told of it counts before what all scores say."""
        score = self.score
        return ScoreRecord(
            name=self.name,
            value=score.value,
            low=score.low,
            high=score.high,
            errors=self.policy,
            unit="ratio",
            **{**about, **self.facts},
        )


@dataclass(frozen=True)
class Trial:
    """The scores of a circuit, one after the other; what ``keep`` knows from before is not run again.

    edges: of the circuit, the strongest first, None where only nodes are known. means: what comparisons need, without
    which none but random circuits are made. is_main: whether this ablation is the one that is judged and set beside
    controls.
    """

    cases: PanelCases
    settings: ValidationSettings
    seed: int
    batch_size: int
    keep: Keeper = anew
    edges: Sequence[Edge] | None = None
    means: Means | None = None
    is_main: bool = True

    @cached_property
    def runs(self) -> Mapping[str, Runs]:
        """The metrics of each prompt under each error policy, the judged one first."""
        policies = sorted(POLICIES, key=lambda policy: policy != self.settings.errors)
        return {
            policy: scores.measure(self.cases, policy=policy, batch_size=self.batch_size, keep=self.keep)
            for policy in policies
        }

    @cached_property
    def resamples(self) -> Resamples:
        """The samples of the prompts that all intervals are taken over."""
        n_prompts = len(next(iter(self.runs.values())).clean)
        return Resamples(n_prompts, bootstrap=self.settings.bootstrap, seed=self.seed)

    @property
    def has_range(self) -> bool:
        """Whether there is something to explain under any policy."""
        return any(one.has_range for one in self.runs.values())

    def measured(self) -> Iterator[Measured]:
        """Under each policy that leaves something to explain. Raises InputError if that is none."""
        judged = self.settings.errors
        if not self.has_range:
            raise scores.nothing_to_explain(self.runs[judged])
        usable = {policy: runs for policy, runs in self.runs.items() if runs.has_range}
        for policy in self.runs.keys() - usable.keys():
            logger.warning(
                "no scores with errors %s: the metric is then the same with and without all features", policy
            )
        for policy, runs in usable.items():
            yield from self._ratios(policy, runs)
        for policy, runs in usable.items():
            yield from self._edges(policy, runs)
        if self.is_main and judged in usable:
            yield from self._beside(judged, usable[judged])
        if self.settings.minimality:
            for policy, runs in usable.items():
                yield self._minimality(policy, runs)

    def _options(self, policy: str) -> dict[str, Any]:
        return {"policy": policy, "batch_size": self.batch_size, "keep": self.keep}

    def _ratios(self, policy: str, runs: Runs) -> Iterator[Measured]:
        """Faithfulness and completeness."""
        facts = {
            "judged": self.is_main and policy == self.settings.errors,
            "metric_clean": float(runs.clean.mean()),
            "metric_circuit": float(runs.circuit.mean()),
            "metric_empty": float(runs.empty.mean()),
        }
        yield Measured("faithfulness", policy, self._ratio(runs.circuit, runs), facts)
        yield Measured("completeness", policy, self._ratio(runs.complement, runs))

    def _ratio(self, part: Float[Tensor, " prompt"], runs: Runs) -> Score:
        samples = self.resamples.faithfulness(part, runs)
        return self.resamples.score(float(runs.faithfulness(part)), samples)

    def _edges(self, policy: str, runs: Runs) -> Iterator[Measured]:
        """Faithfulness of the circuit's edges alone."""
        if self.edges is None or not self.settings.edges:
            return
        metrics = scores.edge_metrics(self.cases, self.edges, **self._options(policy))
        yield Measured("faithfulness-edges", policy, self._ratio(metrics, runs), {"n_edges": len(self.edges)})

    def _minimality(self, policy: str, runs: Runs) -> Measured:
        options = self._options(policy) | {"bootstrap": self.settings.bootstrap, "seed": self.seed}
        score, node = scores.minimality(self.cases, runs, **options)
        return Measured("minimality", policy, score, {"node": node})

    def _beside(self, policy: str, runs: Runs) -> Iterator[Measured]:
        """What the circuit is to be compared with."""
        if self.settings.samples:
            yield from self._random(policy, runs)
            there = controls.everything_there(self.cases, **self._options(policy))
            score = self._ratio(there.metrics, runs)
            yield Measured("faithfulness-positions", policy, score, {"n_nodes": there.n_nodes})
        if self.means is None:
            return
        others = Others(self.cases, self.means, seed=self.seed, **self._options(policy))
        if self.means.control is not None:
            yield from self._compared(others.control(self.means.control))
        has_features = any(not node.is_error for node in self.cases.nodes)
        if self.settings.shuffled and has_features and self.runs[WITHOUT_ERRORS].has_range:
            yield from self._compared(others.shuffled())
        if self.settings.basis == "neurons":
            try:
                yield from self._compared(others.neurons())
            except InputError as error:
                logger.warning("not compared with neurons: %s", error.message)

    def _compared(self, other: Other) -> Iterator[Measured]:
        """Another circuit, and by how much the tested one is better. Logs a warning if it had nothing to keep."""
        if not other.runs.has_range:
            logger.warning("no %s: the metric is then the same with and without all features", other.name)
            return
        runs, own = self.runs[other.policy], set(counted(self.cases.nodes, other.policy))
        facts = {
            "n_nodes": len(other.nodes),
            "metric_circuit": float(other.runs.circuit.mean()),
            "metric_empty": float(other.runs.empty.mean()),
            **self._better(runs, other.runs.circuit, other.runs),
        }
        if other.name == "faithfulness-control-graph":
            facts["overlap"] = len(own.intersection(other.nodes)) / len(own)
        yield Measured(other.name, other.policy, self._ratio(other.runs.circuit, other.runs), facts)

    def _random(self, policy: str, runs: Runs) -> Iterator[Measured]:
        for name, by_activity in (("faithfulness-random", False), ("faithfulness-random-active", True)):
            chance = controls.random_faithfulness(
                self.cases,
                runs,
                samples=self.settings.samples,
                seed=self.seed,
                by_activity=by_activity,
                **self._options(policy),
            )
            yield self._chance(name, policy, chance)

    def _chance(self, name: str, policy: str, chance: Chance) -> Measured:
        """Random circuits: their mean and quantiles, and by how much the circuit is better than their mean."""
        runs = self.runs[policy]
        middle = Score(float(chance.values.mean()), chance.quantile(0.025), chance.quantile(0.975))
        facts = {
            "median": chance.quantile(0.5),
            "samples": len(chance.values),
            "rank": chance.rank(float(runs.faithfulness(runs.circuit))),
            "overlap": chance.overlap,
            "overlap_features": chance.overlap_features,
            "n_nodes": chance.n_nodes,
            "n_pool": chance.n_pool,
            **self._better(runs, chance.metrics.mean(dim=0), runs),
        }
        return Measured(name, policy, middle, facts)

    def faithfulness_curves(self) -> Iterator[Curve]:
        """Of the judged policy: the graph's nodes by their effects, its edges by their weights, and where they are
        asked for all nodes."""
        policy, asked = self.settings.errors, self.settings.curve
        if asked == "none" or self.means is None or not self.runs[policy].has_range:
            return
        nodes = counted(self.means.nodes, policy)
        yield from self._node_curve("graph", curves.strongest_of(nodes), len(nodes))
        if self.edges and self.settings.edges:
            yield from self._edge_curve(self.edges)
        if asked == "all":
            ranking = self._ranking(self.means)
            yield from self._node_curve("all", curves.strongest_of_all(ranking), len(ranking))

    def _ranking(self, means: Means) -> Ranking:
        panel = means.found_on or self.cases.panel
        found = Ranking.of(panel, means.effects, positions_of(self.cases.nodes, panel.prompts))
        return found if self.settings.errors == "nodes" else found.features

    def _node_curve(self, ranked: Literal["graph", "all"], circuit: curves.CircuitOf, total: int) -> Iterator[Curve]:
        counts = curves.sizes(total)
        if len(counts) > 1:
            name = f"curve over {'the nodes' if ranked == 'graph' else 'all nodes'}"
            metrics = curves.node_metrics(self.cases, circuit, counts, name=name, **self._options(self.settings.errors))
            yield self._curve(metrics, "nodes", ranked, counts, total)

    def _edge_curve(self, edges: Sequence[Edge]) -> Iterator[Curve]:
        counts = curves.sizes(len(edges))
        if len(counts) > 1:
            metrics = curves.edges_metrics(self.cases, edges, counts, **self._options(self.settings.errors))
            yield self._curve(metrics, "edges", "graph", counts, len(edges))

    def _curve(
        self,
        metrics: Float[Tensor, "size prompt"],
        of: Literal["nodes", "edges"],
        ranked: Literal["graph", "all"],
        counts: Sequence[int],
        total: int,
    ) -> Curve:
        runs = self.runs[self.settings.errors]
        return curves.curve(metrics, runs, self.resamples, of=of, ranked=ranked, counts=counts, total=total)

    def _better(self, runs: Runs, other: Float[Tensor, " prompt"], other_runs: Runs) -> dict[str, float | None]:
        """By how much the circuit keeps more than another, each of its own range, on the same samples of prompts."""
        value = float(runs.faithfulness(runs.circuit) - other_runs.faithfulness(other))
        own, theirs = self.resamples.faithfulness(runs.circuit, runs), self.resamples.faithfulness(other, other_runs)
        score = self.resamples.score(value, None if own is None or theirs is None else own - theirs)
        return {"difference": score.value, "difference_low": score.low, "difference_high": score.high}


def scored(trials: Mapping[str, Trial]) -> Iterator[tuple[str, Measured]]:
    """The scores under each ablation, by its name, the judged one first.

    One that leaves nothing to explain is left out. Raises InputError if all do.
    """
    first = next(iter(trials.values()))
    for ablation, trial in trials.items():
        if trial.has_range or not any(one.has_range for one in trials.values()):
            yield from ((ablation, one) for one in trial.measured())
        else:
            logger.warning(
                "no scores with %s ablation: the metric is then the same with and without all nodes%s",
                *(ablation, ", so that nothing is judged" if trial is first else ""),
            )
