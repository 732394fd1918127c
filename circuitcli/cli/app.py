"""Assembles the commands, runs one, and turns whatever goes wrong into an exit status."""

import inspect
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from circuitcli import __version__, group, processes
from circuitcli.cli import demo, failures
from circuitcli.cli.bars import show_progress
from circuitcli.cli.checks import check
from circuitcli.cli.commands import (
    collect,
    develop,
    export,
    graph_grad,
    graph_naive,
    interp,
    pretrain,
    render,
    toy,
    train,
    validate,
)
from circuitcli.cli.commands import (
    inspect as inspection,
)
from circuitcli.cli.console import console, listen, one_line
from circuitcli.cli.input import stdin_has_records
from circuitcli.cli.jobs import BEGINNING, Call, check_command, with_model_of
from circuitcli.cli.options import Flag, check_given, parameters
from circuitcli.errors import ExitStatus, InputError, SettingsError
from circuitcli.reading import is_text
from circuitcli.runs import current
from circuitcli.settings.sources import load, to_toml

# The options of each command that stand for settings.
_OPTIONS: dict[str, frozenset[str]] = {}

app = typer.Typer(
    name="circuit",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(
    name: str, body: Callable[[Call], None], flags: Sequence[Flag], extras: Sequence[inspect.Parameter]
) -> None:
    """Add a command whose options are made from the flags of its settings."""

    def command(**given: Any) -> None:
        _execute(name, body, flags, given)

    signature = inspect.Signature(parameters(flags, extras))
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {key: parameter.annotation for key, parameter in signature.parameters.items()}
    command.__doc__ = body.__doc__
    app.command(name)(command)
    _OPTIONS[name] = frozenset(flag.name for flag in flags)


register("pretrain", pretrain.pretrain, pretrain.FLAGS, pretrain.EXTRAS)
register("collect", collect.collect, collect.FLAGS, collect.EXTRAS)
register("train", train.train, train.FLAGS, train.EXTRAS)
register("interp", interp.interp, interp.FLAGS, interp.EXTRAS)
register("graph-naive", graph_naive.graph_naive, graph_naive.FLAGS, graph_naive.EXTRAS)
register("graph-grad", graph_grad.graph_grad, graph_grad.FLAGS, graph_grad.EXTRAS)
register("validate", validate.validate, validate.FLAGS, validate.EXTRAS)
register("render", render.render, render.FLAGS, render.EXTRAS)
register("develop", develop.develop, develop.FLAGS, develop.EXTRAS)
register("inspect", inspection.inspect, inspection.FLAGS, inspection.EXTRAS)
register("export", export.export, export.FLAGS, export.EXTRAS)
register("toy", toy.toy, toy.FLAGS, toy.EXTRAS)
register("demo", demo.demo, demo.FLAGS, demo.EXTRAS)

COMMANDS = [command.name for command in app.registered_commands if command.name]


def _show_version(wanted: bool) -> bool:
    if wanted:
        console.data(f"circuit {__version__}\n")
        raise typer.Exit
    return wanted


@app.callback()
def _circuit(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find, test and draw sparse feature circuits in language models.

    The commands pass records through pipes, or work one after the other on the run used last in this directory.

    \b
    circuit collect --model gpt2 --layers 8:11 | circuit train | circuit interp \\
      | circuit graph-grad --prompt "The capital of France is" | circuit validate | circuit render -o circuit.svg

    `circuit demo` shows all of it in a few minutes, without a download.
    """


def run(words: Sequence[str]) -> int:
    """Run one command line; returns the exit status. Never raises, never leaves a traceback unless --debug asks."""
    debug = "--debug" in words
    console.configure(colorful="--no-color" not in words)
    try:
        _check_text(words)
        status = _run(list(words) or ["--help"])
        group.leave()
    except BaseException as error:
        command = f"circuit {words[0]}" if words and words[0] in COMMANDS else "circuit"
        status = failures.report(error, command=command, debug=debug, options=_OPTIONS, words=words)
    return status if _flushed() else ExitStatus.FAULT


def _check_text(words: Sequence[str]) -> None:
    """Refuse what could neither be printed nor kept in a record; a file can be renamed."""
    hint = "rename the file, or convert the text, for example with iconv"
    if sys.getfilesystemencoding() != "utf-8":
        hint = "choose a UTF-8 locale, for example LC_ALL=C.UTF-8"
    for word in words:
        if not is_text(word) or "\0" in word:
            raise SettingsError(f"argument '{word}' is not UTF-8 text", hint=hint)


def _check_directory() -> None:
    """Refuse a working directory that is gone, or whose path no record could hold."""
    hint = "cd to another directory"
    try:
        here = str(Path.cwd())
    except OSError:
        raise InputError("the current directory is gone", hint=hint) from None
    if not is_text(here):
        raise InputError(f"the path of the current directory, '{here}', is not UTF-8 text", hint=hint)


def _run(words: list[str]) -> int:
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        failure = failures.unknown_command(words[0], COMMANDS)
        console.error(failure.message, failure.hint)
        return failure.status
    status = app(words, prog_name="circuit", standalone_mode=False) or ExitStatus.DONE
    if status == ExitStatus.INTERRUPTED:
        raise KeyboardInterrupt
    return int(status)


def _execute(name: str, body: Callable[[Call], None], flags: Sequence[Flag], given: dict[str, Any]) -> None:
    check_command(name)
    _check_directory()
    console.configure(
        quiet=given["quiet"] or not processes.is_main(), colorful=not given["no_color"], json=given["json"]
    )
    listen(debug=given["debug"])
    values = {flag.setting: given[flag.parameter] for flag in flags}
    loaded = load(
        {setting: value for setting, value in values.items() if value not in (None, [])},
        config=given["config"] or (),
        assignments=given["assignments"] or (),
    )
    group.limit_wait(loaded.settings.wait_s)
    call = Call(name, loaded, given["force"], given)
    if given["print_settings"]:
        return _print_settings(call)
    _calm_libraries(debug=given["debug"])
    show_progress()
    try:
        check_given(flags, given)
        check(call)
        body(call)
    except BrokenPipeError:
        _flushed()
        raise SystemExit(ExitStatus.FAULT) from None


def _print_settings(call: Call) -> None:
    loaded = call.loaded
    if call.command == "demo":
        console.data("".join(f"# circuit {one_line(shlex.join(words))}\n" for words in demo.commands(call)))
        return console.data(to_toml(demo.settings(call)))
    if call.command not in BEGINNING and (call.run_is_explicit or not stdin_has_records()):
        run = current(loaded.settings.run)
        loaded = with_model_of(run, loaded) if run is not None else loaded
    console.data(to_toml(loaded))


def _calm_libraries(*, debug: bool) -> None:
    """Keep the libraries' own warnings and, where nobody watches, their progress bars off stderr."""
    if debug:
        return
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not console.animates:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _flushed() -> bool:
    """Write out stdout. If its reader has gone, send the rest nowhere, so that nothing complains at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return False
    except (OSError, ValueError):
        return True
    return True
