"""Reading what was collected: rows by number, their tokens, blocks of text, statistics. Memory is that of a request."""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.activations.storage.shards import DTYPES, VERIFY, RowsShard, hook_path
from circuitcli.activations.storage.token_shards import TokenRows, TokenShard, read_left_out, read_tokens, tokens_path
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint


@dataclass(frozen=True)
class TokenBlock:
    """One block as the model saw it, with BOS if it began with one, and the rows that its tokens have.

    ``positions`` are the places in ``ids`` that have a row, one after the other from ``start_row`` on.
    """

    ids: list[int]
    start_row: int
    stop_row: int
    positions: list[int]


@dataclass(frozen=True)
class Text:
    """Consecutive tokens of the text, those without a row too; ``has_row`` tells which have one, in order."""

    tokens: TokenRows
    has_row: Bool[Tensor, " token"]


class ActivationCache:
    """The shards below ``path`` (RUN/activations) of some hook points, as one table with a row for each token."""

    def __init__(self, path: Path, hooks: Sequence[HookPoint]) -> None:
        """Raises InputError, naming the file, if a shard is missing or damaged."""
        self.path, self.hooks = path, tuple(hooks)
        self._tokens = _token_shards(path)
        # First row of each shard, and at the end the number of rows.
        self._edges = [0, *accumulate(shard.n_rows for shard in self._tokens)]
        self._rows = {hook: self._row_shards(hook) for hook in self.hooks}

    def __repr__(self) -> str:
        return f"ActivationCache({str(self.path)!r}: {self.n_tokens:,} tokens at {' '.join(map(str, self.hooks))})"

    def _row_shards(self, hook: HookPoint) -> list[RowsShard]:
        shards = [RowsShard.open(hook_path(self.path, hook, index)) for index in range(len(self._tokens))]
        for shard, tokens in zip(shards, self._tokens, strict=True):
            if (shard.d_model, shard.header.dtype) != (shards[0].d_model, shards[0].header.dtype):
                raise InputError(
                    f"{shard.path} has another width or number type than the shards before it", hint=VERIFY
                )
            if (shard.header.first_row, shard.n_rows) != (tokens.first_row, tokens.n_rows):
                raise InputError(f"{shard.path} holds other rows than the file of its tokens lists", hint=VERIFY)
        return shards

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return len(self._tokens)

    @property
    def bos_id(self) -> int | None:
        """What every block begins with, which has no row; None for nothing."""
        return None if self._tokens[0].bos_id < 0 else self._tokens[0].bos_id

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return self._edges[-1]

    def d_model(self, hook: HookPoint) -> int:
        """Width of a hook point."""
        return self._rows[hook][0].d_model

    def dtype(self, hook: HookPoint) -> torch.dtype:
        """Number type in which a hook point is stored."""
        return DTYPES[self._rows[hook][0].header.dtype]

    @property
    def token_digests(self) -> list[str]:
        """Digests of the tokens, shard by shard: of the same text in the same order they are the same."""
        return [shard.digest for shard in self._tokens]

    def digests(self, hook: HookPoint) -> list[str]:
        """Digests of the stored rows, shard by shard."""
        return [shard.digest for shard in self._rows[hook]]

    def rows(self, hook: HookPoint, start: int, stop: int) -> Float[Tensor, "row d_model"]:
        """Rows start to stop, float32 on the CPU."""
        stored = torch.empty(stop - start, self.d_model(hook), dtype=self.dtype(hook))
        self.read_into(stored, hook, start)
        return stored.float()

    def finite_rows(self, hook: HookPoint, start: int, stop: int) -> Float[Tensor, "row d_model"]:
        """As `rows`. Raises InputError for NaN and infinity, which are never collected."""
        rows = self.rows(hook, start, stop)
        if not bool(rows.isfinite().all()):
            raise InputError(f"the cached activations at {hook} hold numbers that are not finite", hint=VERIFY)
        return rows

    def read_into(self, rows: Float[Tensor, "row d_model"], hook: HookPoint, start: int) -> None:
        """Fill a contiguous tensor of the stored dtype with consecutive rows. Raises InputError for a damaged shard."""
        done = 0
        for index, first, last in self._spans(start, start + len(rows)):
            self._rows[hook][index].read_into(rows[done : done + last - first], first)
            done += last - first

    def tokens(self, start: int, stop: int) -> TokenRows:
        """Token, block and position of rows start to stop."""
        parts = [
            read_tokens(tokens_path(self.path, index), first, last) for index, first, last in self._spans(start, stop)
        ]
        return TokenRows.joined(parts)

    def text(self, start: int, stop: int) -> Text:
        """The tokens of rows start to stop and, of the same blocks, those without a row in front of one of these rows,
        or behind the last row of a block."""
        rows = self.tokens(start, stop)
        indices = [index for index, *_ in self._spans(start, stop) if self._tokens[index].n_left_out]
        if not indices:
            return Text(rows, torch.ones(stop - start, dtype=torch.bool))
        others = TokenRows.joined([read_left_out(tokens_path(self.path, index)) for index in indices])
        before, after = self.tokens(max(0, start - 1), start), self.tokens(stop, min(stop + 1, self.n_tokens))
        return _interleaved(rows, others, before=before, after=after)

    def blocks(self, start: int, stop: int) -> Iterator[TokenBlock]:
        """The blocks that lie wholly inside rows start to stop, in order."""
        for index, first, last in self._spans(start, stop):
            edge, shard = self._edges[index], self._tokens[index]
            for block in _blocks(self.text(edge, edge + min(last + 1, shard.n_rows)), shard.bos_id):
                if first <= block.start_row and block.stop_row <= last:
                    yield replace(block, start_row=edge + block.start_row, stop_row=edge + block.stop_row)

    def block_lengths(self, start: int, stop: int) -> list[int]:
        """How many of rows start to stop each block has; the first and the last one may have more outside."""
        return [last - first for first, last in pairwise(_bounds(self.tokens(start, stop)))]

    def pieces(self, start: int, stop: int, *, size: int, by_text: bool = False) -> Iterator[tuple[int, int]]:
        """Rows start to stop in pieces of at most ``size``.

        by_text: a piece for each block from its first row on, however long, for SAEs that read context; what lies in
        front of the first such row is left out, unless there is no other.
        """
        if not by_text:
            yield from ((first, min(first + size, stop)) for first in range(start, stop, size))
            return
        edges = [*accumulate(self.block_lengths(start, stop), initial=start)]
        if start > 0 and len(edges) > 2 and len(self.block_lengths(start - 1, start + 1)) == 1:
            edges = edges[1:]
        yield from pairwise(edges)

    def mean(self, hook: HookPoint) -> Float[Tensor, " d_model"]:
        """Mean of all rows, float64."""
        total = torch.zeros(self.d_model(hook), dtype=torch.float64)
        for shard in self._rows[hook]:
            total += shard.sum()
        return total / self.n_tokens

    def mean_square_norm(self, hook: HookPoint) -> float:
        """Mean squared length of a row."""
        return sum(shard.sum_square_norm for shard in self._rows[hook]) / self.n_tokens

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Shard by shard: its index and the first and last (exclusive) of the asked rows in it."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"rows {start} to {stop} of {self.n_tokens}")
        index = bisect.bisect_right(self._edges, start) - 1
        while start < stop:
            edge, next_edge = self._edges[index], self._edges[index + 1]
            yield index, start - edge, min(stop, next_edge) - edge
            start, index = next_edge, index + 1


