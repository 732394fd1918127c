"""Where each feature is strongest: its best blocks of text, with the tokens around the strongest one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Stands where a block of text has no token: before its first and after its last.
NO_TOKEN = -1


@dataclass(frozen=True)
class CodedBlocks:
    """Whole blocks of text in codes, row by row.

    codes may lie on any device, all else on the CPU. starts: first row of each block, and after the last block the
    number of rows. has_row: which tokens have an activation, None for all; the others have no code.
    """

    codes: Float[Tensor, "row d_sae"]
    token: Int[Tensor, " row"]
    block: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    starts: Int[Tensor, " edge"]
    has_row: Bool[Tensor, " row"] | None = None

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.starts) - 1

    def of(self, features: Sequence[int] | None) -> "CodedBlocks":
        """The same text in the codes of these features alone; of all for None."""
        return self if features is None else replace(self, codes=self.codes[:, list(features)])

    def block_index(self) -> Int[Tensor, " row"]:
        """Which of these blocks a row lies in."""
        return torch.repeat_interleave(self.starts.diff())


@dataclass(frozen=True)
class Entries:
    """The activations of one sign: row, feature and size of each, by row, on the CPU."""

    rows: Int[Tensor, " entry"]
    features: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]


def entries(codes: Float[Tensor, "row d_sae"], *, sign: int = 1) -> Entries:
    """What is active in a piece of codes: what is above zero, or with -1 what is below it, without the sign."""
    rows, features = (codes > 0 if sign > 0 else codes < 0).nonzero(as_tuple=True)
    values = codes[rows, features] * sign
    return Entries(rows.cpu(), features.cpu(), values.cpu().float())


@dataclass(frozen=True)
class Slots:
    """Peaks that are new: which of the features at hand, which of its peaks, and in which row."""

    index: Int[Tensor, " new"]
    slot: Int[Tensor, " new"]
    rows: Int[Tensor, " new"]


class Peaks:
    """The strongest peaks of each feature, at most one in each block of text, strongest first; of equals the earlier.

    values (d_sae, n_peaks): size of the activation at the peak, 0 where a feature has fewer peaks. token, previous,
    block, position: of the peak; ``previous`` is the token before it, NO_TOKEN at a block's first. For the first
    ``n_windows`` peaks, tokens and activations (d_sae, n_windows, 2 * window + 1) show what is around the peak, which
    is in the middle, signs included; a window ends at the ends of its block, and holds NO_TOKEN beyond.
    """

    def __init__(self, d_sae: int, *, n_peaks: int, n_windows: int, window: int) -> None:
        self.n_peaks, self.n_windows, self.window = max(n_peaks, n_windows), n_windows, window
        self.values: Float[Tensor, "d_sae n_peaks"] = torch.zeros(d_sae, self.n_peaks)
        # Token, previous token, block and position of each peak.
        self._places = torch.full((d_sae, self.n_peaks, 4), NO_TOKEN)
        shape = (d_sae, n_windows, 2 * window + 1)
        self.tokens: Int[Tensor, "d_sae n_windows width"] = torch.full(shape, NO_TOKEN, dtype=torch.int32)
        self.activations: Float[Tensor, "d_sae n_windows width"] = torch.zeros(shape)

    @property
    def token(self) -> Int[Tensor, "d_sae n_peaks"]:
        """The token at each peak."""
        return self._places[..., 0]

    @property
    def previous(self) -> Int[Tensor, "d_sae n_peaks"]:
        """The token before each peak."""
        return self._places[..., 1]

    @property
    def block(self) -> Int[Tensor, "d_sae n_peaks"]:
        """The block of text of each peak."""
        return self._places[..., 2]

    @property
    def position(self) -> Int[Tensor, "d_sae n_peaks"]:
        """The position of each peak in its block."""
        return self._places[..., 3]

    def add(self, blocks: CodedBlocks, active: Entries) -> None:
        """Take in the peaks of more blocks, which must come after those taken in before."""
        found, rows = block_peaks(blocks, active)
        # Nothing changes for a feature without a peak above its weakest one: later ones lose against equals.
        better = (found.amax(dim=1) > self.values[:, -1]).nonzero()[:, 0]
        if not len(better):
            return
        found, rows = found[better], rows[better]
        joined = torch.cat([self.values[better], found], dim=1)
        order = joined.argsort(dim=1, descending=True, stable=True)[:, : self.n_peaks]
        values = joined.gather(1, order)
        is_new = (order >= self.n_peaks) & (values > 0)
        index, slot = is_new.nonzero(as_tuple=True)
        peak_rows = rows[index, order[index, slot] - self.n_peaks]
        kept = order.clamp(max=self.n_peaks - 1)[..., None].expand(-1, -1, 4)
        places = self._places[better].gather(1, kept)
        places[index, slot] = _places(blocks, peak_rows)
        self.values[better], self._places[better] = values, places
        self._add_windows(blocks, better, order, Slots(index, slot, peak_rows))

    def _add_windows(
        self, blocks: CodedBlocks, features: Int[Tensor, " n"], order: Int[Tensor, "n n_peaks"], new: Slots
    ) -> None:
        """Move the windows that stay to their new slots and read the new ones."""
        shown = new.slot < self.n_windows
        index, slot, rows = new.index[shown], new.slot[shown], new.rows[shown]
        changed, place = index.unique(return_inverse=True)
        if not len(changed):
            return
        # A peak that stays never moves up, so its window is one of those that are kept.
        kept = order[changed, : self.n_windows].clamp(max=self.n_windows - 1)
        kept = kept[..., None].expand(-1, -1, 2 * self.window + 1)
        tokens = self.tokens[features[changed]].gather(1, kept)
        activations = self.activations[features[changed]].gather(1, kept)
        tokens[place, slot], activations[place, slot] = _windows(blocks, features[index], rows, self.window)
        self.tokens[features[changed]], self.activations[features[changed]] = tokens, activations


def block_peaks(
    blocks: CodedBlocks, active: Entries
) -> tuple[Float[Tensor, "d_sae block"], Int[Tensor, "d_sae block"]]:
    """Each feature's largest activation in each block, 0 if there is none, and the first row that has it."""
    n_rows, d_sae = blocks.codes.shape
    cells = active.features * blocks.n_blocks + blocks.block_index()[active.rows]
    values = torch.zeros(d_sae * blocks.n_blocks).scatter_reduce_(0, cells, active.values, "amax")
    is_peak = active.values == values[cells]
    rows = torch.full((d_sae * blocks.n_blocks,), n_rows - 1)
    rows.scatter_reduce_(0, cells[is_peak], active.rows[is_peak], "amin")
    return values.view(d_sae, -1), rows.view(d_sae, -1)


def _places(blocks: CodedBlocks, rows: Int[Tensor, " peak"]) -> Int[Tensor, "peak 4"]:
    starts = blocks.starts[blocks.block_index()][rows]
    previous = torch.where(rows > starts, blocks.token[(rows - 1).clamp(min=0)], NO_TOKEN)
    return torch.stack([blocks.token[rows], previous, blocks.block[rows], blocks.position[rows]], dim=-1)


def _windows(
    blocks: CodedBlocks, features: Int[Tensor, " peak"], rows: Int[Tensor, " peak"], window: int
) -> tuple[Int[Tensor, "peak width"], Float[Tensor, "peak width"]]:
    """Tokens around each peak, and the activations of the peak's feature at them, inside the peak's block."""
    index = blocks.block_index()[rows, None]
    around = rows[:, None] + torch.arange(-window, window + 1)  # (peak, width)
    is_inside = (around >= blocks.starts[index]) & (around < blocks.starts[index + 1])
    around = torch.where(is_inside, around, rows[:, None])
    tokens = torch.where(is_inside, blocks.token[around], NO_TOKEN).int()
    device = blocks.codes.device
    activations = blocks.codes[around.to(device), features[:, None].to(device)].cpu().float()
    return tokens, activations * is_inside
