"""The GPU's kernels against sums written out. `test_kernels` runs this in a process of its own: Triton decides at its
first import whether its interpreter takes the place of a GPU (TRITON_INTERPRET=1)."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sparse import SELECTIONS, gradients, inputs, weights
from torch import Tensor

from circuitcli.saes.fast import kernels
from circuitcli.saes.fast.selection import Selection
from circuitcli.saes.fast.sparse import dense_pre_activations, pre_activations

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(DEVICE)


def entries(counts: list[int], n_rows: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, rows and the starts of segments of so many entries."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(counts)
    indices = torch.randint(n_rows, (int(sizes.sum()),), generator=generator)
    return numbers(len(indices), seed=seed + 1), indices.to(DEVICE), (sizes.cumsum(0) - sizes).to(DEVICE)


# None, one, a full and an overfull share of a segment, and many of them.
COUNTS = [[0], [1], [64], [65], [0, 0, 3, 0], [64, 128, 0, 129, 1], [700, 1, 0], [0, 700]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("d", [1, 7, 256, 300])
def test_segment_sums_are_those_of_a_loop(counts: list[int], d: int):
    rows = numbers(11, d, seed=0)
    chosen, indices, starts = entries(counts, 11, seed=1)
    expected = torch.zeros(len(counts), d, dtype=torch.float64, device=DEVICE)
    entry = 0
    for segment, count in enumerate(counts):
        for _ in range(count):
            expected[segment] += chosen[entry] * rows[indices[entry]]
            entry += 1
    assert torch.allclose(kernels.segment_sums(rows, chosen, indices, starts), expected, rtol=1e-12, atol=1e-12)


@given(st.lists(st.integers(0, 90), min_size=1, max_size=12), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_segment_sums_are_those_of_the_cpu(counts: list[int], seed: int):
    rows = numbers(5, 6, seed=seed)
    chosen, indices, starts = entries(counts, 5, seed=seed)
    expected = torch.nn.functional.embedding_bag(indices, rows, starts, mode="sum", per_sample_weights=chosen)
    assert torch.allclose(kernels.segment_sums(rows, chosen, indices, starts), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_entries", [0, 1, 8, 21])
@pytest.mark.parametrize("d", [1, 7, 300])
def test_products_are_scalar_products(n_entries: int, d: int):
    left, right = numbers(4, d, seed=0), numbers(9, d, seed=1)
    generator = torch.Generator().manual_seed(2)
    ours = torch.randint(4, (n_entries,), generator=generator).to(DEVICE)
    theirs = torch.randint(9, (n_entries,), generator=generator).to(DEVICE)
    found = kernels.products(left, ours, right, theirs)
    assert torch.allclose(found, (left[ours] * right[theirs]).sum(dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", SELECTIONS, ids=str)
def test_gradients_by_the_kernels_equal_those_of_the_dense_definition(rule: Selection):
    parts = tuple(part.detach().to(DEVICE).requires_grad_() for part in weights())
    x = inputs().detach().to(DEVICE).requires_grad_()
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("segment_sums", "products"):
            real = getattr(kernels, name)
            patch.setattr(kernels, name, lambda *given, real=real, name=name: calls.append(name) or real(*given))
        found = gradients(pre_activations, x, parts, rule)
    # Decoding, the encoder's gradient and its bias's, the input's, and the decoder's.
    assert calls.count("segment_sums") == 5 and calls.count("products") == 1
    for sparse_one, dense_one in zip(found, gradients(dense_pre_activations, x, parts, rule), strict=True):
        assert torch.allclose(sparse_one, dense_one, rtol=1e-11, atol=1e-11)


def test_the_same_numbers_come_out_every_time():
    rows = numbers(50, 40, seed=0, dtype=torch.float32)
    chosen, indices, starts = entries([900, 3, 500], 50, seed=1)
    first = kernels.segment_sums(rows, chosen.float(), indices, starts)
    assert torch.equal(kernels.segment_sums(rows, chosen.float(), indices, starts), first)
