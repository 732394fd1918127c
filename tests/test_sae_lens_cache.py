"""What SAELens cached is read as it was written, and what it does not say is asked for."""

import datasets
import pytest
import torch
from support_collect import BOS, EOS, PAD
from support_sae_lens import HOOK, LENGTH, activations_of, contexts, save

from circuitcli.activations.sae_lens import CachedContexts, CachedSource
from circuitcli.errors import InputError
from circuitcli.text.blocks import Cursor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    ids = contexts(35)
    return save(tmp_path_factory.mktemp("cache") / "resid", ids, activations_of(ids)), ids


def blocks_of(cache, *, start=None, bos_id=BOS, n_ids=260, left_out=frozenset(), front_id=None):
    source = CachedSource(cache, HOOK, torch.float32, n_ids, bos_id, left_out, front_id)
    return list(source.blocks(start or Cursor()))


def test_shape_and_name_are_those_of_the_column(saved):
    cache = CachedContexts.open(saved[0])
    found = (cache.hook_name, cache.n_contexts, cache.length, cache.d_in)
    assert found == ("blocks.1.hook_resid_post", 35, LENGTH, 24)


@pytest.mark.parametrize("bos_id", [BOS, None])
def test_contexts_are_blocks_and_bos_in_front_is_not_stored(saved, bos_id):
    path, ids = saved
    blocks = blocks_of(CachedContexts.open(path), bos_id=bos_id)
    assert [list(block.ids) for block in blocks] == ids.tolist()
    first = 0 if bos_id is None else 1
    assert all(list(block.positions) == list(range(first, LENGTH)) for block in blocks)


@pytest.mark.parametrize("bos_id", [BOS, None])
def test_bos_in_front_is_not_stored_however_many_were_cached(tmp_path, bos_id):
    ids = contexts(5)
    ids[1, 1] = ids[2, 1] = ids[2, 2] = BOS
    cache = CachedContexts.open(save(tmp_path / "cache", ids, activations_of(ids)))
    firsts = [block.positions[0] for block in blocks_of(cache, bos_id=bos_id, front_id=BOS)]
    assert firsts == [1, 2, 3, 1, 1]


def test_special_tokens_can_be_left_out(saved):
    path, ids = saved
    blocks = blocks_of(CachedContexts.open(path), left_out=frozenset({BOS, EOS, PAD}))
    kept = [[at for at, token in enumerate(row) if token < 256] for row in ids.tolist()]
    assert [list(block.positions) for block in blocks] == [places for places in kept if places]
    assert len(blocks) == 34 and any(block.left_out == (5, 6) for block in blocks)


@pytest.mark.parametrize("left_out", [frozenset(), frozenset({BOS, EOS, PAD})])
def test_reading_goes_on_at_any_cursor(saved, left_out):
    cache = CachedContexts.open(saved[0])
    blocks = blocks_of(cache, left_out=left_out)
    for n, block in enumerate(blocks):
        assert blocks_of(cache, left_out=left_out, start=block.after) == blocks[n + 1 :]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_activations_are_those_that_were_written(tmp_path, dtype):
    ids = contexts(35)
    written = activations_of(ids).to(dtype)
    cache = CachedContexts.open(save(tmp_path / "cache", ids, written))
    blocks = blocks_of(cache, left_out=frozenset({BOS, EOS, PAD}))
    for numbers in ([3], [0, 1, 2], [8, 16, 17, 18], [33, 20, 4]):
        chosen = [blocks[number] for number in numbers]
        rows = [block.after.document - 1 for block in chosen]
        found = cache.activations(chosen)
        assert torch.equal(found, written[rows].float())


def test_contexts_without_bos_need_a_model_without(saved, tmp_path):
    ids = contexts(12)
    ids[7, 0] = 70
    cache = CachedContexts.open(save(tmp_path / "cache", ids, activations_of(ids)))
    with pytest.raises(InputError, match=r"context 7 of .* begins with token 70, not with BOS") as caught:
        blocks_of(cache)
    assert "model.bos=never" in caught.value.hint
    assert len(blocks_of(cache, bos_id=None)) == 12


def test_tokens_that_the_model_lacks_are_named(saved):
    with pytest.raises(
        InputError, match=r"context 0 of .* has token id 256 at position 0, but this model has ids 0 to 2"
    ):
        blocks_of(CachedContexts.open(saved[0]), n_ids=256)


def test_folders_of_another_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match="no cached activations in"):
        CachedContexts.open(tmp_path)
    datasets.Dataset.from_dict({"token_ids": [[1, 2]], "text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(InputError, match="has 0 columns of activations"):
        CachedContexts.open(tmp_path / "text")
    ids = contexts(3)
    save(tmp_path / "old", ids, activations_of(ids))
    rows = datasets.load_from_disk(tmp_path / "old").remove_columns("token_ids")
    rows.save_to_disk(tmp_path / "no tokens")
    with pytest.raises(InputError, match="has no column 'token_ids'"):
        CachedContexts.open(tmp_path / "no tokens")
    (tmp_path / "old" / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*old"):
        CachedContexts.open(tmp_path / "old")


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_a_file_that_was_cut_off_is_told_when_it_is_opened(tmp_path, kept):
    ids = contexts(35)
    folder = save(tmp_path / "cache", ids, activations_of(ids))
    file = sorted(folder.glob("*.arrow"))[1]
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"cannot read {folder}"):
        CachedContexts.open(folder)
