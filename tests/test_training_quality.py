"""Reconstructions measured on cases whose answer is known, and against sums taken token by token."""

import math

import pytest
import torch
from support import D_MODEL, random_sae
from torch import nn

from circuitcli.evaluation.quality import Reconstruction, ReconstructionMeter
from circuitcli.evaluation.quality import reconstruction as measured
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.relu import ReluSae
from circuitcli.saes.topk import TopKSae

HOOK = HookPoint(1, "resid")


def identity_sae() -> TopKSae:
    """Twice as many features as dimensions, one for each sign: reconstructs everything."""
    sae = TopKSae(SaeConfig(HOOK, D_MODEL, 2 * D_MODEL), k=2 * D_MODEL).double()
    both = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)]).double()
    sae.W_dec, sae.W_enc = nn.Parameter(both), nn.Parameter(both.T.clone())
    return sae.requires_grad_(False)


def constant_sae(value: torch.Tensor) -> TopKSae:
    sae = TopKSae(SaeConfig(HOOK, D_MODEL, 9), k=2).double()
    sae.b_dec = nn.Parameter(value)
    return sae.requires_grad_(False)


def tied_sae(**options) -> TopKSae:
    """A random SAE that reads what it writes, and so reconstructs some of its input."""
    sae = random_sae(HOOK, **options)
    sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.W_enc.copy_(sae.W_dec.T)
    return sae


def activations(n: int = 300, *, offset: float = 3000.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, D_MODEL, generator=generator, dtype=torch.float64) * 10 + offset


def of(x: torch.Tensor, reconstruction: torch.Tensor, *, batch: int = 37) -> Reconstruction:
    """Quality of given reconstructions, in batches."""
    meter = ReconstructionMeter(x.shape[1], 4)
    codes = torch.tensor([1.0, 0.0, 0.0, 2.0]).double().expand(len(x), 4)
    for parts in zip(x.split(batch), reconstruction.split(batch), codes.split(batch), strict=True):
        meter.update(*parts)
    return meter.result()


def oracle(x: torch.Tensor, reconstruction: torch.Tensor, codes: torch.Tensor) -> dict[str, float]:
    """The definitions, token by token and number by number, in exact sums."""
    tokens = list(zip(x.tolist(), reconstruction.tolist(), codes.tolist(), strict=True))
    n, d = x.shape
    mean = [math.fsum(token[i] for token, _, _ in tokens) / n for i in range(d)]
    missed = math.fsum((a - b) ** 2 for token, r, _ in tokens for a, b in zip(token, r, strict=True))
    spread = math.fsum((a - m) ** 2 for token, _, _ in tokens for a, m in zip(token, mean, strict=True))
    dots = [math.fsum(a * b for a, b in zip(token, r, strict=True)) for token, r, _ in tokens]
    lengths = [math.sqrt(math.fsum(a * a for a in token)) for token, _, _ in tokens]
    found = [math.sqrt(math.fsum(b * b for b in r)) for _, r, _ in tokens]
    return {
        "explained_variance": 1 - missed / spread,
        "mse": missed / n / d,
        "cosine": math.fsum(dot / a / b for dot, a, b in zip(dots, lengths, found, strict=True)) / n,
        "l2_ratio": math.fsum(b / a for a, b in zip(lengths, found, strict=True)) / n,
        "relative_bias": math.fsum(b * b for b in found) / math.fsum(dots),
        "l0": math.fsum(code != 0 for _, _, f in tokens for code in f) / n,
        "l1": math.fsum(abs(code) for _, _, f in tokens for code in f) / n,
    }


@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("normalisation", ["none", "layer-norm"])
def test_all_numbers_are_those_of_the_definitions_token_by_token(offset: float, normalisation: str):
    x = activations(90, offset=offset)
    sae = tied_sae(normalisation=normalisation)
    result = measured(sae, x.split(13))
    codes = sae.encode(x)
    for name, expected in oracle(x, sae.decode(codes, sae.frame(x)), codes).items():
        assert getattr(result, name) == pytest.approx(expected, rel=1e-10), name
    assert result.n_tokens == 90
    assert result.silent == float((codes == 0).all(dim=0).double().mean())


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_predicting_the_mean_explains_nothing_and_the_identity_everything(offset: float):
    x = activations(offset=offset)
    assert measured(constant_sae(x.mean(dim=0)), [x]).explained_variance == pytest.approx(0.0, abs=1e-9)
    perfect = measured(identity_sae(), x.split(70))
    assert perfect.explained_variance == pytest.approx(1.0) and perfect.cosine == pytest.approx(1.0)
    assert perfect.mse == pytest.approx(0.0, abs=1e-12) and perfect.l0 == D_MODEL
    assert perfect.l2_ratio == pytest.approx(1.0) and perfect.relative_bias == pytest.approx(1.0)


