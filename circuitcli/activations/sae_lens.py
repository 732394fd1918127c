"""Activations that SAELens cached, read where they lie.

Its CacheActivationsRunner (SAELens 6, sae_lens/cache_activations_runner.py) leaves a folder that `datasets` loads: a
row for each context, with a column ``token_ids`` (position) and a column (position, d_in) of float32 or float16 that is
named after the hook point, in TransformerLens's words or as the path of a Hugging Face module.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.storage.shards import DTYPES
from circuitcli.activations.storage.stored_rows import StoredRows
from circuitcli.errors import InputError, first_line
from circuitcli.hookpoints import HookPoint
from circuitcli.text.blocks import Block, Cursor, padded
from circuitcli.text.data_sets import is_saved, load_library
from circuitcli.text.token_ids import Ids, as_array, check_ids

_TOKENS = "token_ids"
# Contexts whose tokens are read at once.
_READ = 1024


@dataclass(frozen=True)
class CachedContexts:
    """The activations at one hook point, ``hook_name`` in SAELens's words, of ``n_contexts`` contexts of one length."""

    path: Path
    rows: Any
    hook_name: str
    n_contexts: int
    length: int
    d_in: int

    @classmethod
    def open(cls, path: Path) -> "CachedContexts":
        """Read everything but the activations and the tokens.

        Raises InputError for a folder that is none of SAELens's, ToolError without the package ``datasets``.
        """
        library = load_library("reading activations of SAELens")
        if not path.is_dir() or not is_saved(path):
            raise InputError(f"there are no cached activations in {path}", hint=_HINT)
        try:
            rows = library.load_from_disk(str(path)).with_format("numpy")
            shapes: dict[str, tuple[int, ...]] = {
                name: getattr(kind, "shape", ()) for name, kind in rows.features.items()
            }
        except Exception as error:
            raise InputError(f"cannot read {path}: {first_line(error)}", hint=_HINT) from error
        names = [name for name, shape in shapes.items() if len(shape) == 2]
        if len(names) != 1:
            raise InputError(f"{path} has {len(names)} columns of activations, but only one can be read", hint=_HINT)
        if _TOKENS not in shapes:
            hint = "cache them again with SAELens 6: without the tokens there is no telling what a feature stands for"
            raise InputError(f"{path} has no column '{_TOKENS}'", hint=hint)
        length, d_in = shapes[names[0]]
        return cls(path, rows, names[0], len(rows), length, d_in)

    def contexts(self, start: int) -> Iterator[Ids]:
        """The tokens of each context, (position,), from a number on."""
        tokens = self.rows.select_columns(_TOKENS)
        for first in range(start, self.n_contexts, _READ):
            yield from tokens[first : first + _READ][_TOKENS]

    def activations(self, blocks: Sequence[Block]) -> Float[Tensor, "block position d_in"]:
        """What was cached of some blocks."""
        numbers = [block.after.document - 1 for block in blocks]
        first = min(numbers)
        rows = self.rows[first : max(numbers) + 1][self.hook_name]
        return torch.from_numpy(rows)[[number - first for number in numbers]]


@dataclass(frozen=True)
class CachedSource:
    """What was cached, as blocks of text and what a model has at one hook point of them, rounded to a dtype.

    n_ids: how many token ids the model knows. bos_id: what it puts in front of every text, if anything; front_id: its
    BOS token, put there or not, which is not stored in front, however many of it were cached there. left_out: tokens
    that are not stored.
    """

    cached: CachedContexts
    hook: HookPoint
    dtype: torch.dtype
    n_ids: int
    bos_id: int | None
    left_out: Set[int]
    front_id: int | None = None

    def blocks(self, start: Cursor) -> Iterator[Block]:
        """The contexts from the cursor on, but for those of which nothing is stored.

        Raises InputError for one that does not begin with BOS where the model begins with one, and for tokens that the
        model does not know.
        """
        index, n_bos = start.index, int(self.bos_id is not None)
        for number, ids in enumerate(self.cached.contexts(start.document), start.document):
            place = f"context {number} of {self.cached.path}"
            check_ids(ids, self.n_ids, place=place)
            if self.bos_id is not None and ids[0] != self.bos_id:
                raise _no_bos(place, int(ids[0]))
            tokens = as_array(ids)
            n_front = next(
                (at for at, token in enumerate(tokens) if token not in (self.bos_id, self.front_id)), len(tokens)
            )
            left_out = tuple(
                at for at, token in enumerate(tokens) if at >= n_bos and (at < n_front or token in self.left_out)
            )
            if len(left_out) + n_bos < len(tokens):
                yield Block(tokens, n_bos, index, Cursor(number + 1, 0, index + 1), left_out)
                index += 1

    def stored_as(self, dtype: str) -> "CachedSource":
        """The same, rounded to a type by its name."""
        return replace(self, dtype=DTYPES[dtype])

    def first_rows(self, n_rows: int) -> Float[Tensor, "row d_in"]:
        """At least so many rows that are stored, or all, as they were cached."""
        parts, n_found = [], 0
        for block in self.blocks(Cursor()):
            batch = padded([block], pad_id=0)
            parts.append(batch.stored(self.cached.activations([block]), torch.float32))
            n_found += block.n_rows
            if n_found >= n_rows:
                break
        return torch.cat(parts)

    def rows(self, blocks: Sequence[Block]) -> StoredRows:
        """What is stored of some contexts, in their order."""
        batch = padded(blocks, pad_id=0)
        return StoredRows.of(batch.stored(self.cached.activations(blocks), self.dtype))


_HINT = "--from sae_lens:PATH takes the folder that SAELens's CacheActivationsRunner wrote"


def _no_bos(place: str, first_id: int) -> InputError:
    return InputError(
        f"{place} begins with token {first_id}, not with BOS as this model's texts do",
        hint="if it was cached without BOS, say so with --set model.bos=never",
    )
