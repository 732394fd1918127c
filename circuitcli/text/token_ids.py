"""Documents that come as token ids, made by somebody else's tokenizer pass."""

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from circuitcli.errors import InputError
from circuitcli.models.chat import Conversation
from circuitcli.models.tokenizer import Vocabulary

Ids = npt.NDArray[Any]
# A document is a text, the ids of its tokens, (token,), or a conversation that a chat template writes.
Document = str | Ids | Conversation

HINT = "give integers with one axis, a stream of tokens, or with two, a row for each document"


def as_array(ids: Ids) -> "array[int]":
    """Ids of any integer type as C integers, as blocks hold them."""
    return array("i", ids.astype(np.intc).tobytes())


def check_ids(ids: Ids, n_ids: int, *, place: str, first: int = 0) -> None:
    """Raise InputError, naming the position counted from ``first``, for an id that is not below ``n_ids``."""
    wrong = np.flatnonzero((ids < 0) | (ids >= n_ids))
    if len(wrong):
        raise InputError(
            f"{place} has token id {int(ids[wrong[0]])} at position {first + int(wrong[0])}, "
            f"but this model has ids 0 to {n_ids - 1}",
            hint="these tokens were made for another tokenizer: give the --model that they were made for, or the text",
        )


def document_ids(ids: Ids, vocabulary: Vocabulary, *, place: str, first: int = 0) -> Ids:
    """The ids of one document without BOS and padding in front and without padding at the end.

    Blocks get their own BOS, which is never doubled so; where they get none, that of the document stays. Of several EOS
    at the end, with which some pad, one is kept. Raises InputError as `check_ids` does.
    """
    check_ids(ids, vocabulary.n_ids, place=place, first=first)
    pad_id = None if vocabulary.pad_id in (vocabulary.bos_id, vocabulary.eos_id) else vocabulary.pad_id
    start, stop = _without(ids, pad_id, pad_id)
    ids = ids[start:stop]
    start, stop = _without(ids, None if vocabulary.keeps_bos else vocabulary.bos_id, vocabulary.eos_id)
    return ids[start : stop + (stop < len(ids))]


def _without(ids: Ids, first_id: int | None, last_id: int | None) -> tuple[int, int]:
    """What is left of ids without a run of one id in front and of another at the end."""
    start, stop = 0, len(ids)
    while start < stop and ids[start] == first_id:
        start += 1
    while stop > start and ids[stop - 1] == last_id:
        stop -= 1
    return start, stop


def listed_ids(values: Any, *, place: str) -> Ids:
    """The ids of a list, a row of a data set. Raises InputError for anything else than integers."""
    try:
        ids = np.asarray(values)
    except ValueError:
        ids = np.empty((0, 0))
    if ids.size == 0 and ids.ndim == 1:
        return ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"{place} has no list of token ids", hint=HINT)
    return ids
