"""`circuit collect`: resumes, refuses, replaces, and says beforehand what it will take."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support_collect import BOS, EOS, PAD, language_model, save_model, stage_request, stored_bytes, texts, tokenizer

from circuitcli import runs
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.storage import shards
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, RunRecord
from circuitcli.runs import Run
from circuitcli.stages import collect, estimates

HOOKS = ("mlp.1", "resid.1", "mlp.2", "resid.2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.jsonl", texts(*(20 + 7 * n % 50 for n in range(12))))


def write_text(path, documents):
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


def test_it_returns_the_run_and_one_record_for_each_hook_point(tmp_path, model, text):
    run, *made = collect.run(stage_request(tmp_path / "run", model, text))
    assert isinstance(run, RunRecord) and (run.model, run.layers) == (str(model), "1:")
    assert [record.hook for record in made] == list(HOOKS)
    cache = ActivationCache(tmp_path / "run" / "activations", [HookPoint.parse(hook) for hook in HOOKS])
    for record in made:
        assert isinstance(record, ActivationsRecord)
        assert (tmp_path / "run" / record.path).is_dir()
        assert (record.n_tokens, record.d_model, record.dtype) == (cache.n_tokens, 24, "float16")
    assert 300 <= cache.n_tokens < 315
    assert len({record.digest for record in made}) == 4


def test_single_hook_points_are_collected_by_name_or_key(tmp_path, model, text):
    run, *made = collect.run(stage_request(tmp_path / "run", model, text, hooks=("0_act", "2_act", "resid.2")))
    assert run.layers == "0:3" and [record.hook for record in made] == ["resid_pre.0", "resid.1", "resid.2"]
    # Layers and sites play no part then.
    again = stage_request(tmp_path / "run", model, text, hooks=("resid.2", "resid.1", "resid_pre.0"), layers="0:1")
    assert collect.run(again) == [run, *made]
    with pytest.raises(SettingsError, match=r"resid\.3"):
        collect.run(stage_request(tmp_path / "other", model, text, hooks=("4_act",)))


def test_the_manifest_says_which_model_the_run_belongs_to(tmp_path, model, text):
    collect.run(stage_request(tmp_path / "run", model, text))
    manifest = Run(tmp_path / "run").manifest()
    assert (manifest["model"], manifest["n_layers"], manifest["d_model"]) == (str(model), 3, 24)
    assert manifest["model_settings"]["model.name"] == str(model)
    names = (
        "name",
        "revision",
        "dtype",
        "device",
        "device_map",
        "max_memory",
        "offload_folder",
        "trust_remote_code",
        "bos",
    )
    assert set(manifest["model_settings"]) == {f"model.{name}" for name in names}


def test_a_finished_run_answers_again_even_where_it_was_moved_to(tmp_path, model, text):
    first = collect.run(stage_request(tmp_path / "run", model, text))
    (tmp_path / "run").rename(tmp_path / "moved")
    again = collect.run(stage_request(tmp_path / "moved", model, text, batch_size=7))
    assert again[1:] == first[1:]
    assert again[0].path == str(tmp_path / "moved")


def test_a_cache_of_another_format_is_another_cache():
    assert collect.CACHE_FORMAT == shards.FORMAT_VERSION


def test_a_finished_run_answers_without_torch(tmp_path, model, text):
    collect.run(stage_request(tmp_path / "run", model, text))
    program = f"""if True:
        import sys
        from pathlib import Path
        from circuitcli.records import Stream
        from circuitcli.runs import Run
        from circuitcli.settings.sources import load
        from circuitcli.stages import collect, estimates
        from circuitcli.stages.request import Request
        flags = {{"model.name": {str(model)!r}, "model.device": "cpu", "data.text": {str(text)!r}, "data.layers": "1:",
                 "data.sites": "resid,mlp", "data.tokens": 300, "data.block_length": 16, "data.shard_tokens": 60}}
        settings = load(flags, environment={{}}).settings
        made = collect.run(Request(settings, Stream(), Run(Path({str(tmp_path / "run")!r}))))
        assert len(made) == 5
        assert not {{"torch", "transformers", "h5py"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(tokens=200), "data.tokens was 300 and is now 200"),
        (dict(dtype="float32"), "data.dtype was 'auto' and is now 'float32'"),
        (dict(sites=("resid",)), "data.sites was"),
    ],
)
def test_other_settings_are_refused_by_name_and_change_nothing(tmp_path, model, text, change, named):
    collect.run(stage_request(tmp_path / "run", model, text))
    before = stored_bytes(tmp_path / "run" / "activations")
    with pytest.raises(InputError, match=named) as caught:
        collect.run(stage_request(tmp_path / "run", model, text, **change))
    assert "--force" in caught.value.hint
    assert stored_bytes(tmp_path / "run" / "activations") == before


