"""Options of the commands: which flag stands for which setting. Help texts are those of the settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from circuitcli.errors import SettingsError
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import known_names


@dataclass(frozen=True)
class Flag:
    """A command-line name for a setting; ``default`` says what it is if it is not the setting's own."""

    setting: str
    name: str
    short: str | None = None
    metavar: str | None = None
    repeats: bool = False
    default: str | None = None

    @property
    def parameter(self) -> str:
        """What the option is called in Python."""
        return "setting_" + self.setting.replace(".", "_")


# What commands take without an option.
_ARGUMENTS = ("file", "sae")

RUN = (Flag("run", "--run", metavar="DIR"),)
MODEL = (
    Flag("model.name", "--model"),
    Flag("model.revision", "--revision"),
    Flag("model.device", "--device"),
    Flag("model.dtype", "--dtype"),
)
# Where a run begins the model is chosen; what works on the run takes it from there.
MODEL_OF_RUN = tuple(
    replace(flag, default="the run's") if flag.setting in ("model.name", "model.revision", "model.dtype") else flag
    for flag in MODEL
)
SEED = (Flag("seed", "--seed"),)
SAE = (Flag("sae_path", "--sae", metavar="PATH"),)
BEHAVIOUR = (
    Flag("graph.prompt", "--prompt"),
    Flag("graph.prompt_ids", "--prompt-ids", metavar="IDS"),
    Flag("graph.n_prompts", "--n-prompts"),
    Flag("graph.skip_bad", "--skip-bad"),
    Flag("graph.chat", "--chat"),
    Flag("graph.target", "--target"),
    Flag("graph.foil", "--foil"),
    Flag("graph.metric", "--metric"),
)
GRAPH = (
    Flag("graph.prompts", "--prompts", metavar="FILE"),
    Flag("graph.sequences", "--sequences"),
    Flag("graph.clusters", "--clusters"),
    Flag("graph.cluster", "--cluster"),
    *BEHAVIOUR,
    Flag("graph.layers", "--layers"),
    Flag("graph.sites", "--sites"),
    Flag("graph.positions", "--positions"),
    Flag("graph.baseline", "--baseline"),
    Flag("graph.counterfactual", "--counterfactual", metavar="PROMPT"),
    Flag("graph.name", "--name"),
    Flag("graph.extend", "--extend", metavar="FILE"),
)

FILE = Parameter(
    "file",
    Parameter.KEYWORD_ONLY,
    annotation=str | None,
    default=typer.Argument(
        None,
        metavar="FILE",
        show_default=False,
        help="Records to read, - for stdin; by default what is piped in, else those of the current run.",
    ),
)


def option(
    name: str, *declarations: str, annotation: Any, default: Any, help: str, metavar: str | None = None
) -> Parameter:
    """A parameter that stands for no setting."""
    info = typer.Option(default, *declarations, help=help, metavar=metavar, show_default=False)
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=info)


def switch(name: str, *declarations: str, help: str) -> Parameter:
    """An option that is given or not."""
    return option(name, *declarations, annotation=bool, default=False, help=help)


DRY_RUN = switch("dry_run", "--dry-run", "-n", help="Show tokens, bytes and memory, and do nothing.")

COMMON = (
    option(
        "config",
        "--config",
        annotation=list[Path] | None,
        default=None,
        metavar="FILE",
        help="TOML file of settings; may be repeated, later files win.",
    ),
    option(
        "assignments",
        "--set",
        annotation=list[str] | None,
        default=None,
        metavar="NAME=VALUE",
        help="Any setting by its name, for example sae.k=32; may be repeated.",
    ),
    switch(
        "print_settings",
        "--print-settings",
        help="Print all settings as TOML, with what they mean and where their values come from, and do nothing.",
    ),
    switch("force", "--force", "-f", help="Replace what the run already has from other settings."),
    switch("json", "--json", help="Print records even if stdout is a terminal."),
    switch("quiet", "--quiet", "-q", help="Print only errors on stderr."),
    switch("no_color", "--no-color", help="Print without colours."),
    switch("debug", "--debug", help="Show the traceback of an error."),
)


def parameters(flags: Sequence[Flag], extras: Sequence[Parameter]) -> list[Parameter]:
    """The parameters of a command: its own, its settings, and those of all commands."""
    return [*extras, *(_parameter(flag) for flag in flags), *COMMON]


def _parameter(flag: Flag) -> Parameter:
    names = (flag.name,) if flag.short is None else (flag.name, flag.short)
    words = choices(flag.setting)
    info = typer.Option(
        None,
        *names,
        help=known_names()[flag.setting] + _default(flag),
        metavar=_metavar(flag),
        show_default=False,
        autocompletion=(lambda: list(words)) if words else None,
    )
    annotation: Any = list[str] | None if flag.repeats else str | None
    if field(flag.setting).annotation is bool:
        annotation = bool | None
    return Parameter(flag.parameter, Parameter.KEYWORD_ONLY, annotation=annotation, default=info)


def check_given(flags: Sequence[Flag], given: Mapping[str, Any]) -> None:
    """Raise SettingsError for an option that is given an empty text: no path, name or prompt is one."""
    names = {flag.parameter: flag.name for flag in flags}
    for parameter, value in given.items():
        if "" in (value if isinstance(value, list) else [value]):
            # Those that stand for no setting are called as their parameters are.
            name = names.get(parameter, parameter.upper() if parameter in _ARGUMENTS else f"--{parameter}")
            raise SettingsError(f"{name} is empty", hint="give a value, or leave it out")


def field(setting: str) -> FieldInfo:
    """The field behind a dotted name."""
    section: Any = Settings
    *path, last = setting.split(".")
    for part in path:
        section = _fields(section)[part].annotation
    return _fields(section)[last]


def _fields(section: Any) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in section.model_fields.items()}


def choices(setting: str) -> tuple[str, ...]:
    """The words that a setting takes; empty if it takes others too."""
    return _literals(field(setting).annotation)


def _literals(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(chain.from_iterable(_literals(part) for part in get_args(annotation)))


def _metavar(flag: Flag) -> str:
    if flag.metavar is not None:
        return flag.metavar
    words, annotation = choices(flag.setting), field(flag.setting).annotation
    types = {annotation, *get_args(annotation)}
    if words:
        return "|".join(words)
    return "N" if int in types else "X" if float in types else flag.name.lstrip("-").upper()


def _default(flag: Flag) -> str:
    default = flag.default or field(flag.setting).default
    if default is None or default == () or default is False:
        return ""
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f" [default: {shown}]"
