"""What is stored is what passes the hook points, however the work was cut into batches and shards."""

import errno
import logging
from pathlib import Path

import pytest
import torch
from support_collect import HOOKS, collection, language_model, source, stored_bytes, texts, tokenizer

from circuitcli import progress
from circuitcli.activations import lanes
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.collection import collect
from circuitcli.activations.lanes import blocks_at_once
from circuitcli.activations.plans import complete, survey
from circuitcli.activations.storage import disk
from circuitcli.activations.storage.shards import DTYPES, hook_path
from circuitcli.activations.storage.token_shards import tokens_path
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models import taps
from circuitcli.models.adapter import ModelAdapter
from circuitcli.text.blocks import token_blocks

DOCUMENTS = texts(40, 0, 7, 15, 16, 33, 1, 90, 0, 5)


def collected(root, *, documents=DOCUMENTS, bos="auto", **changes):
    plan = collection(root, **changes)
    collect(language_model(bos), source(documents), plan)
    return ActivationCache(root, plan.hooks)


def one_by_one(bos="auto", documents=DOCUMENTS, **way):
    """Activations and tokens of each block run alone, without padding and without stopping early."""
    model = language_model(bos)
    blocks = list(token_blocks(source(documents), tokenizer(bos), block_length=16, **way))
    found = {hook: [] for hook in HOOKS}
    for block in blocks:
        seen = {}
        with torch.no_grad(), taps.tapped(model.adapter, {hook: taps.keep(seen, hook) for hook in HOOKS}):
            model.adapter.logits(torch.tensor([block.ids]))
        for hook in HOOKS:
            found[hook].append(seen[hook][0, list(block.positions)])
    tokens = [(block.ids[n], block.index, n) for block in blocks for n in block.positions]
    return {hook: torch.cat(rows) for hook, rows in found.items()}, tokens


@pytest.mark.parametrize("bos", ["auto", "never"])
@pytest.mark.parametrize("way", [{}, {"pack": True}, {"special_tokens": "drop"}], ids=str)
def test_stored_rows_are_those_of_plain_unpadded_forward_passes(tmp_path, bos, way):
    documents = [*DOCUMENTS, "a<|eos|>b<|pad|>", "<|pad|>" * 40, "<|bos|>c" * 9]
    cache = collected(tmp_path, documents=documents, bos=bos, **way)
    expected, tokens = one_by_one(bos, documents, **way)
    assert cache.n_tokens == len(tokens)
    for hook in HOOKS:
        rows = cache.rows(hook, 0, cache.n_tokens)
        assert rows.shape == expected[hook].shape
        assert torch.allclose(rows, expected[hook], rtol=1e-4, atol=1e-4)
    stored = cache.tokens(0, cache.n_tokens)
    assert list(zip(stored.token.tolist(), stored.block.tolist(), stored.position.tolist(), strict=True)) == tokens


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_changes_rounding_only(tmp_path, batch_size):
    one, other = collected(tmp_path / "a"), collected(tmp_path / "b", batch_size=batch_size)
    assert torch.equal(one.tokens(0, 207).token, other.tokens(0, 207).token)
    assert {name for name in stored_bytes(tmp_path / "a")} == {name for name in stored_bytes(tmp_path / "b")}
    for hook in HOOKS:
        assert torch.allclose(one.rows(hook, 0, 207), other.rows(hook, 0, 207), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "length", "width", "device", "found"),
    [
        (32, 128, 576, "cpu", 16),
        (32, 128, 4096, "cpu", 16),
        (32, 128, 128, "cpu", 32),
        (99, 128, 128, "cpu", 64),
        (8, 128, 576, "cpu", 8),
        (32, 1024, 576, "cpu", 2),
        (32, 4096, 576, "cpu", 1),
        (32, 128, 576, "cuda", 32),
        (1, 128, 576, "cpu", 1),
    ],
)
def test_a_core_takes_as_many_blocks_as_suit_its_cache(asked, length, width, device, found):
    assert blocks_at_once(asked, block_length=length, d_model=width, device=device) == found


