"""Named ranges of characters of a prompt, such as its verb, and the positions of their tokens."""

from collections.abc import Sequence

from circuitcli.attribution.examples import BadPrompt, Example, Range
from circuitcli.hookpoints import is_span_name
from circuitcli.models.chat import Conversation
from circuitcli.models.tokenizer import Tokenizer

REASON = "bad spans"


def check_spans(example: Example) -> None:
    """Raise BadPrompt for a name that is not one, and for ranges that are empty, outside of the prompt or overlap."""
    taken: set[int] = set()
    for name, (start, stop) in example.spans:
        if example.ids is not None:
            raise _bad("spans are ranges of characters, and the prompt is token ids", hint="give its text instead")
        if not is_span_name(name):
            raise _bad(
                f"{name!r} cannot name a span", hint="use letters, digits, - and _, a letter first, for example verb"
            )
        length, counted = len(example.prompt), "a span is [first, last + 1], characters counted from 0"
        if not 0 <= start <= stop <= length:
            raise _bad(f"span {name!r} is [{start}, {stop}], the prompt has {length} characters", hint=counted)
        if start == stop:
            raise _bad(f"span {name!r} is empty: [{start}, {stop}]", hint=counted)
        if not taken.isdisjoint(range(start, stop)):
            raise _bad(f"span {name!r} overlaps another one", hint="give each character to one span at most")
        taken.update(range(start, stop))


def span_positions(
    example: Example, tokenizer: Tokenizer, *, tokens: Sequence[str], first: int
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Of each span the positions, from ``first`` on, of the tokens that share a character with it, blanks aside.

    tokens: those of the prompt, BOS included. Raises BadPrompt for a span without a token, and for two that share one.
    """
    check_spans(example)
    if not example.spans:
        return ()
    text, begin = _shown_in(example, tokenizer)
    ranges = tokenizer.ranges(text)
    # BOS, of the text's own or put there, may stand in front, and of the text's own all but one are gone.
    shift = len(tokens) - len(ranges)
    found, taken = [], dict[int, str]()
    for name, (start, stop) in example.spans:
        inside = _inked(text, (start + begin, stop + begin))
        at = (shift + index for index, own in enumerate(ranges) if inside & _inked(text, own))
        positions = tuple(position for position in at if position >= first)
        if not positions:
            raise _bad(f"span {name!r} has no token that carries nodes", hint="name a word of the prompt")
        if shared := [position for position in positions if position in taken]:
            raise _bad(
                f"spans {taken[shared[0]]!r} and {name!r} share the token {tokens[shared[0]]!r}",
                hint="give each token to one span at most",
            )
        taken |= dict.fromkeys(positions, name)
        found.append((name, positions))
    return tuple(found)


def _inked(text: str, span: Range) -> set[int]:
    """The characters of a range that are not blank; all of them if there is no other."""
    where = range(*span)
    return {index for index in where if not text[index].isspace()} or set(where)


def _shown_in(example: Example, tokenizer: Tokenizer) -> tuple[str, int]:
    """The text that is encoded, and where in it the prompt begins: a chat template writes more around it."""
    written = example.written
    if not isinstance(written, Conversation):
        return example.prompt, 0
    text = tokenizer.render(written, answers=True)
    begin = text.rfind(example.prompt)
    if begin < 0:
        raise _bad("the chat template changes the text that the spans are of", hint="leave the spans out")
    return text, begin


def _bad(message: str, *, hint: str) -> BadPrompt:
    return BadPrompt(message, reason=REASON, hint=hint)
