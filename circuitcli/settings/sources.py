"""Where settings come from: flags > CIRCUIT_* environment > --config files > circuit.toml > defaults.

Every source is read into a flat mapping from dotted names such as ``sae.k`` to values; the first source that has a
name wins, and which one it was is remembered as the value's origin.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic import BaseModel, ValidationError

from circuitcli.errors import SettingsError
from circuitcli.faults import first_fault
from circuitcli.printable import toml_printable
from circuitcli.reading import read_toml
from circuitcli.settings.settings import Settings

PREFIX = "CIRCUIT_"
PROJECT_FILE = "circuit.toml"
# Characters of a bad value that are shown.
_SHOWN = 100
# Read elsewhere: by the tests, and by the demo.
FOREIGN = frozenset({"CIRCUIT_TEST_MODEL"})


@dataclass(frozen=True)
class Loaded:
    """Settings and, by dotted name, where each value that is no default came from."""

    settings: Settings
    origins: Mapping[str, str]


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    config: Iterable[Path] = (),
    assignments: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Loaded:
    """Settings from all sources.

    flags: dotted name -> value, None where a flag was not given. config: TOML files, later ones win.
    assignments: the texts of ``--set KEY=VALUE``. directory: where circuit.toml is looked for.
    Raises SettingsError for an unknown name, with the nearest known one, and for a value that does not fit.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    layers: list[tuple[str, dict[str, Any]]] = [("flag", given), ("--set", _assigned(assignments))]
    layers.append(("environment", _environment(os.environ if environment is None else environment)))
    layers += [(str(path), _file(path)) for path in reversed(list(config))]
    project = (directory or Path.cwd()) / PROJECT_FILE
    if project.is_file():
        layers.append((PROJECT_FILE, _file(project)))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for name, value in layer.items():
            if name not in values:
                values[name], origins[name] = value, origin
    return Loaded(_validated(values, origins), origins)


def changed(settings: Settings, values: Mapping[str, Any], *, origin: str = "--sweep") -> Settings:
    """The settings with other values by dotted name. Raises SettingsError, naming the origin, as `load` does."""
    chosen = _checked(dict(values), origin)
    origins = dict.fromkeys(chosen, origin)
    return _validated(flatten(settings) | chosen, origins)


@cache
def known_names() -> dict[str, str]:
    """Every dotted name that can be set, with its help text, in the order of the settings."""
    return dict(_walk(Settings, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterable[tuple[str, str]]:
    for name, field in section.model_fields.items():
        dotted = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _walk(field.annotation, f"{dotted}.")
        else:
            yield dotted, " ".join((field.description or "").split())


def flatten(settings: Settings) -> dict[str, Any]:
    """All values by dotted name."""
    return _flat(settings.model_dump(mode="json", by_alias=True), "")


def to_toml(loaded: Loaded) -> str:
    """The settings as a TOML file that ``--config`` reads back, each value below its help text, with its origin."""
    lines: list[str] = []
    section = ""
    for name, value in flatten(loaded.settings).items():
        head, _, key = name.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        lines += [f"# {part}" for part in wrap(known_names()[name], 116, break_on_hyphens=False)]
        origin = toml_printable(loaded.origins.get(name, "default"))
        written = f"{key} = {toml_value(value)}" if value is not None else f"# {key} is not set"
        lines.append(f"{written}  # {origin}" if value is not None else f"{written} ({origin})")
    return "\n".join(lines).lstrip("\n") + "\n"


def toml_value(value: Any) -> str:
    """One value in TOML's notation."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return f'"{toml_printable(value)}"'
    return repr(value)


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _checked(values: dict[str, Any], origin: str) -> dict[str, Any]:
    for name in values:
        if name not in known_names():
            raise unknown_name(name, known_names(), f"setting in {origin}")
    return values


def unknown_name(name: str, known: Iterable[str], what: str) -> SettingsError:
    """The error for a name that nothing reads, with the nearest name that something does read."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    last = name.rpartition(".")[2]
    near = near or [choice for choice in choices if choice.rpartition(".")[2] == last][:1]
    hint = f"did you mean {near[0]}?" if near else "`circuit collect --print-settings` lists all names"
    return SettingsError(f"unknown {what}: {name}", hint=hint)


def _assigned(assignments: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text} has no '='", hint="write --set NAME=VALUE, for example --set sae.k=32")
        values[name.strip()] = value
    return _checked(values, "--set")


def _environment(environment: Mapping[str, str]) -> dict[str, Any]:
    by_variable = {PREFIX + name.upper().replace(".", "__"): name for name in known_names()}
    values: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or variable in FOREIGN:
            continue
        if variable not in by_variable:
            raise unknown_name(variable, by_variable, "environment variable")
        values[by_variable[variable]] = value
    return values


def _file(path: Path) -> dict[str, Any]:
    tree = read_toml(path, hint="--config takes a TOML file; see configs/ for examples", error=SettingsError)
    return _checked(_flat(tree, ""), str(path))


def _validated(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _refusal(error, values, origins) from None


def _refusal(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> SettingsError:
    fault = first_fault(error)
    heads = [".".join(fault.path[:n]) for n in range(len(fault.path), 0, -1)]
    name = next((head for head in heads if head in values), fault.field)
    said = f"{name}={_short(values.get(name))} ({origins.get(name, 'settings')}): {fault.reason}"
    return SettingsError(said, hint=known_names().get(name, ""))


def _short(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= _SHOWN else f"{written[:_SHOWN]}..."