def test_another_text_of_the_same_name_is_refused(tmp_path, model, text):
    collect.run(stage_request(tmp_path / "run", model, text))
    write_text(text, texts(90, 90, 90, 90))
    with pytest.raises(InputError, match="content of the text was"):
        collect.run(stage_request(tmp_path / "run", model, text))


def test_the_same_text_in_another_place_is_the_same(tmp_path, model, text):
    first = collect.run(stage_request(tmp_path / "run", model, text))
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(text, tmp_path / "elsewhere" / text.name)
    assert collect.run(stage_request(tmp_path / "run", model, copy)) == first


def test_force_replaces_what_was_there(tmp_path, model, text):
    collect.run(stage_request(tmp_path / "run", model, text))
    made = collect.run(stage_request(tmp_path / "run", model, text, force=True, tokens=50, sites=("attn",)))
    assert [record.hook for record in made[1:]] == ["attn.1", "attn.2"]
    assert sorted(path.name for path in (tmp_path / "run" / "activations").iterdir()) == ["attn.1", "attn.2", "tokens"]


def test_force_with_a_mistyped_setting_removes_nothing(tmp_path, model, text):
    collect.run(stage_request(tmp_path / "run", model, text))
    before = stored_bytes(tmp_path / "run" / "activations")
    with pytest.raises(SettingsError, match="goes past the last layer"):
        collect.run(stage_request(tmp_path / "run", model, text, force=True, layers="3:9"))
    assert stored_bytes(tmp_path / "run" / "activations") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(layers="5"), "layer slice '5' goes past the last layer"),
        (dict(sites=("resid", "heads")), "unknown site 'heads'"),
        (dict(sites=()), "list of sites is empty"),
        (dict(block_length=65), "longer than the 64 tokens that this model can read"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_settings_errors(tmp_path, model, text, change, message):
    with pytest.raises(SettingsError, match=message):
        collect.run(stage_request(tmp_path / "run", model, text, **change))


def test_it_refuses_to_begin_what_the_disk_cannot_hold(tmp_path, model, text, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 50_000, 50_000))
    with pytest.raises(InputError, match=r"the activations need 62.4 kB more and .* has 50 kB free"):
        collect.run(stage_request(tmp_path / "run", model, text))
    assert not list((tmp_path / "run").rglob("*.h5"))


def test_activations_of_unknown_origin_are_not_touched_without_force(tmp_path, model, text):
    collect.run(stage_request(tmp_path / "run", model, text))
    (tmp_path / "run" / "run.json").unlink()
    before = stored_bytes(tmp_path / "run" / "activations")
    with pytest.raises(InputError, match="manifest does not mention"):
        collect.run(stage_request(tmp_path / "run", model, text))
    assert stored_bytes(tmp_path / "run" / "activations") == before


def test_the_plan_tells_disk_and_makes_nothing(tmp_path, model, text):
    request = stage_request(tmp_path / "run", model, text, tokens=10**6)
    rows = dict(collect.plan(request))
    assert rows["tokens"] == "1,000,000"
    assert rows["hook points"] == f"4: {' '.join(HOOKS)}"
    # 4 hook points of 24 float16 numbers, and 16 bytes for the token.
    assert rows["disk"].startswith("208 MB of ")
    assert not (tmp_path / "run").exists()


