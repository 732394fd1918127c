"""What questions cost: by estimate before the first is asked, and by count while they are; needs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil

from circuitcli.errors import SettingsError, ToolError
from circuitcli.explaining.asking import Answer, Ask

# English text has about four bytes a token, code and Chinese three. Of a bound, every second byte is one.
_BYTES_PER_TOKEN, _BYTES_AT_LEAST = 3.5, 2
# What chat templates put around two messages.
_AROUND = 12
# A label, and a list of judgements, as most models write them.
_LABEL_TOKENS, _LIST_TOKENS = 40, 20
_MILLION = 1e6


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens."""

    tokens_in: float
    tokens_out: float

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """Dollars."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / _MILLION


@dataclass(frozen=True)
class Estimate:
    """Questions that are still to be asked, and their tokens; ``n_known`` have been answered before."""

    n_asks: int = 0
    n_known: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @classmethod
    def of(cls, asks: Iterable[Ask], *, n_known: int = 0) -> "Estimate":
        """Of questions without answers."""
        listed = list(asks)
        return cls(len(listed), n_known, sum(map(expected_in, listed)), sum(map(expected_out, listed)))

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.n_asks + other.n_asks,
            self.n_known + other.n_known,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
        )

    def usd(self, prices: Prices) -> float:
        """Dollars."""
        return prices.of(self.tokens_in, self.tokens_out)


def expected_in(ask: Ask) -> int:
    """Tokens of a question, as most tokenizers count them."""
    return ceil(ask.n_bytes / _BYTES_PER_TOKEN) + _AROUND


def expected_out(ask: Ask) -> int:
    """Tokens of a usual answer."""
    if ask.kind == "choice":
        return 1
    usual = 2 * len(ask.tokens) + 2 if ask.kind == "digits" else max(_LABEL_TOKENS, _LIST_TOKENS)
    return min(ask.max_tokens, usual)


@dataclass
class Budget:
    """Dollars that may be spent, those that were, and those that questions under way may cost at most."""

    prices: Prices
    max_usd: float
    spent: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    _under_way: dict[int, float] = field(default_factory=dict)

    def check(self, estimate: Estimate) -> None:
        """Raise SettingsError if the questions are estimated to cost more than may be spent."""
        usd = estimate.usd(self.prices)
        if usd > self.max_usd:
            raise SettingsError(
                f"{estimate.n_asks:,} questions of about {estimate.tokens_in:,} tokens, with {estimate.tokens_out:,} "
                f"of answers, would cost about ${usd:.4g}, more than --max-usd {self.max_usd:g}",
                hint=f"allow it with --max-usd {_rounded_up(usd):g}, or explain fewer features with --features",
            )

    def begin(self, number: int, ask: Ask) -> bool:
        """Whether there is money left for a question and the longest answer to it; then it is set aside."""
        most = self.prices.of(ceil(ask.n_bytes / _BYTES_AT_LEAST) + _AROUND, ask.max_tokens)
        if self.spent + sum(self._under_way.values()) + most > self.max_usd:
            return False
        self._under_way[number] = most
        return True

    def end(self, number: int, ask: Ask, answer: Answer | None) -> None:
        """Count what a question cost: what the server says, else what was expected; nothing without an answer."""
        self._under_way.pop(number, None)
        if answer is None:
            return
        tokens_in, tokens_out = answer.tokens_in or expected_in(ask), answer.tokens_out or expected_out(ask)
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.spent += self.prices.of(tokens_in, tokens_out)

    @property
    def is_idle(self) -> bool:
        """Whether no question is under way."""
        return not self._under_way

    def used_up(self) -> ToolError:
        """What is said where the next question could cost more than is left."""
        return ToolError(
            f"${self.spent:.4g} of --max-usd {self.max_usd:g} is spent; the next answer could cost more than is left",
            hint="what was answered is kept; the same command with a larger --max-usd goes on from there",
        )


def _rounded_up(usd: float) -> float:
    """Two digits, with a tenth more for what estimates miss."""
    return ceil(usd * 110) / 100
