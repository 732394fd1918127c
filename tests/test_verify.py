"""`circuit collect --verify` names what is damaged or missing, and `circuit collect` makes only that again."""

import logging
import shutil
from pathlib import Path

import h5py
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_collect import save_model, stage_request, stored_bytes, texts, write_cache
from test_collect_stage import write_text

from circuitcli.activations import passes
from circuitcli.activations.storage.verification import verify as verify_cache
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.runs import Run
from circuitcli.stages import collect, verify

HOOKS = [HookPoint.parse(name) for name in ("mlp.1", "resid.1", "mlp.2", "resid.2")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    return write_text(path, texts(*(20 + 7 * n % 50 for n in range(12))))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, text):
    """A run with five shards of four hook points."""
    path = tmp_path_factory.mktemp("whole") / "run"
    collect.run(stage_request(path, model, text))
    assert len(list((path / "activations" / "tokens").iterdir())) == 5
    return path


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip_in(dataset):
    """Changes one bit in the middle of a data set."""

    def change(path):
        with h5py.File(path) as file:
            place = file[dataset].id.get_offset() + file[dataset].nbytes // 2
        content = bytearray(path.read_bytes())
        content[place] ^= 4
        path.write_bytes(content)

    return change


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def from_elsewhere(name):
    return lambda path: shutil.copy(path.parents[1] / name, path)


WAYS = {
    "a bit of the rows": (flip_in("activations"), ["resid.1/00002.h5"]),
    "a bit of the sums": (flip_in("sum"), ["mlp.2/00003.h5"]),
    "a lost shard": (Path.unlink, ["mlp.1/00001.h5"]),
    "a short shard": (cut, ["resid.2/00000.h5"]),
    "a bit of the tokens": (flip_in("token"), ["tokens/00001.h5"]),
    "a bit of the blocks": (flip_in("block"), ["tokens/00004.h5"]),
    "lost tokens": (Path.unlink, ["tokens/00000.h5"]),
    "the lost tokens of the last shard": (Path.unlink, ["tokens/00004.h5"]),
    "an empty file of tokens": (empty, ["tokens/00002.h5"]),
    "all of a shard in the middle": (Path.unlink, ["tokens/00002.h5", *(f"{hook}/00002.h5" for hook in HOOKS)]),
    "all of the last shard": (Path.unlink, ["tokens/00004.h5", *(f"{hook}/00004.h5" for hook in HOOKS)]),
    "different shards": (cut, ["mlp.1/00003.h5", "resid.2/00001.h5", "tokens/00001.h5"]),
    "a shard of a wrong place": (from_elsewhere("resid.1/00000.h5"), ["resid.1/00002.h5"]),
    "another hook point's shard": (
        lambda path: shutil.copy(path.parents[1] / "mlp.1/00002.h5", path),
        ["mlp.2/00002.h5"],
    ),
    "tokens of a wrong place": (from_elsewhere("tokens/00000.h5"), ["tokens/00002.h5"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_damaged_is_named_and_made_again_and_nothing_else(way, run, whole, model, text, caplog):
    change, names = WAYS[way]
    activations = run / "activations"
    for name in names:
        change(activations / name)
    before = stored_bytes(activations)
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match=f"^{len(names)} of 25 files") as caught:
        verify.run(Run(run))
    assert "without --verify" in caught.value.hint and caught.value.exit_status == 3
    assert stored_bytes(activations) == before
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == len(names) and all(any(name in line for line in warned) for name in names)
    times = {path: path.stat().st_mtime_ns for path in activations.rglob("*.h5")}
    made = collect.run(stage_request(run, model, text))
    assert made[1:] == Run(whole).stage_records("collect")
    assert stored_bytes(activations) == stored_bytes(whole / "activations")
    changed = {path for path in activations.rglob("*.h5") if times.get(path) != path.stat().st_mtime_ns}
    assert changed == {activations / name for name in names}
    assert verify.run(Run(run))[1:] == made[1:]


def test_the_model_runs_over_damaged_shards_only(run, model, text, monkeypatch):
    flip_in("activations")(run / "activations/resid.1/00002.h5")
    (run / "activations/tokens/00004.h5").unlink()
    with pytest.raises(InputError):
        verify.run(Run(run))
    shards, real = [], passes.Passes.store

    def seen(self, files, planned):
        shards.append((files.plan.index, [str(hook) for hook in files.plan.hooks]))
        return real(self, files, planned)

    monkeypatch.setattr(passes.Passes, "store", seen)
    collect.run(stage_request(run, model, text))
    assert shards and all(shard == (2, ["resid.1"]) for shard in shards)


def test_a_whole_cache_gives_its_records_and_stays_finished(run, model, text):
    manifest = Run(run).stage("collect")
    assert verify.run(Run(run))[1:] == Run(run).stage_records("collect")
    assert Run(run).stage("collect") == manifest | {"damaged": []}


def test_what_came_back_is_whole_again(run):
    path = run / "activations/resid.1/00002.h5"
    path.rename(run / "away")
    with pytest.raises(InputError):
        verify.run(Run(run))
    assert Run(run).stage("collect")["state"] == "damaged"
    (run / "away").rename(path)
    assert len(verify.run(Run(run))) == 5
    assert Run(run).stage("collect")["state"] == "finished"


def test_an_unfinished_collection_can_be_verified_and_gone_on_with(run, whole, model, text):
    for path in (run / "activations").glob("*/0000[34].h5"):
        path.unlink()
    Run(run).update_stage("collect", state="interrupted")
    flip_in("activations")(run / "activations/mlp.1/00001.h5")
    with pytest.raises(InputError, match=r"^1 of 15 files"):
        verify.run(Run(run))
    collect.run(stage_request(run, model, text))
    assert stored_bytes(run / "activations") == stored_bytes(whole / "activations")


def test_a_run_without_activations_has_nothing_to_verify(tmp_path):
    with pytest.raises(InputError, match="has no activations"):
        verify.run(Run(tmp_path / "run"))


def test_a_shard_of_another_place_is_noticed_though_it_has_as_many_rows(tmp_path):
    write_cache(tmp_path, [5, 5, 5], {HOOKS[0]: 3})
    assert not verify_cache(tmp_path, HOOKS[:1]).damage
    shutil.copy(tmp_path / "mlp.1/00002.h5", tmp_path / "mlp.1/00001.h5")
    assert list(verify_cache(tmp_path, HOOKS[:1]).damage) == [tmp_path / "mlp.1/00001.h5"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), name=st.sampled_from(["mlp.1", "tokens"]))
def test_no_changed_byte_changes_what_is_read_unnoticed(share, name, whole, tmp_path):
    root = tmp_path / "copy"
    if not root.exists():
        shutil.copytree(whole / "activations", root)
    path = root / name / "00001.h5"
    good = path.read_bytes()
    bad = bytearray(good)
    bad[int(share * len(bad))] ^= 1
    path.write_bytes(bad)
    try:
        if not verify_cache(root, HOOKS).damage:
            assert contents(path) == contents(whole / "activations" / name / "00001.h5")
    finally:
        path.write_bytes(good)


def contents(path):
    with h5py.File(path) as file:
        attributes = {key: str(value) for key, value in file.attrs.items() if key != "fingerprint"}
        return attributes, {key: part[...].tobytes() for key, part in file.items()}
