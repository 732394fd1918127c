"""Documents become blocks: no token lost, none shared, BOS where the policy says so, and reading goes on anywhere."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_collect import BOS, source, texts, tokenizer

from circuitcli.activations.blocks import Cursor, padded, token_blocks

DOCUMENTS = texts(40, 0, 7, 15, 16, 1, 0)


def blocks_of(documents, *, bos="auto", block_length=16, start=None):
    return list(token_blocks(source(documents), tokenizer(bos), block_length=block_length, start=start))


def flat(lists):
    return list(chain.from_iterable(lists))


def stored(block):
    return list(block.ids[block.n_bos :])


@pytest.mark.parametrize("bos", ["auto", "never"])
def test_stored_tokens_of_a_document_are_its_own_in_order(bos):
    encode = tokenizer().encode
    blocks = blocks_of(DOCUMENTS, bos=bos)
    assert flat(map(stored, blocks)) == flat(map(encode, DOCUMENTS))


@pytest.mark.parametrize(
    ("bos", "lengths"), [("auto", [15, 15, 10, 7, 15, 15, 1, 1]), ("never", [16, 16, 8, 7, 15, 16, 1])]
)
def test_a_block_holds_one_document_and_at_most_block_length_tokens_with_bos(bos, lengths):
    blocks = blocks_of(DOCUMENTS, bos=bos)
    assert [block.n_rows for block in blocks] == lengths
    assert max(len(block.ids) for block in blocks) == 16


def test_every_block_begins_with_bos_unless_the_policy_is_never():
    assert all(block.ids[0] == BOS and block.n_bos == 1 for block in blocks_of(DOCUMENTS))
    assert all(BOS not in block.ids and block.n_bos == 0 for block in blocks_of(DOCUMENTS, bos="never"))


def test_special_tokens_that_the_text_contains_are_stored():
    (block,) = blocks_of(["a<|bos|>b"])
    assert block.ids[0] == block.ids[2] == BOS
    assert stored(block) == tokenizer().encode("a<|bos|>b")
    assert len(stored(block)) == 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), max_size=4), st.sampled_from(["auto", "never"]), st.integers(2, 17))
def test_reading_goes_on_at_any_cursor(lengths, bos, block_length):
    documents = texts(*lengths)
    blocks = blocks_of(documents, bos=bos, block_length=block_length)
    assert [block.index for block in blocks] == list(range(len(blocks)))
    for n, block in enumerate(blocks):
        assert blocks_of(documents, bos=bos, block_length=block_length, start=block.after) == blocks[n + 1 :]
    assert blocks_of(documents, bos=bos, block_length=block_length, start=Cursor()) == blocks


def test_padding_is_on_the_right_masked_and_not_among_the_rows():
    blocks = blocks_of(DOCUMENTS)[2:5]
    batch = padded(blocks, pad_id=99)
    assert batch.input_ids.tolist() == [[*block.ids, *[99] * (16 - len(block.ids))] for block in blocks]
    assert batch.attention_mask.sum(dim=1).tolist() == [len(block.ids) for block in blocks]
    assert batch.stored(batch.input_ids, torch.int64).tolist() == flat(map(stored, blocks))


@pytest.mark.parametrize("bos", ["auto", "never"])
def test_a_batch_without_padding_has_no_mask_and_stores_all_but_bos(bos):
    blocks = blocks_of(DOCUMENTS, bos=bos)[:2]
    batch = padded(blocks, pad_id=0)
    assert batch.attention_mask is None
    assert batch.stored(batch.input_ids, torch.int64).tolist() == flat(map(stored, blocks))
