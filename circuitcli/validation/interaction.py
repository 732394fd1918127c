"""How few edges between the features of two hook points carry what a model does: SCALAR's interaction curves.

Fillingham et al. 2025, arXiv:2511.07572. Edges between the features of two SAEs, which carry no positions, are ranked,
and the first N are kept. A feature of the later hook point is then computed from the earlier features that have a kept
edge into it, all others being zero at every position, by a run of what lies between; one without an edge has a
pre-activation of 0. The later SAE makes codes of these pre-activations, as TopK does of all of them together, decodes
them, and the rest of the model runs on. Errors of both hook points are left out. The curve is the divergence
``KL(model || edges)`` of the next token, in nats, a mean over tokens and prompts, over N; and so is that from the run
with all edges, ``KL(all edges || edges)``.

The area under it is taken by trapezoids over N from 0 to all possible edges, the product of both widths. As it is
(``absolute``, nats times edges) it favours small dictionaries; divided by the possible edges (``relative``, nats) it is
flattered by features that are never active: look at both. The same above what all edges leave (the floor, which is what
the two SAEs miss) tells of the edges alone, and so does that area over the live edges, which neither of them flatters.
The published code's area ends at 262,144 edges, however many there may be (``capped``); divided by the possible edges
it is all but sure to be smaller for wider SAEs (``relative_capped``, between sets only).

Live edges are those between features that are active in some prompt. With attributions of each source's own value (see
`feature_edges`) all others come last and change nothing, so that behind the last live one the curve is flat, exactly.

As the published code has it (``rule="paper"``): codes are the pre-activations that are at least the k-th largest,
negative ones too; the run with all edges has the later codes of the clean run; and 1e-8 is added to probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.progress import note, task
from circuitcli.saes.base import SparseCoder
from circuitcli.validation.between import Between
from circuitcli.validation.feature_edges import Order
from circuitcli.validation.interaction_sets import CAP
from circuitcli.validation.scores import Keeper, anew

# Where the paper's curve is taken.
PAPER_POINTS = (
    *(1, 2, 4, 5, 7, 11, 16, 22, 32, 45, 63, 90, 127, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4095, 5792),
    *(8191, 11585, 16383, 23170, 32768, 46340, 65536, 92681, 131072, 185363, CAP),
)
_SMOOTH = 1e-8


@dataclass(frozen=True)
class Curve:
    """Divergences from the model and from the run with all edges, with so many edges kept.

    Both are means over the tokens of each prompt, in nats. n_live: edges between features that are active somewhere;
    n_possible: the product of both widths. floor: the divergence of the run with all edges.
    """

    n_edges: tuple[int, ...]
    divergence: Float[Tensor, "point prompt"]
    n_live: int
    n_possible: int
    from_all: Float[Tensor, "point prompt"] | None = None
    floor: Float[Tensor, " prompt"] | None = None

    def areas(self, values: Float[Tensor, "point prompt"], *, up_to: int | None = None) -> Float[Tensor, " prompt"]:
        """By trapezoids over the number of edges, in nats times edges; up_to: of the first so many edges."""
        at = torch.tensor(self.n_edges, dtype=torch.float64)
        if up_to is None or up_to >= self.n_edges[-1]:
            return torch.trapezoid(values.movedim(0, -1), at, dim=-1)
        before = int((at <= up_to).sum())
        share = (up_to - at[before - 1]) / (at[before] - at[before - 1])
        last = values[before - 1] + share * (values[before] - values[before - 1])
        at = torch.cat([at[:before], torch.tensor([up_to], dtype=torch.float64)])
        return torch.trapezoid(torch.cat([values[:before], last[None]]).movedim(0, -1), at, dim=-1)

    @property
    def least(self) -> Float[Tensor, " prompt"]:
        """The divergence with all edges."""
        return self.divergence[-1] if self.floor is None else self.floor

    @property
    def above(self) -> Float[Tensor, "point prompt"]:
        """The divergence less that with all edges."""
        return self.divergence - self.least


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
    between: Sequence[Between],
    order: Order,
    *,
    n_live: int,
    n_possible: int,
    points: Sequence[int] | None = None,
    rule: str = "own",
    keep: Keeper = anew,
) -> Curve:
    """The curve of some prompts, with edges kept in this order.

    points: of the curve, beside none and all edges; by default powers of two up to the last edge that changes
    something; those of the paper begin at 1. keep: takes the points that were made before.
    """
    asked = points_up_to(order.n) if points is None else [n for n in points if n <= n_possible]
    if not asked or asked[0] > 1:
        # Without its beginning the area would be the smaller the later the first point is.
        asked = [0, *asked]
    note(
        f"{len(order.features):,} later features, {len(asked)} points and {len(between)} prompts: up to "
        f"{len(order.features) * len(asked) * len(between):,} runs of what lies between {between[0].source} and "
        f"{between[0].target}"
    )
    rows = []
    with torch.no_grad(), task("interaction", total=(len(asked) + 1) * len(between), unit="runs") as advance:
        for n in asked:
            rows.append(keep(f"{n} edges", partial(_point, between, order, n, rule)))
            advance(len(between))
        # Behind the last edge that changes something it is flat; the published code has other codes with all of them.
        is_flat = points is None and rule == "own"
        whole = rows[-1] if is_flat else keep("all edges", partial(_whole, between, rule))
        advance(len(between))
    if asked[-1] < n_possible:
        asked, rows = [*asked, n_possible], [*rows, whole]
    else:
        rows[-1] = whole
    numbers = torch.tensor(rows, dtype=torch.float64).unflatten(1, (len(between), 2))
    floor = torch.tensor(whole, dtype=torch.float64).unflatten(0, (len(between), 2))[:, 0]
    return Curve(tuple(asked), numbers[..., 0], n_live, n_possible, numbers[..., 1], floor)


def _point(between: Sequence[Between], order: Order, n: int, rule: str) -> list[float]:
    """Both divergences of each prompt with the first n edges."""
    kept = order.first(n)
    found: list[float] = []
    for one in between:
        pre = one.pre_with(kept, order.units, order.features)
        found += _divergences(one, sparse(one.coders[1], pre, rule), rule)
    return found


def _whole(between: Sequence[Between], rule: str) -> list[float]:
    return [number for one in between for number in _divergences(one, _all_codes(one, rule), rule)]


def _divergences(one: Between, codes: Float[Tensor, "position d_target"], rule: str) -> tuple[float, float]:
    return one.divergences(codes, _all_codes(one, rule), _SMOOTH if rule == "paper" else 0.0)


def _all_codes(one: Between, rule: str) -> Float[Tensor, "position d_target"]:
    return one.subject.codes[one.target][0] if rule == "paper" else one.full


def sparse(
    coder: SparseCoder, pre: Float[Tensor, "position d_sae"], rule: str = "own"
) -> Float[Tensor, "position d_sae"]:
    """Codes of pre-activations of which many are 0: as the coder has it, or of TopK as the published code has it."""
    k = getattr(coder, "k", None)
    if rule == "own" or not isinstance(k, int):
        return coder.sparsify(pre)
    return pre * (pre >= pre.topk(k, dim=-1).values[..., -1:])


def points_up_to(n: int) -> list[int]:
    """0, the powers of two, and n."""
    powers = [0, *(2**exponent for exponent in range(n.bit_length()))]
    return [*(power for power in powers if power < n), n]
