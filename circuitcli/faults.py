"""What pydantic refuses in a value from outside, in the words that errors of this package have.

`checked` makes a value of a schema, or raises InputError at the first thing that does not fit; `first_fault` gives
that thing to callers whose error says more about it.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from circuitcli.errors import InputError

M = TypeVar("M", bound=BaseModel)

# Characters of a field's name that are shown: keys of a file may be of any length.
_SHOWN = 80


@dataclass(frozen=True)
class Fault:
    """The first thing that a schema refuses; prints as ``field: reason``, or as the reason of a value as a whole.

    path: names and indices that lead to the field. value: what stands there, or around it where it is missing.
    """

    path: tuple[str, ...]
    reason: str
    value: Any
    is_missing: bool

    @property
    def field(self) -> str:
        """The dotted name of the field, empty for the value as a whole."""
        return ".".join(self.path)[:_SHOWN]

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.path else self.reason


def first_fault(error: ValidationError) -> Fault:
    """The first of all that an error tells."""
    first = error.errors()[0]
    # What pydantic says begins with a capital; texts that were seen keep theirs.
    said = first["msg"].removeprefix("Value error, ")
    return Fault(
        path=tuple(str(part) for part in first["loc"]),
        reason=said[:1].lower() + said[1:],
        value=first["input"],
        is_missing=first["type"] == "missing",
    )


def checked(schema: type[M], content: Any, *, place: str, hint: str = "") -> M:
    """The value that this content is. Raises InputError, naming the place and the first field that does not fit."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{place}: {first_fault(error)}", hint=hint) from None
