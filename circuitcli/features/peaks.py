"""Where each feature is strongest: its best blocks of text, with the tokens around the strongest one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Stands where a block of text has no token: before its first and after its last.
NO_TOKEN = -1
# What is known of a peak, as columns of `_places`.
_N_FACTS, _DOCUMENT = 7, 5


@dataclass(frozen=True)
class CodedBlocks:
    """Whole blocks of text in codes, row by row.

    codes may lie on any device, all else on the CPU. starts: first row of each block, and after the last block the
    number of rows. has_row: which tokens have an activation, None for all; the others have no code. document: which
    document each block is from, None where that is not known. marks: what holds at each row, as of
    `surroundings.Surroundings`, none if not given.
    """

    codes: Float[Tensor, "row d_sae"]
    token: Int[Tensor, " row"]
    block: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    starts: Int[Tensor, " edge"]
    has_row: Bool[Tensor, " row"] | None = None
    document: Int[Tensor, " block"] | None = None
    marks: Int[Tensor, " row"] | None = None

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

    def groups(self) -> Int[Tensor, " block"]:
        """For each block which of these documents it is from, from 0; where that is not known, each is its own."""
        if self.document is None:
            return torch.arange(self.n_blocks)
        return self.document - self.document[0]


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


def drawn(blocks: CodedBlocks, active: Entries) -> Entries:
    """The same activations with numbers in (0, 1] for sizes, as drawn by lot: the largest of them are a sample of what
    is active.

    A token's number depends on its place in the text alone, so that the same features are sampled alike however the
    text is cut in pieces.
    """
    mixed = blocks.block * -0x61C8864680B583EB + blocks.position * 0x3C79AC492BA7B653
    mixed = (mixed ^ (mixed >> 29)) * 0x1CE4E5B9BF58476D
    numbers = (((mixed ^ (mixed >> 32)) & 0xFFFFFF) + 1).float() / 2**24
    return replace(active, values=numbers[active.rows])


@dataclass(frozen=True)
class Slots:
    """Peaks that are new: which of the features at hand, which of its peaks, and in which row."""

    index: Int[Tensor, " new"]
    slot: Int[Tensor, " new"]
    rows: Int[Tensor, " new"]


class Peaks:
    """The strongest peaks of each feature, at most one in each block of text, or in each document where these are
    known, strongest first; of equals the earlier.

    values (d_sae, n_peaks): size of the activation at the peak, 0 where a feature has fewer peaks. token, previous,
    following, block, position, document, marks: of the peak; ``previous`` is the token before it, NO_TOKEN at a block's
    first, ``following`` the one behind it, NO_TOKEN at a block's last. For the first
    ``n_windows`` peaks, tokens and activations (d_sae, n_windows, 2 * window + 1) show what is around the peak, which
    is in the middle, signs included; a window ends at the ends of its block, and holds NO_TOKEN beyond.
    """

    def __init__(self, d_sae: int, *, n_peaks: int, n_windows: int, window: int) -> None:
        self.n_peaks, self.n_windows, self.window = max(n_peaks, n_windows), n_windows, window
        self.values: Float[Tensor, "d_sae n_peaks"] = torch.zeros(d_sae, self.n_peaks)
        # As of `_places`.
        self._places = torch.full((d_sae, self.n_peaks, _N_FACTS), NO_TOKEN)
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

    @property
    def following(self) -> Int[Tensor, "d_sae n_peaks"]:
        """The token behind each peak."""
        return self._places[..., 4]

    @property
    def document(self) -> Int[Tensor, "d_sae n_peaks"]:
        """The document of each peak, NO_TOKEN where it is not known."""
        return self._places[..., _DOCUMENT]

    @property
    def marks(self) -> Int[Tensor, "d_sae n_peaks"]:
        """What holds at each peak."""
        return self._places[..., 6]

    def add(self, blocks: CodedBlocks, active: Entries) -> None:
        """Take in the peaks of more blocks, which must come after those taken in before."""
        found, rows = block_peaks(blocks, active)
        if blocks.document is not None:
            self._join(found, int(blocks.document[0]))
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
        kept = order.clamp(max=self.n_peaks - 1)[..., None].expand(-1, -1, _N_FACTS)
        places = self._places[better].gather(1, kept)
        places[index, slot] = _places(blocks, peak_rows)
        self.values[better], self._places[better] = values, places
        self._add_windows(blocks, better, order, Slots(index, slot, peak_rows))

    def _join(self, found: Float[Tensor, "d_sae group"], document: int) -> None:
        """Of a document that goes on keep the larger peak: the one of earlier blocks, or the one found now."""
        is_same = (self._places[..., _DOCUMENT] == document) & (self.values > 0)
        before = (self.values * is_same).amax(dim=1)
        is_larger = found[:, 0] > before
        # What takes the place of a peak is larger, so that no other peak moves up.
        self.values[is_same & is_larger[:, None]] = 0
        found[~is_larger & (before > 0), 0] = 0

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
) -> tuple[Float[Tensor, "d_sae group"], Int[Tensor, "d_sae group"]]:
    """Each feature's largest activation in each block or document, 0 if there is none, and the first row with it."""
    n_rows, d_sae = blocks.codes.shape
    groups = blocks.groups()
    n_groups = int(groups[-1]) + 1 if len(groups) else 0
    cells = active.features * n_groups + groups[blocks.block_index()[active.rows]]
    values = torch.zeros(d_sae * n_groups).scatter_reduce_(0, cells, active.values, "amax")
    is_peak = active.values == values[cells]
    rows = torch.full((d_sae * n_groups,), n_rows - 1)
    rows.scatter_reduce_(0, cells[is_peak], active.rows[is_peak], "amin")
    return values.view(d_sae, -1), rows.view(d_sae, -1)


def _places(blocks: CodedBlocks, rows: Int[Tensor, " peak"]) -> Int[Tensor, "peak fact"]:
    """Token, previous token, block, position, following token, document and marks of some rows."""
    index = blocks.block_index()[rows]
    starts, stops = blocks.starts[index], blocks.starts[index + 1]
    previous = torch.where(rows > starts, blocks.token[(rows - 1).clamp(min=0)], NO_TOKEN)
    following = torch.where(rows + 1 < stops, blocks.token[(rows + 1).clamp(max=len(blocks.token) - 1)], NO_TOKEN)
    document = torch.full_like(rows, NO_TOKEN) if blocks.document is None else blocks.document[index]
    marks = torch.zeros_like(rows) if blocks.marks is None else blocks.marks[rows]
    place = (blocks.block[rows], blocks.position[rows])
    return torch.stack([blocks.token[rows], previous, *place, following, document, marks], dim=-1)


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
