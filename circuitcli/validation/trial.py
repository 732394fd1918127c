"""The whole test of a circuit: under each error policy, and beside what it is to be compared with."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuitcli.records import ScoreRecord
from circuitcli.schema import POLICIES
from circuitcli.settings.validation import ValidationSettings
from circuitcli.validation import controls, scores
from circuitcli.validation.controls import Chance
from circuitcli.validation.scores import Keeper, PanelCases, Runs, Score, anew

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
    """The scores of a circuit, one after the other; what ``keep`` knows from before is not run again."""

    cases: PanelCases
    settings: ValidationSettings
    seed: int
    batch_size: int
    keep: Keeper = anew

    @cached_property
    def runs(self) -> Mapping[str, Runs]:
        """The metrics of each prompt under each error policy, the judged one first."""
        policies = sorted(POLICIES, key=lambda policy: policy != self.settings.errors)
        return {
            policy: scores.measure(self.cases, policy=policy, batch_size=self.batch_size, keep=self.keep)
            for policy in policies
        }

    @property
    def has_range(self) -> bool:
        """Whether there is something to explain under any policy."""
        return any(one.has_range for one in self.runs.values())

    def measured(self) -> Iterator[Measured]:
        """Under each policy that leaves something to explain. Raises InputError if that is none."""
        judged = self.settings.errors
        if not self.has_range:
            raise scores.nothing_to_explain(self.runs[judged])
        for policy, runs in self.runs.items():
            if not runs.has_range:
                logger.warning(
                    "no scores with errors %s: the metric is then the same with and without all features", policy
                )
                continue
            yield from self._ratios(policy, runs)
        if self.runs[judged].has_range:
            yield from self._beside(judged, self.runs[judged])

    def _ratios(self, policy: str, runs: Runs) -> Iterator[Measured]:
        """Faithfulness and completeness."""
        facts = {
            "judged": policy == self.settings.errors,
            "metric_clean": float(runs.clean.mean()),
            "metric_circuit": float(runs.circuit.mean()),
            "metric_empty": float(runs.empty.mean()),
        }
        yield Measured("faithfulness", policy, self._ratio(runs.circuit, runs), facts)
        yield Measured("completeness", policy, self._ratio(runs.complement, runs))

    def _ratio(self, part: Float[Tensor, " prompt"], runs: Runs) -> Score:
        return scores.ratio(part, runs, bootstrap=self.settings.bootstrap, seed=self.seed)

    def _beside(self, policy: str, runs: Runs) -> Iterator[Measured]:
        """What the circuit is to be compared with, and what each of its nodes adds."""
        options: dict[str, Any] = {"policy": policy, "batch_size": self.batch_size, "keep": self.keep}
        if self.settings.samples:
            own = float(runs.faithfulness(runs.circuit))
            for name, by_activity in (("faithfulness-random", False), ("faithfulness-random-active", True)):
                chance = controls.random_faithfulness(
                    self.cases,
                    runs,
                    samples=self.settings.samples,
                    seed=self.seed,
                    by_activity=by_activity,
                    **options,
                )
                yield Measured(name, policy, *_chance(chance, own))
            there = controls.everything_there(self.cases, **options)
            score = self._ratio(there.metrics, runs)
            yield Measured("faithfulness-positions", policy, score, {"n_nodes": there.n_nodes})
        if self.settings.minimality:
            value, node = scores.minimality(self.cases, runs, **options)
            yield Measured("minimality", policy, Score(value, None, None), {"node": node})


def _chance(chance: Chance, faithfulness: float) -> tuple[Score, dict[str, Any]]:
    middle = Score(float(chance.values.mean()), chance.quantile(0.025), chance.quantile(0.975))
    return middle, {
        "median": chance.quantile(0.5),
        "samples": len(chance.values),
        "rank": chance.rank(faithfulness),
        "overlap": chance.overlap,
        "overlap_features": chance.overlap_features,
        "n_nodes": chance.n_nodes,
        "n_pool": chance.n_pool,
    }
