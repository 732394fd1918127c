"""The sparse TopK kernels against the dense definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.sparse import Autoencoder, autoencode, by_feature, dense_autoencode, sums_by_feature
from circuitcli.saes.topk import TopKSae

BATCH, D_IN, D_SAE, K = 13, 7, 29, 5
WATCHED = torch.tensor([3, 28, 11])


def weights(dtype: torch.dtype = torch.float64, *, seed: int = 0, d_sae: int = D_SAE) -> Autoencoder:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(D_IN, d_sae), (d_sae,), (d_sae, D_IN), (D_IN,)]
    return Autoencoder(*(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes))


def inputs(dtype: torch.dtype = torch.float64, *, n: int = BATCH) -> Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(9), dtype=dtype).requires_grad_()


def gradients(encode, x: Tensor, parts: Autoencoder, *, k: int = K) -> tuple[Tensor, ...]:
    out = encode(x, parts, k=k, watched=WATCHED)
    loss = (out.reconstruction - x).square().sum() + (out.watched**3).sum() + out.values.cos().sum()
    return torch.autograd.grad(loss, [*parts, x])


def test_reconstruction_and_codes_are_those_of_the_topk_sae():
    parts, x = weights(torch.float32), inputs(torch.float32).detach()
    sae = TopKSae(SaeConfig(HookPoint(0, "resid"), D_IN, D_SAE), k=K)
    sae.load_state_dict(dict(zip(Autoencoder._fields, parts, strict=True)))
    out = autoencode(x, parts, k=K)
    codes = torch.zeros(BATCH, D_SAE).scatter(1, out.indices, out.values)
    assert torch.allclose(codes, sae.encode(x), atol=1e-6)
    assert torch.allclose(out.reconstruction, sae.decode(sae.encode(x)), atol=1e-5)
    assert out.watched.shape == (BATCH, 0)


@pytest.mark.parametrize("k", [1, K, D_SAE])
def test_gradients_equal_those_of_the_dense_definition(k: int):
    parts, x = weights(), inputs()
    for sparse, dense in zip(
        gradients(autoencode, x, parts, k=k), gradients(dense_autoencode, x, parts, k=k), strict=True
    ):
        assert torch.allclose(sparse, dense, rtol=1e-11, atol=1e-11)


def test_gradients_equal_finite_differences():
    parts, x = weights(), inputs(n=3)

    def outputs(x: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = autoencode(x, Autoencoder(*parts), k=K, watched=WATCHED)
        return out.reconstruction, out.values, out.watched

    assert torch.autograd.gradcheck(outputs, (x, *parts), eps=1e-7, atol=1e-5)


def test_encoder_may_be_stored_either_way_round():
    parts, x = weights(), inputs()
    turned = parts._replace(W_enc=parts.W_enc.detach().T.contiguous().T.requires_grad_())
    assert not turned.W_enc.is_contiguous()
    for one, other in zip(gradients(autoencode, x, parts), gradients(autoencode, x, turned), strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11)


def test_silent_features_get_no_gradient():
    parts, x = weights(), inputs()
    silenced = parts._replace(b_enc=(parts.b_enc.detach() - 100 * (torch.arange(D_SAE) % 2)).requires_grad_())
    autoencode(x, silenced, k=D_SAE).reconstruction.square().sum().backward()
    odd = torch.arange(D_SAE) % 2 == 1
    assert silenced.W_dec.grad is not None and silenced.W_enc.grad is not None
    assert silenced.W_dec.grad[odd].eq(0).all() and silenced.W_enc.grad[:, odd].eq(0).all()
    assert silenced.W_dec.grad[~odd].abs().sum() > 0


@given(st.integers(0, 1000), st.sampled_from([D_SAE, 2**16, 2**16 + 1, 200_001]))
@settings(max_examples=20, deadline=None)
def test_sums_by_feature_are_the_product_with_the_transposed_codes(seed: int, d_sae: int):
    generator = torch.Generator().manual_seed(seed)
    # Few features far apart, so that both 16-bit halves of an index matter.
    chosen = torch.randperm(d_sae, generator=generator)[:17]
    indices = chosen[torch.rand(BATCH, 17, generator=generator).argsort(dim=1)[:, :K]]
    values = torch.randn(BATCH, K, generator=generator, dtype=torch.float64)
    rows = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
    found = sums_by_feature(rows, values, by_feature(indices, d_sae=d_sae))
    codes = torch.zeros(BATCH, d_sae, dtype=torch.float64).scatter(1, indices, values)
    assert torch.allclose(found, codes.T @ rows, atol=1e-12)


def test_entries_of_one_feature_stay_in_the_order_of_tokens():
    indices = torch.tensor([[2, 0], [2, 1], [0, 2]])
    entries = by_feature(indices, d_sae=4)
    assert entries.tokens.tolist() == [0, 2, 1, 0, 1, 2]
    assert entries.starts.tolist() == [0, 2, 3, 6]
