"""Shards keep exactly what they were given, or say what is wrong with it."""

import errno
import json
import resource
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
import xxhash
from support_collect import HOOKS, complete, write_cache

from circuitcli.activations.storage import disk
from circuitcli.activations.storage.shards import DTYPES, RowsShard, hook_path
from circuitcli.activations.storage.stored_rows import StoredRows
from circuitcli.activations.storage.token_shards import read_tokens, tokens_path
from circuitcli.activations.storage.writing import RowsWriter
from circuitcli.errors import InputError

HOOK = HOOKS[0]


def writer(root, *, pieces=(5,), d_model=3, dtype="float32"):
    return RowsWriter(hook_path(root, HOOK, 0), hook=HOOK, pieces=pieces, d_model=d_model, dtype=dtype)


def rounded(rows, dtype):
    return StoredRows.of(rows.to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_in_place_whatever_order_they_were_written_in(tmp_path, dtype):
    rows = torch.randn(5, 3)
    file = writer(tmp_path, pieces=[1, 2, 0, 1, 1], dtype=dtype)
    file.put(rounded(rows[[3, 4, 0]], dtype), [3, 4, 0])
    file.put(rounded(rows[1:3], dtype), [1, 2])
    complete(file)
    shard = RowsShard.open(file.path)
    back = torch.empty(3, 3, dtype=DTYPES[dtype])
    shard.read_into(back, 1)
    assert torch.equal(back, rows[1:4].to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shard_is_plain_hdf5_with_digests_of_its_rows_and_of_what_it_tells_about_them(tmp_path, dtype):
    file = writer(tmp_path, pieces=[4, 3], dtype=dtype)
    file.put(rounded(torch.arange(7)[:, None].expand(7, 3).float(), dtype), [0, 1])
    complete(file)
    with h5py.File(file.path) as content:
        found = {name: value.item() for name, value in content.attrs.items()}
        rows, told = content["activations"][...], {name: part[...] for name, part in content.items()}
    facts = {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}
    assert (facts["dtype"], facts["n_rows"], facts["d_model"], facts["hook"]) == (dtype, 7, 3, str(HOOK))
    for (first, last), digest in zip(pairwise([0, 4, 7]), told["piece_digests"], strict=True):
        assert digest.tobytes() == xxhash.xxh3_128_digest(rows[first:last].tobytes())
    whole = b"".join(told[name].tobytes() for name in ("pieces", "piece_digests", "sum", "norms"))
    digest = xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode() + whole)
    assert RowsShard.open(file.path).digest == f"xxh3:{digest}"
    assert rows.dtype == (np.uint16 if dtype == "bfloat16" else np.dtype(dtype))
    if dtype == "bfloat16":
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(rows[:, -1], np.arange(7))


def test_the_bytes_of_a_file_do_not_depend_on_the_order_in_which_its_rows_came(tmp_path):
    rows, contents = torch.randn(90, 3), []
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        file = writer(tmp_path, pieces=[30] * 3)
        for piece in order:
            file.put(rounded(rows[30 * piece : 30 * piece + 30], "float32"), [piece])
        file.finish()
        contents.append(file.partial.read_bytes())
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_those_of_the_stored_rows(tmp_path, dtype):
    rows = torch.randn(1000, 7) * 50 + 10
    file = writer(tmp_path, pieces=[100] * 10, d_model=7, dtype=dtype)
    for piece in range(10):
        file.put(rounded(rows[100 * piece : 100 * piece + 100], dtype), [piece])
    complete(file)
    shard, exact = RowsShard.open(file.path), rows.to(DTYPES[dtype]).double().numpy()
    norms = np.linalg.norm(exact, axis=1)
    assert np.allclose(shard.sum().numpy(), exact.sum(axis=0), rtol=1e-6)
    assert np.allclose([shard.sum_norm, shard.sum_square_norm], [norms.sum(), (norms**2).sum()], rtol=1e-6)


def test_nothing_has_the_final_name_before_it_is_published(tmp_path):
    file = writer(tmp_path)
    file.put(rounded(torch.ones(5, 3), "float32"), [0])
    file.finish()
    assert not file.path.exists() and file.partial.exists()
    file.publish()
    assert file.path.exists() and not file.partial.exists()


def test_overflow_names_the_hook_point_and_the_dtype_to_use(tmp_path):
    with pytest.raises(InputError, match=f"{HOOK} has activations above 65504") as caught:
        writer(tmp_path, dtype="float16").put(rounded(torch.full((5, 3), 7e4), "float16"), [0])
    assert "data.dtype=bfloat16" in caught.value.hint


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_names_the_hook_point(tmp_path, dtype):
    with pytest.raises(InputError, match=f"{HOOK} has activations that are not a number"):
        writer(tmp_path, dtype=dtype).put(rounded(torch.full((5, 3), torch.nan), dtype), [0])


def test_infinity_is_refused_in_wide_types_too(tmp_path):
    with pytest.raises(InputError, match=f"{HOOK} has infinite activations"):
        writer(tmp_path).put(rounded(torch.full((5, 3), torch.inf), "float32"), [0])


def test_a_disk_that_is_full_while_rows_are_written_is_an_input_error(tmp_path, monkeypatch):
    def full(file, content, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = writer(tmp_path)
    monkeypatch.setattr(disk, "_write_all", full)
    with pytest.raises(InputError, match=r"cannot write .*00000.h5: No space left on device") as caught:
        file.put(rounded(torch.ones(5, 3), "float32"), [0])
    assert "make space" in caught.value.hint


def test_a_file_that_the_disk_cannot_take_is_an_input_error_before_hdf5_sees_it(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(InputError, match="File too large"):
            writer(tmp_path, pieces=[100_000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [0, 100, 3000, -1])
def test_a_damaged_file_is_named(tmp_path, n_bytes):
    write_cache(tmp_path, [400], {HOOK: 3})
    path = hook_path(tmp_path, HOOK, 0)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=r"resid.0/00000.h5 is damaged"):
        RowsShard.open(path)


@pytest.mark.parametrize("part", ["header", "pieces", "piece_digests", "sum", "norms", "digest"])
def test_a_changed_header_is_noticed_when_the_file_is_opened(tmp_path, part):
    write_cache(tmp_path, [400], {HOOK: 3})
    path = hook_path(tmp_path, HOOK, 0)
    with h5py.File(path, "r+") as file:
        if part == "header":
            file.attrs.modify("n_rows", 401)
        else:
            changed = file[part][...]
            changed.reshape(-1)[-1] += 1
            file[part][...] = changed
    with pytest.raises(InputError, match=r"resid.0/00000.h5 is damaged: its header is not what was written"):
        RowsShard.open(path)


def test_verifying_names_the_rows_that_were_changed(tmp_path):
    file = writer(tmp_path, pieces=[4, 3, 2])
    file.put(rounded(torch.randn(9, 3), "float32"), [0, 1, 2])
    complete(file)
    shard = RowsShard.open(file.path)
    shard.verify()
    content = bytearray(file.path.read_bytes())
    content[shard.offset + 5 * 12 + 7] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(InputError, match=r"resid.0/00000.h5 is damaged: rows 4 to 7 are not what was written"):
        RowsShard.open(file.path).verify()


def test_tokens_come_back(tmp_path):
    write_cache(tmp_path, [5, 4], {HOOK: 3})
    rows = read_tokens(tokens_path(tmp_path, 1), 1, 3)
    assert (rows.token.tolist(), rows.block.tolist(), rows.position.tolist()) == ([6, 7], [1, 1], [2, 3])
    assert rows.token.dtype == rows.block.dtype == rows.position.dtype == torch.int64
