"""`circuit collect` by several processes makes the same cache as by one."""

import os
import subprocess
from pathlib import Path

import nursery
import pytest
from cli_support import Outcome
from process_support import LAUNCHERS, launched, side_by_side
from support_collect import stored_bytes

from circuitcli.runs import Run

OPTIONS = ["--model", "builtin:tiny", "--layers", "2:", "--tokens", "700", "--json"]
for _assignment in ("data.block_length=16", "data.batch_size=4", "data.shard_tokens=100", "model.device=cpu"):
    OPTIONS += ["--set", _assignment]
TIMEOUT_S = 200


def alone(run: Path, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess:
    command = ["-m", "circuitcli", "collect", *OPTIONS, *words]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "CIRCUIT_RUN": str(run)}
    return nursery.run(command, cwd=run.parent, env=variables, input=stdin, timeout=TIMEOUT_S)


def several(run: Path, *words: str, n: int = 2) -> Outcome:
    """`circuit collect` by several processes: what all of them print, and the largest exit status."""
    run.parent.mkdir(exist_ok=True)
    command = ["-m", "circuitcli", "collect", *OPTIONS, *words, "--run", str(run)]
    outcomes = side_by_side(command, n=n, cwd=run.parent)
    texts = ["".join(getattr(outcome, name) for outcome in outcomes) for name in ("stdout", "stderr")]
    return Outcome(max(outcome.status for outcome in outcomes), *texts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process: seven shards of six hook points."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = alone(run)
    assert done.returncode == 0, done.stderr
    assert len(list((run / "activations" / "tokens").iterdir())) == 7
    return run


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_make_the_files_of_one(launcher, whole, tmp_path):
    done = launched(launcher, "collect", *OPTIONS, run=tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"kind": "run"') == 1 and done.stdout.count('"kind": "activations"') == 6
    assert stored_bytes(tmp_path / "run" / "activations") == stored_bytes(whole / "activations")
    one, two = (Run(path).stage("collect") for path in (whole, tmp_path / "run"))
    assert (one["state"], one["n_tokens"], one["fingerprint"]) == (two["state"], two["n_tokens"], two["fingerprint"])
    again = several(tmp_path / "run")
    assert again.status == 0 and again.stdout == done.stdout


def test_any_number_of_processes_goes_on_where_others_stopped(whole, tmp_path):
    run = tmp_path / "run"
    assert several(run).status == 0
    for name in ("tokens/00001.h5", "resid.3/00004.h5", "attn.2/00000.h5", "tokens/00006.h5", "mlp.2/00006.h5"):
        (run / "activations" / name).unlink()
    (run / "activations" / "mlp.2" / "00005.h5.partial").write_bytes(b"half")
    Run(run).update_stage("collect", state="interrupted")
    done = several(run, n=3)
    assert done.status == 0, done.stderr
    assert stored_bytes(run / "activations") == stored_bytes(whole / "activations")


def test_a_text_from_stdin_reaches_all_processes(tmp_path):
    text = "".join(f"line {number} of {number * number}\n" for number in range(400))
    one, two = (
        alone(tmp_path / "one", "--text", "-", stdin=text),
        launched("torchrun", "collect", *OPTIONS, "--text", "-", run=tmp_path / "two", stdin=text),
    )
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert stored_bytes(tmp_path / "one" / "activations") == stored_bytes(tmp_path / "two" / "activations")


FAIL = """if True:
    import sys
    from circuitcli import processes
    from circuitcli.activations import passes
    from circuitcli.errors import InputError
    real = passes.Passes.store

    def fail(self, files, planned):
        if processes.rank() == 1 and files.plan.index == 3:
            raise InputError("this process cannot go on", hint="ask the other one")
        return real(self, files, planned)

    passes.Passes.store = fail
    from circuitcli.__main__ import main
    sys.exit(main())
"""


def test_a_failure_of_one_process_ends_all_with_one_error_line_and_costs_no_shard(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcomes = side_by_side(["-c", FAIL, "collect", *OPTIONS, "--run", str(run)], n=2, cwd=tmp_path)
    assert [outcome.status for outcome in outcomes] == [3, 3]
    errors = [line for outcome in outcomes for line in outcome.errors]
    assert len(errors) == 2 and errors[0] == "error: this process cannot go on"
    assert not any(outcome.stdout for outcome in outcomes)
    assert not list(run.rglob("*.partial")) and list(run.rglob("*.h5"))
    assert alone(run).returncode == 0
    assert stored_bytes(run / "activations") == stored_bytes(whole / "activations")


def test_verifying_is_done_by_one_of_them(whole):
    done = several(whole, "--verify")
    assert done.status == 0, done.stderr
    assert done.stdout.count('"kind": "activations"') == 6
