"""Which positions of a prompt are one node together: each by itself, all, the last, or those of named spans."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.attribution.prompts import Prompt
from circuitcli.errors import InputError, SettingsError

Kind = str  # all, last, sum or spans
# What the last position is called where it is another number in each prompt.
LAST = "last"


def chosen_kind(asked: Kind | None, prompts: Sequence[Prompt], *, default: Kind) -> Kind:
    """What positions nodes have: what is asked for, else ``default``; ``all`` only where prompts are equally long.

    Raises SettingsError for ``all`` of prompts of several lengths.
    """
    is_alike = len({(len(prompt.ids), prompt.first) for prompt in prompts}) == 1
    if asked == "all" and not is_alike:
        lengths = sorted({len(prompt.ids) for prompt in prompts})
        raise SettingsError(
            f"the prompts have {lengths[0]} to {lengths[-1]} tokens, so their positions do not correspond",
            hint="use --positions sum or last, or spans with named spans in the file",
        )
    return asked or (default if is_alike or default != "all" else "sum")


@dataclass(frozen=True)
class Positions:
    """The groups of positions that nodes stand for, the same in all prompts of a behaviour.

    names: of the groups as node ids write them; None where a node stands for all positions.
    """

    kind: Kind
    names: tuple[int | str | None, ...]

    @classmethod
    def of(cls, kind: Kind, prompts: Sequence[Prompt]) -> "Positions":
        """The groups of these prompts: ``all`` needs prompts of one length, ``spans`` prompts with the same spans."""
        first = prompts[0]
        if kind == "sum":
            return cls(kind, (None,))
        if kind == "last":
            is_alike = {(prompt.last, prompt.first) for prompt in prompts} == {(first.last, first.first)}
            return cls(kind, (first.last if is_alike else LAST,))
        if kind == "all":
            return cls(kind, tuple(range(first.first, first.last + 1)))
        return cls(kind, tuple(name for name, _ in first.spans))

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.names)

    def masks(self, prompts: Sequence[Prompt], device: torch.device) -> Bool[Tensor, "text group spliced"]:
        """Which of the positions that carry nodes belong to each group."""
        n = prompts[0].n_spliced
        if self.kind == "sum":
            return torch.ones(len(prompts), 1, n, dtype=torch.bool, device=device)
        if self.kind in ("all", "last"):
            eye = torch.eye(n, dtype=torch.bool, device=device)
            return (eye if self.kind == "all" else eye[-1:]).expand(len(prompts), -1, -1)
        masks = torch.zeros(len(prompts), self.n_groups, n, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            for group, (_, places) in enumerate(prompt.spans):
                masks[row, group, [place - prompt.first for place in places]] = True
        return masks.to(device)

    def summed(
        self, values: Float[Tensor, "row spliced nodes"], masks: Bool[Tensor, "row group spliced"]
    ) -> Float[Tensor, "row group nodes"]:
        """Values of the positions of each group, added up."""
        if self.kind == "sum":
            return values.sum(dim=1, keepdim=True)
        if self.kind == "all":
            return values
        return values[:, -1:] if self.kind == "last" else torch.einsum("rgp,rpn->rgn", masks.to(values), values)


def where(prompts: Sequence[Prompt], position: int | str | None, device: torch.device) -> Bool[Tensor, "text spliced"]:
    """Where a position is among those that carry nodes: a number, a span's name or ``last``, or None for all.

    Raises InputError for one that a prompt lacks.
    """
    rows = torch.zeros(len(prompts), prompts[0].n_spliced, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if position is None:
            rows[row] = True
            continue
        places = dict(prompt.spans).get(position) if isinstance(position, str) else (position,)
        places = (prompt.last,) if places is None and position == LAST else places
        if places is None or not all(prompt.first <= place <= prompt.last for place in places):
            raise InputError(
                f"there is no position {position} in the prompt {prompt.text[:40]!r}",
                hint=f"its positions are {prompt.first} to {prompt.last}"
                + (f", its spans {' '.join(name for name, _ in prompt.spans)}" if prompt.spans else ""),
            )
        rows[row, [place - prompt.first for place in places]] = True
    return rows.to(device)
