"""Documents become blocks: no token lost, none shared, BOS where the policy says so, and reading goes on anywhere."""

from array import array
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_collect import BOS, EOS, PAD, UNK, hf_tokenizer, source, texts, tokenizer

from circuitcli.errors import InputError
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.text.blocks import Block, Cursor, padded, token_blocks

DOCUMENTS = texts(40, 0, 7, 15, 16, 1, 0)


def blocks_of(documents, *, bos="auto", block_length=16, **options):
    return list(token_blocks(source(documents), tokenizer(bos), block_length=block_length, **options))


def flat(lists):
    return list(chain.from_iterable(lists))


def stored(block):
    return [block.ids[place] for place in block.positions]


def packed_slowly(documents, bos, block_length):
    """Token by token: (token, whether it is text) of each block behind BOS."""
    length = block_length - (bos == "auto")
    blocks = [[]]
    for document in documents:
        for number, token in enumerate(tokenizer().encode(document)):
            if len(blocks[-1]) == length:
                blocks.append([])
            if number == 0 and blocks[-1]:
                blocks[-1].append((EOS, False))
                if len(blocks[-1]) == length:
                    blocks.append([])
            blocks[-1].append((token, True))
    return [block for block in blocks if block]


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


def test_text_in_front_of_a_bad_document_comes_before_its_error():
    def broken(start):
        yield from DOCUMENTS[start:]
        raise InputError("no text")

    blocks = token_blocks(broken, tokenizer(), block_length=16)
    for expected in blocks_of(DOCUMENTS):
        assert next(blocks) == expected
    with pytest.raises(InputError, match="no text"):
        next(blocks)


def test_who_wants_one_block_reads_one_document():
    read = []

    def documents(start):
        for number in range(start, 1000):
            read.append(number)
            yield "abc" * 100

    first = next(token_blocks(documents, tokenizer(), block_length=16))
    assert first.index == 0 and read == [0]


def test_all_documents_together_have_the_tokens_that_each_has_alone():
    class Slow:
        """A tokenizer without a backend in Rust."""

        def __call__(self, text, **_):
            return {"input_ids": tokenizer().encode(text)}

    for together in (tokenizer(), Tokenizer(Slow(), bos="never")):
        assert [list(ids) for ids in together.encode_all(DOCUMENTS)] == [*map(tokenizer().encode, DOCUMENTS)]


def test_every_block_begins_with_bos_unless_the_policy_is_never():
    assert all(block.ids[0] == BOS and block.n_bos == 1 for block in blocks_of(DOCUMENTS))
    assert all(BOS not in block.ids and block.n_bos == 0 for block in blocks_of(DOCUMENTS, bos="never"))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=5),
    st.integers(2, 17),
    st.booleans(),
    st.sampled_from(["keep", "drop"]),
)
def test_bos_that_documents_begin_with_is_the_one_that_blocks_have(documents, block_length, pack, policy):
    plain = texts(*(length for _, length in documents))
    options = {"block_length": block_length, "pack": pack, "special_tokens": policy}
    expected = blocks_of(plain, **options)
    fronted = ["<|bos|>" * n_bos + text for (n_bos, _), text in zip(documents, plain, strict=True)]
    ids = [np.array(tokenizer().encode(text), dtype=np.int32) for text in fronted]
    assert blocks_of(fronted, **options) == blocks_of(ids, **options) == expected


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 40), max_size=5),
    st.sampled_from(["auto", "never"]),
    st.integers(3, 17),
    st.booleans(),
)
def test_no_block_begins_with_two_bos_nor_stores_the_one_in_front(lengths, bos, block_length, pack):
    # "l" now and then, so that BOS also stands where a document is cut.
    documents = [document.replace("l", "<|bos|>") for document in texts(*lengths)]
    for block in blocks_of(documents, bos=bos, block_length=block_length, pack=pack):
        n_bos = tokenizer().n_bos(block.ids)
        assert n_bos <= 1 and not set(range(n_bos)) & set(block.positions.tolist())


def test_where_no_bos_is_put_that_of_a_document_stays_and_is_not_stored():
    for documents in (["<|bos|>ab"], ["<|bos|><|bos|>ab"], [np.array([BOS, *tokenizer().encode("ab")])]):
        for pack in (False, True):
            (block,) = blocks_of(documents, bos="never", pack=pack)
            assert [*block.ids] == [BOS, *tokenizer().encode("ab")] and (block.n_bos, block.left_out) == (0, (0,))
    (block,) = blocks_of(["ab", "<|bos|>cd"], bos="never", pack=True)
    assert [*block.ids] == [*tokenizer().encode("ab"), EOS, BOS, *tokenizer().encode("cd")]
    assert stored(block) == tokenizer().encode("abcd")


