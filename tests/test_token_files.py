"""Token shards give their documents from any number on, whatever file they lie in, and nothing in them is run."""

import json
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from circuitcli.errors import InputError
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.text import token_files
from circuitcli.text.documents import documents, source_digest, texts

BOS, EOS, PAD = 7, 8, 9
VOCABULARY = Vocabulary(10, BOS, EOS, PAD)
DTYPES = ("uint16", "uint32", "int32", "int64")


def write(path: Path, array: np.ndarray, name: str = "tokens") -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        save_file({name: np.ascontiguousarray(array)}, path)
    return path


def read(path: Path, *, start: int = 0, field: str | None = None, vocabulary: Vocabulary = VOCABULARY):
    return [part.tolist() for part in documents(str(path), field=field, vocabulary=vocabulary, start=start)]


def cut_slowly(stream: list[int], piece: int) -> list[list[int]]:
    """Token by token."""
    found: list[list[int]] = [[]]
    for token in stream:
        if token in (BOS, EOS, PAD) or len(found[-1]) == piece:
            found.append([])
        if token not in (BOS, EOS, PAD):
            found[-1].append(token)
    return [document for document in found if document]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 9), max_size=60),
    st.sampled_from(DTYPES),
    st.sampled_from([".npy", ".safetensors"]),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 70),
)
def test_a_stream_is_cut_as_by_the_slow_definition(tmp_path_factory, stream, dtype, suffix, piece, scanned, start):
    path = write(tmp_path_factory.mktemp("shard") / f"shard{suffix}", np.array(stream, dtype=dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "PIECE_TOKENS", piece)
        patch.setattr(token_files, "_SCANNED_TOKENS", scanned)
        assert read(path, start=start) == cut_slowly(stream, piece)[start:]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_of_two_axes_is_a_document_without_bos_and_padding(tmp_path, dtype, suffix):
    rows = {
        (BOS, 1, 2, 3, 4): [1, 2, 3, 4],
        (1, 2, BOS, 3, EOS): [1, 2, BOS, 3, EOS],
        (PAD, PAD, BOS, BOS, 5): [5],
        (BOS, 1, EOS, PAD, PAD): [1, EOS],
        (6, EOS, EOS, EOS, EOS): [6, EOS],
        (EOS, 1, PAD, 2, PAD): [EOS, 1, PAD, 2],
        (BOS, PAD, PAD, PAD, PAD): [],
        (PAD,) * 5: [],
        (3, 3, 3, 3, 3): [3, 3, 3, 3, 3],
    }
    path = write(tmp_path / f"shard{suffix}", np.array(list(rows), dtype=dtype))
    for start in range(len(rows) + 2):
        assert read(path, start=start) == list(rows.values())[start:]


def test_padding_with_eos_leaves_one_and_bos_is_never_taken_for_padding(tmp_path):
    rows = np.array([[7, 7, 1, 2, 7, 7], [1, 7, 7, 2, 3, 4]], dtype=np.uint16)
    one_for_all = Vocabulary(10, 7, 7, 7)
    assert read(write(tmp_path / "rows.npy", rows), vocabulary=one_for_all) == [[1, 2, 7], [1, 7, 7, 2, 3, 4]]
    assert read(write(tmp_path / "rows.npy", rows), vocabulary=Vocabulary(10)) == rows.tolist()


def test_a_folder_of_shards_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "train_000001.npy", np.array([4, 5, EOS, 6], dtype=np.uint16))
    write(tmp_path / "train_000000.npy", np.array([[1, 2], [3, PAD]], dtype=np.int32))
    write(tmp_path / "train_000002.safetensors", np.array([0], dtype=np.int64))
    write(tmp_path / ".hidden.npy", np.array([1.5]))
    (tmp_path / "README.md").write_text("what these are")
    expected = [[1, 2], [3], [4, 5], [6], [0]]
    for start in range(7):
        assert read(tmp_path, start=start) == expected[start:]
    before = source_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("what these are, said better")
    assert source_digest(str(tmp_path)) == before
    write(tmp_path / "train_000003.npy", np.array([1]))
    assert source_digest(str(tmp_path)) != before


def test_byte_order_and_column_order_do_not_matter(tmp_path):
    table = np.arange(6).reshape(2, 3)
    assert read(write(tmp_path / "big.npy", table.astype(">i4"))) == table.tolist()
    assert read(write(tmp_path / "columns.npy", np.asfortranarray(table))) == table.tolist()


