"""What each attention head brings to edges, and how an edge tells it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.graphs import Edge

# How parts are named: 5.3 for what head 3 of block 5 moves, 5.3/qk for where it looks, and what is not of one head.
LOOKS, OTHERS, STREAM = "/qk", "others", "stream"
MOST_HEADS = 10


@dataclass(frozen=True)
class Parts:
    """Of each edge what each head brings: by what it moves, and by where it looks (0 where patterns are constant).

    layers: the blocks that the middle axis stands for.
    """

    layers: tuple[int, ...]
    moved: Float[Tensor, "edge layer head"]
    looked: Float[Tensor, "edge layer head"]

    @classmethod
    def gathered(cls, pieces: Sequence[tuple[Sequence[int], "Parts"]]) -> "Parts":
        """Parts of edges in their order, from pieces with the numbers of their edges."""
        numbers = torch.tensor([number for some, _ in pieces for number in some])
        order = numbers.argsort().to(pieces[0][1].moved.device)
        moved, looked = (
            torch.cat(found)[order] for found in zip(*((p.moved, p.looked) for _, p in pieces), strict=True)
        )
        return cls(pieces[0][1].layers, moved, looked)

    def times(self, factor: float) -> "Parts":
        """All parts times a number."""
        return replace(self, moved=self.moved * factor, looked=self.looked * factor)

    def plus(self, other: "Parts") -> "Parts":
        """The sum with the parts of the same edges elsewhere."""
        return replace(self, moved=self.moved + other.moved, looked=self.looked + other.looked)

    def told(self, edges: Sequence[Edge], *, count: int = MOST_HEADS) -> list[Edge]:
        """The edges with their ``count`` strongest parts by head, and what other heads and the stream carry."""
        both = torch.stack((self.moved, self.looked), dim=1).flatten(1).cpu().double()  # (edge, all)
        places = both.abs().topk(min(count, both.shape[1]), dim=1).indices
        values = both.gather(1, places).tolist()
        # What is left of numbers of this type where nothing is left.
        least = (30 * torch.finfo(self.moved.dtype).eps * both.abs().sum(dim=1)).tolist()
        made = []
        for row, (edge, whole) in enumerate(zip(edges, both.sum(dim=1).tolist(), strict=True)):
            named = zip(map(self._name, places[row].tolist()), values[row], strict=True)
            heads = {name: value for name, value in named if value}
            rest = {OTHERS: whole - sum(heads.values()), STREAM: edge.weight - whole}
            heads |= {name: value for name, value in rest.items() if abs(value) > least[row]}
            made.append(replace(edge, heads=heads))
        return made

    def _name(self, place: int) -> str:
        n_heads = self.moved.shape[2]
        looks, place = divmod(place, len(self.layers) * n_heads)
        layer, head = divmod(place, n_heads)
        return f"{self.layers[layer]}.{head}{LOOKS if looks else ''}"
