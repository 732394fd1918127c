"""The cache is one table whatever the shards are, and it notices when one is missing."""

import pytest
import torch
from support_collect import (
    HOOKS,
    collection,
    language_model,
    source,
    text_of_rows,
    texts,
    tokenizer,
    write_cache,
)

from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.collection import collect
from circuitcli.activations.storage.shards import DTYPES, RowsShard, hook_path
from circuitcli.activations.storage.token_shards import TokenShard, tokens_path
from circuitcli.errors import InputError
from circuitcli.text.blocks import token_blocks

WIDTHS = {HOOKS[0]: 3, HOOKS[1]: 5}
SIZES = [4, 7, 1, 6]


@pytest.fixture
def root(tmp_path):
    write_cache(tmp_path, SIZES, WIDTHS)
    return tmp_path


def test_rows_across_shards_are_those_of_one_table(root):
    cache = ActivationCache(root, list(WIDTHS))
    assert cache.n_tokens == 18 and [cache.d_model(hook) for hook in WIDTHS] == [3, 5]
    for hook, width in WIDTHS.items():
        whole = torch.arange(18)[:, None] * (torch.arange(1, width + 1) / width)
        for start in range(19):
            for stop in range(start, 19):
                assert torch.equal(cache.rows(hook, start, stop), whole[start:stop])


def test_tokens_across_shards_are_those_of_one_table(root):
    cache = ActivationCache(root, [])
    for start, stop in [(0, 18), (3, 5), (11, 12), (4, 4), (2, 13)]:
        assert cache.tokens(start, stop).token.tolist() == list(range(start, stop))
    assert cache.tokens(3, 6).position.tolist() == [4, 1, 2]


def test_rows_outside_the_table_are_refused(root):
    cache = ActivationCache(root, [HOOKS[0]])
    with pytest.raises(IndexError, match="rows 10 to 19 of 18"):
        cache.rows(HOOKS[0], 10, 19)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_and_norms_equal_those_of_all_rows(tmp_path, dtype):
    write_cache(tmp_path, SIZES, WIDTHS, dtype=dtype)
    cache = ActivationCache(tmp_path, list(WIDTHS))
    for hook in WIDTHS:
        rows = cache.rows(hook, 0, cache.n_tokens).double()
        assert cache.mean(hook).dtype == torch.float64
        assert torch.allclose(cache.mean(hook), rows.mean(dim=0), rtol=1e-6)
        shards = [RowsShard.open(hook_path(tmp_path, hook, index)) for index in range(cache.n_shards)]
        assert sum(shard.sum_norm for shard in shards) == pytest.approx(float(rows.norm(dim=1).sum()), rel=1e-6)
        assert cache.mean_square_norm(hook) == pytest.approx(float(rows.square().sum(dim=1).mean()), rel=1e-6)


WAYS = [{}, {"pack": True}, {"special_tokens": "drop"}, {"pack": True, "special_tokens": "drop"}]
# Special tokens at the ends and in the middle of documents, blocks and shards.
DOCUMENTS = [*texts(40, 7, 0, 15, 16), "<|eos|>a<|pad|><|pad|>b<|bos|>", "<|pad|>" * 50, *texts(33, 1), "c<|eos|>"]


@pytest.mark.parametrize("bos", ["auto", "never"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_blocks_give_the_models_input_back_and_the_rows_it_has(tmp_path, bos, way):
    collect(language_model(bos), source(DOCUMENTS), collection(tmp_path, **way))
    cache = ActivationCache(tmp_path, [])
    expected, row = [], 0
    for block in token_blocks(source(DOCUMENTS), tokenizer(bos), block_length=16, **way):
        expected.append((list(block.ids), row, row + block.n_rows, list(block.positions)))
        row += block.n_rows
    assert cache.n_tokens == row and cache.bos_id == tokenizer(bos).bos_id
    for start, stop in [(0, row), (1, row), (0, row - 1), (15, 16), (20, 70), (70, 70)]:
        inside = [block for block in expected if start <= block[1] and block[2] <= stop]
        found = [(block.ids, block.start_row, block.stop_row, block.positions) for block in cache.blocks(start, stop)]
        assert found == inside


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_text_of_rows_has_the_tokens_without_a_row(tmp_path, way):
    collect(language_model(), source(DOCUMENTS), collection(tmp_path, shard_tokens=40, **way))
    cache = ActivationCache(tmp_path, [])
    blocks = list(token_blocks(source(DOCUMENTS), tokenizer(), block_length=16, **way))
    whole = [
        (block.ids[place], block.index, place, place in block.positions)
        for block in blocks
        for place in range(1, len(block.ids))
    ]
    n_rows = sum(has_row for *_, has_row in whole)
    assert n_rows == cache.n_tokens and (n_rows < len(whole)) == bool(way)
    indices, has_row = [item[1] for item in whole], [item[3] for item in whole]
    for start in range(0, n_rows, 3):
        for stop in {min(start + size, n_rows) for size in (1, 2, 15, 50, 200)}:
            text = cache.text(start, stop)
            columns = (text.tokens.token, text.tokens.block, text.tokens.position, text.has_row)
            found = list(zip(*(column.tolist() for column in columns), strict=True))
            assert found == [whole[number] for number in text_of_rows(indices, has_row, start, stop)]


def test_the_digest_of_tokens_covers_those_without_a_row(tmp_path):
    digests = set()
    for number, document in enumerate(("ab<|eos|>c", "ab<|pad|>c")):
        collect(language_model(), source([document]), collection(tmp_path / str(number), special_tokens="drop"))
        shard = TokenShard.open(tokens_path(tmp_path / str(number), 0))
        assert (shard.n_rows, shard.n_left_out) == (3, 1)
        digests.add(shard.digest)
    assert len(digests) == 2


@pytest.mark.parametrize("missing", [(HOOKS[0], 0), (HOOKS[1], 2), (HOOKS[1], 3), (None, 1), (None, 3)])
def test_a_missing_shard_is_named_even_if_it_is_the_last(root, missing):
    hook, index = missing
    path = tokens_path(root, index) if hook is None else hook_path(root, hook, index)
    path.unlink()
    with pytest.raises(InputError, match=f"no shard {path}"):
        ActivationCache(root, list(WIDTHS))


def test_a_shard_of_another_collection_is_named(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_cache(other, [9], WIDTHS)
    hook_path(other, HOOKS[1], 0).replace(hook_path(root, HOOKS[1], 2))
    with pytest.raises(InputError, match=r"attn.1/00002.h5 holds other rows than the file of its tokens lists"):
        ActivationCache(root, list(WIDTHS))


def test_an_empty_place_asks_for_collect(tmp_path):
    with pytest.raises(InputError, match="no activations in") as caught:
        ActivationCache(tmp_path, [HOOKS[0]])
    assert "circuit collect" in caught.value.hint
