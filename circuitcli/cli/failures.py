"""The only translation of what went wrong into an ``error:`` line, a ``hint:`` line and an exit status."""

import difflib
import errno
import re
import shlex
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from circuitcli import group, processes, signals
from circuitcli.cli.console import console
from circuitcli.errors import CircuitError, ExitStatus, how_to_go_on, is_out_of_memory
from circuitcli.settings.sources import known_names

Options = Mapping[str, Collection[str]]
# Options that say what a command works on, and a command in a hint.
_PLACES = ("--run", "--sae")
_COMMAND = re.compile(r"`circuit ([a-z][a-z-]*)([^`]*)`")


@dataclass(frozen=True)
class Failure:
    """What is printed, and what the shell is told."""

    message: str
    status: int
    hint: str = ""


def report(
    error: BaseException,
    *,
    command: str = "circuit",
    debug: bool = False,
    options: Options | None = None,
    words: Sequence[str] = (),
) -> int:
    """Print the failure of a command; returns the exit status. ``options``: those of all commands, by command; words:
    what was typed."""
    if isinstance(error, SystemExit) and error.code != ExitStatus.TERMINATED:
        return error.code if isinstance(error.code, int) else ExitStatus.FAULT if error.code else ExitStatus.DONE
    error = signals.behind(error)
    if debug:
        console.say("".join(traceback.format_exception(error)).rstrip())
    failure = explain(error, command, options=options)
    if (status := _told_by_another(failure)) is not None:
        return status
    console.error(failure.message, with_places(failure.hint, words, options or {}))
    return failure.status


def with_places(hint: str, words: Sequence[str], options: Options) -> str:
    """The hint, whose commands work on the run and with the SAEs that were typed, as far as they take such."""
    given = {name: value for name in _PLACES if (value := _value(name, words)) is not None}

    def placed(found: re.Match[str]) -> str:
        command, rest = found.groups()
        takes, written = options.get(command, ()), rest.split()
        more = [
            f" {name} {shlex.quote(value)}" for name, value in given.items() if name in takes and name not in written
        ]
        return found[0] if "--help" in written else f"`circuit {command}{''.join(more)}{rest}`"

    return _COMMAND.sub(placed, hint)


def _value(name: str, words: Sequence[str]) -> str | None:
    """What an option was given, the last time."""
    found = [after for word, after in pairwise(words) if word == name]
    found += [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return found[-1] if found else None


def _told_by_another(failure: Failure) -> int | None:
    """Tell the other processes of this command; the exit status of the one that failed first, if that is another."""
    try:
        if processes.count() == 1:
            return None
        group.tell_failure(failure.message, hint=failure.hint, status=failure.status)
        first = group.failure_of_another()
    except CircuitError:
        return None
    return None if first is None else first.exit_status


def explain(error: BaseException, command: str = "circuit", *, options: Options | None = None) -> Failure:
    """The failure behind an exception; what nobody foresaw is a fault of the program."""
    if is_out_of_memory(error):
        return Failure("out of memory", ExitStatus.TOOL, _less_memory(command))
    if isinstance(error, CircuitError):
        return Failure(error.message, error.exit_status, error.hint)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", ExitStatus.INTERRUPTED, how_to_go_on())
    if isinstance(error, SystemExit):
        return Failure("terminated", ExitStatus.TERMINATED, how_to_go_on())
    # Typer's usage errors have no public name that all its versions share; their texts do.
    if hasattr(error, "format_message"):
        return _usage(error, error.format_message(), command=command, options=options or {})
    if isinstance(error, OSError) and (failure := _system(error)) is not None:
        return failure
    return Failure(
        f"{type(error).__name__}: {error}",
        ExitStatus.FAULT,
        "this is a bug in circuit; --debug shows where it happened",
    )


def _less_memory(command: str) -> str:
    """What to ask less of, by the command that did not fit."""
    smaller = {
        "train": "--set sae.d_sae or sae.expansion, train.batch_size, train.pool_tokens; --dry-run shows the memory",
        "collect": "--set data.batch_size, data.block_length; --dry-run shows the memory",
        "develop": "--set data.batch_size, sae.d_sae, train.batch_size; --dry-run shows the memory",
        "toy": "--l1, --ratios, --set toy.batch_size; --dry-run shows the memory",
        "interp": "--set interp.batch_size",
        "validate": "--set graph.batch_size",
        "inspect": "--tokens",
    }
    name = command.rpartition(" ")[2]
    return f"ask for less: {smaller.get(name, '--set graph.batch_size')}; or choose another --device"


def unknown_command(word: str, known: list[str]) -> Failure:
    """The failure of a first word that names no command."""
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean circuit {near[0]}?" if near else f"commands are {' '.join(known)}"
    return Failure(f"unknown command: {word}", ExitStatus.USAGE, hint)


def _usage(error: BaseException, text: str, *, command: str, options: Options) -> Failure:
    option = getattr(error, "option_name", None)
    hint = f"`{command} --help` lists the options"
    if option is None or not hasattr(error, "possibilities"):
        return Failure(text[:1].lower() + text[1:].rstrip("."), ExitStatus.USAGE, hint)
    key = option.lstrip("-").replace("-", "_")
    settings = [name for name in known_names() if name.rpartition(".")[2] == key]
    near = sorted(error.possibilities or (), key=lambda name: -difflib.SequenceMatcher(None, name, option).ratio())
    if key == "dtype" and command.endswith(" train"):
        hint = "SAEs are trained in float32; --set train.autocast=true multiplies in bfloat16"
    elif having := [name for name, known in options.items() if option in known]:
        # A setting that is an option elsewhere is one that this command does not read.
        hint = f"{' '.join(having)} {'has' if len(having) == 1 else 'have'} it; {hint}"
    elif settings:
        hint = "write " + " or ".join(f"--set {name}=VALUE" for name in settings)
    elif near:
        hint = f"did you mean {near[0]}?"
    return Failure(f"unknown option: {option}", ExitStatus.USAGE, hint)


def _system(error: OSError) -> Failure | None:
    # h5py reports a full disk in its text only.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        where = f": {error.filename}" if error.filename else ""
        return Failure(f"no space left on the disk{where}", ExitStatus.INPUT, f"make space; {how_to_go_on()}")
    if error.strerror is None:
        return None
    if error.filename is None:
        # Of a stream or a connection that broke.
        status = ExitStatus.TOOL if isinstance(error, ConnectionError | TimeoutError) else ExitStatus.INPUT
        return Failure(error.strerror.lower(), status, "--debug shows where it happened")
    return Failure(f"{error.strerror.lower()}: {error.filename}", ExitStatus.INPUT, "--debug shows where it happened")
