"""How few edges between the features of two hook points carry what a model does: SCALAR's interaction curves.

Fillingham et al. 2025, arXiv:2511.07572. Edges between the features of two SAEs, which carry no positions, are ranked,
and the first N are kept. A feature of the later hook point is then computed from the earlier features that have a kept
edge into it, all others being zero at every position, by a run of what lies between; one without an edge has a
pre-activation of 0. The later SAE makes codes of these pre-activations, as TopK does of all of them together, decodes
them, and the rest of the model runs on. Errors of both hook points are left out. The curve is the divergence
``KL(model || edges)`` of the next token, in nats, a mean over tokens and prompts, over N.

The area under it is taken by trapezoids over N from 0 to all possible edges, the product of both widths. As it is
(``absolute``, nats times edges) it favours small dictionaries; divided by the possible edges (``relative``, nats) it is
flattered by features that are never active: look at both. The same above what all edges leave (the floor, which is what
the two SAEs miss) tells of the edges alone, and so does that area over the live edges, which neither of them flatters.

Ranking: ``sqrt(sum over prompts and positions of v^2)``, where v is the mean over the path from no feature to all, by
the midpoint rule, of d(sum of the later feature's pre-activation where it is active) / d f, times f: each source's own
value, not the length of all of them, and no point of the path twice, which the published code has otherwise. A later
feature counts as active where it is in the run with all edges. Live edges are those between features that are active in
some prompt; all others change nothing, so that behind the last live one the curve is flat, exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.metrics import log_softmax
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback, leaf
from circuitcli.progress import note, task
from circuitcli.saes.base import SparseCoder
from circuitcli.validation.scores import Keeper, anew


@dataclass(frozen=True)
class Curve:
    """Divergences with so many edges kept; of the points the last has all edges.

    divergence: mean over the tokens of each prompt, in nats. n_live: edges between features that are active somewhere;
    n_possible: the product of both widths.
    """

    n_edges: tuple[int, ...]
    divergence: Float[Tensor, "point prompt"]
    n_live: int
    n_possible: int

    def areas(self, values: Float[Tensor, "point prompt"]) -> Float[Tensor, " prompt"]:
        """By trapezoids over the number of edges, in nats times edges."""
        at = torch.tensor(self.n_edges, dtype=torch.float64)
        return torch.trapezoid(values.movedim(0, -1), at, dim=-1)

    @property
    def above(self) -> Float[Tensor, "point prompt"]:
        """The divergence less that with all edges."""
        return self.divergence - self.divergence[-1]


@dataclass(frozen=True)
class Bounded:
    """A number with the bounds of its 95 % interval over prompts, None for a single one."""

    value: float
    low: float | None
    high: float | None


def bounded(of: Float[Tensor, " prompt"], *, bootstrap: int, seed: int) -> Bounded:
    """The mean over prompts, with its bootstrap interval."""
    count, value = len(of), float(of.mean())
    if count < 2 or bootstrap == 0:
        return Bounded(value, None, None)
    draws = torch.randint(count, (bootstrap, count), generator=torch.Generator().manual_seed(seed))
    low, high = of[draws].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Bounded(value, low, high)


def check_pair(source: SparseCoder, target: SparseCoder) -> None:
    """Raise InputError for coders between which no edges are: not in order, or not autoencoders whose codes are made of
    their own pre-activations at each position."""
    if not source.hook < target.hook:
        raise InputError(f"{source.hook} does not come before {target.hook}", hint="name the earlier hook point first")
    for coder in (source, target):
        if coder.is_transcoder or coder.reads_context or type(coder).encode is not SparseCoder.encode:
            raise InputError(
                f"the coder at {coder.hook} ({coder.architecture}) is not an autoencoder that codes each position by "
                "its own pre-activations",
                hint="choose hook points with such SAEs",
            )


def interaction(
    subjects: Sequence[Subject],
    source: HookPoint,
    target: HookPoint,
    *,
    steps: int = 10,
    batch_size: int = 64,
    keep: Keeper = anew,
) -> Curve:
    """The curve between two hook points of subjects of one prompt each, through SAEs at both.

    keep: takes the points that were made before. Raises InputError as `check_pair` does.
    """
    coders = subjects[0].coders[source], subjects[0].coders[target]
    check_pair(*coders)
    between = [_Between(subject, source, target, batch_size) for subject in subjects]
    ranked = Ranked.of(between, steps)
    points = points_up_to(ranked.n_live)
    note(
        f"{len(ranked.features):,} later features, {len(points)} points and {len(between)} prompts: up to "
        f"{len(ranked.features) * len(points) * len(between):,} runs of what lies between {source} and {target}"
    )
    rows = []
    with torch.no_grad(), task("interaction", total=len(points) * len(between), unit="runs") as advance:
        for n in points:
            rows.append(keep(f"{n} edges", partial(_point, between, ranked, n)))
            advance(len(between))
    n_possible = coders[0].d_sae * coders[1].d_sae
    if points[-1] < n_possible:
        points, rows = [*points, n_possible], [*rows, rows[-1]]
    return Curve(tuple(points), torch.tensor(rows, dtype=torch.float64), ranked.n_live, n_possible)


def _point(between: "Sequence[_Between]", ranked: "Ranked", n: int) -> list[float]:
    """The divergence of each prompt with the n edges that are worth most."""
    kept = ranked.first(n)
    return [one.divergence(one.codes_with(ranked, kept)) for one in between]


def points_up_to(n: int) -> list[int]:
    """0, the powers of two, and n."""
    powers = [0, *(2**exponent for exponent in range(n.bit_length()))]
    return [*(power for power in powers if power < n), n]


@dataclass(frozen=True)
class Ranked:
    """The live edges, from earlier features (``units``) to later ones (``features``), and how much each is worth."""

    units: Int[Tensor, " unit"]
    features: Int[Tensor, " feature"]
    strengths: Float[Tensor, "unit feature"]

    @classmethod
    def of(cls, between: "Sequence[_Between]", steps: int) -> "Ranked":
        """Those of some prompts."""
        units, features = (
            torch.stack([one.is_active[place] for one in between]).any(dim=0).nonzero()[:, 0] for place in (0, 1)
        )
        squares = torch.zeros(len(units), len(features), dtype=torch.float64)
        with task("edges", total=len(between), unit="prompts") as advance:
            for one in between:
                own = [one.is_active[place][some].nonzero()[:, 0] for place, some in ((0, units), (1, features))]
                for some in own[1].split(one.batch_size):
                    values = one.attributions(units[own[0]].tolist(), features[some].tolist(), steps)
                    squares[own[0][:, None], some] += values.square().sum(dim=1).T.cpu().double()
                advance()
        return cls(units, features, squares.sqrt())

    @property
    def n_live(self) -> int:
        """Number of live edges."""
        return self.strengths.numel()

    @cached_property
    def order(self) -> Int[Tensor, " edge"]:
        """Numbers of the edges, those first that are worth most."""
        return self.strengths.flatten().argsort(descending=True, stable=True)

    def first(self, n: int) -> Bool[Tensor, "unit feature"]:
        """Which are among the n that are worth most."""
        kept = torch.zeros(self.n_live, dtype=torch.bool)
        kept[self.order[:n]] = True
        return kept.view(len(self.units), len(self.features))


class _Between:
    """A prompt, and what lies between two hook points: earlier features of it in, later pre-activations out."""

    def __init__(self, subject: Subject, source: HookPoint, target: HookPoint, batch_size: int) -> None:
        self.subject, self.source, self.target, self.batch_size = subject, source, target, batch_size
        self.coders = (subject.coders[source], subject.coders[target])

    @cached_property
    def full(self) -> Float[Tensor, "1 position d_sae"]:
        """Later codes with all edges: of the run in which the earlier SAE stands for the activation."""
        with torch.no_grad():
            x = self.coders[0].decode(self.subject.codes[self.source], self.subject.coded.frames[self.source])
            return self.coders[1].encode(self.arriving(x))

    @cached_property
    def is_active(self) -> tuple[Bool[Tensor, " d_source"], Bool[Tensor, " d_target"]]:
        """Features of both that are active at some position, on the CPU."""
        return (
            (self.subject.codes[self.source][0] != 0).any(dim=0).cpu(),
            (self.full[0] != 0).any(dim=0).cpu(),
        )

    def decoded(
        self, codes: Float[Tensor, "row position unit"], units: Sequence[int]
    ) -> Float[Tensor, "row position d_model"]:
        """What the earlier SAE makes of some features' codes, all others being zero."""
        coder, frame = self.coders[0], self.subject.coded.frames[self.source]
        x = codes @ coder.decoder(self.source)[list(units)] + coder.decoder_bias(self.source)
        return x if frame is None else x * frame.scale + frame.mean

    def arriving(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position d_target"]:
        """What arrives at the later hook point, where the earlier one is x."""
        seen: list[Tensor] = []
        subject, first = self.subject, self.subject.first

        def see(whole: Tensor) -> None:
            seen.append(whole[:, first:])

        taps: dict[HookPoint, Callback] = {self.source: partial(_placed, x, first), self.target: see}
        subject.run(taps, texts=subject.copies(len(x)), start=first_block(self.source), stop=self.target.layer + 1)
        return seen[0].to(self.coders[1].W_enc)

    def attributions(
        self, units: Sequence[int], features: Sequence[int], steps: int
    ) -> Float[Tensor, "feature position unit"]:
        """Integrated gradients of later features, summed over the positions where they are active, in earlier ones."""
        codes = self.subject.codes[self.source][:, :, list(units)]
        is_active = (self.full[0][:, list(features)] != 0).T  # (feature, position)
        scale, total = self.subject.scale(self.source), torch.zeros(())
        for step in range(steps):
            x = leaf(self.decoded(codes * ((step + 0.5) / steps), units).expand(len(features), -1, -1))
            pre = columns(self.coders[1], self.arriving(x), features)
            total = total.to(x) + torch.autograd.grad((pre * is_active).sum(), x)[0]
        gradient = total / steps if scale is None else total / steps * scale
        return gradient @ self.coders[0].decoder(self.source)[list(units)].T * codes

    def codes_with(self, ranked: Ranked, kept: Bool[Tensor, "unit feature"]) -> Float[Tensor, "1 position d_sae"]:
        """Later codes with these edges; what depends on the same earlier features of the prompt is run once."""
        coder = self.coders[1]
        pre = coder.W_enc.new_zeros(1, self.subject.n_spliced, coder.d_sae)
        here = self.is_active[0][ranked.units].nonzero()[:, 0]
        having = kept.any(dim=0).nonzero()[:, 0]
        if len(having):
            units, features = ranked.units[here].tolist(), ranked.features[having]
            codes = self.subject.codes[self.source][:, :, units]
            sets, which = kept[here][:, having].T.unique(dim=0, return_inverse=True)  # (set, unit), (feature,)
            for begin in range(0, len(sets), self.batch_size):
                masks = sets[begin : begin + self.batch_size].to(codes.device)
                x = self.arriving(self.decoded(codes * masks[:, None], units))
                rows = ((which >= begin) & (which < begin + len(masks))).nonzero()[:, 0]
                for some in rows.split(self.batch_size):
                    chosen = features[some].tolist()
                    pre[0, :, chosen] = columns(coder, x[(which[some] - begin).to(x.device)], chosen).T
        return coder.sparsify(pre)

    def divergence(self, codes: Float[Tensor, "1 position d_sae"]) -> float:
        """The mean KL(model || run) over tokens, where the later hook point is what its SAE makes of these codes."""
        subject, places = self.subject, slice(self.subject.first, None)
        x = self.coders[1].decode(codes, subject.coded.frames[self.target])
        logits = subject.logits({self.target: partial(_placed, x, subject.first)}, positions=places)
        clean, run = (log_softmax(each) for each in (subject.clean_logits(places), logits))
        return float((clean.exp() * (clean - run)).sum(dim=-1).mean())


def _placed(x: Tensor, first: int, whole: Tensor) -> Tensor:
    """The activation with x at the spliced positions."""
    return torch.cat([whole[:, :first], x.to(whole)], dim=1)


def columns(
    coder: SparseCoder, x: Float[Tensor, "row position d_in"], features: Sequence[int]
) -> Float[Tensor, "row position"]:
    """Of each row the pre-activation of one feature, by one column of the encoder, where that is all that it takes."""
    chosen = list(features)
    if type(coder).pre_activations is SparseCoder.pre_activations:
        return torch.einsum("rpd,dr->rp", coder.centred(x), coder.W_enc[:, chosen]) + coder.b_enc[chosen][:, None]
    index = torch.tensor(chosen, device=x.device)[:, None, None].expand(-1, x.shape[1], 1)
    return coder.pre_activations(x).gather(2, index)[..., 0]
