"""What a circuit is compared with beside random ones: another behaviour's circuit, as many neurons, and its own
features with directions that are not theirs. Each is run as the circuit is, and has the range of its own coders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.panel import KEPT_BYTES, Kept, Panel
from circuitcli.hookpoints import HookPoint, NodeId, Position
from circuitcli.saes.coders import Coders
from circuitcli.settings.graph import GraphSettings
from circuitcli.validation import recoded, scores
from circuitcli.validation.ranking import Ranking, positions_of
from circuitcli.validation.scores import Keeper, PanelCases, Runs, counted, steps_named
from circuitcli.validation.verdict import WITHOUT_ERRORS


@dataclass(frozen=True)
class Means:
    """What comparisons need beside the circuit.

    rule_of: how the baseline is taken through other coders. effects: how nodes are ranked. nodes: the circuit's, the
    strongest first. found_on: the prompts that nodes are ranked on, where these are not the tested ones. control:
    another behaviour's circuit.
    """

    rule_of: Callable[[Coders], BaselineRule]
    effects: GraphSettings
    nodes: tuple[NodeId, ...]
    found_on: Panel | None = None
    control: tuple[NodeId, ...] | None = None


@dataclass(frozen=True)
class Other:
    """A circuit that the tested one is compared with: its name in records, the error policy under which both are run,
    its nodes, and what it did."""

    name: str
    policy: str
    nodes: tuple[NodeId, ...]
    runs: Runs


@dataclass(frozen=True)
class Others:
    """Runs other circuits on the tested prompts under one error policy."""

    cases: PanelCases
    means: Means
    policy: str
    seed: int
    batch_size: int
    keep: Keeper

    def control(self, nodes: tuple[NodeId, ...]) -> Other:
        """Another behaviour's circuit. Raises InputError for a node that the coders lack."""
        return self._measured("faithfulness-control-graph", PanelCases(self.cases.panel, nodes))

    def shuffled(self) -> Other:
        """The circuit's own features with the rows of each decoder exchanged, always without errors: an error is what a
        decoder misses, so that kept errors would carry all that wrong directions do not."""
        panel = self._through(self.cases.panel, recoded.shuffled(self.cases.panel.coders, seed=self.seed))
        without = replace(self, policy=WITHOUT_ERRORS)
        return without._measured("faithfulness-shuffled", PanelCases(panel, self.cases.nodes))

    def neurons(self) -> Other:
        """As many neurons as the circuit has nodes, the strongest by the same kind of effects at such positions.

        Raises InputError for a baseline that needs activations which were not collected.
        """
        coders = recoded.neurons(self.cases.panel.adapter, self.cases.panel.coders)
        panel = self._through(self.cases.panel, coders)
        names = positions_of(self.cases.nodes, panel.prompts).names
        count = len(counted(self.cases.nodes, self.policy))
        numbers = self.keep(f"{count} neurons", lambda: _numbers(self._strongest(coders, count), coders.hooks, names))
        return self._measured("faithfulness-neurons", PanelCases(panel, _named(numbers, coders.hooks, names)))

    def _strongest(self, coders: Coders, count: int) -> list[NodeId]:
        panel = self._through(self.means.found_on or self.cases.panel, coders)
        positions = positions_of(self.cases.nodes, panel.prompts)
        return Ranking.of(panel, self.means.effects, positions).nodes(count)

    def _measured(self, name: str, cases: PanelCases) -> Other:
        keep = steps_named(name, self.keep)
        runs = scores.measure(cases, policy=self.policy, batch_size=self.batch_size, keep=keep)
        return Other(name, self.policy, tuple(counted(cases.nodes, self.policy)), runs)

    def _through(self, panel: Panel, coders: Coders) -> Panel:
        """The same prompts through other coders."""
        made = Panel.of(
            panel.adapter,
            coders,
            panel.prompts,
            metric=panel.metric,
            positions=panel.positions,
            baseline_of=self.means.rule_of(coders),
            batch_size=max(map(len, panel.batches)),
            token_names=panel.token_names,
        )
        return replace(made, kept=Kept(KEPT_BYTES // 4))


def _numbers(nodes: Sequence[NodeId], hooks: Sequence[HookPoint], names: Sequence[Position]) -> list[float]:
    """Nodes as numbers that a killed test can go on with, three for each."""
    return [
        float(value)
        for node in nodes
        for value in (hooks.index(node.hook), -1 if node.index is None else node.index, names.index(node.position))
    ]


def _named(numbers: Sequence[float], hooks: Sequence[HookPoint], names: Sequence[Position]) -> tuple[NodeId, ...]:
    """The nodes of such numbers."""
    triples = zip(*(map(int, numbers[offset::3]) for offset in range(3)), strict=True)
    return tuple(NodeId(hooks[hook], None if index < 0 else index, names[group]) for hook, index, group in triples)
