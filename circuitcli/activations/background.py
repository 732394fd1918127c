"""Work that another thread does while the caller goes on."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items; another thread makes the next one while the caller works on this one.

    Errors of ``items`` come where the item would have come. Close the iterator to end the thread early.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as executor:
        future: Future[Any] = executor.submit(next, items, end)
        while (item := future.result()) is not end:
            future = executor.submit(next, items, end)
            yield item
            # Otherwise this item would be kept in memory until after the one behind it was made.
            del item


class Worker:
    """One thread that does jobs in the order given; ``submit`` waits while ``waiting`` jobs are unfinished.

    An error of a job is raised by the next ``submit`` or ``drain``. Leaving the context drops jobs that were not
    begun and waits for the one under way.
    """

    def __init__(self, *, waiting: int = 2) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._jobs: deque[Future[None]] = deque()
        self._waiting = waiting

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, job: Callable[..., None], *arguments: Any) -> None:
        """Hand over one job."""
        while len(self._jobs) >= self._waiting:
            self._jobs.popleft().result()
        self._jobs.append(self._executor.submit(job, *arguments))

    def drain(self) -> None:
        """Wait until all jobs are done."""
        while self._jobs:
            self._jobs.popleft().result()