def test_tensors_are_chosen_by_name(tmp_path):
    path = tmp_path / "several.safetensors"
    save_file({"tokens": np.array([1, 2]), "input_ids": np.array([3]), "other": np.array([4])}, path)
    assert [read(path), read(path, field="input_ids"), read(path, field="other")] == [[[1, 2]], [[3]], [[4]]]
    assert source_digest(str(path)) != source_digest(str(path), field="other")
    save_file({"input_ids": np.array([3]), "other": np.array([4])}, path)
    assert read(path) == [[3]]
    assert read(write(path, np.array([5]), "alone")) == [[5]]
    save_file({"a": np.array([3]), "b": np.array([4])}, path)
    with pytest.raises(InputError, match="no tensor 'tokens'") as caught:
        read(path)
    assert "it has a, b" in caught.value.hint and "--field" in caught.value.hint
    with pytest.raises(InputError, match="no tensor 'c'"):
        read(path, field="c")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "holds float64, but token ids are integers"),
        (np.zeros((2, 3), dtype=np.float16), "holds float16"),
        (np.zeros(3, dtype=bool), "holds bool"),
        (np.array(["a"]), "holds str"),
        (np.zeros((2, 3, 4), dtype=int), r"has shape \(2, 3, 4\), 3 axes"),
        (np.array(3), r"has shape \(\), 0 axes"),
        (np.array([1, 2, 10, 11]), "token id 10 at position 2, but this model has ids 0 to 9"),
        (np.array([1, EOS, 2, -1]), "token id -1 at position 3"),
        (np.array([[1, 2], [3, 300]], dtype=np.uint16), "row 1 has token id 300 at position 1"),
        (np.array([2**63], dtype=np.uint64), f"token id {2**63} at position 0"),
    ],
)
def test_what_is_no_token_id_is_named(tmp_path, array, message):
    path = write(tmp_path / "shard.npy", array)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in caught.value.message and caught.value.hint


def test_half_precision_tensors_are_refused(tmp_path):
    save_torch_file({"tokens": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "shard.safetensors")
    with pytest.raises(InputError, match="holds BF16, but token ids are integers"):
        read(tmp_path / "shard.safetensors")


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_run(tmp_path):
    target = tmp_path / "made by the pickle"
    np.save(tmp_path / "objects.npy", np.array([Bomb(target)], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Bomb(target)))
    np.savez(tmp_path / "several.npz", objects=np.array([Bomb(target)], dtype=object), allow_pickle=True)
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    header = b"{'descr': __import__('os').mkdir(%r), 'fortran_order': False, 'shape': (1,)}" % str(target)
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8))
    for name in ("objects.npy", "pickle.npy", "several.npy", "header.npy"):
        with pytest.raises(InputError, match=rf"{name} cannot be read as token ids") as caught:
            read(tmp_path / name)
        assert "pickled objects are refused" in caught.value.hint
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 40, -3])
def test_a_file_that_was_cut_off_is_named(tmp_path, suffix, kept):
    path = write(tmp_path / f"shard{suffix}", np.arange(8))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"{path} cannot be read as token ids"):
        read(path)


def test_a_huge_header_is_not_believed(tmp_path):
    header = json.dumps({"tokens": {"dtype": "I64", "shape": [2**60], "data_offsets": [0, 2**63]}}).encode()
    path = tmp_path / "shard.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(InputError, match="cannot be read as token ids"):
        read(path)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_an_empty_array_has_no_token(tmp_path, shape, suffix):
    path = write(tmp_path / f"shard{suffix}", np.zeros(shape, dtype=np.uint16))
    assert not any(read(path))


def test_token_ids_are_no_text(tmp_path):
    with pytest.raises(InputError, match="holds token ids, but text is needed here"):
        next(texts(str(write(tmp_path / "shard.npy", np.arange(3)))))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_long_stream_is_read_in_bounded_memory(tmp_path, suffix):
    path = write(tmp_path / f"shard{suffix}", np.arange(20_000_000, dtype=np.uint16) % 7)
    tracemalloc.start()
    try:
        n_tokens = sum(len(part) for part in documents(str(path), vocabulary=VOCABULARY))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_tokens == 20_000_000
    assert peak_bytes < 32 * token_files._SCANNED_TOKENS
