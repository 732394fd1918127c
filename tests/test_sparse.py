"""The sparse kernels against the dense definition."""

import subprocess
import sys

import pytest
import torch
from cli_support import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.fast import selection
from circuitcli.saes.fast.selection import Above, BatchTopK, Crowded, Selection, TopK, largest_of_each
from circuitcli.saes.fast.sparse import (
    Encoder,
    by_feature,
    decode,
    dense_pre_activations,
    encode,
    pre_activations,
    sums_by_feature,
)
from circuitcli.saes.topk import TopKSae

BATCH, D_IN, D_OUT, D_SAE, K = 13, 7, 6, 29, 5
FLOORS = torch.linspace(-1, 1, D_SAE, dtype=torch.float64)
SELECTIONS = [
    *(TopK(1), TopK(K), TopK(D_SAE), BatchTopK(1), BatchTopK(K), BatchTopK(D_SAE)),
    *(Above(torch.tensor(0.0), 1.0), Above(torch.tensor(1e9), 1.0), Above(FLOORS, 1.0)),
]


def weights(dtype: torch.dtype = torch.float64, *, seed: int = 0, d_sae: int = D_SAE) -> tuple[Tensor, ...]:
    """W_enc, b_enc, b_dec (of the input), W_dec, b_dec (of the output)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(D_IN, d_sae), (d_sae,), (D_IN,), (d_sae, D_OUT), (D_OUT,)]
    return tuple(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)


def inputs(dtype: torch.dtype = torch.float64, *, n: int = BATCH) -> Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(9), dtype=dtype).requires_grad_()


def gradients(encoding, x: Tensor, parts: tuple[Tensor, ...], rule: Selection) -> tuple[Tensor, ...]:
    W_enc, b_enc, b_in, W_dec, b_out = parts
    codes = encoding(x, Encoder(W_enc, b_enc, b_in), rule)
    raw = codes.dense()
    codes = codes.positive()
    if encoding is pre_activations:
        decoded = decode(codes, W_dec, b_out)
    else:
        decoded = codes.dense() @ W_dec + b_out
    loss = decoded.square().sum() + codes.dense().cos().sum() + raw.sin().sum()
    return torch.autograd.grad(loss, [*parts, x])


def test_reconstruction_and_codes_are_those_of_the_topk_sae():
    W_enc, b_enc, b_dec, _, _ = weights(torch.float32)
    W_dec = torch.randn(D_SAE, D_IN)
    sae = TopKSae(SaeConfig(HookPoint(0, "resid"), D_IN, D_SAE), k=K)
    sae.load_state_dict({"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec})
    x = inputs(torch.float32).detach()
    codes = encode(x, Encoder(W_enc, b_enc, b_dec), TopK(K))
    assert torch.allclose(codes.dense(), sae.encode(x), atol=1e-6)
    assert torch.allclose(decode(codes, W_dec, b_dec), sae.reconstruct(x), atol=1e-5)


@pytest.mark.parametrize("rule", SELECTIONS, ids=str)
def test_gradients_equal_those_of_the_dense_definition(rule: Selection):
    parts, x = weights(), inputs()
    found, expected = (gradients(way, x, parts, rule) for way in (pre_activations, dense_pre_activations))
    for sparse, dense in zip(found, expected, strict=True):
        assert torch.allclose(sparse, dense, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", [TopK(K), BatchTopK(K)], ids=str)
def test_gradients_equal_finite_differences(rule: Selection):
    parts, x = weights(), inputs(n=3)

    def outputs(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_in: Tensor, W_dec: Tensor, b_out: Tensor):
        codes = encode(x, Encoder(W_enc, b_enc, b_in), rule)
        return decode(codes, W_dec, b_out), codes.values

    assert torch.autograd.gradcheck(outputs, (x, *parts), eps=1e-7, atol=1e-5)


def test_more_entries_than_are_worth_it_are_refused():
    (W_enc, b_enc, b_dec, _, _), x = weights(), inputs()
    encoder = Encoder(W_enc, b_enc, b_dec)
    n_above = int(((x - b_dec) @ W_enc + b_enc > FLOORS).sum())
    enough, too_few = (Above(FLOORS, (n_above + more) / (BATCH * D_SAE)) for more in (0.5, -0.5))
    assert len(pre_activations(x, encoder, enough).values) == n_above
    with pytest.raises(Crowded):
        pre_activations(x, encoder, too_few)


def test_an_encoder_may_subtract_nothing():
    W_enc, b_enc, _, W_dec, _ = weights()
    x = inputs()
    one = decode(encode(x, Encoder(W_enc, b_enc, None), TopK(K)), W_dec).square().sum()
    other = decode(encode(x, Encoder(W_enc, b_enc, torch.zeros_like(x[0])), TopK(K)), W_dec).square().sum()
    for a, b in zip(
        torch.autograd.grad(one, [W_enc, b_enc, W_dec]), torch.autograd.grad(other, [W_enc, b_enc, W_dec]), strict=True
    ):
        assert torch.equal(a, b)


def test_encoder_may_be_stored_either_way_round():
    parts, x = weights(), inputs()
    turned = (parts[0].detach().T.contiguous().T.requires_grad_(), *parts[1:])
    assert not turned[0].is_contiguous()
    for one, other in zip(gradients(encode, x, parts, TopK(K)), gradients(encode, x, turned, TopK(K)), strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11)


def test_silent_features_get_no_gradient():
    W_enc, b_enc, b_in, W_dec, _ = weights()
    silenced = (b_enc.detach() - 100 * (torch.arange(D_SAE) % 2)).requires_grad_()
    decode(encode(inputs(), Encoder(W_enc, silenced, b_in), TopK(D_SAE)), W_dec).square().sum().backward()
    odd = torch.arange(D_SAE) % 2 == 1
    assert W_dec.grad is not None and W_enc.grad is not None
    assert W_dec.grad[odd].eq(0).all() and W_enc.grad[:, odd].eq(0).all()
    assert W_dec.grad[~odd].abs().sum() > 0


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 7, 28, D_SAE]), st.sampled_from([1, 3, 1024]))
@settings(max_examples=60, deadline=None)
def test_batch_topk_finds_the_largest_of_the_batch_however_they_lie(seed: int, k: int, piece_rows: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, D_IN, generator=generator, dtype=torch.float64)
    # Some tokens hold many times more than their share.
    x[::4] *= 50
    W_enc, b_enc, _, _, _ = weights(seed=seed)
    before, selection.PIECE_ROWS = selection.PIECE_ROWS, piece_rows
    try:
        codes = encode(x, Encoder(W_enc, b_enc, None), BatchTopK(k))
    finally:
        selection.PIECE_ROWS = before
    pre = (x @ W_enc + b_enc).detach()
    expected = torch.zeros_like(pre).flatten()
    for index in pre.flatten().argsort(descending=True)[: k * BATCH].tolist():
        expected[index] = max(0.0, float(pre.flatten()[index]))
    assert torch.allclose(codes.dense(), expected.view_as(pre))
    assert codes.tokens.tolist() == sorted(codes.tokens.tolist())


def test_crowded_tokens_do_occur_in_the_test_above():
    x = inputs().detach()
    x[::4] *= 50
    W_enc, b_enc, _, _, _ = weights()
    kept = BatchTopK(2).mask(x @ W_enc + b_enc).sum(dim=1)
    assert kept.max() > selection.CANDIDATES * 2


@given(st.integers(0, 10_000), st.sampled_from([16, 33, 40, 200, 517]), st.sampled_from([1, 2, 6]))
@settings(max_examples=60, deadline=None)
def test_the_largest_of_each_row_are_those_of_a_full_search(seed: int, width: int, k: int):
    pre = torch.randn(5, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, indices = largest_of_each(pre, k)
    assert torch.equal(values.sort(descending=True).values, pre.topk(k).values)
    assert torch.equal(pre.gather(1, indices), values)


def test_under_autocast_the_product_is_taken_in_bfloat16_and_all_else_in_float32():
    W_enc, b_enc, b_in, W_dec, _ = weights(torch.float32, d_sae=500)
    x = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = encode(x, Encoder(W_enc, b_enc, b_in), TopK(K))
        decoded = decode(codes, W_dec)
    assert codes.values.dtype == decoded.dtype == torch.float32
    pre = (x - b_in) @ W_enc + b_enc
    rounded = ((x - b_in).bfloat16() @ W_enc.bfloat16() + b_enc.bfloat16()).float()
    assert torch.allclose(codes.values, rounded[codes.tokens, codes.features].relu(), rtol=0.02)
    assert not torch.equal(codes.values, pre[codes.tokens, codes.features].relu())
    decoded.square().sum().backward()
    assert W_enc.grad is not None and W_enc.grad.dtype == torch.float32


def test_a_part_of_the_codes_is_that_part_of_their_matrix():
    W_enc, b_enc, _, _, _ = weights()
    codes = encode(inputs(), Encoder(W_enc, b_enc, None), BatchTopK(K))
    whole = codes.dense()
    parts = [codes.part(0, 4), codes.part(4, 20), codes.part(20, D_SAE)]
    assert torch.equal(torch.cat([part.dense() for part in parts], dim=1), whole)
    decoder = torch.randn(16, D_OUT, dtype=torch.float64)
    assert torch.allclose(decode(parts[1], decoder), whole[:, 4:20] @ decoder)


@given(st.integers(0, 1000), st.sampled_from([D_SAE, 2**16, 2**16 + 1, 200_001]))
@settings(max_examples=20, deadline=None)
def test_sums_by_feature_are_the_product_with_the_transposed_codes(seed: int, d_sae: int):
    generator = torch.Generator().manual_seed(seed)
    # Few features far apart, so that both 16-bit halves of an index matter.
    chosen = torch.randperm(d_sae, generator=generator)[:17]
    indices = chosen[torch.rand(BATCH, 17, generator=generator).argsort(dim=1)[:, :K]]
    values = torch.randn(BATCH, K, generator=generator, dtype=torch.float64)
    rows = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
    tokens = torch.arange(BATCH).repeat_interleave(K)
    found = sums_by_feature(rows, values.flatten(), by_feature(indices.flatten(), tokens, d_sae=d_sae))
    codes = torch.zeros(BATCH, d_sae, dtype=torch.float64).scatter(1, indices, values)
    assert torch.allclose(found, codes.T @ rows, atol=1e-12)


def test_entries_of_one_feature_stay_in_the_order_of_tokens():
    entries = by_feature(torch.tensor([2, 0, 2, 1, 0, 2]), torch.tensor([0, 0, 1, 1, 2, 2]), d_sae=4)
    assert entries.tokens.tolist() == [0, 2, 1, 0, 1, 2]


GROWTH = """
import torch
from circuitcli.saes.fast.selection import TopK
from circuitcli.saes.fast.sparse import Encoder, decode, encode
from circuitcli.training.memory import peak_process_bytes

n, d, d_sae, k = 16_384, 768, 2_048, 32
x, W_enc, W_dec = torch.randn(n, d), torch.randn(d, d_sae).requires_grad_(), torch.randn(d_sae, d).requires_grad_()

def step(x):
    codes = encode(x, Encoder(W_enc, torch.zeros(d_sae), None), TopK(k))
    decode(codes, W_dec).square().mean().backward()
    assert W_enc.grad.any() and W_dec.grad.any()

step(x[:2_048])
before = peak_process_bytes()
step(x)
print(peak_process_bytes() - before, n * k * d * 4)
"""


def test_no_decoder_row_is_copied_for_each_code():
    """As the backward pass of sparsify does, which takes gigabytes for them."""
    made = subprocess.run(
        [sys.executable, "-c", GROWTH],
        env=environment(OMP_NUM_THREADS="2"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    grown, rows_of_all_codes = map(int, made.stdout.split())
    assert grown < rows_of_all_codes / 4
