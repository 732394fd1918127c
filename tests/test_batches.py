"""Shuffled batches visit every row once an epoch and can begin at any step."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_collect import HOOKS, write_cache

from circuitcli.activations.batches import ShuffledBatches
from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError

FIRST, SECOND = HOOKS[:2]
N_ROWS = 150


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    write_cache(root, [70, 11, 69], {FIRST: 3, SECOND: 5}, dtype="float32")
    return ActivationCache(root, [FIRST, SECOND])


def batches(cache, **changes):
    usual = dict(hooks=[FIRST], batch_size=10, n_tokens=N_ROWS, seed=0, pool_tokens=100, stop_row=N_ROWS)
    return ShuffledBatches(cache, **(usual | changes))


def numbers(batch, hook=FIRST):
    """Which rows of the cache these are."""
    return batch[hook][:, -1].long().tolist()


sizes = st.fixed_dictionaries(
    dict(
        batch_size=st.integers(1, 70),
        pool_tokens=st.integers(20, 400),
        stop_row=st.integers(1, N_ROWS),
        seed=st.integers(-3, 3),
    )
)


@settings(deadline=None, max_examples=20)
@given(sizes, st.integers(1, 3))
def test_every_epoch_visits_every_row_once(cache, sizes, n_epochs):
    stream = batches(cache, n_tokens=n_epochs * sizes["stop_row"] + sizes["batch_size"], **sizes).from_step(0)
    seen = [number for batch in stream for number in numbers(batch)]
    for epoch in range(n_epochs):
        rows = seen[epoch * sizes["stop_row"] : (epoch + 1) * sizes["stop_row"]]
        assert sorted(rows) == list(range(sizes["stop_row"]))


@settings(deadline=None, max_examples=20)
@given(sizes, st.integers(1, 400), st.integers(0, 20))
def test_going_on_at_a_step_gives_the_rest_of_the_unbroken_reading(cache, sizes, n_tokens, step):
    stream = batches(cache, n_tokens=n_tokens, **sizes)
    whole = list(map(numbers, stream.from_step(0)))
    assert len(whole) == stream.n_steps == max(1, n_tokens // sizes["batch_size"])
    assert all(len(batch) == sizes["batch_size"] for batch in whole)
    assert list(map(numbers, stream.from_step(step))) == whole[step:]


def test_all_hook_points_get_the_same_rows(cache):
    both = batches(cache, hooks=[FIRST, SECOND])
    for batch in both.from_step(0):
        assert numbers(batch) == numbers(batch, SECOND)
        assert (batch[FIRST].shape, batch[SECOND].shape) == ((10, 3), (10, 5))
    assert list(map(numbers, both.from_step(0))) == list(map(numbers, batches(cache).from_step(0)))


def test_seeds_and_epochs_differ_in_order(cache):
    def order(**changes):
        return [number for batch in batches(cache, **changes).from_step(0) for number in numbers(batch)]

    assert order(seed=1) == order(seed=1) != order(seed=2)
    two = order(n_tokens=2 * N_ROWS)
    assert two[:N_ROWS] == order() != two[N_ROWS:]


def test_rows_are_mixed_as_well_as_drawing_from_a_pool_can(tmp_path):
    n_rows, half, batch_size, chunk = 20_480, 4096, 512, 256
    write_cache(tmp_path, [n_rows], {FIRST: 1}, dtype="float32")
    stream = batches(
        ActivationCache(tmp_path, [FIRST]),
        n_tokens=n_rows,
        stop_row=n_rows,
        pool_tokens=2 * half,
        batch_size=batch_size,
    )
    drawn = [torch.tensor(numbers(batch)) for batch in stream.from_step(0)]
    neighbours = torch.stack([(rows[:, None] // chunk == rows // chunk).sum() - batch_size for rows in drawn]).sum()
    # Each of a row's neighbours in its chunk is in its batch with the chance of any row of the pool.
    expected = n_rows * (chunk - 1) * (batch_size - 1) / (half - 1)
    assert float(neighbours) == pytest.approx(expected, rel=0.05)
    # Pools are dealt from everywhere: the chunks of each lie as far apart as if they were drawn one by one.
    for pool in torch.cat(drawn).view(-1, half):
        chunks = (pool // chunk).unique().double()
        assert len(chunks) == half // chunk
        distance = (chunks[:, None] - chunks).abs().sum() / (len(chunks) * (len(chunks) - 1))
        assert float(distance) == pytest.approx((n_rows / chunk + 1) / 3, rel=0.25)


def test_a_batch_mixes_distant_rows(cache):
    spread = [max(rows) - min(rows) for rows in map(numbers, batches(cache, batch_size=30).from_step(0))]
    assert min(spread) > N_ROWS / 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_batches_are_float32_whatever_is_stored(tmp_path, dtype):
    write_cache(tmp_path, [40], {FIRST: 3}, dtype=dtype)
    small = ActivationCache(tmp_path, [FIRST])
    (batch,) = batches(small, batch_size=40, n_tokens=40, stop_row=40).from_step(0)
    assert batch[FIRST].dtype == torch.float32
    assert torch.equal(batch[FIRST][numbers(batch).index(5)], small.rows(FIRST, 5, 6)[0])


def test_no_more_rows_are_in_memory_than_the_pool_has(cache, monkeypatch):
    read, given_out = [], 0
    real = ActivationCache.read_into

    def counted(self, rows, hook, start):
        read.append(len(rows))
        real(self, rows, hook, start)

    monkeypatch.setattr(ActivationCache, "read_into", counted)
    for batch in batches(cache, pool_tokens=100, n_tokens=2 * N_ROWS).from_step(0):
        given_out += len(numbers(batch))
        assert sum(read) - given_out <= 100


def test_all_pools_are_read_into_the_memory_of_two(cache, monkeypatch):
    """Freed memory would be found in pieces, and taken anew."""
    memories = []
    real = ActivationCache.read_into

    def kept(self, rows, hook, start):
        memories.append(rows.untyped_storage())
        real(self, rows, hook, start)

    monkeypatch.setattr(ActivationCache, "read_into", kept)
    list(batches(cache, hooks=[FIRST, SECOND], pool_tokens=100, n_tokens=3 * N_ROWS).from_step(0))
    assert len({memory.data_ptr() for memory in memories}) == 2 * 2 and len(memories) > 20


def test_going_on_late_reads_no_more_than_the_pool(cache, monkeypatch):
    read = []
    real = ActivationCache.read_into

    def counted(self, rows, hook, start):
        read.append(len(rows))
        real(self, rows, hook, start)

    monkeypatch.setattr(ActivationCache, "read_into", counted)
    list(islice(batches(cache, pool_tokens=100, n_tokens=30 * N_ROWS).from_step(800), 1))
    assert sum(read) <= 100


def test_an_error_of_the_reading_thread_reaches_the_caller(tmp_path):
    write_cache(tmp_path, [40, 40], {FIRST: 3})
    damaged = ActivationCache(tmp_path, [FIRST])
    path = tmp_path / str(FIRST) / "00001.h5"
    path.write_bytes(path.read_bytes()[:-4200])
    with pytest.raises(InputError, match=r"00001.h5 is damaged"):
        list(batches(damaged, n_tokens=80, stop_row=80).from_step(0))


def test_more_rows_than_there_are_is_an_input_error(cache):
    for stop_row in (0, N_ROWS + 1):
        with pytest.raises(InputError, match="cannot draw batches"):
            batches(cache, stop_row=stop_row)


@pytest.mark.parametrize(("pool_tokens", "n_epochs_read"), [(2 * N_ROWS + 32, 1), (100, 3)])
def test_rows_that_fit_in_half_a_pool_are_read_once(cache, monkeypatch, pool_tokens, n_epochs_read):
    n_read = []
    read = ActivationCache.read_into
    monkeypatch.setattr(
        ActivationCache, "read_into", lambda self, rows, *given: n_read.append(len(rows)) or read(self, rows, *given)
    )
    stream = batches(cache, n_tokens=3 * N_ROWS, pool_tokens=pool_tokens).from_step(0)
    seen = [number for batch in stream for number in numbers(batch)]
    assert sum(n_read) == n_epochs_read * N_ROWS
    assert all(sorted(seen[first : first + N_ROWS]) == list(range(N_ROWS)) for first in range(0, 3 * N_ROWS, N_ROWS))
    assert seen[:N_ROWS] != seen[N_ROWS : 2 * N_ROWS]