def test_the_plan_tells_memory_by_what_is_under_way_and_not_by_the_tokens(tmp_path, model, text, monkeypatch):
    monkeypatch.setattr(estimates, "size", lambda n_bytes: f"{n_bytes:.0f}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def told(**data) -> int:
        request = stage_request(tmp_path / "run", model, text, **data)
        return int(dict(collect.plan(request))["memory"].split()[1]) - estimates._LIBRARIES_BYTES

    # Three batches in a block of the model, ten pieces of memory on their way to the disk.
    weights, row = sum(p.numel() for p in language_model().adapter.model.parameters()), 24
    assert told() == 4 * weights + 4 * 16 * row * (3 * 16 * 4 + 10 * 2)
    assert told(tokens=10**9) == told()
    assert told(dtype="float32") == 4 * weights + 4 * 16 * row * (3 * 16 * 4 + 10 * 4)
    # A core takes no more at once than suits its cache.
    blocks = 2**20 // 24 // 16
    assert told(batch_size=5000) == told(batch_size=blocks) == 4 * weights + blocks * 16 * row * (3 * 16 * 4 + 10 * 2)


def test_planned_bytes_are_those_on_disk(tmp_path, model, text):
    request = stage_request(tmp_path / "run", model, text, shard_tokens=10**6)
    collect.run(request)
    there = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.h5"))
    assert there == pytest.approx(collect.disk_bytes(request.settings, n_hooks=4, d_model=24), abs=5 * 16_384)


@pytest.mark.parametrize(
    ("name", "source"), [("builtin:tiny", "builtin:python"), ("gpt2", "hf:NeelNanda/pile-10k"), ("./here", None)]
)
def test_default_text_depends_on_the_model(tmp_path, name, source):
    resolved = collect.resolved(stage_request(tmp_path, name, None)).settings.data.text
    assert resolved == (source or "hf:NeelNanda/pile-10k")


_NURSERY = """if True:
    import json, os, random, signal, sys, time, traceback
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    import circuitcli.activations.collection
    from support_collect import stage_request
    from transformers import GPT2LMHeadModel
    from circuitcli.stages import collect, estimates

    def finished(run):
        return len(list((run / "activations" / "tokens").glob("*.h5")))

    def collection(run):
        process = os.fork()
        if process:
            return process
        try:
            collect.run(stage_request(run, sys.argv[1], sys.argv[2], tokens=2400, shard_tokens=100))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def status(process):
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    unbroken, broken = Path(sys.argv[3]), Path(sys.argv[4])
    chance = random.Random(int(sys.argv[5]))
    assert status(collection(unbroken)) == 0
    kills = []
    for _ in range(4):
        enough = finished(broken) + chance.randint(1, 4)
        process = collection(broken)
        while finished(broken) < enough:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)
        kills.append((status(process), finished(broken)))
    assert status(collection(broken)) == 0
    print(json.dumps(kills))
"""


def test_a_collection_killed_again_and_again_makes_the_same_files_as_an_unbroken_one(tmp_path, model):
    text = write_text(tmp_path / "text.jsonl", texts(*random.Random(0).choices(range(60), k=100)))
    seed = str(random.randrange(10**6))
    arguments = [model, text, tmp_path / "unbroken", tmp_path / "broken", seed]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    nursery = subprocess.run(
        [sys.executable, "-c", _NURSERY, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert nursery.returncode == 0, f"seed {seed}: {nursery.stderr}"
    kills = json.loads(nursery.stdout)
    assert [status for status, _ in kills] == [-9] * 4 and kills[-1][1] < 24
    assert stored_bytes(tmp_path / "broken" / "activations") == stored_bytes(tmp_path / "unbroken" / "activations")
    records = [Run(tmp_path / name).stage_records(collect.NAME) for name in ("broken", "unbroken")]
    assert records[0] == records[1]
    assert runs.digest([]) not in {record.digest for record in records[0]}


def test_a_mistyped_model_does_not_lay_hold_of_the_run(tmp_path, model, text):
    run = tmp_path / "run"
    with pytest.raises(InputError, match="no directory"):
        collect.run(stage_request(run, tmp_path / "modle", text))
    assert not Run(run).exists
    assert len(collect.run(stage_request(run, model, text))) == 1 + len(HOOKS)


@pytest.mark.parametrize("content", ["", " \n\t \n", "<|bos|>", "<|eos|><|pad|>" * 30])
def test_a_text_without_usable_tokens_is_one_clear_line(tmp_path, model, content):
    (tmp_path / "text.txt").write_text(content)
    write_text(tmp_path / "text.jsonl", [content, ""])
    for name in ("text.txt", "text.jsonl"):
        with pytest.raises(InputError, match=rf"{name} has no usable text$") as caught:
            collect.run(stage_request(tmp_path / "run", model, tmp_path / name))
        assert "--field" in caught.value.hint
    assert not (tmp_path / "run" / "activations").exists()


@pytest.mark.parametrize("ids", [[], [BOS], [BOS, EOS, PAD, PAD], [[BOS, PAD], [PAD, PAD]]])
def test_tokens_without_text_are_the_same_line(tmp_path, model, ids):
    np.save(tmp_path / "tokens.npy", np.array(ids, dtype=np.uint16))
    with pytest.raises(InputError, match=r"tokens.npy has no usable text$"):
        collect.run(stage_request(tmp_path / "run", model, tmp_path / "tokens.npy"))


@pytest.mark.parametrize("way", [{}, {"pack": True}, {"special_tokens": "drop"}], ids=str)
def test_token_shards_give_the_activations_of_their_text(tmp_path, model, way):
    documents = [*texts(*(20 + 7 * n % 50 for n in range(12))), "a<|pad|>b"]
    text = write_text(tmp_path / "text.jsonl", documents)
    encoded = [tokenizer().encode(document) for document in documents]
    longest = max(map(len, encoded))
    rows = [[BOS, *ids, *[PAD] * (longest - len(ids))] for ids in encoded]
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "train_000000.npy", np.array(rows[:5], dtype=np.uint16))
    save_file({"tokens": np.array(rows[5:], dtype=np.int64)}, tmp_path / "rows" / "train_000001.safetensors")
    expected = collect.run(stage_request(tmp_path / "text", model, text, **way))
    made = collect.run(stage_request(tmp_path / "ids", model, tmp_path / "rows", **way))
    assert made[1:] == expected[1:]
    for hook in ("tokens", *HOOKS):
        folders = (tmp_path / name / "activations" / hook for name in ("text", "ids"))
        left, right = (sorted(folder.glob("*.h5")) for folder in folders)
        assert len(left) == len(right) > 3
        for one, other in zip(left, right, strict=True):
            assert datasets_of(one) == datasets_of(other)


def datasets_of(path):
    with h5py.File(path) as file:
        return {name: column[...].tobytes() for name, column in file.items()}


def test_ids_that_the_model_lacks_stop_the_collection_where_they_stand(tmp_path, model):
    ids = np.arange(2000, dtype=np.uint16) % 250
    ids[1234] = 260
    np.save(tmp_path / "tokens.npy", ids)
    with pytest.raises(
        InputError, match=r"tokens.npy has token id 260 at position 1234, but this model has ids 0 to 259"
    ):
        collect.run(stage_request(tmp_path / "run", model, tmp_path / "tokens.npy"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00broken"])
def test_a_text_that_cannot_be_used_costs_nothing_that_was_there(tmp_path, model, text, content):
    run = tmp_path / "run"
    before = collect.run(stage_request(run, model, text))
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(InputError):
        collect.run(stage_request(run, model, tmp_path / "bad.txt", force=True))
    assert collect.run(stage_request(run, model, text)) == before
    ActivationCache(run / "activations", [HookPoint.parse(hook) for hook in HOOKS])
