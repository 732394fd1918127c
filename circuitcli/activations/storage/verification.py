"""Whether a cache is what was written: every file is read, every digest taken again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from circuitcli import progress
from circuitcli.activations.background import Worker
from circuitcli.activations.storage.shards import RowsShard, damaged, hook_path
from circuitcli.activations.storage.token_shards import TokenShard, tokens_path, verify_tokens
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint

# Reading and hashing of several files go on at once.
_THREADS = 4


@dataclass(frozen=True)
class Verified:
    """How many files there should be, and of each bad or missing one what is wrong with it."""

    n_files: int
    damage: dict[Path, str]


def verify(root: Path, hooks: Sequence[HookPoint], *, is_finished: bool = True) -> Verified:
    """Read all shards of the hook points and their tokens; in a finished cache none may be missing."""
    checks = {path: check for path, check in _checks(root, hooks) if is_finished or path.is_file()}
    damage: dict[Path, str] = {}
    with Worker(threads=_THREADS, waiting=2 * _THREADS) as worker:
        with progress.task("verify", total=len(checks), unit="files") as advance:
            for path, check in checks.items():
                worker.submit(partial(_complaint, check), then=partial(_note, damage, path, advance))
            worker.drain()
    return Verified(len(checks), damage)


def _checks(root: Path, hooks: Sequence[HookPoint]) -> Iterator[tuple[Path, Callable[[], None]]]:
    """What raises InputError if a file is not as it should be, for every file that should be there."""
    tokens = _known_tokens(root)
    numbers = {int(path.stem) for path in root.glob("*/[0-9]*.h5")}
    n_shards = max(numbers, default=-1) + 1
    # The last shard says so; unless it does, there was another one.
    if n_shards == 0 or ((last := tokens.get(n_shards - 1)) is not None and not last.is_last):
        n_shards += 1
    first_row: int | None = 0
    for index in range(n_shards):
        yield tokens_path(root, index), partial(_check_tokens, tokens_path(root, index), first_row)
        known = tokens.get(index)
        if known is not None and first_row not in (None, known.first_row):
            known = None
        for hook in hooks:
            path = hook_path(root, hook, index)
            yield path, partial(_check_rows, path, hook, known)
        first_row = None if known is None else known.first_row + known.n_rows


def _known_tokens(root: Path) -> dict[int, TokenShard]:
    known = {}
    for path in tokens_path(root, 0).parent.glob("[0-9]*.h5"):
        try:
            known[int(path.stem)] = TokenShard.open(path)
        except InputError:
            continue
    return known


def _check_tokens(path: Path, first_row: int | None) -> None:
    shard = verify_tokens(path)
    if first_row is not None and shard.first_row != first_row:
        raise damaged(path, "it does not follow the shard before it")


def _check_rows(path: Path, hook: HookPoint, tokens: TokenShard | None) -> None:
    shard = RowsShard.open(path)
    header = shard.header
    if header.hook != str(hook):
        raise damaged(path, f"it holds {header.hook}")
    if tokens is not None and (header.first_row, header.n_rows) != (tokens.first_row, tokens.n_rows):
        raise damaged(path, "it holds other rows than its tokens say")
    shard.verify()


def _complaint(check: Callable[[], None]) -> str | None:
    try:
        check()
    except InputError as error:
        return error.message
    return None


def _note(damage: dict[Path, str], path: Path, advance: progress.Advance, complaint: str | None) -> None:
    if complaint is not None:
        damage[path] = complaint
    advance()
