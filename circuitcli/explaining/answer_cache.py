"""Answers in an SQLite file, by model, prompt and parameters, so that nothing is paid for twice; needs no torch.

An answer is kept as soon as it comes. A process that is about to ask claims its questions; another one that has the
same waits for the answers, unless the process that claimed them is gone.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from circuitcli.errors import CircuitError, InputError
from circuitcli.explaining.asking import Answer, Ask, Client

# Other processes write one row at a time.
_WAIT_S = 30.0
_POLL_S = 0.1
# After so long a claim is taken for one of a process that is gone, whose number another one has.
_LONGEST_CLAIM_S = 3600.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT NOT NULL, system TEXT NOT NULL,
    prompt TEXT NOT NULL, parameters TEXT NOT NULL, answer TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, process INTEGER NOT NULL, made REAL NOT NULL);
"""


class AnswerCache:
    """Answers of language models in a file. Raises InputError where it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Answers may come in another thread than the one that asks.
            self._base = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")
            # What is written outlives this process at once, and a failure of power but for its last moments.
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.executescript(_SCHEMA)

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def known(self, asks: Sequence[Ask], model: str) -> dict[int, Answer]:
        """The answers that are here, by the number of the question."""
        found = {}
        with self._told():
            for number, ask in enumerate(asks):
                row = self._base.execute("SELECT answer FROM answers WHERE key = ?", (ask.key(model),)).fetchone()
                if row is not None:
                    found[number] = _answer(json.loads(row[0]))
        return found

    def keep(self, ask: Ask, model: str, answer: Answer) -> None:
        """Keep an answer; that is safe when this returns."""
        key = ask.key(model)
        row = (key, model, ask.system, ask.user, json.dumps(ask.parameters), json.dumps(asdict(answer)), time.time())
        with self._told(), self._transaction():
            self._base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._base.execute("DELETE FROM claims WHERE key = ?", (key,))

    def answers(self, asks: Sequence[Ask], client: Client) -> dict[int, Answer]:
        """All answers, by the number of the question: those that are here, and others when the client has given them.

        Raises as the client does; what came before is kept.
        """
        found = self.known(asks, client.name)
        while len(found) < len(asks):
            missing = {ask.key(client.name): number for number, ask in enumerate(asks) if number not in found}
            mine = self._claim(list(missing))
            # A process that was waited for may have answered between the look and the claim.
            found |= self._known_of(asks, {key: missing[key] for key in missing}, client.name)
            numbers = [missing[key] for key in mine if missing[key] not in found]
            try:
                if numbers:
                    self._ask(asks, numbers, client, found)
            finally:
                self._release(mine)
            if not mine:
                time.sleep(_POLL_S)
            # The same question may stand at several places.
            found = self.known(asks, client.name)
        return found

    def _ask(self, asks: Sequence[Ask], numbers: Sequence[int], client: Client, found: dict[int, Answer]) -> None:
        def keep(place: int, answer: Answer) -> None:
            found[numbers[place]] = answer
            self.keep(asks[numbers[place]], client.name, answer)

        client.answer([asks[number] for number in numbers], keep)

    def _known_of(self, asks: Sequence[Ask], wanted: Mapping[str, int], model: str) -> dict[int, Answer]:
        numbers = list(wanted.values())
        known = self.known([asks[number] for number in numbers], model)
        return {numbers[place]: answer for place, answer in known.items()}

    def _claim(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that nobody else is asking about now."""
        mine, now = [], time.time()
        with self._told(), self._transaction():
            for key in keys:
                row = self._base.execute("SELECT process, made FROM claims WHERE key = ?", (key,)).fetchone()
                if row is None or not _is_alive(row[0]) or now - row[1] > _LONGEST_CLAIM_S:
                    self._base.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, os.getpid(), now))
                    mine.append(key)
        return mine

    def _release(self, keys: Sequence[str]) -> None:
        with self._told(), self._transaction():
            for key in keys:
                self._base.execute("DELETE FROM claims WHERE key = ? AND process = ?", (key, os.getpid()))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise _refused(self.path, error) from None


def _refused(path: Path, error: Exception) -> CircuitError:
    return InputError(
        f"cannot use {path} for the answers of language models: {error}",
        hint="make space, move the file away, or choose another one with --set explain.cache=FILE",
    )


def _answer(content: dict[str, object]) -> Answer:
    numbers = content.pop("numbers", None)
    return Answer(**content, numbers=None if numbers is None else tuple(numbers))  # type: ignore[arg-type]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    # What this process claimed is released or was left behind by an error in between.
    return process != os.getpid()
