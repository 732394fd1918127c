"""Files of prompts: what a file holds is told by the names of its fields, never by its own name.

Known are JSON lines, a JSON array of objects, and tables with a header (CSV, or TSV), each with the fields of

* this program: ``prompt`` (or ``ids``, or ``messages``), and if wanted ``target``, ``foil``, ``counterfactual`` and
  ``spans``, such as ``{"verb": [12, 17]}``;
* feature-circuits: ``clean_prefix patch_prefix clean_answer patch_answer`` (Marks et al. 2024, arXiv:2403.19647);
* EAP-IG and MIB: ``clean corrupted label`` (the label continues the prompt, as one token) or ``clean corrupted
  correct_idx incorrect_idx`` (token ids). Other fields are passed over.
"""

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuitcli.attribution.examples import BadPrompt, Example, LeftOut, Range, Written, placed
from circuitcli.attribution.spans import REASON, check_spans
from circuitcli.errors import InputError
from circuitcli.models.chat import Conversation, is_conversation
from circuitcli.reading import as_path, parse_json, parse_object, read_text, whole_number

HINT = (
    'each line is an object such as {"prompt": "The capital of France is", "target": " Paris"}, '
    'with "ids": [12, 7] or "messages" in place of "prompt" if that is how prompts come'
)
KNOWN = (
    "known are prompt (or ids, or messages) with target, foil, counterfactual, spans; clean_prefix, patch_prefix, "
    "clean_answer, patch_answer; clean, corrupted, label; clean, corrupted, correct_idx, incorrect_idx"
)
# Ten thousand prompts have less than a tenth of it.
FILE_BYTES = 64 * 2**20
_LARGEST_ID = 2**31 - 1
_LONGEST_FIELD = 131_072
_LAST_NUMBER = re.compile("[0-9]+$")
# Names of fields that are shown of a line or a table that is of no known kind, and characters of each.
_SHOWN_FIELDS, _SHOWN_CHARACTERS = 12, 40


def read_examples(name: str, *, chat: bool = False, left_out: LeftOut | None = None) -> tuple[Example, ...]:
    """The prompts of a file, in its order; with ``chat`` texts are what a user says.

    left_out: takes what is wrong with single prompts; without it the first is raised. Raises InputError, naming the
    line, for a file that cannot be read, is of another kind, or has no prompt.
    """
    path, bad = as_path(name, hint=HINT), left_out or LeftOut()
    text = read_text(path, limit_bytes=FILE_BYTES, hint=HINT)
    if not text.strip():
        raise InputError(f"{path} is empty", hint=HINT)
    examples = tuple(example.with_chat(chat) for example in _examples(text, path, bad))
    bad.check(len(examples), source=str(path))
    if not examples:
        raise InputError(f"{path} has no prompt", hint=HINT)
    return examples


def _examples(text: str, path: Path, bad: LeftOut) -> Iterator[Example]:
    begin = text.lstrip()[:1]
    if begin == "[":
        yield from _of_array(text, path, bad)
    elif begin == "{":
        yield from _of_lines(text, path, bad)
    else:
        yield from _of_table(text, path, bad)


def _of_lines(text: str, path: Path, bad: LeftOut) -> Iterator[Example]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        with bad.each("no JSON"):
            yield example_of(parse_object(line, name=place, finite=False, hint=HINT), place)


def _of_array(text: str, path: Path, bad: LeftOut) -> Iterator[Example]:
    for number, item in enumerate(parse_json(text, name=str(path), finite=False, hint=HINT), 1):
        place = f"{path} entry {number}"
        with bad.each():
            if not isinstance(item, dict):
                raise _no_prompt(place, "it is not an object")
            yield example_of(item, place)


def _of_table(text: str, path: Path, bad: LeftOut) -> Iterator[Example]:
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = "\t" if "\t" in first and "," not in first else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] = []
    line = 1
    try:
        for row in rows:
            place, line = f"{path} line {line}", rows.line_num + 1
            # The reader's own limit is the whole process's, and reading other tables raises it.
            if any(len(cell) > _LONGEST_FIELD for cell in row):
                raise csv.Error(f"a field has more than {_LONGEST_FIELD:,} characters")
            if not header:
                header = _header(row, path)
            elif row:
                with bad.each():
                    yield _of_row(row, header, place)
    except csv.Error as error:
        raise InputError(f"{path} line {rows.line_num} is not a row of a table: {error}", hint=HINT) from None


def _header(row: list[str], path: Path) -> list[str]:
    """The names of the columns; that of row numbers has none. Raises InputError for columns of another kind."""
    names = [name.strip() for name in row]
    twice = [name for name in names if names.count(name) > 1 and name in _FIELDS]
    if not names or not any(names):
        return []
    if twice:
        raise InputError(f"{path} has two columns named {twice[0]}", hint="rename or remove one")
    if _layout(names) is None:
        raise InputError(f"{path} is not a file of prompts: its columns are {_listed(names)}", hint=KNOWN)
    return names


def _of_row(row: list[str], header: list[str], place: str) -> Example:
    if len(row) != len(header):
        raise _no_prompt(place, f"it has {len(row)} fields, the header {len(header)}")
    return example_of({name: value for name, value in zip(header, row, strict=True) if value}, place)


@dataclass(frozen=True)
class Layout:
    """Fields that go together: those that a prompt must have, and how it is read."""

    needs: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], Example]


def _own(content: Mapping[str, Any], place: str) -> Example:
    given = [name for name in _PROMPTS if content.get(name) is not None]
    if len(given) != 1:
        raise _no_prompt(place, f"it has {' and '.join(given)}" if given else f"its {_listed(content)} is empty")
    example = replace(
        _bare(given[0], content[given[0]], place),
        target=_token(content, "target", place),
        foil=_token(content, "foil", place),
        counterfactual=_other(content.get("counterfactual"), place),
        place=place,
    )
    example = replace(example, spans=_spans(content.get("spans"), place))
    with placed(place, REASON):
        check_spans(example)
    return example


