"""Questions to a language model, its answers, and what can answer; needs no torch."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

# Of a list of tokens the number, the marks and the line's end around each.
_AROUND_TOKEN = 6
# What is wanted: a text; the probabilities of some words that may come next; an expected digit for each token.
Kind = Literal["text", "choice", "digits"]


@dataclass(frozen=True)
class Ask:
    """One question: what the model is told to be, and what it is asked.

    options: the words of a choice; tokens: those that a digit is wanted for, in order. begins: how the one line begins
    that is wanted, which a model in this process is made to write.
    """

    kind: Kind
    system: str
    user: str
    max_tokens: int
    temperature: float = 0.0
    options: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    begins: str = ""

    @property
    def parameters(self) -> dict[str, Any]:
        """All but the prompt."""
        content = asdict(self)
        return {name: content[name] for name in content if name not in ("system", "user")}

    @property
    def n_bytes(self) -> int:
        """Length of the prompt in UTF-8, with the list of tokens where digits are wanted for them."""
        listed = "".join(map(repr, self.tokens))
        texts = f"{self.system}{self.user}{listed}"
        return len(texts.encode("utf-8", "surrogatepass")) + _AROUND_TOKEN * len(self.tokens)

    def key(self, model: str) -> str:
        """What is the same for the same question to the same model, with the same parameters."""
        content = json.dumps([model, asdict(self)], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What came back: a text, or numbers (of a choice a probability for each option, of digits one for each token).

    problem: why there is nothing to read in it, if so. tokens_in, tokens_out: as the model counts them.
    """

    text: str | None = None
    numbers: tuple[float, ...] | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    problem: str | None = None


# Is told each answer as it comes, with the number of its question.
Keep = Callable[[int, Answer], None]


@runtime_checkable
class Client(Protocol):
    """What answers questions. ``name`` says which model it is, for the cache and for people."""

    @property
    def name(self) -> str: ...

    @property
    def judges_singly(self) -> bool:
        """Whether it gives the probabilities of a choice, so that each example is a question of its own."""
        ...

    def answer(self, asks: Sequence[Ask], keep: Keep) -> None:
        """Answer all questions. Raises ToolError where that is not possible; what came before was kept."""
        ...