def _token_shards(path: Path) -> list[TokenShard]:
    """The tokens of all shards up to the last one, whose own header says that it is the last."""
    if not tokens_path(path, 0).parent.is_dir():
        raise InputError(f"no activations in {path}", hint="run `circuit collect` first")
    shards: list[TokenShard] = []
    n_rows = 0
    while not shards or not shards[-1].is_last:
        file = tokens_path(path, len(shards))
        shards.append(TokenShard.open(file))
        if shards[-1].first_row != n_rows:
            raise InputError(f"{file} does not follow the shard before it", hint=VERIFY)
        n_rows += shards[-1].n_rows
    return shards


def _interleaved(rows: TokenRows, others: TokenRows, *, before: TokenRows, after: TokenRows) -> Text:
    """Rows and what stands among them, in the order of the text; ``before`` and ``after`` are the rows around them."""
    chosen = (others.block >= rows.block[0]) & (others.block <= rows.block[-1])
    if len(before.token):
        chosen &= (others.block != before.block) | (others.position > before.position)
    if len(after.token):
        chosen &= (others.block != after.block) | (others.position < rows.position[-1])
    joined = TokenRows.joined([rows, others.at(chosen)])
    has_row = torch.arange(len(joined.token)) < len(rows.token)
    order = (joined.block * (joined.position.max() + 1) + joined.position).argsort()
    return Text(joined.at(order), has_row[order])


def _bounds(tokens: TokenRows) -> list[int]:
    """Where blocks begin, and after the last one the number of tokens."""
    edges = (tokens.block.diff() != 0).nonzero()[:, 0] + 1
    return [0, *edges.tolist(), len(tokens.block)]


def _blocks(text: Text, bos_id: int) -> Iterator[TokenBlock]:
    """Runs of tokens of one block."""
    tokens, n_rows = text.tokens, 0
    prefix = [] if bos_id < 0 else [bos_id]
    for first, last in pairwise(_bounds(tokens)):
        positions = tokens.position[first:last][text.has_row[first:last]].tolist()
        yield TokenBlock(prefix + tokens.token[first:last].tolist(), n_rows, n_rows + len(positions), positions)
        n_rows += len(positions)
