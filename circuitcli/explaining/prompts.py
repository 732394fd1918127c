"""What a language model is asked about features: for a label, and to judge by a label; needs no torch.

The protocols are those of Paulo et al. 2024, arXiv:2410.13928: explaining from marked texts, detection and fuzzing; and
of Bills et al. 2023 (OpenAI): simulation.
"""

from collections.abc import Iterable, Sequence
from math import ceil

from circuitcli.explaining.asking import Ask
from circuitcli.explaining.examples import Example

# In front and behind of what is marked: the first pair that stands in no text.
MARKS = (("<<", ">>"), ("⟦", "⟧"), ("{{{", "}}}"))
YES_NO = ("Yes", "No")
ANSWER = "LABEL:"
_EXPLAIN = (
    "You study one feature inside a language model: a number that is large at some tokens of a text and zero at "
    "others. You get texts in which the tokens where it is active are put between {before} and {after}, with how "
    "strongly it is active there, from 1 to 10, and sometimes tokens that it makes the model more likely to write "
    "next. Say in one short phrase, of at most 15 words, what the marked tokens, or the texts before them, have in "
    "common. Be specific. Do not list the texts, and do not speak of marks or activations. Answer in one line that "
    f"begins with {ANSWER}\n"
    # Small models learn the form of an answer from one.
    "An example. Text 1: she put it{before} on{after} the table. Text 2: he waited{before} under{after} the bridge. "
    f"Text 3: the cat{{before}} behind{{after}} me. {ANSWER} prepositions of place"
)
_DETECT = (
    "A feature of a language model is active in texts that fit its description. You get a description and {n} texts. "
    "For each text, in order, say 1 if some token in it fits the description, and 0 if none does. Answer only with a "
    "JSON list of {n} numbers, for example {example}"
)
_FUZZ = (
    "A feature of a language model is active at tokens that fit its description. You get a description and {n} texts "
    "in which some tokens are put between {before} and {after}. For each text, in order, say 1 if the marked tokens "
    "are those that fit the description, and 0 if they are not. Answer only with a JSON list of {n} numbers, for "
    "example {example}"
)
_ONE = "A feature of a language model is active at tokens that fit its description. Answer only with Yes or No."
_SIMULATE = (
    "A feature of a language model is active at tokens that fit its description. You get a description and the tokens "
    "of a text, in order. For each token guess how strongly the feature is active there, from 0 (not at all) to 9. "
    "Most are 0."
)


def explanation(shown: Sequence[Example], promoted: Sequence[str], *, max_tokens: int, temperature: float = 0.0) -> Ask:
    """Asks for a label, from examples and from tokens that the feature promotes."""
    before, after = marks_of(shown)
    largest = max((max(example.activations) for example in shown), default=0.0)
    texts = [
        f"Text {number}: {_with_strengths(example, largest, (before, after))}" for number, example in _numbered(shown)
    ]
    if promoted:
        texts.append("Made more likely: " + ", ".join(f'"{_line(token)}"' for token in promoted))
    system = _EXPLAIN.format(before=before, after=after)
    return Ask("text", system, "\n".join(texts), max_tokens, temperature, begins=ANSWER)


def detection(label: str, examples: Sequence[Example], *, max_tokens: int, temperature: float = 0.0) -> Ask:
    """Asks in which of these texts a feature of this label is active."""
    return _listed(_DETECT, label, [text(example) for example in examples], max_tokens, temperature)


def fuzzing(label: str, examples: Sequence[Example], *, max_tokens: int, temperature: float = 0.0) -> Ask:
    """Asks in which of these texts the marks are at the tokens that fit a label."""
    marks = marks_of(examples)
    texts = [marked(example, marks) for example in examples]
    return _listed(_FUZZ, label, texts, max_tokens, temperature, marks)


def one_detection(label: str, example: Example) -> Ask:
    """As `detection`, of one text, by the probabilities of Yes and No."""
    question = f"Description: {_line(label)}\nText: {text(example)}\nIs there a token in the text that fits it?"
    return Ask("choice", _ONE, question, 1, options=YES_NO)


def one_fuzzing(label: str, example: Example) -> Ask:
    """As `fuzzing`, of one text, by the probabilities of Yes and No."""
    before, after = marks = marks_of([example])
    told = f"Are the tokens between {before} and {after} those that fit it?"
    return Ask(
        "choice", _ONE, f"Description: {_line(label)}\nText: {marked(example, marks)}\n{told}", 1, options=YES_NO
    )


def simulation(label: str, example: Example) -> Ask:
    """Asks for the activation at each token that a label makes one expect."""
    n = len(example.tokens)
    return Ask("digits", _SIMULATE, f"Description: {_line(label)}", 8 * n + 16, tokens=example.tokens)


def text(example: Example) -> str:
    """An example in one line."""
    return _line("".join(example.tokens))


def marked(example: Example, marks: tuple[str, str]) -> str:
    """An example in one line, runs of marked tokens between marks."""
    before, after = marks
    parts, inside = [], False
    for token, is_marked in zip(example.tokens, example.marks, strict=True):
        if is_marked != inside:
            parts.append(before if is_marked else after)
        parts.append(token)
        inside = is_marked
    return _line("".join(parts) + after * inside)


def marks_of(examples: Iterable[Example]) -> tuple[str, str]:
    """Marks that stand in none of these texts; the last ones if all do."""
    whole = "\n".join("".join(example.tokens) for example in examples)
    return next((pair for pair in MARKS if pair[0] not in whole and pair[1] not in whole), MARKS[-1])


def _with_strengths(example: Example, largest: float, marks: tuple[str, str]) -> str:
    pairs = zip(example.tokens, example.activations, example.marks, strict=True)
    strengths = [
        f'"{_line(token)}" {min(10, ceil(10 * activation / largest))}'
        for token, activation, is_marked in pairs
        if is_marked and largest > 0
    ]
    return f"{marked(example, marks)}   ({', '.join(strengths)})"


def _listed(
    system: str,
    label: str,
    texts: Sequence[str],
    max_tokens: int,
    temperature: float,
    marks: tuple[str, str] = MARKS[0],
) -> Ask:
    example = str([number % 2 for number in range(len(texts))])
    told = system.format(n=len(texts), example=example, before=marks[0], after=marks[1])
    lines = [f"Text {number}: {text}" for number, text in enumerate(texts, 1)]
    return Ask("text", told, "\n".join([f"Description: {_line(label)}", *lines]), max_tokens, temperature)


def _numbered(examples: Sequence[Example]) -> Iterable[tuple[int, Example]]:
    return enumerate(examples, 1)


def _line(written: str) -> str:
    return written.replace("\r", "").replace("\n", "⏎").replace("\t", " ")
