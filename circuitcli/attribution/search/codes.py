"""The sparse codes of a run's text at one hook point: rows to take values from, and by feature, to find rows that are
alike. Written once into a file that is mapped into memory."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save
from torch import Tensor

from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.progress import track
from circuitcli.runs import atomic
from circuitcli.saes.base import SparseCoder

# Codes that are kept at most, at 12 bytes in each of two orders: 1.5 GB on disk, and in memory what is looked at.
MOST_ENTRIES = 2**26
_ROWS = 8192


@dataclass(frozen=True)
class TextCodes:
    """Codes that are not zero: row after row, and once more feature after feature.

    starts: where each row begins among ``features`` and ``values``. columns: where each feature begins among ``rows``
    and ``column_values``. positions: of each row inside its block, BOS being 0.
    """

    positions: Int[Tensor, " row"]
    starts: Int[Tensor, " row_and_end"]
    features: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]
    columns: Int[Tensor, " feature_and_end"]
    rows: Int[Tensor, " entry"]
    column_values: Float[Tensor, " entry"]

    @classmethod
    def of(cls, codes: Float[Tensor, "row d_sae"], positions: Int[Tensor, " row"]) -> "TextCodes":
        """Those of a table of codes."""
        rows, features = codes.nonzero(as_tuple=True)
        return cls.of_entries(rows, features, codes[rows, features], positions, d_sae=codes.shape[1])

    @classmethod
    def of_entries(
        cls,
        rows: Int[Tensor, " entry"],
        features: Int[Tensor, " entry"],
        values: Float[Tensor, " entry"],
        positions: Int[Tensor, " row"],
        *,
        d_sae: int,
    ) -> "TextCodes":
        """Those of entries that are sorted by row."""
        order = features.argsort(stable=True)
        return cls(
            positions=positions.int(),
            starts=_edges(rows, len(positions)),
            features=features.int(),
            values=values.float(),
            columns=_edges(features[order], d_sae),
            rows=rows[order].int(),
            column_values=values[order].float(),
        )

    @classmethod
    def read(cls, path: Path) -> "TextCodes | None":
        """Those of a file; None if there is none, or one that cannot be read and so is made again."""
        try:
            return cls(**load_file(path))
        except Exception:
            return None

    def write(self, path: Path) -> None:
        """Keep them in a file."""
        content = save({name: value.contiguous() for name, value in vars(self).items() if isinstance(value, Tensor)})
        with atomic(path, "wb") as stream:
            stream.write(content)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.positions)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.columns) - 1

    @cached_property
    def largest(self) -> Float[Tensor, " d_sae"]:
        """Size of each feature's largest code; 0 for one that is never active."""
        owner = torch.arange(self.d_sae).repeat_interleave(self.columns.diff())
        return torch.zeros(self.d_sae).scatter_reduce(0, owner, self.column_values.abs(), "amax")

    @cached_property
    def mean(self) -> Float[Tensor, " d_sae"]:
        """Mean code of all rows."""
        total = torch.zeros(self.d_sae, dtype=torch.float64)
        return (total.index_add(0, self.features.long(), self.values.double()) / max(1, self.n_rows)).float()

    def dense(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n d_sae"]:
        """The codes of some rows."""
        counts = self.starts[rows + 1] - self.starts[rows]
        owner = torch.arange(len(rows)).repeat_interleave(counts)
        inside = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts)[owner]
        entries = self.starts[rows][owner] + inside
        made = torch.zeros(len(rows), self.d_sae)
        made[owner, self.features[entries].long()] = self.values[entries]
        return made

    def column(self, feature: int) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The rows in which a feature is active, and its codes there."""
        part = slice(int(self.columns[feature]), int(self.columns[feature + 1]))
        return self.rows[part].long(), self.column_values[part]

    def at_position(self, position: int) -> Bool[Tensor, " row"]:
        """Which rows are at a position of their block."""
        return self.positions == position


def _edges(sorted_numbers: Int[Tensor, " n"], count: int) -> Int[Tensor, " count_and_end"]:
    """Where each number below ``count`` begins, and at the end how many there are."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(sorted_numbers, minlength=count).cumsum(0)])


def codes_of_text(cache: ActivationCache, coder: SparseCoder, hook: HookPoint, *, n_rows: int) -> TextCodes:
    """The codes of the first rows of a cache, as many as have room. Raises InputError where a row has too many."""
    parts, n_entries, stop = [], 0, 0
    pieces = list(cache.pieces(0, n_rows, size=_ROWS, by_text=coder.reads_context))
    with torch.no_grad():
        for first, last in track(pieces, f"codes {hook}", unit="pieces"):
            chosen = coder.active(cache.finite_rows(hook, first, last).to(coder.W_enc))
            n_entries += len(chosen.values)
            if n_entries > MOST_ENTRIES:
                break
            parts.append((chosen.tokens.cpu() + first, chosen.features.cpu(), chosen.values.cpu()))
            stop = last
    if not parts:
        raise InputError(f"too many features of {hook} are active", hint="--set search.tokens=N keeps fewer tokens")
    rows, features, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return TextCodes.of_entries(rows, features, values, cache.tokens(0, stop).position, d_sae=coder.d_sae)


def kept_codes(cache: ActivationCache, coder: SparseCoder, hook: HookPoint, *, n_rows: int, path: Path) -> TextCodes:
    """Those that were kept in a file, or made now and kept there."""
    if (found := TextCodes.read(path)) is not None and found.d_sae == coder.d_sae:
        return found
    made = codes_of_text(cache, coder, hook, n_rows=n_rows)
    made.write(path)
    return made
