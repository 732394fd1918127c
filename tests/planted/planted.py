"""A model with a planted circuit: its coders, a prompt with its counterfactual, and what is true of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch

from circuitcli.attribution import baselines, subject
from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.adapter import ModelAdapter
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.relu import ReluSae

from .wiring import ONE, SIZE, Weighted, Wiring

BASELINES = ("zero", "counterfactual")
Pair = tuple[str, str]


@dataclass(frozen=True)
class Truth:
    """The circuit as it is wired under a baseline: ids of nodes as graphs write them, and pairs of edges; edges to
    ``output`` too.

    unseen: nodes of the circuit whose effect no edge between live nodes carries, because what they hold down is silent
    in both runs.
    """

    nodes: frozenset[str]
    edges: frozenset[Pair]
    unseen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Planted:
    """A planted circuit. Its first token is BOS, which carries no nodes; targets are ids of tokens.

    truth: by baseline. reasons: why a method cannot rank the true nodes or edges first, by name of the method.
    """

    name: str
    wiring: Wiring
    adapter: ModelAdapter
    coders: Coders
    prompt: Prompt
    truth: Mapping[str, Truth]

    @cached_property
    def subject(self) -> Subject:
        """The prompt, run cleanly; the metric is the logit difference."""
        return subject.build(self.adapter, self.coders, [self.prompt], metric="logit-diff")

    @cached_property
    def other(self) -> Subject:
        """The counterfactual, run cleanly."""
        assert self.prompt.counterfactual is not None
        swapped = replace(self.prompt, ids=self.prompt.counterfactual, counterfactual=self.prompt.ids)
        return subject.build(self.adapter, self.coders, [swapped], metric="logit-diff")

    def baseline(self, kind: str) -> Baseline:
        """What nodes are set to: ``zero`` or ``counterfactual``."""
        return baselines.zero(self.coders) if kind == "zero" else baselines.counterfactual(self.subject)

    def panel(self, kind: str) -> Panel:
        """The prompt as what `find_circuit` takes, with nodes at each position."""
        return Panel.of_subject(self.subject, self.baseline(kind), positions="all")


@dataclass(frozen=True)
class Plan:
    """What a module of a planted circuit says of it; `Plan.build` makes the model.

    chains: by baseline, paths such as ``resid_pre.0/A@1 > attn.0/outA@3 > output``. unseen: see `Truth`.
    """

    name: str
    wiring: Wiring
    clean: Sequence[str]
    other: Sequence[str]
    target: str
    foil: str
    chains: Mapping[str, Sequence[str]]
    family: str = "gpt2"
    sites: tuple[str, ...] = ("attn", "mlp", "resid")
    unseen: Mapping[str, Sequence[str]] | None = None

    def build(self, coders: Iterable[SparseCoder] | None = None) -> Planted:
        """The model with its weights, and coders whose features are the variables (or those given)."""
        weighted = Weighted(self.wiring)
        adapter = ModelAdapter.of(weighted.model(self.family))
        hooks = [HookPoint(layer, site) for layer in range(adapter.n_layers) for site in self.sites]
        usual = [autoencoder(weighted, hook) for hook in (HookPoint(0, "resid_pre"), *hooks)]
        made = Coders.of(usual if coders is None else coders)
        truth = {
            kind: Truth(*self._of_chains(chains), frozenset(map(self._id, (self.unseen or {}).get(kind, ()))))
            for kind, chains in self.chains.items()
        }
        return Planted(self.name, self.wiring, adapter, made, self._prompt(), truth)

    def _prompt(self) -> Prompt:
        names = self.wiring.token_names
        ids, other = ((0, *map(names.index, tokens)) for tokens in (self.clean, self.other))
        return Prompt(
            " ".join(self.clean),
            ids,
            tuple(names[token] for token in ids),
            first=1,
            target=names.index(self.target),
            foil=names.index(self.foil),
            counterfactual=other,
        )

    def _id(self, text: str) -> str:
        """The node as graphs write it, of one that names its variable."""
        if text == OUTPUT:
            return text
        hook, _, rest = text.partition("/")
        name, _, position = rest.partition("@")
        return str(NodeId(HookPoint.parse(hook), self.wiring.variables.index(name), int(position)))

    def _of_chains(self, chains: Iterable[str]) -> tuple[frozenset[str], frozenset[Pair]]:
        paths = [[self._id(part.strip()) for part in chain.split(">")] for chain in chains]
        edges = {pair for path in paths for pair in pairwise(path)}
        return frozenset(node for path in paths for node in path if node != OUTPUT), frozenset(edges)


def autoencoder(weighted: Weighted, hook: HookPoint, variables: Sequence[str] | None = None) -> SparseCoder:
    """An SAE whose features are the variables, each read and written along its own direction; its decoder's bias is
    the constant where that is in the stream."""
    names = weighted.wiring.variables if variables is None else variables
    directions = torch.stack([weighted.directions[name] for name in names])
    # In double precision: the constant is large, and what float32 misses of it would be an error term.
    coder = ReluSae(SaeConfig(hook, weighted.d_model, len(names))).to(torch.float64)
    with torch.no_grad():
        coder.W_enc.copy_(directions.T)
        coder.W_dec.copy_(directions)
        if hook.site.startswith("resid"):
            coder.b_dec.copy_(weighted.directions[ONE] * SIZE)
    return coder.eval().requires_grad_(False)
