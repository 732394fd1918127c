"""The tokens of each shard, once for all hook points, and what is known of the shard besides its rows.

ROOT/tokens/00017.h5    token int32, block int64, position int32, each (rows); attributes in `TokenShard`; where
                        tokens of its blocks have no row, left_out_token, left_out_block, left_out_position
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuitcli import runs
from circuitcli.activations.storage.shards import damaged, digest, opened
from circuitcli.text.blocks import Block, Cursor

_FOLDER = "tokens"
_COLUMNS = {"token": "<i4", "block": "<i8", "position": "<i4"}
_LEFT_OUT = "left_out_"


def tokens_path(root: Path, index: int) -> Path:
    """Where the tokens of a shard are."""
    return root / _FOLDER / f"{index:05d}.h5"


@dataclass(frozen=True)
class TokenRows:
    """Token, block and position inside the block (BOS is 0) of consecutive rows, int64."""

    token: Int[Tensor, " row"]
    block: Int[Tensor, " row"]
    position: Int[Tensor, " row"]

    @classmethod
    def of(cls, blocks: Sequence[Block], places: Sequence[np.ndarray]) -> "TokenRows":
        """Those at the places chosen in each block."""
        none = np.empty(0, np.int64)
        chosen = (np.frombuffer(block.ids, np.intc)[here] for block, here in zip(blocks, places, strict=True))
        token = np.concatenate([none, *chosen])
        index = np.repeat([block.index for block in blocks], [len(here) for here in places])
        columns = (token, index, np.concatenate([none, *places]))
        return cls(*(torch.from_numpy(column.astype(np.int64)) for column in columns))

    @classmethod
    def joined(cls, parts: Sequence["TokenRows"]) -> "TokenRows":
        """One after the other."""
        none = torch.empty(0, dtype=torch.int64)
        columns = ([none, *(getattr(part, name) for part in parts)] for name in _COLUMNS)
        return cls(*(torch.cat(column) for column in columns))

    def at(self, chosen: Tensor) -> "TokenRows":
        """Those of a mask, a slice or a list of rows."""
        return TokenRows(self.token[chosen], self.block[chosen], self.position[chosen])


@dataclass(frozen=True)
class TokenShard:
    """What is known of a whole shard besides its rows.

    ``cursor`` is where the next shard's text begins, ``is_last`` whether there is none; ``bos_id`` is what every
    block began with, -1 for nothing; ``fingerprint`` belongs to the settings that made the shard; ``n_left_out`` tokens
    of its blocks, not counting those, have no row.
    """

    n_rows: int
    first_row: int
    cursor: Cursor
    is_last: bool
    bos_id: int
    fingerprint: str
    digest: str = ""
    n_left_out: int = 0

    @classmethod
    def open(cls, path: Path) -> "TokenShard":
        """Read everything but the rows. Raises InputError, naming the file, if it is missing or damaged."""
        with opened(path) as file:
            facts = {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}
            cursor = Cursor(facts.pop("document"), facts.pop("offset"), facts.pop("index"))
            return cls(cursor=cursor, **facts)


def write_tokens(path: Path, rows: TokenRows, shard: TokenShard, *, left_out: TokenRows | None = None) -> None:
    """Write the tokens of a shard, whole or not at all, with their digest. Raises InputError if that fails."""
    columns = _columns(rows)
    if left_out is not None and len(left_out.token):
        columns |= {_LEFT_OUT + name: column for name, column in _columns(left_out).items()}
        shard = replace(shard, n_left_out=len(left_out.token))
    facts: dict[str, Any] = asdict(shard) | asdict(shard.cursor)
    facts.pop("cursor")
    facts["digest"] = _digest(facts, columns)
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs.update(facts)
        for name, column in columns.items():
            file.create_dataset(name, data=column)
    with runs.atomic(path, "wb") as stream:
        stream.write(image.getbuffer())


def verify_tokens(path: Path) -> TokenShard:
    """What is known of a shard, all of which was read. Raises InputError, naming it, if it is not what was written."""
    shard = TokenShard.open(path)
    with opened(path) as file:
        facts = {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}
        columns = {name: file[name][...] for name in _COLUMNS}
        if shard.n_left_out:
            columns |= {_LEFT_OUT + name: file[_LEFT_OUT + name][...] for name in _COLUMNS}
        if len(columns["token"]) != shard.n_rows or _digest(facts, columns) != shard.digest:
            raise damaged(path, "its tokens are not what was written")
    return shard


def _digest(facts: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> str:
    """Over all but the fingerprint: the same tokens are the same whatever settings made them."""
    told = {name: value for name, value in sorted(facts.items()) if name not in ("digest", "fingerprint")}
    content = b"".join([json.dumps(told).encode(), *(column.tobytes() for column in columns.values())])
    return "xxh3:" + digest(content).tobytes().hex()


def _columns(rows: TokenRows) -> dict[str, Any]:
    """The data sets in which tokens are kept."""
    return {name: getattr(rows, name).numpy().astype(dtype) for name, dtype in _COLUMNS.items()}


def read_tokens(path: Path, start: int, stop: int) -> TokenRows:
    """Rows start to stop of a tokens file. Raises InputError, naming the file, if it is missing or damaged."""
    with opened(path) as file:
        columns = (file[name][start:stop].astype(np.int64) for name in _COLUMNS)
        return TokenRows(*(torch.from_numpy(column) for column in columns))


def read_left_out(path: Path) -> TokenRows:
    """The tokens of a shard's blocks that have no row, but for BOS in front. Raises as `read_tokens` does."""
    with opened(path) as file:
        columns = (file[_LEFT_OUT + name][...].astype(np.int64) for name in _COLUMNS)
        return TokenRows(*(torch.from_numpy(column) for column in columns))