def test_special_tokens_that_the_text_contains_are_stored():
    (block,) = blocks_of(["a<|bos|>b"])
    assert block.ids[0] == block.ids[2] == BOS
    assert stored(block) == tokenizer().encode("a<|bos|>b")
    assert len(stored(block)) == 3


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 40), max_size=5),
    st.sampled_from(["auto", "never"]),
    st.integers(2, 17),
    st.sampled_from([{}, {"pack": True}, {"pack": True, "special_tokens": "drop"}, {"special_tokens": "drop"}]),
)
def test_reading_goes_on_at_any_cursor(lengths, bos, block_length, options):
    # "l" and "o" now and then, so that special tokens are anywhere.
    documents = [document.replace("l", "<|bos|>").replace("o", "<|eos|>") for document in texts(*lengths)]
    options = {"bos": bos, "block_length": block_length, **options}
    blocks = blocks_of(documents, **options)
    assert [block.index for block in blocks] == list(range(len(blocks)))
    for n, block in enumerate(blocks):
        assert blocks_of(documents, start=block.after, **options) == blocks[n + 1 :]
    assert blocks_of(documents, start=Cursor(), **options) == blocks


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from(["auto", "never"]), st.integers(2, 17))
def test_packed_blocks_are_those_of_the_slow_definition(lengths, bos, block_length):
    documents = texts(*lengths)
    blocks = blocks_of(documents, bos=bos, block_length=block_length, pack=True)
    expected = packed_slowly(documents, bos, block_length)
    assert [list(block.ids[block.n_bos :]) for block in blocks] == [[token for token, _ in block] for block in expected]
    assert flat(map(stored, blocks)) == flat(map(tokenizer().encode, documents))
    for block, slow in zip(blocks, expected, strict=True):
        assert block.left_out == tuple(block.n_bos + at for at, (_, is_text) in enumerate(slow) if not is_text)
        assert block.n_rows == len(block.positions) == sum(is_text for _, is_text in slow)
    assert all(len(block.ids) == block_length for block in blocks[:-1])


def test_a_separator_is_never_first_in_a_block_nor_doubled():
    for bos in ("auto", "never"):
        for block in blocks_of(texts(*range(40)), bos=bos, block_length=9, pack=True):
            behind = block.ids[block.n_bos :]
            assert behind[0] != EOS and (EOS, EOS) not in pairwise(behind)


def test_documents_cannot_be_packed_without_a_separator():
    plain = hf_tokenizer()
    plain.bos_token = plain.eos_token = None
    with pytest.raises(InputError, match="no token to put between documents"):
        next(token_blocks(source(DOCUMENTS), Tokenizer(plain), block_length=16, pack=True))
    plain.bos_token = "<|bos|>"
    assert Tokenizer(plain).separator_id() == BOS


@pytest.mark.parametrize("pack", [False, True])
def test_dropped_special_tokens_are_seen_and_not_stored(pack):
    documents = ["<|eos|>", "", "ab<|bos|>c<|eos|>", "<|bos|><|pad|>" * 20, "d", "<|eos|>" * 31 + "e", "<|unk|>"]
    encode, special = tokenizer().encode, {BOS, EOS, PAD, UNK}
    kept = blocks_of(documents, pack=pack)
    dropped = blocks_of(documents, pack=pack, special_tokens="drop")
    text = [token for token in flat(map(encode, documents)) if token not in special]
    assert flat(map(stored, dropped)) == text
    assert [block.ids for block in dropped] == [block.ids for block in kept]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_a_block_without_text_is_left_out(pack, policy):
    documents = ["<|bos|>", " \n\t", "<|eos|>" * 40, "", "<|pad|>" * 15]
    assert blocks_of(documents, pack=pack, special_tokens=policy) == []
    (block,) = blocks_of([*documents, "a"], special_tokens=policy)
    assert stored(block) == tokenizer().encode("a")


@pytest.mark.parametrize("pack", [False, True])
def test_documents_that_come_as_ids_give_the_blocks_of_their_text(pack):
    ids = [np.array(tokenizer().encode(document), dtype=np.uint16) for document in DOCUMENTS]
    assert blocks_of(ids, pack=pack) == blocks_of(DOCUMENTS, pack=pack)


@pytest.mark.parametrize("pack", [False, True])
def test_padding_is_on_the_right_masked_and_not_among_the_rows(pack):
    blocks = blocks_of(DOCUMENTS, pack=pack)[-3:]
    batch = padded(blocks, pad_id=99)
    assert batch.input_ids.tolist() == [[*block.ids, *[99] * (16 - len(block.ids))] for block in blocks]
    assert batch.attention_mask.sum(dim=1).tolist() == [len(block.ids) for block in blocks]
    assert batch.stored(batch.input_ids, torch.int64).tolist() == flat(map(stored, blocks))


def test_a_batch_without_padding_that_stores_only_some_places_has_no_mask():
    blocks = blocks_of(DOCUMENTS, pack=True)[:4]
    batch = padded(blocks, pad_id=0)
    assert batch.attention_mask is None and any(block.left_out for block in blocks)
    assert batch.stored(batch.input_ids, torch.int64).tolist() == flat(map(stored, blocks))


@pytest.mark.parametrize("bos", ["auto", "never"])
def test_a_batch_without_padding_has_no_mask_and_stores_all_but_bos(bos):
    blocks = blocks_of(DOCUMENTS, bos=bos)[:2]
    batch = padded(blocks, pad_id=0)
    assert batch.attention_mask is None
    assert batch.stored(batch.input_ids, torch.int64).tolist() == flat(map(stored, blocks))


@pytest.mark.parametrize("n_positions", [1, 15, 40, 1000])
@pytest.mark.parametrize("chosen", [slice(0, 2), slice(-3, None), slice(None)])
def test_parts_of_a_batch_have_its_rows_one_after_the_other(n_positions, chosen):
    batch = padded(blocks_of(DOCUMENTS, pack=True)[chosen], pad_id=99)
    whole = batch.stored(batch.input_ids, torch.int64)
    again = torch.full_like(whole, -1)
    for part in batch.parts(n_positions):
        places = batch.input_ids[part.blocks, batch.n_bos :].flatten()
        again[part.rows] = places if part.positions is None else places[part.positions]
    assert torch.equal(again, whole)


def test_a_part_that_stores_nothing_is_left_out():
    blocks = [Block(array("i", [1, 2]), 1, 0, Cursor()), Block(array("i", [1, 2]), 1, 1, Cursor(), left_out=(1,))]
    assert [part.rows for part in padded(blocks, pad_id=0).parts(1)] == [slice(0, 1)]