def test_a_constant_offset_of_the_reconstruction_costs_what_it_is():
    x = activations()
    result = of(x, x + 10.0)
    variance = (x - x.mean(dim=0)).square().sum()
    assert result.explained_variance == pytest.approx(1 - float(100.0 * x.numel() / variance), rel=1e-9)
    assert (result.n_tokens, result.l0, result.l1, result.silent) == (300, 2.0, 3.0, 0.5)


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0, 1e5])
def test_explained_variance_does_not_depend_on_the_mean(offset: float):
    """An error with a quarter of the variance explains three quarters, however long the mean is."""
    x = activations(4000, offset=0.0)
    error = activations(8000, offset=0.0)[4000:] / 2
    expected = 1 - float(error.square().sum() / (x - x.mean(dim=0)).square().sum())
    assert expected == pytest.approx(0.75, abs=0.01)
    assert of(x + offset, x + offset - error).explained_variance == pytest.approx(expected, abs=1e-9)


def test_short_tokens_do_not_dominate_the_explained_variance():
    """Tokens of very different lengths and one size of error: the mean of ratios per token would be far below zero."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randn(2000, 1, generator=generator, dtype=torch.float64).mul(1.5).exp()
    x = activations(2000, offset=0.0) / 10 * lengths
    error = torch.randn(x.shape, generator=generator, dtype=torch.float64) * 0.5
    result = of(x, x - error)
    spread = (x - x.mean(dim=0)).square().sum(dim=1)
    assert float((1 - error.square().sum(dim=1) / spread).mean()) < -0.5
    assert result.explained_variance == pytest.approx(1 - float(error.square().sum() / spread.sum()), rel=1e-9)
    assert result.explained_variance > 0.9


def test_mse_is_divided_by_tokens_and_dimensions_once():
    x = activations(50)
    assert of(x, x - 3.0, batch=50).mse == of(x, x - 3.0, batch=7).mse == pytest.approx(9.0)


def test_shrunken_reconstructions_show_in_length_and_bias():
    x = activations(offset=0.0)
    result = of(x, x * 0.8)
    assert result.l2_ratio == pytest.approx(0.8) and result.relative_bias == pytest.approx(0.8)
    assert result.cosine == pytest.approx(1.0)


def test_tokens_of_length_zero_have_no_ratio():
    x = activations(10, offset=0.0)
    x[4] = 0
    assert of(x, x * 0.5).l2_ratio == pytest.approx(0.5)
    assert of(torch.zeros_like(x), x).l2_ratio is None and of(x, -x).relative_bias is None


def test_explained_variance_of_activations_that_do_not_vary_is_undefined():
    x = torch.full((10, D_MODEL), 0.1, dtype=torch.float64)
    assert measured(identity_sae(), [x]).explained_variance is None


def test_results_do_not_depend_on_order_or_batches():
    x = activations(offset=1.0)
    sae = random_sae(HOOK)
    one = measured(sae, [x])
    other = measured(sae, x[torch.randperm(300)].split(41))
    assert one.explained_variance == pytest.approx(other.explained_variance)
    assert one.l0 == pytest.approx(other.l0) and one.silent == other.silent and one.density == other.density


def test_float16_rows_of_a_float32_sae_lose_no_digits_of_the_sums():
    x = activations(2000, offset=100.0).float()
    sae = random_sae(HOOK, dtype=torch.float32)
    codes = sae.encode(x)
    expected = oracle(x, sae.decode(codes), codes)
    result = measured(sae, x.split(100))
    assert result.explained_variance == pytest.approx(expected["explained_variance"], rel=1e-5)


def test_a_transcoder_is_measured_against_its_target():
    places = {"target": HookPoint(1, "mlp"), "d_out": 7, "skip": True, "subtract_decoder_bias": False}
    transcoder = ReluSae(SaeConfig(HookPoint(1, "mlp_in"), D_MODEL, 40, **places)).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in transcoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    x = activations(60, offset=0.0)
    codes = torch.relu(x @ transcoder.W_enc + transcoder.b_enc)
    predicted = codes @ transcoder.W_dec + transcoder.b_dec + x @ transcoder.W_skip.T
    y = 1.3 * predicted + activations(120, offset=1.0)[60:, :7]
    result = measured(transcoder, x.split(11), targets=y.split(11))
    for name, expected in oracle(y, predicted, codes).items():
        assert getattr(result, name) == pytest.approx(expected, rel=1e-9), name


def test_standard_errors_are_of_the_size_that_other_data_show():
    """Over many draws of the same kind, the numbers scatter as widely as one draw's standard error says."""
    sae = tied_sae()
    x = activations(40 * 640, offset=1.0)
    draws = [measured(sae, rows.split(40)) for rows in x.split(640)]
    for name in ("explained_variance", "cosine", "mse", "l2_ratio", "relative_bias"):
        values = torch.tensor([getattr(draw, name) for draw in draws])
        said = torch.tensor([draw.standard_errors[name] for draw in draws]).square().mean().sqrt()
        assert 0.7 < float(said / values.std()) < 1.4, name
