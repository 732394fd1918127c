"""How values show themselves in a notebook: by a drawer that can be replaced, as it lies above what it draws."""

from collections.abc import Callable

# Makes ``svg`` or ``html`` of a value; None where it cannot, so that the value shows as text.
Drawer = Callable[[object, str], str | None]


def _nothing(value: object, form: str) -> str | None:
    return None


_drawer: Drawer = _nothing


def set_drawer(drawer: Drawer | None) -> None:
    """Let ``drawer(value, form)`` draw values in notebooks; ``None`` leaves them as text."""
    global _drawer
    _drawer = drawer or _nothing


def drawn(value: object, form: str) -> str | None:
    """The value as ``svg`` or ``html``; None if nobody draws it."""
    return _drawer(value, form)
