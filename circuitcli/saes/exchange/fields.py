"""Fields of foreign configurations: what each may hold, checked before anything uses it; needs no torch.

A format lists the fields that it reads with their kinds, and gets these alone. Absent, null and empty texts are the
same.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from circuitcli.errors import InputError
from circuitcli.reading import is_text

# Of every count and layer that there is.
LARGEST = 2**31
# More than any name, path or word has.
LONGEST = 4096


class Kind(NamedTuple):
    """What is said of another value, and the check, which gives the value that is used or raises ValueError."""

    words: str
    of: Callable[[Any], Any]


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _text(value: Any) -> str | None:
    if isinstance(value, str) and len(value) <= LONGEST and is_text(value):
        return value or None
    raise ValueError


def _number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return float(value)
    raise ValueError


def _whole(value: Any, *, least: int) -> int:
    number = _number(value)
    if number == int(number) and least <= number < LARGEST:
        return int(number)
    raise ValueError


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise ValueError


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError


def _fact(value: Any) -> str | int | float | bool | None:
    """A word or number of the training; anything else decides nothing either, and is passed over."""
    if isinstance(value, str):
        return value if is_text(value) else None
    return value if isinstance(value, int | float) and isfinite(value) else None


FLAG = Kind("not true or false", _flag)
TEXT = Kind("not text", _text)
NUMBER = Kind("not a finite number", _number)
POSITIVE = Kind("not a number above zero", lambda value: _above_zero(_number(value)))
COUNT = Kind("not a whole number above zero", lambda value: _whole(value, least=1))
INDEX = Kind("not a whole number", lambda value: _whole(value, least=0))
LIST = Kind("not a list", _list)
FACT = Kind("not a word or number", _fact)
OBJECT = Kind("not an object", _object)
ANY = Kind("nothing", lambda value: value)


def _above_zero(number: float) -> float:
    if number > 0:
        return number
    raise ValueError


def either(one: Kind, other: Kind) -> Kind:
    """What one of two kinds takes."""

    def of(value: Any) -> Any:
        try:
            return one.of(value)
        except ValueError:
            return other.of(value)

    return Kind(f"{one.words}, and {other.words}", of)


def objects(kinds: Mapping[str, Kind]) -> Kind:
    """An object whose fields are of these kinds; others are left out."""

    def of(value: Any) -> dict[str, Any]:
        return _fields(_object(value), kinds)

    return Kind("not an object", of)


class _WrongError(ValueError):
    """A field, by its path in the config, that holds something else than it should."""

    def __init__(self, name: str, value: Any, words: str) -> None:
        super().__init__(name)
        self.name, self.value, self.words = name, value, words


def _fields(content: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    found = {}
    for name, kind in kinds.items():
        if content.get(name) is None:
            continue
        try:
            value = kind.of(content[name])
        except _WrongError as error:
            raise _WrongError(f"{name}.{error.name}", error.value, error.words) from None
        except (ValueError, OverflowError):
            raise _WrongError(name, content[name], kind.words) from None
        if value is not None:
            found[name] = value
    return found


def checked(content: Mapping[str, Any], kinds: Mapping[str, Kind], path: Path) -> dict[str, Any]:
    """The fields of these names that a config has. Raises InputError, naming file, field and value, for a wrong one."""
    try:
        return _fields(content, kinds)
    except _WrongError as error:
        raise InputError(
            f"{path}: '{error.name}' is {error.value!r:.60}, {error.words}",
            hint="copy the SAE again, with its own config",
        ) from None


def field_of(content: Mapping[str, Any], name: str, path: Path) -> Any:
    """A field of a config. Raises InputError, naming file and field, if it is not there."""
    if content.get(name) is None:
        raise InputError(f"{path} lacks '{name}'", hint="copy the SAE again, with its own config")
    return content[name]
