"""What goes to an OpenAI-compatible server and what comes back, read with suspicion; needs no torch and no network."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, runtime_checkable

from circuitcli.errors import CircuitError, InputError, ToolError
from circuitcli.explaining.asking import Answer, Ask
from circuitcli.printable import printable
from circuitcli.reading import parse_object

_SHOWN = 200
# What looks like a key of any service.
_KEY = re.compile(r"\b(sk|pk|rk|gsk|hf)[-_][A-Za-z0-9*_-]{6,}|\bBearer\s+\S+")
_DIGIT = re.compile(r"\s*(\d)\s*")
N_TOP = 20
_KEPT = "what was answered is kept; the same command goes on from there"
# What a request has that not every server and model takes, and what is said instead, if anything.
_OPTIONAL: Mapping[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "temperature": None,
    "top_logprobs": None,
    "logprobs": None,
}
# A text that was refused for itself, not for how it was asked about.
_ABOUT_THE_TEXT = re.compile(r"content|context|length|too long|filter|policy|moderation", re.IGNORECASE)


class Again(Exception):
    """A failure that may pass; ``after_s`` is when the server asks to be asked again."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True)
class Secret:
    """A key that is shown nowhere."""

    key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with each request."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def hidden(self, text: str) -> str:
        """A text of a server in one printable line, without anything that looks like a key."""
        text = text if not self.key else text.replace(self.key, "***")
        return printable(_KEY.sub("***", " ".join(text.split())))[:_SHOWN]


@runtime_checkable
class Asked(Protocol):
    """Of a server what its errors are told with."""

    base_url: str
    model: str
    secret: Secret


class Refused(Exception):
    """A request that the server does not take, and what it said."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said

    def answer(self, server: Asked) -> Answer:
        """An answer with a problem, where it is for the text of this one question. Raises ToolError for any other."""
        told = server.secret.hidden(self.said)
        if _ABOUT_THE_TEXT.search(told):
            return Answer(problem=f"refused: {told}")
        raise ToolError(f"{server.base_url} refuses the question: {told}", hint="see what the server expects")


@dataclass
class Accepted:
    """What a server was found not to take, from its refusals."""

    without: set[str] = field(default_factory=set)

    def learn(self, said: str, body: Mapping[str, Any]) -> bool:
        """Whether a refusal names something that can be left out, or said in another way, from now on."""
        found = [name for name in _OPTIONAL if name in body and name in said and name not in self.without]
        self.without |= set(found[:1])
        return bool(found)


def request_body(ask: Ask, model: str, accepted: Accepted) -> dict[str, Any]:
    """The JSON of one question."""
    user = ask.user
    if ask.kind == "digits":
        listed = "\n".join(f"{number}. {token!r}" for number, token in enumerate(ask.tokens, 1))
        n = len(ask.tokens)
        user = (
            f"{user}\nTokens:\n{listed}\nAnswer only with a JSON list of {n} numbers from 0 to 9, one for each token."
        )
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": ask.system}, {"role": "user", "content": user}],
        "temperature": ask.temperature,
        "max_tokens": ask.max_tokens,
    }
    if ask.kind == "digits":
        body |= {"logprobs": True, "top_logprobs": N_TOP}
    for name in accepted.without & body.keys():
        value, instead = body.pop(name), _OPTIONAL[name]
        body |= {} if instead is None else {instead: value}
    return body


def judge_status(status: int, headers: Mapping[str, str], text: str, server: Asked) -> None:
    """Nothing for an answer. Raises Again, Refused, or ToolError for what will not pass."""
    if status == 200:
        return
    said = _said(text)
    told = server.secret.hidden(said)
    if status in (401, 403):
        raise _refusing(
            f"{server.base_url} refuses the key ({status}): {told}", "set OPENAI_API_KEY, or explain.key_file"
        )
    if status == 404:
        raise _refusing(
            f"{server.base_url} has no model '{server.model}', or is not such a server: {told}", "see --explainer"
        )
    if status == 402 or "insufficient_quota" in text:
        raise _refusing(f"{server.base_url} says that the money is used up: {told}", _KEPT)
    if status in (408, 409, 425, 429) or status >= 500:
        raise Again(f"said {status}: {told}" if told else f"said {status}", retry_after(headers))
    if 300 <= status < 400:
        raise _refusing(f"{server.base_url} sends elsewhere ({status})", "give the final address with --base-url")
    raise Refused(said)


def _refusing(message: str, hint: str) -> CircuitError:
    return ToolError(message, hint=hint)


def read_answer(text: str, ask: Ask) -> Answer:
    """The answer in what a server sent. Raises Again for what is no answer of such a server at all."""
    try:
        content = parse_object(text, name="answer")
        choice = content["choices"][0]
        said = choice["message"].get("content")
        if not isinstance(said, str | None):
            raise TypeError
    except (InputError, KeyError, IndexError, TypeError, AttributeError):
        raise Again("gives answers that are not those of an OpenAI-compatible server") from None
    usage = content.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    answer = Answer(said, None, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
    return _with_digits(answer, choice, ask) if ask.kind == "digits" else answer


def _with_digits(answer: Answer, choice: Mapping[str, Any], ask: Ask) -> Answer:
    """The expected digit at each place where one was written."""
    listed = choice.get("logprobs")
    listed = listed.get("content") if isinstance(listed, dict) else None
    if not isinstance(listed, list):
        return replace(answer, problem="no log-probabilities")
    found = [value for place in listed if isinstance(place, dict) and (value := _expected(place)) is not None]
    if len(found) != len(ask.tokens):
        return replace(answer, problem=f"{len(found)} numbers for {len(ask.tokens)} tokens")
    return replace(answer, numbers=tuple(found))


def _expected(place: Mapping[str, Any]) -> float | None:
    """The expected digit of one place of an answer; None where no digit was written."""
    if not _is_digit(place.get("token")):
        return None
    others = place.get("top_logprobs")
    weights: dict[int, float] = {}
    for other in [place, *(others if isinstance(others, list) else ())]:
        known = (
            isinstance(other, dict) and _is_digit(other.get("token")) and isinstance(other.get("logprob"), int | float)
        )
        if known:
            weights[int(other["token"])] = math.exp(min(float(other["logprob"]), 0.0))
    total = sum(weights.values())
    return sum(digit * weight for digit, weight in weights.items()) / total if total > 0 else None


def _is_digit(token: Any) -> bool:
    return isinstance(token, str) and _DIGIT.fullmatch(token) is not None and token.isascii()


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _said(text: str) -> str:
    """What an error says: the message in its JSON, else its text."""
    try:
        error = parse_object(text, name="error").get("error")
    except InputError:
        return text[:2000]
    if isinstance(error, dict):
        return " ".join(str(error[name]) for name in ("message", "param", "code") if error.get(name))
    return str(error or text)[:2000]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, in any of the ways in which servers say so; None if in none."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    written = headers.get("retry-after")
    if written is None or (seconds := _number(written)) is not None:
        return seconds if written is not None else None
    try:
        when = parsedate_to_datetime(written)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
