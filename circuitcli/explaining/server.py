"""An OpenAI-compatible server as what answers: several questions at once, within rates, and again after failures."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from circuitcli.errors import CircuitError, ToolError
from circuitcli.explaining.asking import Answer, Ask, Keep
from circuitcli.explaining.exchange import Accepted, Again, Refused, Secret, judge_status, read_answer, request_body
from circuitcli.explaining.price import Budget, expected_in, expected_out

# Pauses before a question is asked again grow from the first to the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# A server that asks for a longer pause is told to people instead.
LONGEST_ASKED_S = 900.0
# After Ctrl-C, for the answers to questions under way.
GRACE_S = 15.0
_PER_MINUTE_S = 60.0
_IDLE_S = 0.05


@dataclass(frozen=True)
class Limits:
    """How fast a server is asked, how long it may take, and how often it is asked again."""

    concurrency: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    timeout_s: float
    retries: int


@dataclass
class Server:
    """A model behind an address such as ``http://127.0.0.1:8080/v1``."""

    base_url: str
    model: str
    secret: Secret
    limits: Limits
    budget: Budget
    accepted: Accepted = field(default_factory=Accepted)
    judges_singly: bool = False

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"{self.model} at {self.base_url}"

    def answer(self, asks: Sequence[Ask], keep: Keep) -> None:
        """As `Client.answer`. Raises ToolError where the server cannot be used, or the money is used up."""
        http = library()
        asyncio.run(_Asking(self, http, asks, keep).all())


@dataclass
class _Asking:
    """One batch of questions under way."""

    server: Server
    http: Any
    asks: Sequence[Ask]
    keep: Keep
    is_ending: bool = False

    async def all(self) -> None:
        """Ask everything; the first error ends it."""
        from aiolimiter import AsyncLimiter

        limits = self.server.limits
        # A bucket that empties evenly, and is never full of more than two seconds of it.
        self.limiters = [
            (None if rate is None else AsyncLimiter(max(rate / 30, 1.0), _PER_MINUTE_S * max(rate / 30, 1.0) / rate))
            for rate in (limits.requests_per_minute, limits.tokens_per_minute)
        ]
        options = {
            "timeout": limits.timeout_s,
            "follow_redirects": False,
            "trust_env": not is_local(self.server.base_url),
        }
        numbers = iter(range(len(self.asks)))
        async with self.http.AsyncClient(headers=self.server.secret.headers, **options) as client:
            n_workers = min(limits.concurrency, len(self.asks))
            workers = [asyncio.create_task(self._worker(client, numbers)) for _ in range(n_workers)]
            try:
                # Unlike `gather`, this leaves the others alone when it is cancelled or one of them fails.
                done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                # Questions under way are paid for: their answers are waited for, and no others begun.
                self.is_ending = True
                await asyncio.wait(workers, timeout=GRACE_S)
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
            for worker in done:
                worker.result()

    async def _worker(self, client: Any, numbers: Iterator[int]) -> None:
        for number in numbers:
            if self.is_ending:
                return
            ask, budget = self.asks[number], self.server.budget
            while not budget.begin(number, ask):
                if budget.is_idle:
                    raise budget.used_up()
                await asyncio.sleep(_IDLE_S)
                if self.is_ending:
                    return
            answer = None
            try:
                answer = await self._answered(client, ask)
            finally:
                budget.end(number, ask, answer)
            self.keep(number, answer)

    async def _answered(self, client: Any, ask: Ask) -> Answer:
        """One answer, asked for again after failures that may pass."""
        import tenacity

        limits = self.server.limits
        attempts = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(limits.retries + 1),
            wait=pause,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Again) and not self.is_ending),
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    await self._within_rates(ask)
                    return await self._once(client, ask)
        except Again as failure:
            raise self._given_up(failure) from None
        raise AssertionError("tenacity ends with an answer or an error")

    async def _within_rates(self, ask: Ask) -> None:
        requests, tokens = self.limiters
        if requests is not None:
            await requests.acquire()
        if tokens is not None:
            left = float(expected_in(ask) + expected_out(ask))
            while left > 0:
                part = min(left, tokens.max_rate)
                await tokens.acquire(part)
                left -= part

    async def _once(self, client: Any, ask: Ask) -> Answer:
        server = self.server
        body = request_body(ask, server.model, server.accepted)
        try:
            response = await client.post(f"{server.base_url}/chat/completions", json=body)
        except self.http.TimeoutException:
            raise Again(f"gave no answer within {server.limits.timeout_s:g} s") from None
        except self.http.InvalidURL as error:
            raise ToolError(f"{server.base_url} is not an address: {error}", hint="give another --base-url") from None
        except self.http.HTTPError as error:
            raise Again(f"cannot be reached: {server.secret.hidden(str(error) or type(error).__name__)}") from None
        try:
            judge_status(response.status_code, response.headers, response.text, server)
        except Refused as refused:
            if server.accepted.learn(refused.said, body):
                return await self._once(client, ask)
            return refused.answer(server)
        return read_answer(response.text, ask)

    def _given_up(self, failure: Again) -> CircuitError:
        tries = self.server.limits.retries + 1
        return ToolError(
            f"{self.server.base_url} {failure}, {'at the only try' if tries == 1 else f'{tries} times'}",
            hint="what was answered is kept; the same command goes on from there",
        )


def pause(state: Any) -> float:
    """What the server asks for, else a pause twice as long after each failure, with some chance in it."""
    import tenacity

    failure = state.outcome.exception()
    if isinstance(failure, Again) and failure.after_s is not None:
        if failure.after_s > LONGEST_ASKED_S:
            raise ToolError(
                f"the server asks to come back in {failure.after_s:.0f} s",
                hint="what was answered is kept; the same command goes on from there",
            )
        return failure.after_s
    return tenacity.wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)(state)


def is_local(base_url: str) -> bool:
    """Whether an address is of this machine."""
    from ipaddress import ip_address
    from urllib.parse import urlsplit

    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def library() -> Any:
    """The HTTP client. Raises ToolError where it, or what repeats and slows its requests, is not installed."""
    try:
        import aiolimiter  # noqa: F401
        import httpx2
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ToolError(
            f"asking a server needs the package {error.name}", hint="pip install httpx2 tenacity aiolimiter"
        ) from None
    return httpx2
