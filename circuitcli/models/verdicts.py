"""What one block's probe says of its hook points: which are what their names say, and by how much others miss it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.models.probing import ATTN, ATTN_IN, CLEAN, FREE, MIDDLE, MLP, MLP_IN, STREAM, BlockView

# What is further apart than that, or no number, is as far apart as can be.
_BEYOND = 1e4


@dataclass(frozen=True)
class Tolerance:
    """How far numbers of one type may be apart that would be equal without rounding, relative to them.

    share: the part of tokens that must keep to it. Sums of 16-bit numbers may tip single tokens to other experts.
    """

    relative: float
    epsilon: float
    share: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Tolerance":
        """That of a model's number type."""
        epsilon = torch.finfo(dtype).eps
        return cls(2e-3, epsilon, 1.0) if epsilon < 1e-5 else cls(0.05, epsilon, 0.75)

    def missed(self, apart: Tensor, beside: Tensor, *, stream: Tensor) -> float:
        """How far apart tokens are, relative to ``beside``, without what rounding of the stream explains.

        All are norms of tokens; the number is the largest of the share of tokens that count.
        """
        missed = (apart - 8 * self.epsilon * stream).clamp(min=0) / beside.clamp(min=1e-30)
        return float(missed.float().cpu().flatten().nan_to_num(nan=_BEYOND).clamp(max=_BEYOND).quantile(self.share))


@dataclass(frozen=True)
class Verdict:
    """Sites of a block that are wrong, with the reason, and whether its MLP reads the stream without attention."""

    wrong: dict[str, str]
    is_parallel: bool


def verdict(view: BlockView, tolerance: Tolerance) -> Verdict:
    """What the copies of one block show. Sites that the block has not are not spoken of."""
    block = _Block(view, tolerance)
    has_attention, has_mlp = "attn" in view.sites, "mlp" in view.sites
    is_parallel = has_attention and has_mlp and not block.moves("mlp_in", ATTN)
    wrong: dict[str, str | None] = {}
    sums = block.wrong_sum(CLEAN, FREE)
    if has_attention and has_mlp and not is_parallel:
        wrong["resid_mid"] = block.wrong_middle() or (sums and block.unread_middle())
    if has_attention:
        in_the_middle = has_mlp and not is_parallel and wrong["resid_mid"] is None
        wrong["attn"] = None if in_the_middle else sums or block.wrong_sum(ATTN)
        wrong["attn_in"] = block.wrong_input("attn_in", "attn", ATTN_IN) or (
            block.wrong_company("mlp_in", ATTN_IN, is_parallel=is_parallel) if has_mlp else None
        )
    if has_mlp:
        wrong["mlp"] = sums or block.wrong_sum(MLP)
        wrong["mlp_in"] = block.wrong_input("mlp_in", "mlp", MLP_IN) or (
            block.wrong_company("attn", MLP_IN, is_parallel=True) if has_attention else None
        )
    return Verdict({site: why for site, why in wrong.items() if why is not None}, is_parallel)


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


class _Block:
    """The identities of one block, each None if it holds, else in words with a number."""

    def __init__(self, view: BlockView, tolerance: Tolerance) -> None:
        self._sites, self._reads, self._tolerance = view.sites, view.reads, tolerance

    def _norm(self, site: str, *rows: int) -> Float[Tensor, "row position"]:
        return self._sites[site][list(rows)].float().norm(dim=-1)

    def _apart(self, site: str, row: int, *, rounded: Tensor | float = 0.25) -> float:
        """How far a site of one copy is from that of the unchanged one; rounded: how much larger than it the numbers
        were that it was made from."""
        apart = (self._sites[site][row] - self._sites[site][CLEAN]).float().norm(dim=-1)
        beside = self._norm(site, CLEAN)[0]
        return self._tolerance.missed(apart, beside, stream=beside * rounded)

    def moves(self, site: str, row: int) -> bool:
        """Whether a site of one copy differs at all from the unchanged one."""
        apart = (self._sites[site][row] - self._sites[site][CLEAN]).float().norm(dim=-1)
        return bool((apart > max(1e-5, self._tolerance.epsilon / 2) * self._norm(site, CLEAN)[0]).any())

    def is_same(self, site: str, row: int) -> bool:
        """Whether a site of one copy is as in the unchanged one."""
        return self._apart(site, row) <= self._tolerance.relative

    def wrong_sum(self, *rows: int) -> str | None:
        """resid_pre + attn + mlp = resid, in these copies."""
        parts = [site for site in ("attn", "mlp") if site in self._sites]
        if not parts:
            return None
        added = torch.stack([self._sites[site][list(rows)] for site in parts]).sum(dim=0)
        before, after = (self._sites[site][list(rows)] for site in ("resid_pre", "resid"))
        beside = torch.stack([self._norm(site, *rows) for site in parts]).sum(dim=0)
        stream = beside + before.float().norm(dim=-1) + after.float().norm(dim=-1)
        missed = self._tolerance.missed((before + added - after).float().norm(dim=-1), beside, stream=stream)
        if missed <= self._tolerance.relative:
            return None
        return f"{' + '.join(['resid_pre', *parts])} misses resid by {percent(missed)} of what they add"

    def wrong_middle(self) -> str | None:
        """What the MLP reads depends on resid_pre + attn alone."""
        # A change that was put in and taken out again leaves its rounding beside what the two make together.
        middle = (self._sites["resid_pre"] + self._sites["attn"])[CLEAN].float().norm(dim=-1)
        missed = self._apart("mlp_in", MIDDLE, rounded=2 * self._norm("resid_pre", CLEAN)[0] / middle)
        if missed <= self._tolerance.relative:
            return None
        return f"the MLP reads something other than resid_pre + attn: it changed by {percent(missed)} while they stayed"

    def unread_middle(self) -> str | None:
        """resid_pre + attn, without which the sum is not understood, is what a norm or the MLP takes."""
        return None if self._reads.get("resid_mid", False) else "nothing in the block reads exactly resid_pre + attn"

    def wrong_input(self, site: str, gives: str, row: int) -> str | None:
        """What a part gives depends on this site alone, and does depend on it; and its weights read it as it is."""
        what = {"attn": "attention", "mlp": "the MLP"}[gives]
        width, d_model = (self._sites[name].shape[-1] for name in (site, "resid"))
        if width != d_model:
            return f"{what} reads {width} numbers for each token, but the stream has {d_model}"
        missed = self._apart(gives, STREAM)
        if missed > self._tolerance.relative:
            return f"{what} reads something else too: it changed by {percent(missed)} while {site} stayed"
        if not self._reads.get(site, False):
            return f"no weight of {what} reads it as it is: something lies between"
        if not self.moves(gives, row):
            return f"{what} does not read it: it stayed the same when {site} was changed"
        return None

    def wrong_company(self, other: str, row: int, *, is_parallel: bool) -> str | None:
        """A change of what one part reads leaves the other part alone, where that does not follow from it."""
        if not is_parallel or self.is_same(other, row):
            return None
        return f"a change of it also changes {other}, by {percent(self._apart(other, row))}"
