"""How much each feature of one hook point gives to each feature of a later one: attributions, and the order by them.

Of prompt n and position t, the attribution of later feature j to earlier feature i is

    v = m_i * mean over points of d(sum over positions s of pre_j(s) where j is active at s) / d f_i(t)

with the other tokens in it where attention carries them, and over prompts and positions ``sqrt(sum v^2)`` (or
``sum |v|``). By method:

* ``ig``: points by the midpoint rule on the path from no feature to all, m the source's own code f_i(t); j counts as
  active where it is so in the run with all edges.
* ``paper``: as SCALAR's published code has it (Fillingham et al. 2025, arXiv:2511.07572): points from one end to the
  other, both with full weight; m the length of all codes of the token, so that features that are not active at it, and
  those that never are, get something too; j is active where it is so at that point; the path begins at the threshold
  where a JumpReLU feature is active.
* ``grad-act``: the gradient at the run with all edges times the code.
* ``jacobian``: the derivative itself, of features that are active by features that are active, where the model is:
  what the earlier SAE misses is there too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.progress import task
from circuitcli.saes.base import SparseCoder
from circuitcli.validation.between import Between

# Values in memory at once.
_PIECE = 2**22


@dataclass(frozen=True)
class Method:
    """How attributions are made; steps: points on the path. measure: how prompts and positions are joined."""

    name: str = "ig"
    steps: int = 10
    measure: str = "square"


@dataclass(frozen=True)
class Attributions:
    """Of edges from some earlier features (``units``) to some later ones (``features``); all others have none.

    live_units, live_features: those that are active in some prompt.
    """

    units: Int[Tensor, " unit"]
    features: Int[Tensor, " feature"]
    values: Float[Tensor, "unit feature"]
    live_units: Bool[Tensor, " d_source"]
    live_features: Bool[Tensor, " d_target"]

    @property
    def n_possible(self) -> int:
        """The product of both widths."""
        return len(self.live_units) * len(self.live_features)


def attributions(between: Sequence[Between], method: Method) -> Attributions:
    """Those of some prompts, joined."""
    live = [torch.stack([one.is_active[place] for one in between]).any(dim=0) for place in (0, 1)]
    # In the published code features that are never active get something too, and the model's own codes are others.
    is_wide = method.name in ("paper", "jacobian")
    units, features = (torch.ones_like(some) if is_wide else some for some in live)
    chosen = units.nonzero()[:, 0], features.nonzero()[:, 0]
    total = torch.zeros(len(chosen[1]), len(chosen[0]), dtype=torch.float64)
    with task("edges", total=len(between), unit="prompts") as advance:
        for one in between:
            for rows, values in _values(one, *chosen, method):
                found = values.square() if method.measure == "square" else values.abs()
                total.index_add_(0, rows.cpu(), found.cpu().double())
            advance()
    values = total.sqrt() if method.measure == "square" else total
    if is_wide:
        kept = live[1] | (values > 0).any(dim=1)
        chosen, values = (chosen[0], chosen[1][kept]), values[kept]
    return Attributions(*chosen, values.T.contiguous(), live[0], live[1])


def _values(
    one: Between, units: Int[Tensor, " unit"], features: Int[Tensor, " feature"], method: Method
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row unit"]]]:
    """Of one prompt, piece by piece: to which of the features each row belongs, and its values."""
    path = _Path.of(one, method)
    points = [*path.points()]
    counts = torch.stack([weights != 0 for _, weights in points]).any(dim=0).any(dim=0).cpu()
    places = counts[features].nonzero()[:, 0]
    own = features[places].to(one.codes.device)
    for begin in range(0, len(own), one.batch_size):
        some = own[begin : begin + one.batch_size]
        total = torch.zeros((), device=one.codes.device)
        for x, weights in points:
            total = total + one.gradients(x, some, weights[:, some].T / len(points))
        rows = total.abs().sum(dim=2).nonzero()
        for piece in rows.split(max(1, _PIECE // len(units))):
            feature, position = piece[:, 0], piece[:, 1]
            by_code = one.by_code(total[feature, position], position)[:, units]
            factor = path.factors[position][:, units if path.factors.shape[1] > 1 else slice(None)]
            yield places[begin + feature.cpu()], by_code * factor


@dataclass(frozen=True)
class _Path:
    """The points at which gradients are taken, and what they are multiplied by: (position, 1 or d_source).

    moves: what counts as active is looked at anew at each point.
    """

    one: Between
    base: Float[Tensor, "position d_source"]
    alphas: tuple[float, ...]
    factors: Float[Tensor, "position _"]
    moves: bool = False
    is_whole: bool = False

    @classmethod
    def of(cls, one: Between, method: Method) -> "_Path":
        codes, steps = one.codes, method.steps
        none = torch.zeros_like(codes)
        if method.name == "paper":
            base = _paper_base(one.coders[0], codes)
            alphas = tuple(torch.linspace(0, 1, steps).tolist())
            return cls(one, base, alphas, (codes - base).norm(dim=1, keepdim=True), moves=True)
        if method.name == "grad-act":
            return cls(one, none, (1.0,), codes)
        if method.name == "jacobian":
            return cls(one, none, (1.0,), (codes != 0).to(codes), is_whole=True)
        return cls(one, none, tuple((step + 0.5) / steps for step in range(steps)), codes)

    def points(self) -> Iterator[tuple[Float[Tensor, "1 position d_model"], Float[Tensor, "position d_target"]]]:
        """The earlier activation at each point, and the weight of each later feature there."""
        one = self.one
        for alpha in self.alphas:
            if self.is_whole:
                x = one.subject.activation(one.source)[:, one.subject.first :]
                yield x, (one.subject.codes[one.target][0] != 0).to(x)
                continue
            x = one.decoded((self.base + (one.codes - self.base) * alpha)[None])
            if self.moves:
                with torch.no_grad():
                    codes = one.coders[1].encode(one.arriving(x))[0]
                yield x, one.coders[1].slopes(codes)
            else:
                yield x, (one.full != 0).to(x)


def _paper_base(coder: SparseCoder, codes: Float[Tensor, "position d_source"]) -> Float[Tensor, "position d_source"]:
    threshold = getattr(coder, "threshold", None)
    return torch.zeros_like(codes) if threshold is None else (codes != 0) * threshold


@dataclass(frozen=True)
class Order:
    """Edges by their place in an order of all possible ones; those that are not here change nothing.

    place: 0 for the edge that comes first.
    """

    units: Int[Tensor, " unit"]
    features: Int[Tensor, " feature"]
    place: Int[Tensor, "unit feature"]

    @property
    def n(self) -> int:
        """The number of edges with which all of these are kept."""
        return int(self.place.max()) + 1 if self.place.numel() else 0

    def first(self, n: int) -> Bool[Tensor, "unit feature"]:
        """Which of them are among the first n."""
        return self.place < n


def ordered(found: Attributions, by: str, *, seed: int) -> Order:
    """Edges by attribution, the largest first; or at random, among all possible ones or (``random-live``) among those
    between features that are active in some prompt."""
    inside = found.live_units[found.units]
    if by == "attribution":
        numbers = found.values.flatten().argsort(descending=True, stable=True)
        place = torch.empty_like(numbers)
        place[numbers] = torch.arange(len(numbers))
        # What is never active changes nothing; in the published code it takes places nevertheless.
        return Order(found.units[inside], found.features, place.view(found.values.shape)[inside])
    units, features = found.live_units.nonzero()[:, 0], found.live_features.nonzero()[:, 0]
    n_live, generator = len(units) * len(features), torch.Generator().manual_seed(seed)
    if by == "random-live":
        place = torch.randperm(n_live, generator=generator)
    else:
        place = _drawn(n_live, found.n_possible, generator)
    return Order(units, features, place.view(len(units), len(features)))


def _drawn(n: int, among: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """n different numbers below ``among``, in random order, without a list of all."""
    found = torch.zeros(0, dtype=torch.int64)
    while len(found) < n:
        more = torch.randint(among, (2 * (n - len(found)) + 16,), generator=generator)
        found = torch.cat([found, more]).unique()
    return found[torch.randperm(len(found), generator=generator)[:n]]