def test_a_batch_goes_through_the_model_in_parts_that_suit_a_core(tmp_path, monkeypatch):
    whole = collected(tmp_path / "whole")
    seen, logits = [], ModelAdapter.logits
    monkeypatch.setattr(
        ModelAdapter, "logits", lambda self, ids, mask: seen.append(len(ids)) or logits(self, ids, mask)
    )
    monkeypatch.setattr(lanes, "_CPU_TOKENS", 2 * 16 + 1)
    monkeypatch.setattr(lanes, "_CPU_NUMBERS", 1)
    parts = collected(tmp_path / "parts")
    assert set(seen) == {1, 2}
    for hook in HOOKS:
        assert torch.allclose(parts.rows(hook, 0, 207), whole.rows(hook, 0, 207), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_rounded_to_the_stored_type(tmp_path, dtype):
    exact = collected(tmp_path / "exact")
    cache = collected(tmp_path / dtype, dtype=dtype)
    for hook in HOOKS:
        expected = exact.rows(hook, 0, exact.n_tokens).to(DTYPES[dtype]).float()
        assert torch.equal(cache.rows(hook, 0, cache.n_tokens), expected)


def test_collection_is_deterministic_to_the_bit(tmp_path):
    collected(tmp_path / "a"), collected(tmp_path / "b")
    assert stored_bytes(tmp_path / "a") == stored_bytes(tmp_path / "b")


@pytest.mark.parametrize("hooks", [HOOKS, (*HOOKS, HookPoint(1, "resid_mid"))])
def test_batches_that_run_at_once_make_the_same_files_as_one_after_the_other(tmp_path, hooks):
    before = torch.get_num_threads()
    try:
        for n_lanes in (1, 3):
            torch.set_num_threads(n_lanes)
            collected(tmp_path / str(n_lanes), hooks=hooks)
            assert torch.get_num_threads() == n_lanes
    finally:
        torch.set_num_threads(before)
    assert stored_bytes(tmp_path / "1") == stored_bytes(tmp_path / "3")


@pytest.mark.parametrize(("n_tokens", "stored"), [(1, 15), (15, 15), (16, 30), (47, 47), (48, 62), (207, 207)])
def test_it_stops_at_the_first_block_boundary_at_or_above_the_number(tmp_path, n_tokens, stored):
    assert collected(tmp_path, n_tokens=n_tokens).n_tokens == stored


@pytest.mark.parametrize("shard_tokens", [1, 50, 10**6])
def test_shards_end_at_block_boundaries_and_only_cut_the_table(tmp_path, shard_tokens):
    plan = collection(tmp_path, shard_tokens=shard_tokens)
    collect(language_model(), source(DOCUMENTS), plan)
    sizes = [shard.n_rows for shard in complete(survey(plan))]
    assert sum(sizes) == 207 and all(shard_tokens <= size < shard_tokens + 15 for size in sizes[:-1])
    cache = ActivationCache(tmp_path, HOOKS)
    assert len({int(cache.tokens(sum(sizes[:n]), sum(sizes[:n]) + 1).block) for n in range(len(sizes))}) == len(sizes)
    assert [len(block.ids) for block in cache.blocks(0, 207)] == [
        len(block.ids) for block in token_blocks(source(DOCUMENTS), tokenizer(), block_length=16)
    ]


def test_a_text_that_ends_early_warns_and_counts_what_there_is(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert collected(tmp_path, n_tokens=1000).n_tokens == 207
    assert "there are 207 tokens, fewer than the 1000 asked for" in caplog.text


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_a_text_without_tokens_is_an_input_error(tmp_path, documents):
    with pytest.raises(InputError, match="the text has no tokens"):
        collected(tmp_path, documents=documents)


def test_finished_shards_are_not_made_again(tmp_path):
    collected(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}

    def refuse(start):
        raise AssertionError("the text was read again")

    collect(language_model(), refuse, collection(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")} == before


@pytest.mark.parametrize("lost", [(None, 1), (HOOKS[0], 1), (HOOKS[2], 0)])
def test_a_shard_counts_only_if_all_hook_points_have_it(tmp_path, lost):
    hook, index = lost
    collected(tmp_path)
    whole = stored_bytes(tmp_path)
    (tokens_path(tmp_path, index) if hook is None else hook_path(tmp_path, hook, index)).unlink()
    hook_path(tmp_path, HOOKS[1], index).with_suffix(".h5.partial").write_bytes(b"half")
    assert len(complete(survey(collection(tmp_path)))) == index
    collected(tmp_path)
    assert stored_bytes(tmp_path) == whole


def test_shards_of_another_fingerprint_are_made_again(tmp_path):
    collected(tmp_path / "a", documents=texts(80, 80), fingerprint="other")
    assert complete(survey(collection(tmp_path / "a"))) == []
    collected(tmp_path / "a"), collected(tmp_path / "b")
    assert stored_bytes(tmp_path / "a") == stored_bytes(tmp_path / "b")


def test_a_failure_midway_leaves_whole_shards_and_nothing_partial(tmp_path, monkeypatch):
    real = disk._write_all

    def full_after_a_while(file, content, offset):
        if "00002" in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "_write_all", full_after_a_while)
        with pytest.raises(InputError, match="No space left on device"):
            collected(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    assert len(complete(survey(collection(tmp_path)))) == 2
    collected(tmp_path), collected(tmp_path.with_name("whole"))
    assert stored_bytes(tmp_path) == stored_bytes(tmp_path.with_name("whole"))


def test_an_interrupt_leaves_nothing_partial(tmp_path):
    def documents(start):
        yield from DOCUMENTS[start:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(language_model(), documents, collection(tmp_path))
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("value", [torch.nan, 1e6])
def test_numbers_that_cannot_be_stored_name_the_hook_point(tmp_path, value):
    model = language_model()
    model.adapter.blocks[1].attn.c_proj.bias.data[3] = value
    with pytest.raises(InputError, match=r"^attn.1 has activations"):
        collect(model, source(DOCUMENTS), collection(tmp_path, dtype="float16"))
    assert not list(tmp_path.rglob("*.partial"))


def test_progress_counts_stored_tokens_and_begins_where_the_work_goes_on(tmp_path):
    seen = []

    class Sink:
        def __init__(self, title, total, unit, done):
            seen.append([title, total, unit, done])

        def __enter__(self):
            return lambda amount=1, note="": seen[-1].append(amount)

        def __exit__(self, *error):
            return None

    progress.set_sink(Sink)
    try:
        collected(tmp_path, n_tokens=207)
        tokens_path(tmp_path, 1).unlink()
        collected(tmp_path, n_tokens=207)
    finally:
        progress.set_sink(None)
    assert [task[:3] for task in seen] == [["collect", 207, "tokens"]] * 2
    assert [sum(task[3:]) for task in seen] == [207, 207]
    assert seen[0][3] == 0 and seen[1][3] > 0
