"""Every option of every command, given what makes no sense, ends at once in one error line that says what to do.

In this process, in a directory with and without a run; no model is there, so nothing is ever computed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from itertools import combinations, product
from pathlib import Path
from types import ModuleType

import fake_stages
import pytest
import typer.main
from cli_support import Outcome

from circuitcli import progress, stages
from circuitcli.cli.app import COMMANDS, app, run
from circuitcli.cli.options import check_given
from circuitcli.errors import InputError, SettingsError
from circuitcli.records import Stream
from circuitcli.runs import Run
from circuitcli.settings.settings import Settings
from circuitcli.stages.request import Request

# A few for each kind: numbers, digits of others, no text, paths, markup, names that lead elsewhere, files of no kind.
NASTY = (
    "",
    " ",
    "a\0b",
    "\udcff",
    "~no-such-user-here/x",
    "sae_lens:~no-such-user-here",
    "٣:٥",
    "1:²",
    "9" * 5000,
    "-1",
    "1e308",
    "nan",
    "[red]x[/red]",
    "\x1b]0;owned\x07",
    "../../evil",
    "/dev/zero",
    "x" * 5000,
    "6:",
    "resid.0/1@²",
    "@resid.1",
    "fifo",
    "folder",
    "deep.json",
    "binary",
)
TRIED = [command for command in COMMANDS if command != "demo"]
# What each command needs besides the option that is tried.
MORE = {
    "export": ("--to", "sae_lens", "-o", "out"),
    "collect": ("--model", "./none"),
    "develop": ("--model", "./none"),
    "inspect": ("./none",),
    "pretrain": ("--text", "./none", "--output", "out"),
}
# What is shown as it is, and what is drawn instead of a circuit: neither goes with what makes or changes another thing.
SHOWN = (("--text", "x"), ("--feature", "resid.1/2"), ("--feature", "resid.1/2", "--html", "x.html"))
INSTEAD = (("--figure", "effects"), ("--curves",), ("--sweep",), ("--interaction", "a.json,b.json"))
OF_CIRCUITS = (("--as", "csv"), ("--max-edges", "3"), ("--max-nodes", "3"), ("--state", "x.json"), ("--tile", "a4"))
# The text has tests of its own; its folders and files may be anything.
ELSEWHERE = {"--text", "--from"}


def _options(command: str) -> list[str]:
    """The names of a command's options that take a value, and "" for its argument."""
    found = [parameter for parameter in typer.main.get_command(app).commands[command].params]
    names = [one.opts[0] for one in found if not getattr(one, "is_flag", False)]
    return [name if name.startswith("-") else "" for name in names if name not in ELSEWHERE]


def _words(command: str, option: str, value: str) -> list[str]:
    if not option:
        return [command, *(word for word in MORE.get(command, ()) if command == "export"), "--", value]
    return [command, *MORE.get(command, ()), option, value]


