"""The circuit of one prompt: nodes hook point by hook point, edges between neighbours, and both as a graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from circuitcli.attribution.search.codes import TextCodes
from circuitcli.attribution.search.edges import Link, kept_links, links
from circuitcli.attribution.search.nodes import Found, search
from circuitcli.attribution.search.patching import Layer, Place
from circuitcli.attribution.search.sampling import Sampler
from circuitcli.attribution.subject import Subject
from circuitcli.attribution.traces import with_traces
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph, Edge, Node, sorted_graph
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.partial import first_block
from circuitcli.records import GraphRecord
from circuitcli.saes.coders import Coders
from circuitcli.settings.search import SearchSettings

NATS, ACTIVATION = "nats", "activation"


def check_coders(coders: Coders) -> None:
    """Raise InputError for coders whose hook points cannot be put in the place of what they read."""
    for hook, coder in coders.items():
        if coder.is_transcoder:
            raise InputError(
                f"the search by resampling takes SAEs; {hook} has a coder that writes {coder.writes[0]}",
                hint="leave it out with --layers or --sites, or use `circuit graph-grad`",
            )


@dataclass(frozen=True)
class PromptSearch:
    """What is searched: one prompt, by its hook points, with the codes of the text to draw from.

    length: of a block of the text. A search by zeros needs no codes.
    """

    subject: Subject
    settings: SearchSettings
    codes: Mapping[HookPoint, TextCodes]
    length: int
    seed: int

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """The hook points, in the order of the model."""
        return self.subject.coders.hooks

    def layer(self, hook: HookPoint) -> Layer:
        """One of them, to be searched."""
        number, last = self.hooks.index(hook), len(self.hooks) - 1
        weight = self.settings.position_weight * (1 - number / last if last else 1.0)
        if self.settings.by == "random" and self.settings.position_weight > 0:
            # Of random rows the position counts or does not.
            weight = 1.0
        sampler = Sampler(self.settings, self.codes[hook], str(hook), weight, self.length, self.seed)
        return Layer(self.subject, hook, sampler)

    def nodes(self, hook: HookPoint, before: Found | None) -> Found:
        """What to keep at a hook point, after the one before."""
        upstream = {place.position for place in before.places} if before is not None else set()
        # No block is behind it that could read earlier positions.
        is_last = first_block(hook) == self.subject.adapter.n_layers
        return search(self.layer(hook), upstream, is_first=before is None, is_last=is_last)

    def links(self, hook: HookPoint, found: Found, other: HookPoint, later: Found) -> list[Link]:
        """The edges that are kept between a hook point and the next."""
        every = links(self.layer(hook), found.places, other, later.places)
        return kept_links(every, least=self.settings.min_edge)

    def head(self, head: GraphRecord, found: Mapping[HookPoint, Found]) -> GraphRecord:
        """The head of a graph, with what was asked for and what was found at each hook point."""
        numbers = {name: float(value) for name, value in self.settings.model_dump(exclude={"by", "errors"}).items()}
        told = {
            str(hook): {
                "kl": one.kl,
                "kl_all": one.floor,
                "kl_none": one.empty,
                "n_nodes": float(len(one.places)),
                "n_active": float(one.n_active),
            }
            for hook, one in found.items()
        }
        return head.model_copy(update={"search": numbers, "searched": told, "errors": self.settings.errors})

    def graph(
        self, head: GraphRecord, found: Mapping[HookPoint, Found], between: Mapping[HookPoint, Sequence[Link]]
    ) -> CircuitGraph:
        """Nodes with the divergence that each keeps down, edges between neighbours, and from the last to the output.

        between: by the hook point of the sources.
        """
        nodes, edges = [Node(OUTPUT)], []
        for hook, one in found.items():
            codes = self.subject.codes[hook][0]
            for place, effect in zip(one.places, one.effects, strict=True):
                nodes.append(Node(self._name(hook, place), float(codes[place]), effect, NATS))
                if hook == self.hooks[-1]:
                    edges.append(Edge(self._name(hook, place), OUTPUT, effect, NATS))
        for hook, some in between.items():
            other = self.hooks[self.hooks.index(hook) + 1]
            for link in some:
                edges.append(
                    Edge(self._name(hook, link.source), self._name(other, link.target), link.weight, ACTIVATION)
                )
        graph = sorted_graph(CircuitGraph(self.head(head, found), tuple(nodes), tuple(edges)))
        return with_traces(graph, [((0,), self.subject)])

    def _name(self, hook: HookPoint, place: Place) -> str:
        return str(NodeId(hook, place.feature, place.position + self.subject.first))


def search_circuit(search: PromptSearch, head: GraphRecord) -> CircuitGraph:
    """The whole search, from the first hook point to the last, and its graph."""
    found: dict[HookPoint, Found] = {}
    before = None
    for hook in search.hooks:
        before = found[hook] = search.nodes(hook, before)
    pairs = zip(search.hooks, search.hooks[1:], strict=False)
    between = {hook: search.links(hook, found[hook], other, found[other]) for hook, other in pairs}
    return search.graph(head, found, between)