def _bare(kind: str, value: Any, place: str) -> Example:
    """The prompt by itself."""
    if kind == "ids":
        ids = _token_ids(value, "ids", place)
        return Example(" ".join(map(str, ids)), ids=ids)
    if kind == "messages":
        said = _conversation(value, "messages", place).messages
        return Example(said[-1].content, messages=tuple((message.role, message.content) for message in said))
    return Example(_text(value, "prompt", place))


def _pair(content: Mapping[str, Any], place: str) -> Example:
    texts = [_text(content[name], name, place) for name in _PAIR]
    return Example(texts[0], texts[2], texts[3], counterfactual=texts[1], place=place)


def _labelled(content: Mapping[str, Any], place: str) -> Example:
    clean, corrupted = (_text(content[name], name, place) for name in ("clean", "corrupted"))
    label = content["label"]
    # A number in JSON is the number that stands in the text.
    written = str(label) if isinstance(label, int) and not isinstance(label, bool) else _text(label, "label", place)
    return Example(clean, _with_zeros(written, clean), counterfactual=corrupted, place=place)


def _with_zeros(label: str, prompt: str) -> str:
    """The label with the zeros in front that it has in the prompt: behind ``from 1702 to 17`` the number 2 is 02."""
    end = _LAST_NUMBER.search(prompt)
    if end is None or not label.isdecimal():
        return label
    same = re.search(rf"(?<![0-9]){end[0]}(0*{label})(?![0-9])", prompt)
    return same[1] if same else label


def _indexed(content: Mapping[str, Any], place: str) -> Example:
    clean, corrupted = (_text(content[name], name, place) for name in ("clean", "corrupted"))
    correct, incorrect = (_token_id(content[name], name, place) for name in ("correct_idx", "incorrect_idx"))
    return Example(clean, correct, incorrect, counterfactual=corrupted, place=place)


_PROMPTS = ("prompt", "ids", "messages")
_PAIR = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")
_LAYOUTS = (
    *(Layout((name,), _own) for name in _PROMPTS),
    Layout(_PAIR, _pair),
    Layout(("clean", "corrupted", "correct_idx", "incorrect_idx"), _indexed),
    Layout(("clean", "corrupted", "label"), _labelled),
)
_FIELDS = frozenset(name for layout in _LAYOUTS for name in layout.needs)


def _layout(names: Collection[str]) -> Layout | None:
    """The first layout of which all fields are there."""
    return next((layout for layout in _LAYOUTS if set(layout.needs) <= set(names)), None)


def example_of(content: Mapping[str, Any], place: str) -> Example:
    """The prompt in an object or a row. Raises BadPrompt if there is none."""
    layout = _layout([name for name, value in content.items() if value is not None])
    if layout is None:
        raise _no_prompt(place, f"its fields are {_listed(content)}" if content else "it has no field", hint=KNOWN)
    return layout.read(content, place)


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str):
        raise _no_prompt(place, f"{name} is {_kind(value)}, not a text")
    return value


def _token(content: Mapping[str, Any], name: str, place: str) -> str | int | None:
    value = content.get(name)
    if value is None or isinstance(value, str):
        return value
    if not _is_id(value):
        raise _no_prompt(place, f"{name} is {_kind(value)}, not a text or a token id")
    return int(value)


def _token_id(value: Any, name: str, place: str) -> int:
    number: Any = whole_number(value.strip()) if isinstance(value, str) else value
    if not _is_id(number):
        raise _no_prompt(place, f"{name} is {_kind(value)}, not a token id")
    return int(number)


def _token_ids(value: Any, name: str, place: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(map(_is_id, value)):
        raise _no_prompt(place, f"{name} is {_kind(value)}, not a list of token ids")
    return tuple(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID


def _conversation(value: Any, name: str, place: str) -> Conversation:
    try:
        return Conversation.read(value, place=place)
    except InputError as error:
        raise BadPrompt(f"{error.message}: {name} is {_kind(value)}", reason=_WRONG, hint=error.hint) from None


def _other(value: Any, place: str) -> Written | None:
    """The other prompt: a text, token ids or messages."""
    if value is None or isinstance(value, str):
        return value
    if is_conversation(value):
        return _conversation(value, "counterfactual", place)
    return _token_ids(value, "counterfactual", place)


def _spans(value: Any, place: str) -> tuple[tuple[str, Range], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not all(map(_is_range, value.values())):
        raise _no_prompt(place, 'spans are not like {"verb": [12, 17]}')
    return tuple((name, (start, stop)) for name, (start, stop) in value.items())


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(isinstance(number, int) and not isinstance(number, bool) for number in value)


_WRONG = "a field that is missing or of a wrong type"


def _no_prompt(place: str, why: str, *, hint: str = HINT) -> BadPrompt:
    return BadPrompt(f"{place} is not a prompt: {why}", reason=_WRONG, hint=hint)


def _kind(value: Any) -> str:
    names = {str: "a text", list: "a list", dict: "an object", bool: "a truth value", type(None): "null"}
    return names.get(type(value), f"the number {str(value)[:24]}")


def _listed(names: Collection[str]) -> str:
    """Names of fields for a message: a file of another kind may have them of any length."""
    shown = [" ".join(name.split())[:_SHOWN_CHARACTERS] or "(no name)" for name in [*names][:_SHOWN_FIELDS]]
    return ", ".join(shown) + " ..." * (len(names) > _SHOWN_FIELDS)