@pytest.fixture
def directory(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with files of the wrong kinds and a run without SAEs, in which no command loads a model."""
    os.mkfifo("fifo")
    Path("folder").mkdir()
    Path("deep.json").write_text("[" * 50_000)
    Path("binary").write_bytes(b"\xff\xfe\0")
    fake_stages.collect(Request(Settings(), Stream(), Run(Path("made"))))
    # Those that need nothing to begin with would work in earnest.
    for name in ("collect", "toy", "synthetic"):
        module = ModuleType(f"circuitcli.stages.{name}")
        vars(module).update(run=_nothing_there, plan=_nothing_there)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(stages, name, module, raising=False)
    yield inside
    progress.set_sink(None)


def _nothing_there(request: object) -> object:
    raise InputError("there is no model", hint="name one")


# What a command line says that nothing could be made of, and what is told of it; needing no model.
LATE = (
    (("pretrain", "--output", "out", "--tokenizer", "bpee"), "there is no tokenizer at 'bpee'"),
    (("pretrain", "--output", "out", "--tokenizer", "folder"), "there is no tokenizer at 'folder'"),
    *(((name, "--device", "banana"), "'banana' is not a device") for name in ("pretrain", "collect", "train")),
    (("interp", "--text", "-"), "stdin is empty"),
    (("interp", "--text", "nothing.txt"), "nothing.txt is empty"),
    (("interp", "--text", "x", "--feature", "resid.0/8"), "there is no feature resid.0/8"),
    (("interp", "--text", "x", "--feature", "resid.7/8"), "no coder reads resid.7"),
    (("interp", "--explain"), "no language model is named"),
    (("validate", "--pin", "0:8"), "resid.0 has no feature 8"),
    (("graph-naive", "--pin", "0:8"), "resid.0 has no feature 8"),
    *(((name, "--set", "graph.prompt="), "the prompt is empty") for name in ("graph-grad", "graph-naive", "validate")),
    *(
        ((name, "--set", "sae_path= "), "sae_path=' ' (--set): input should not be empty")
        for name in ("train", "export")
    ),
)
# A process in which the heavy libraries cannot be imported: whatever needs one ends there as a bug does, with status 1.
TRIED_WITHOUT_TORCH = """
import json, sys
sys.modules |= dict.fromkeys(("torch", "transformers", "tokenizers", "matplotlib"))
from circuitcli.cli.app import run
for words in json.loads(sys.argv[1]):
    run(words)
    print("ran", file=sys.stderr)
"""


def test_what_makes_no_sense_is_refused_before_anything_heavy_is_imported(directory: Path):
    fake_stages.train(Request(Settings(), Run(Path("made")).stream(), Run(Path("made"))))
    Path("nothing.txt").touch()
    run_ = {"pretrain": [], "collect": []}
    lines = [[*words, *run_.get(words[0], ["--run", "made"])] for words, _ in LATE]
    program = [sys.executable, "-c", TRIED_WITHOUT_TORCH, json.dumps(lines)]
    done = subprocess.run(program, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    told = done.stderr.split("ran\n")
    assert len(told) == len(LATE) + 1, done.stderr
    for (words, message), said in zip(LATE, told, strict=False):
        error, hint = [line for line in said.splitlines() if not line.startswith("note:")]
        assert error.startswith(f"error: {message}") and hint.startswith("hint: "), (words, said)


def test_no_option_takes_an_empty_text_for_one_that_is_not_given():
    for name in TRIED:
        flags = import_module(f"circuitcli.cli.commands.{name.replace('-', '_')}").FLAGS
        given = typer.main.get_command(app).commands[name].params
        texts = {one.name: one.opts[0] for one in given if not getattr(one, "is_flag", False)}
        # This one needs a name and a value.
        del texts["assignments"]
        for parameter, option in texts.items():
            called = option if option.startswith("-") else parameter.upper()
            for empty in ("", ["x", ""]):
                with pytest.raises(SettingsError, match=f"^{called} is empty"):
                    check_given(flags, {"force": False, parameter: empty, "other": None})


def _refused(words: list[str], capsys: pytest.CaptureFixture) -> Outcome:
    """What a command left that must end in one error line and, if there is one, a hint."""
    begun = time.monotonic()
    outcome = Outcome(run(words), *capsys.readouterr())
    said = f"{str(words)[:200]}: {outcome}"
    assert outcome.status in (2, 3, 4), said
    assert [line.partition(":")[0] for line in outcome.errors] in (["error"], ["error", "hint"]), said
    assert "bug in circuit" not in outcome.stderr and not outcome.stdout, said
    assert outcome.stderr.replace("\n", "").isprintable() and len(outcome.stderr) < 3000, said
    assert time.monotonic() - begun < 20, said
    return outcome


@pytest.mark.parametrize("command", TRIED)
def test_nonsense_in_any_option_is_refused_with_and_without_a_run(command: str, directory: Path, capsys):
    # A quarter of the kinds for each option, another one for the next.
    for number, option in enumerate(_options(command)):
        for count, value in enumerate(NASTY[(number + TRIED.index(command)) % 4 :: 4]):
            with_run = count % 2 and option != "--run" and command != "collect"
            _refused([*_words(command, option, value), *(["--run", "made"] if with_run and option else [])], capsys)


@pytest.mark.parametrize(
    "words",
    [
        ("validate", "--pin", "6:²"),
        ("validate", "--pin", "6"),
        ("graph-naive", "--pin", "٦:1"),
        ("graph-naive", "--name", "../../evil"),
        ("graph-grad", "--name", "a/b"),
        ("graph-grad", "--layers", "1:²"),
        ("graph-grad", "--sites", "heads"),
        ("graph-grad", "--metric", "logit-diff"),
        ("graph-grad", "--metric", "kl", "--target", "x"),
        ("graph-grad", "--device", "²"),
        ("graph-naive", "--extend", "~no-such-user-here/x"),
        ("train", "--sweep", "sae.k"),
        ("train", "--sweep", "sae.k=1,x"),
        ("train", "--sweep", "run=1,2"),
        ("train", "--set", "train.downstream_weight=1"),
        ("interp", "--feature", "resid.9/²"),
        ("interp", "--feature", "resid.9"),
        ("export", "--to", "nothing", "-o", "out"),
        ("export", "--to", "sae_lens"),
        ("render", "-o", "x.gif"),
        ("render", "--curves", "-o", "x.html"),
        ("render", "~no-such-user-here/x"),
        ("inspect", "sae_lens:~no-such-user-here"),
        *(("interp", *shown, asked) for shown in SHOWN for asked in ("--explain", "--dry-run", "--neuronpedia")),
        *(("render", *one, *other) for one, other in combinations(INSTEAD, 2)),
        *(("render", *one, *other) for one, other in product(INSTEAD, OF_CIRCUITS)),
    ],
)
def test_a_malformed_option_is_a_usage_error_before_a_missing_run_is_told(words: tuple[str, ...], directory, capsys):
    assert _refused([*words, "--run", "missing"], capsys).status == 2
