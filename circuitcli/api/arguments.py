"""Arguments of functions that people call, checked as settings are, and values that are found by hook point."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from circuitcli.errors import InputError, SettingsError
from circuitcli.faults import first_fault
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.section import Section

S = TypeVar("S", bound=Section)
T = TypeVar("T")

Path = str | os.PathLike[str]
Hook = HookPoint | str


def checked(kind: type[S], *, called: Mapping[str, str] | None = None, **values: Any) -> S:
    """A section of the settings with these values; None stands for the default.

    called: what those arguments are called that are not called as their settings.

    Raises SettingsError, naming the argument and saying what it is for, for a value that does not fit.
    """
    given = {name: _plain(value) for name, value in values.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        fault = first_fault(error)
        name = fault.path[0] if fault.path else ""
        field = kind.model_fields.get(name)
        hint = " ".join((field.description or "").split()) if field is not None else ""
        shown = (called or {}).get(name, name)
        raise SettingsError(f"{shown}={_short(given.get(name))}: {fault.reason}", hint=hint) from None


def _plain(value: Any) -> Any:
    """Paths as texts, which settings are made of, also in lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _short(value: object) -> str:
    written = repr(value)
    return written if len(written) <= 100 else f"{written[:100]}..."


def wrong_type(name: str, value: object, wanted: str, *, hint: str = "") -> SettingsError:
    """The error for an argument of a wrong type."""
    return SettingsError(f"{name} is {_short(value)}, but {wanted} is needed", hint=hint)


def as_hook(hook: Hook, *, name: str = "hook") -> HookPoint:
    """The hook point that is meant. Raises SettingsError for what is none."""
    if isinstance(hook, HookPoint):
        return hook
    if not isinstance(hook, str):
        raise wrong_type(name, hook, "a hook point", hint="write SITE.LAYER, for example resid.9")
    return HookPoint.parse(hook)


def as_hooks(hooks: Hook | Iterable[Hook]) -> list[HookPoint]:
    """The hook points that are meant, in model order. Raises SettingsError for what is none."""
    several = [hooks] if isinstance(hooks, str | HookPoint) else hooks
    if not isinstance(several, Iterable):
        raise wrong_type("hooks", hooks, "a hook point or a list of them", hint="for example hooks='resid.8'")
    return sorted({as_hook(hook, name="hooks") for hook in several})


def others_of(
    settings: Mapping[str, object] | None, *, example: str, known: Collection[str] | None = None
) -> dict[str, Any]:
    """Settings that are given beside the arguments, by name.

    Raises SettingsError for what is no mapping and, where these are told, for a name that is not among the known.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise wrong_type("settings", settings, "a mapping", hint=f"for example settings={example}")
    found = dict(settings or {})
    if known is not None and (unknown := [name for name in found if name not in known]):
        raise SettingsError(f"unknown setting: {unknown[0]}", hint=f"there are {' '.join(known)}; see the arguments")
    return found


class UnknownHookError(InputError, KeyError):
    """Nothing is known at a hook point."""


class ByHook(Mapping[HookPoint, T]):
    """Values by hook point, in model order; ``values["resid.3"]`` finds them by name too."""

    def __init__(self, values: Mapping[HookPoint, T]) -> None:
        self._values = {hook: values[hook] for hook in sorted(values)}

    def __getitem__(self, hook: Hook) -> T:
        found = as_hook(hook)
        if found not in self._values:
            raise UnknownHookError(f"there is nothing at {found}", hint=f"there is {' '.join(map(str, self._values))}")
        return self._values[found]

    def __contains__(self, hook: object) -> bool:
        try:
            return isinstance(hook, Hook) and as_hook(hook) in self._values
        except SettingsError:
            return False

    def __iter__(self) -> Iterator[HookPoint]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ByHook({' '.join(map(str, self._values))})"
