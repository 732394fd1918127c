"""Reading what a language model wrote: a label, or a judgement of each text; None, never a guess, for nonsense."""

import json
import re

from circuitcli.explaining.prompts import ANSWER
from circuitcli.reading import whole_characters

# Longer ones are no labels but talk.
LONGEST_LABEL = 300
# Models that think aloud do so in front of their answer.
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL | re.IGNORECASE)
_LIST = re.compile(r"\[[^\[\]]*\]")


def label_of(text: str | None) -> str | None:
    """The label in an answer: what is behind the last mark, or the only line; None if there is neither."""
    said = _THOUGHTS.sub("", text or "").strip()
    marked = re.split(rf"\**{ANSWER}\**", said, flags=re.IGNORECASE)
    lines = [line.strip() for line in marked[-1].splitlines() if line.strip()]
    if not lines or (len(marked) == 1 and len(lines) > 1):
        return None
    label = whole_characters(lines[0].strip("*\"'` "))
    return label if label and len(label) <= LONGEST_LABEL else None


def judgements_of(text: str | None, n: int) -> tuple[bool, ...] | None:
    """The ``n`` judgements in an answer: its last JSON list of so many zeros and ones; None if it has none."""
    for written in reversed(_LIST.findall(_THOUGHTS.sub("", text or ""))):
        try:
            found = json.loads(written)
        except ValueError:
            continue
        if len(found) == n and all(type(one) in (int, bool) and one in (0, 1) for one in found):
            return tuple(bool(one) for one in found)
    return None
