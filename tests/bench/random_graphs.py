"""A random GPT-2 with wide random TopK autoencoders, and circuits in it taken the plain way, for `bench_graphs`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from circuitcli.attribution import baselines
from circuitcli.attribution.ablation import live_sources
from circuitcli.attribution.edges import Target
from circuitcli.attribution.naive import NaiveSearch
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint, hook_points
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback, keep
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.coders import Coders
from circuitcli.saes.topk import TopKSae

Node = tuple[int | None, int]  # a feature or, None, the error, and a position


@dataclass(frozen=True)
class Sizes:
    """GPT-2-small with autoencoders at three sites of its last four blocks, and a prompt of 64 tokens."""

    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    vocab: int = 50257
    tokens: int = 64
    prompts: int = 1
    blocks: int = 4
    sites: tuple[str, ...] = ("attn", "mlp", "resid")
    d_sae: int = 24576
    k: int = 32

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """Where the autoencoders are."""
        return tuple(hook_points(range(self.n_layers - self.blocks, self.n_layers), self.sites))


TINY = Sizes(n_layers=3, d_model=24, n_heads=3, vocab=89, tokens=6, blocks=2, d_sae=48, k=4)


class Setting:
    """The model, its autoencoders and the prompts of some sizes, random from one seed."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        config = transformers.GPT2Config(
            n_layer=sizes.n_layers,
            n_embd=sizes.d_model,
            n_head=sizes.n_heads,
            vocab_size=sizes.vocab,
            n_positions=max(1024, sizes.tokens),
        )
        self.adapter = ModelAdapter.of(transformers.GPT2LMHeadModel(config).eval().requires_grad_(False))
        self.coders = Coders.of(_random_sae(hook, sizes) for hook in sizes.hooks)
        ids = torch.randint(sizes.vocab, (sizes.prompts, sizes.tokens)).tolist()
        self.prompts = [Prompt("random", tuple(row), tuple(map(str, row)), 0) for row in ids]

    def panel(self, *, batch_size: int = 64, positions: str = "all") -> Panel:
        """The prompts with the zero baseline, not run yet."""
        absent = baselines.zero(self.coders)
        return Panel.of(
            self.adapter,
            self.coders,
            self.prompts,
            metric="log-prob",
            positions=Positions.of(positions, self.prompts),
            baseline_of=lambda subject, numbers: absent,
            batch_size=batch_size,
        )


def _random_sae(hook: HookPoint, sizes: Sizes) -> TopKSae:
    sae = TopKSae(SaeConfig(hook, sizes.d_model, sizes.d_sae), k=sizes.k).requires_grad_(False)
    sae.W_dec.normal_().div_(sae.W_dec.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec.T)
    return sae.eval()


@dataclass(frozen=True)
class Plain:
    """Effects and edges on one prompt, baseline zero, as their definitions say, one after the other, with the dense
    coders."""

    subject: Subject

    @property
    def coders(self) -> Coders:
        """The autoencoders."""
        return self.subject.coders

    def effects(self, hook: HookPoint, *, steps: int) -> Tensor:
        """Integrated gradients of all features of a hook point by a whole pass for each step: (position, d_sae)."""
        coder, codes, error = self.coders[hook], self.subject.codes[hook], self.subject.errors[hook]
        total = torch.zeros_like(codes)
        for step in range(steps):
            share = (step + 0.5) / steps
            leaf = (share * codes).requires_grad_()
            with torch.enable_grad():
                x = leaf @ coder.W_dec + coder.b_dec + share * error
                logits = self.subject.logits({hook: lambda _, x=x: x}, start=-1)
                value = self.subject.metric.value(logits).sum()
                total += torch.autograd.grad(value, leaf)[0]
        return (total / steps * codes)[0]

    def held(self, hook: HookPoint, leaves: dict[HookPoint, Tensor]) -> Callback:
        """A tap that goes on with the clean activation, as a leaf."""

        def callback(_: Tensor) -> Tensor:
            leaves[hook] = self.subject.activation(hook).clone().requires_grad_()
            return leaves[hook]

        return callback

    def run(self, source: HookPoint, end: HookPoint) -> tuple[Tensor, Tensor]:
        """A pass from a hook point with all others held: what is held there, and what arrives at a later one."""
        leaves: dict[HookPoint, Tensor] = {}
        seen: dict[HookPoint, Tensor] = {}
        between = [hook for hook in self.coders if source <= hook < end]
        taps = {hook: self.held(hook, leaves) for hook in between} | {end: keep(seen, end)}
        self.subject.run(taps, start=first_block(source), stop=end.layer + 1)
        return leaves[source], seen[end]

    def edges(
        self, targets: Mapping[HookPoint, list[Node]], slopes: Mapping[HookPoint, Tensor]
    ) -> Iterator[tuple[HookPoint, HookPoint, Node, Tensor, Tensor]]:
        """Edges into nodes: one pass for each pair of hook points, then one vector-Jacobian product and one projection
        for each node. Source, target, node, weights of features (position, d_sae) and errors (position).

        slopes: gradient of the metric by the activation at each hook point.
        """
        for end, nodes in targets.items():
            for source in self.coders:
                if nodes and is_direct(source, end):
                    with torch.enable_grad():
                        held, x = self.run(source, end)
                        coder = self.coders[end]
                        codes = coder.encode(x)
                        error = x - codes @ coder.W_dec - coder.b_dec
                    for node in nodes:
                        gradient = self._product(held, codes, error, node, slopes[end], coder)
                        weights = gradient[0] @ self.coders[source].W_dec.T * self.subject.codes[source][0]
                        yield source, end, node, weights, (gradient * self.subject.errors[source]).sum(-1)[0]

    def _product(self, held: Tensor, codes: Tensor, error: Tensor, node: Node, slope: Tensor, coder: TopKSae) -> Tensor:
        index, at = node
        along = slope[:, at] @ coder.W_dec[index] * codes[:, at, index] if index is not None else None
        with torch.enable_grad():
            value = (slope[:, at] * error[:, at]).sum() if along is None else along.sum()
            return torch.autograd.grad(value, held, retain_graph=True)[0]


@dataclass(frozen=True)
class Drawn(NaiveSearch):
    """Ablations of so many live features of each hook point, drawn with the seed."""

    n: int = 16

    def sources(self, hook: HookPoint) -> list[Target]:
        """See `NaiveSearch`."""
        live = [source for source in live_sources(self.panel, hook) if source.index is not None]
        order = torch.randperm(len(live), generator=torch.Generator().manual_seed(self.seed))
        return [live[number] for number in sorted(order[: self.n].tolist())]


def is_direct(source: HookPoint, end: HookPoint) -> bool:
    """Whether a path from one hook point to a later one avoids all others, where attn, mlp and resid are spliced."""
    if source.layer == end.layer:
        return source < end
    return source.site == "resid" and source.layer == end.layer - 1
