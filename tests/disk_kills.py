"""Kills at a chosen change of the disk, without a process to kill."""

import os
from collections.abc import Iterable

import pytest

NAMES = ("replace", "rename", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    """As SIGKILL: nothing after it is done, by whoever."""


def broken_at(monkeypatch: pytest.MonkeyPatch, n: int, *, changes: Iterable[str] = NAMES) -> list[str]:
    """Let only n more changes of the disk happen, and tell which; all that comes after is as undone as after SIGKILL.

    changes: functions of ``os``; those that change names of files by default.
    """
    done: list[str] = []

    def counted(name: str, change):
        def wrapped(*args, **kwargs):
            if len(done) >= n:
                raise Killed
            done.append(name)
            return change(*args, **kwargs)

        return wrapped

    for name in changes:
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return done
