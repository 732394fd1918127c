"""The script of SCALAR's experiments: its command lines are commands that exist, and a kill does them no harm."""

import os
import shlex
import subprocess
from pathlib import Path

from cli_support import ROOT, here

from circuitcli.cli.app import COMMANDS

SCRIPT = ROOT / "configs" / "scalar" / "scalar.sh"
FOLDER = SCRIPT.parent
# What each command line was called with, a line each; the sixth can be made to fail.
STUB = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done >> calls
echo >> calls
[ -z "${FAIL:-}" ] || [ "$(grep -c '^$' calls)" != 6 ] || exit 1
echo '{"kind": "stage"}'
"""


def sets() -> list[str]:
    (line,) = [part for part in SCRIPT.read_text().split("\n: ") if part.startswith('"${SETS:=')]
    return line.partition(":=")[2].partition("}")[0].replace("\\\n", "").split()


def start(folder: Path, **variables: str) -> tuple[int, list[list[str]]]:
    """The status of the script, and the words of each command line."""
    stub = folder / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    (folder / "calls").unlink(missing_ok=True)
    environment = {"PATH": os.environ["PATH"], "CIRCUIT": str(stub), "TOKENS": "1000", **variables}
    words = ["sh", str(SCRIPT), "text.txt", "out"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, timeout=60, check=False)
    calls = (folder / "calls").read_text().split("\n\n")
    return done.returncode, [call.strip("\n").split("\n") for call in calls if call]


def test_every_set_of_the_script_has_its_settings():
    assert {path.stem for path in FOLDER.glob("*.toml")} == {*sets(), "paper"}


def test_its_command_lines_are_those_of_commands_that_exist(tmp_path):
    for made in ("joint/model", "gpt/checkpoints/step0"):
        (tmp_path / "out" / made).mkdir(parents=True)
    status, calls = start(tmp_path)
    assert status == 0
    commands = [words[0] for words in calls]
    # A model that learned together with its SAEs is another one, with a run of its own for the curves.
    of_set = [["collect", "train", *["collect"] * (name == "joint"), "validate"] for name in sets()]
    assert commands == ["pretrain", *(word for words in of_set for word in words), *["render"] * 3]
    models = [words[words.index("--model") + 1] for words in calls if words[0] == "collect"]
    assert set(models) == {"out/gpt", "out/gpt/checkpoints/step0", "out/joint/model"}
    for words in calls:
        configs = [Path(words[at + 1]) for at, word in enumerate(words) if word == "--config"]
        if words[0] in COMMANDS and all((tmp_path / path).exists() for path in configs):
            done = here(*words, "--print-settings", cwd=tmp_path)
            assert done.status == 0, (shlex.join(words), done.stderr)
    compared = [words[words.index("--interaction") + 1].split(",") for words in calls if words[0] == "render"]
    # TopK SAEs are what all others are compared with.
    assert [files[0] for files in compared] == [
        f"out/{name}/reports/edges.json" for name in ("topk-x8", "topk-block", "topk-layer")
    ]
    assert sum(map(len, compared)) == len(sets()) and "out/joint-model/reports/edges.json" in compared[0]


def test_a_command_that_fails_ends_it_and_the_same_again_goes_on(tmp_path):
    chosen = {"SETS": "topk-layer jsae-layer", "GPT": "model", "CURVE": str(FOLDER / "paper.toml")}
    status, calls = start(tmp_path, FAIL="yes", **chosen)
    assert status != 0 and len(calls) == 6
    assert [path.name for path in (tmp_path / "out").glob("*.partial")] == ["jsae-layer.edges.jsonl.partial"]
    status, calls = start(tmp_path, **chosen)
    assert status == 0 and len(calls) == 7 and not [*(tmp_path / "out").glob("*.partial")]
    assert all("--json" in words for words in calls)
    assert "out/topk-layer/reports/edges-paper.json,out/jsae-layer/reports/edges-paper.json" in calls[6]


def test_without_a_text_it_says_what_it_takes(tmp_path):
    done = subprocess.run(["sh", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "scalar.sh tiny-shakespeare.txt" in done.stderr


def test_the_settings_of_the_published_code_are_settings(tmp_path):
    words = ("validate", "--config", str(FOLDER / "paper.toml"), "--print-settings")
    done = here(*words, cwd=tmp_path)
    assert done.status == 0 and 'method = "paper"' in done.stdout
