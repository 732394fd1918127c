"""Files of SAEs on disk: exports that break off in any way, modes, and syncing."""

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exchange_support import D_IN, random_sae, random_transcoder

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.exchange import formats, target
from circuitcli.saes.exchange.place import About
from circuitcli.saes.exchange.tensors import Foreign
from circuitcli.saes.tensor_files import save_pickled, save_tensors
from circuitcli.settings.settings import Settings
from circuitcli.stages import export
from circuitcli.stages.request import Request


def two_files(folder: Path) -> list[Path]:
    made = [folder / "one/weights", folder / "two/weights"]
    for number, path in enumerate(made):
        path.parent.mkdir()
        path.write_text(str(number))
    return made


def seen(directory: Path) -> list[str]:
    """All that lies below, hidden things too."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def killed(directory: Path, monkeypatch: pytest.MonkeyPatch, *, at: str) -> None:
    """Export in a child that ends without any clean-up: while it writes, before the mark, or between two renames."""
    pid = os.fork()
    if pid:
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        return
    end = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    replace, n_replaced = Path.replace, []

    def second(self: Path, to: Path) -> Path:
        if n_replaced:
            end()
        n_replaced.append(to)
        return replace(self, to)

    if at == "mark":
        monkeypatch.setattr(Path, "touch", end)
    if at == "renames":
        monkeypatch.setattr(Path, "replace", second)
    target.filled(directory, end if at == "write" else two_files)
    os._exit(0)


@pytest.mark.parametrize("at", ["write", "mark", "renames"])
def test_a_killed_export_is_undone_or_completed_by_the_next(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "deep/out"
    killed(out, monkeypatch, at=at)
    assert seen(tmp_path / "deep")[0] == "out"
    shown = [path for path in out.glob("*") if not path.name.startswith(".")]
    assert at == "renames" or not [path for folder in shown for path in folder.rglob("*") if path.is_file()]
    target.sweep(out)
    assert seen(out) == (["one", "one/weights", "two", "two/weights"] if at == "renames" else [])
    assert target.is_empty(out) == (at != "renames")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("was_there", [True, False])
def test_an_export_that_breaks_off_leaves_what_was_there(was_there: bool, error: type, tmp_path: Path):
    out = tmp_path / "deep/out"
    if was_there:
        (out / "one").mkdir(parents=True)
        (out / "one/weights").write_text("mine")

    def write(folder: Path) -> list[Path]:
        two_files(folder)
        raise error

    before = seen(tmp_path)
    with pytest.raises(error):
        target.filled(out, write)
    assert seen(tmp_path) == before
    target.filled(out, two_files)
    assert (out / "one/weights").read_text() == "0"


def test_an_interrupt_once_all_is_written_completes_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rename, interrupts = Path.replace, [KeyboardInterrupt]

    def replace(self: Path, to: Path) -> Path:
        if interrupts:
            raise interrupts.pop()
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        target.filled(tmp_path / "out", two_files)
    assert seen(tmp_path / "out") == ["one", "one/weights", "two", "two/weights"]


def test_two_exports_into_one_directory_do_not_meet(tmp_path: Path):
    def write(folder: Path) -> list[Path]:
        with pytest.raises(InputError, match="another process exports into"):
            target.sweep(tmp_path)
        return two_files(folder)

    target.filled(tmp_path, write)
    assert target.is_empty(tmp_path) is False and len(seen(tmp_path)) == 4


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_of_tensors_are_readable_as_other_files_are_and_synced(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[str] = []
    sync = os.fsync

    def noted(number: int) -> None:
        synced.append(Path(f"/proc/self/fd/{number}").readlink().name.removesuffix(".partial"))
        sync(number)

    monkeypatch.setattr(os, "fsync", noted)
    before = os.umask(umask)
    try:
        save_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
        save_pickled({"a": torch.ones(3)}, tmp_path / "a.pt")
        files.save(random_sae("topk"), tmp_path / "sae")
        for name, made in formats.WRITABLE.items():
            sae = random_transcoder("topk", d_out=D_IN) if name == "circuit_tracer" else random_sae("topk")
            written: Callable[[Path], list[Path]] = lambda folder, made=made, sae=sae: made.write(  # noqa: E731
                [Foreign(sae, About(model="gpt2", module="h.2"))], folder
            )
            target.filled(tmp_path / name, written)
    finally:
        os.umask(before)
    every = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(every) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in every} == {0o666 & ~umask}
    assert {path.name for path in every} <= set(synced)


def test_an_export_keeps_the_mode_of_directories_that_it_makes(tmp_path: Path):
    target.filled(tmp_path / "out", two_files)
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "out/one").stat().st_mode == plain.stat().st_mode


def test_a_hook_point_is_a_folder(tmp_path: Path):
    items = [Foreign(random_sae("topk", hook=HookPoint(layer, "resid")), About()) for layer in (1, 3)]
    made = target.filled(tmp_path, lambda folder: formats.WRITABLE["circuit"].write(items, folder))
    assert made == [tmp_path / "resid.1", tmp_path / "resid.3"]
    assert [str(place.hook) for place in formats.find(tmp_path)] == ["resid.1", "resid.3"]


EVERY = ["resid.0", "mlp_in.2", "mlp.2", "resid.2", "resid.5"]


@pytest.mark.parametrize(
    ("layers", "sites", "expected"),
    [
        (None, None, EVERY),
        ("2", None, ["mlp_in.2", "mlp.2", "resid.2"]),
        ("2:", ["resid,mlp"], ["mlp.2", "resid.2", "resid.5"]),
        (":2000", ["resid", "mlp_in"], ["resid.0", "mlp_in.2", "resid.2", "resid.5"]),
        ("-1:", None, ["resid.5"]),
        (None, ["mlp resid_pre"], ["mlp.2"]),
    ],
)
def test_layers_and_sites_choose_what_is_exported(
    layers: str | None, sites: list[str] | None, expected: list[str], tmp_path: Path
):
    for hook in EVERY:
        made = (
            random_transcoder("relu") if hook.startswith("mlp_in") else random_sae("relu", hook=HookPoint.parse(hook))
        )
        files.save(made, tmp_path / "saes" / hook)
    request = Request(Settings(sae_path=str(tmp_path / "saes")), Stream(), Run(tmp_path / "run"))
    choice = export.Choice.of(layers, sites)
    made = export.run(request, format_="circuit", output=str(tmp_path / "out"), choice=choice)
    assert [record.hook for record in made] == expected == [Path(record.path).name for record in made]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)


@pytest.mark.parametrize(
    ("layers", "sites", "error", "message"),
    [
        ("x", None, SettingsError, "'x' is not a slice"),
        (None, ["residual"], SettingsError, "unknown site 'residual'"),
        ("7:9", None, InputError, "no SAE at layers 7:9, sites any"),
        (None, ["attn"], InputError, "no SAE at layers :, sites attn"),
    ],
)
def test_a_choice_of_nothing_is_told(
    layers: str | None, sites: list[str] | None, error: type, message: str, tmp_path: Path
):
    files.save(random_sae("relu"), tmp_path / "sae")
    request = Request(Settings(sae_path=str(tmp_path / "sae")), Stream(), Run(tmp_path / "run"))
    with pytest.raises(error, match=message) as caught:
        export.run(request, format_="circuit", output=str(tmp_path / "out"), choice=export.Choice.of(layers, sites))
    assert caught.value.hint and not (tmp_path / "out").exists()
