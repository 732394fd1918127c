"""Shards keep exactly what they were given, or say what is wrong with it."""

import errno
import hashlib
import resource

import h5py
import numpy as np
import pytest
import torch
from support_collect import HOOKS, write_cache

from circuitcli.activations import shards
from circuitcli.activations.shards import DTYPES, RowsShard, RowsWriter, StoredRows, hook_path
from circuitcli.activations.token_shards import read_tokens, tokens_path
from circuitcli.errors import InputError

HOOK = HOOKS[0]


def writer(root, *, n_rows=5, d_model=3, dtype="float32"):
    return RowsWriter(hook_path(root, HOOK, 0), hook=HOOK, n_rows=n_rows, d_model=d_model, dtype=dtype)


def rounded(rows, dtype):
    return StoredRows.of(rows.to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_in_place_whatever_order_they_were_written_in(tmp_path, dtype):
    rows = torch.randn(5, 3)
    file = writer(tmp_path, dtype=dtype)
    file.put(rounded(rows[[3, 4, 0]], dtype), [(3, 2), (0, 1)])
    file.put(rounded(rows[1:3], dtype), [(1, 2)])
    file.finish()
    file.publish()
    shard = RowsShard.open(file.path)
    back = torch.empty(3, 3, dtype=DTYPES[dtype])
    shard.read_into(back, 1)
    assert torch.equal(back, rows[1:4].to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shard_is_plain_hdf5_with_the_digest_of_its_rows(tmp_path, dtype):
    write_cache(tmp_path, [7], {HOOK: 3}, dtype=dtype)
    with h5py.File(hook_path(tmp_path, HOOK, 0)) as file:
        rows, facts = file["activations"][...], dict(file.attrs)
    assert facts["digest"].decode() == "sha256:" + hashlib.sha256(rows.tobytes()).hexdigest()
    assert (facts["dtype"], facts["n_rows"], facts["hook"]) == (dtype, 7, str(HOOK))
    assert rows.dtype == (np.uint16 if dtype == "bfloat16" else np.dtype(dtype))
    if dtype == "bfloat16":
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    assert np.allclose(rows[:, -1], np.arange(7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_those_of_the_stored_rows(tmp_path, dtype):
    rows = torch.randn(1000, 7) * 50 + 10
    file = writer(tmp_path, n_rows=1000, d_model=7, dtype=dtype)
    for first in range(0, 1000, 100):
        file.put(rounded(rows[first : first + 100], dtype), [(first, 100)])
    file.finish()
    file.publish()
    shard, exact = RowsShard.open(file.path), rows.to(DTYPES[dtype]).double().numpy()
    norms = np.linalg.norm(exact, axis=1)
    assert np.allclose(shard.sum().numpy(), exact.sum(axis=0), rtol=1e-6)
    assert np.allclose([shard.sum_norm, shard.sum_square_norm], [norms.sum(), (norms**2).sum()], rtol=1e-6)


def test_nothing_has_the_final_name_before_it_is_published(tmp_path):
    file = writer(tmp_path)
    file.put(rounded(torch.ones(5, 3), "float32"), [(0, 5)])
    file.finish()
    assert not file.path.exists() and file.partial.exists()
    file.publish()
    assert file.path.exists() and not file.partial.exists()


def test_overflow_names_the_hook_point_and_the_dtype_to_use(tmp_path):
    with pytest.raises(InputError, match=f"{HOOK} has activations above 65504") as caught:
        writer(tmp_path, dtype="float16").put(rounded(torch.full((5, 3), 7e4), "float16"), [(0, 5)])
    assert "data.dtype=bfloat16" in caught.value.hint


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_names_the_hook_point(tmp_path, dtype):
    with pytest.raises(InputError, match=f"{HOOK} has activations that are not a number"):
        writer(tmp_path, dtype=dtype).put(rounded(torch.full((5, 3), torch.nan), dtype), [(0, 5)])


def test_infinity_is_refused_in_wide_types_too(tmp_path):
    with pytest.raises(InputError, match=f"{HOOK} has infinite activations"):
        writer(tmp_path).put(rounded(torch.full((5, 3), torch.inf), "float32"), [(0, 5)])


def test_a_disk_that_is_full_while_rows_are_written_is_an_input_error(tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = writer(tmp_path)
    monkeypatch.setattr(shards, "_write_all", full)
    with pytest.raises(InputError, match=r"cannot write .*00000.h5: No space left on device") as caught:
        file.put(rounded(torch.ones(5, 3), "float32"), [(0, 5)])
    assert "make space" in caught.value.hint


def test_a_file_that_the_disk_cannot_take_is_an_input_error_before_hdf5_sees_it(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(InputError, match="File too large"):
            writer(tmp_path, n_rows=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [0, 100, 3000, -1])
def test_a_damaged_file_is_named(tmp_path, n_bytes):
    write_cache(tmp_path, [400], {HOOK: 3})
    path = hook_path(tmp_path, HOOK, 0)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=r"resid.0/00000.h5 is damaged"):
        RowsShard.open(path)


def test_tokens_come_back(tmp_path):
    write_cache(tmp_path, [5, 4], {HOOK: 3})
    rows = read_tokens(tokens_path(tmp_path, 1), 1, 3)
    assert (rows.token.tolist(), rows.block.tolist(), rows.position.tolist()) == ([6, 7], [1, 1], [2, 3])
    assert rows.token.dtype == rows.block.dtype == rows.position.dtype == torch.int64
