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
    """Threads that begin jobs in the order given; ``submit`` waits while ``waiting`` jobs are unfinished.

    An error of a job is raised by the next ``submit`` or ``drain``. Leaving the context waits for the jobs under way.
    """

    def __init__(
        self, *, threads: int = 1, waiting: int = 2, begin: Callable[[], None] | None = None, keeps: bool = False
    ) -> None:
        """begin: what each thread does first; keeps: whether jobs that wait when an error ends the work are done."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="worker", initializer=begin)
        self._jobs: deque[tuple[Future[Any], Callable[[Any], None] | None]] = deque()
        self._waiting, self._keeps = waiting, keeps

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._executor.shutdown(wait=True, cancel_futures=not self._keeps)

    def submit(self, job: Callable[..., T], *arguments: Any, then: Callable[[T], None] | None = None) -> None:
        """Hand over one job. ``then`` gets its result in the caller's thread, once all jobs before it are done too."""
        while len(self._jobs) >= self._waiting:
            self._finish_oldest()
        self._jobs.append((self._executor.submit(job, *arguments), then))

    def then(self, call: Callable[[], None]) -> None:
        """Call something in the caller's thread once all jobs so far are done, at a later ``submit`` or ``drain``."""
        done: Future[None] = Future()
        done.set_result(None)
        self._jobs.append((done, lambda _: call()))

    def drain(self) -> None:
        """Wait until all jobs are done."""
        while self._jobs:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        future, then = self._jobs.popleft()
        result = future.result()
        if then is not None:
            then(result)
