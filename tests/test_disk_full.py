"""Real file systems that run full, or may not be written: one clear error, nothing lost, nothing half."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_train_stage import request

from circuitcli.errors import ExitStatus, InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.relu import ReluSae
from circuitcli.saes.topk import TopKSae
from circuitcli.stages import collect, export, train

MEGABYTES = 24


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount file systems")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has broken."""
    run = tmp_path_factory.mktemp("trained") / "run"
    collect.run(request(run, Stream()))
    train.run(request(run))
    return run


class Filler:
    """What others keep on the disk."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "others"

    def leave(self, n_bytes: int) -> None:
        """Take all space but so much."""
        free = os.statvfs(self._path.parent)
        with self._path.open("wb") as stream:
            stream.write(bytes(max(0, free.f_bavail * free.f_frsize - n_bytes)))

    def go(self) -> None:
        """Make space."""
        self._path.unlink()


def written(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.h5")}


@pytest.mark.parametrize("left", [0, 100_000, 1_000_000])
def test_collect_goes_on_when_there_is_space_again(disk: Path, trained: Path, left: int, monkeypatch):
    filler, run = Filler(disk), disk / "run"
    checked = collect.check_disk

    def then_others_fill_it(*arguments: object, **facts: object) -> None:
        checked(*arguments, **facts)
        filler.leave(left)

    with monkeypatch.context() as patch:
        patch.setattr(collect, "check_disk", then_others_fill_it)
        with pytest.raises(InputError, match=r"No space left on device") as raised:
            collect.run(request(run, Stream()))
    assert raised.value.exit_status == ExitStatus.INPUT and "make space" in str(raised.value.hint)
    assert not list(run.rglob("*.partial"))
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*.h5")}
    assert bool(kept) == (left >= 1_000_000)
    # Still full: refused, and nothing is lost by it.
    with pytest.raises(InputError, match=r"No space left on device|has .* free"):
        collect.run(request(run, Stream()))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.h5")} == kept
    filler.go()
    collect.run(request(run, Stream()))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert written(run) == written(trained)


@pytest.mark.parametrize("left", [0, 20_000, 500_000, 1_200_000])
def test_train_goes_on_when_there_is_space_again(disk: Path, trained: Path, left: int):
    filler, run = Filler(disk), disk / "run"
    collect.run(request(run, Stream()))
    filler.leave(left)
    with pytest.raises(InputError, match=r"No space left on device") as raised:
        train.run(request(run))
    assert raised.value.exit_status == ExitStatus.INPUT and "make space" in str(raised.value.hint)
    assert not list(run.rglob("*.partial"))
    filler.go()
    digests = [record.digest for record in train.run(request(run))]
    assert digests == [record.digest for record in Run(trained).stage_records("train")]


def test_a_finished_training_is_told_again_on_a_full_disk(disk: Path):
    filler, run = Filler(disk), disk / "run"
    collect.run(request(run, Stream()))
    made = train.run(request(run))
    filler.leave(0)
    assert train.run(request(run)) == made


def test_weights_that_find_no_space_are_one_clear_error(disk: Path):
    sae = ReluSae(SaeConfig(HookPoint(0, "resid"), 128, 2048))
    Filler(disk).leave(100_000)
    with pytest.raises(InputError, match=r"cannot write .*No space left on device"):
        files.save(sae, disk / "sae")
    assert not list(disk.rglob("*.partial"))


@pytest.mark.parametrize("format_", ["circuit", "sae_lens", "dictionary_learning", "sparsify", "circuit_tracer"])
def test_exports_that_find_no_space_are_one_clear_error(disk: Path, tmp_path: Path, format_: str):
    places = {"subtract_decoder_bias": False, "target": HookPoint(0, "mlp")} if format_ == "circuit_tracer" else {}
    hook = HookPoint(0, "mlp_in" if places else "resid")
    source, output = tmp_path / "sae", disk / "exported"
    config = SaeConfig(hook, 128, 2048, **places)
    files.save(ReluSae(config) if places else TopKSae(config, k=4), source)
    asked = request(tmp_path / "run", Stream(), sae_path=str(source))
    filler = Filler(disk)
    filler.leave(100_000)
    with pytest.raises(InputError, match=r"cannot write .*No space left on device"):
        export.run(asked, format_=format_, output=str(output))
    assert not [path for path in output.rglob("*") if path.is_file()]
    filler.go()
    assert export.run(asked, format_=format_, output=str(output))


def test_a_run_that_may_not_be_written_is_one_clear_error(disk: Path):
    run = disk / "run"
    collect.run(request(run, Stream()))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for stage, records in ((collect, Stream()), (train, None)):
        with pytest.raises(InputError, match=r"cannot write .*: Read-only file system") as raised:
            stage.run(request(run, records, force=True))
        assert "writable directory" in raised.value.hint
