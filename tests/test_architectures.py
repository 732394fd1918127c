"""Each architecture's codes and reconstruction, in float64 and token by token, against its formula; and its files."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes import files
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.matching_pursuit import MatchingPursuitSae

D_IN, D_OUT, D_SAE, K = 6, 5, 17, 4
HOOK = HookPoint(2, "mlp_in")
PURSUIT = {"max_iterations": 3, "residual_threshold": 2.0, "stop_on_duplicate_support": False}
OPTIONS = {name: {"k": K} for name in ("topk", "abstopk", "signed_topk")} | {"matching_pursuit": PURSUIT}
# Those whose codes depend on earlier tokens or on several layers have tests of their own.
TOKENWISE = [name for name, made in ARCHITECTURES.items() if not made.reads_context and "crosscoder" not in name]
# Matching pursuit takes features off what it reads.
TRANSCODING = [name for name in TOKENWISE if name != "matching_pursuit"]


def random_sae(architecture: str, *, seed: int = 0, **config) -> SparseCoder:
    """An SAE in double precision with no parameter at zero."""
    made = ARCHITECTURES[architecture](SaeConfig(HOOK, D_IN, D_SAE, **config), **OPTIONS.get(architecture, {})).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made.requires_grad_(False)


def inputs(n: int = 11) -> Tensor:
    return 2 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 1


def slow_codes(sae: SparseCoder, x: list[float]) -> list[float]:
    """Codes of one (already standardised) activation, number by number."""
    if sae.config.subtract_decoder_bias:
        x = [value - float(bias) for value, bias in zip(x, sae.b_dec, strict=True)]
    if sae.architecture == "matching_pursuit":
        return slow_pursuit(sae, x)
    products = [sum(x[i] * float(sae.W_enc[i, j]) for i in range(D_IN)) for j in range(D_SAE)]
    pre = [product + float(bias) for product, bias in zip(products, sae.b_enc, strict=True)]
    order = sorted(range(D_SAE), key=lambda j: -pre[j])
    furthest = sorted(range(D_SAE), key=lambda j: -abs(pre[j]))
    rules = {
        "relu": lambda j: max(pre[j], 0.0),
        "topk": lambda j: max(pre[j], 0.0) if j in order[:K] else 0.0,
        "abstopk": lambda j: pre[j] if j in furthest[:K] else 0.0,
        "signed_topk": lambda j: pre[j] if j in order[:K] else 0.0,
        "jumprelu": lambda j: max(pre[j], 0.0) if pre[j] > float(sae.threshold[j]) else 0.0,
        "gated": lambda j: (
            max(products[j] * math.exp(float(sae.r_mag[j])) + float(sae.b_mag[j]), 0.0) if pre[j] > 0 else 0.0
        ),
    }
    return [rules[sae.architecture](j) for j in range(D_SAE)]


def slow_pursuit(sae: SparseCoder, left: list[float]) -> list[float]:
    """Codes of one (already centred) activation, round by round."""
    codes, left = [0.0] * D_SAE, list(left)
    for _ in range(sae.max_iterations or D_IN):
        pre = [sum(left[i] * float(sae.W_enc[i, j]) for i in range(D_IN)) + float(sae.b_enc[j]) for j in range(D_SAE)]
        best = max(range(D_SAE), key=lambda j: pre[j])
        value, was_there = max(pre[best], 0.0), codes[best] != 0
        codes[best] += value
        left = [left[i] - value * float(sae.W_dec[best, i]) for i in range(D_IN)]
        if math.sqrt(sum(part**2 for part in left)) < sae.residual_threshold:
            break
        if sae.stop_on_duplicate_support and (was_there or value == 0):
            break
    return codes


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_matching_pursuit_of_a_tied_dictionary_goes_round_by_round(stops: bool, threshold: float):
    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64), dim=1)
    sae = MatchingPursuitSae(SaeConfig(HOOK, D_IN, D_SAE), 20, threshold, stops).double().requires_grad_(False)
    sae.W_dec.copy_(rows), sae.W_enc.copy_(rows.T), sae.b_dec.fill_(0.3)
    x = inputs(40)
    codes = sae.encode(x)
    expected = [slow_codes(sae, row) for row in as_lists(x)]
    assert torch.allclose(codes, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    missed = (sae.reconstruct(x) - x).norm(dim=1)
    assert bool((missed < (x - sae.b_dec).norm(dim=1)).all()) and len(set((codes > 0).sum(dim=1).tolist())) > 1
    if threshold:
        # It stops as soon as it may.
        assert bool((missed < threshold).any()) and missed.min() > threshold / 4


def test_the_gradient_of_matching_pursuit_is_that_of_its_rounds():
    sae = random_sae("matching_pursuit")
    sae.W_dec.mul_(0.2), sae.W_enc.mul_(0.2)
    x = inputs(3).requires_grad_()
    assert torch.autograd.gradcheck(sae.encode, (x,), eps=1e-6, atol=1e-6)


def slow_reconstruction(sae: SparseCoder, codes: list[float]) -> list[float]:
    return [
        sum(codes[j] * float(sae.W_dec[j, i]) for j in range(D_SAE)) + float(sae.b_dec[i])
        for i in range(len(sae.b_dec))
    ]


def as_lists(x: Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in x]


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", TOKENWISE)
def test_codes_and_reconstruction_are_those_of_the_formula(architecture: str, subtract: bool):
    sae, x = random_sae(architecture, subtract_decoder_bias=subtract), inputs()
    codes = torch.tensor([slow_codes(sae, row) for row in as_lists(x)], dtype=torch.float64)
    expected = torch.tensor([slow_reconstruction(sae, row) for row in as_lists(codes)], dtype=torch.float64)
    assert (codes != 0).any() and (codes == 0).any()
    assert torch.allclose(sae.encode(x), codes, rtol=1e-12, atol=1e-12)
    assert torch.allclose(sae.reconstruct(x), expected, rtol=1e-12, atol=1e-12)


def standardised(row: list[float], normalisation: str) -> tuple[list[float], float, float]:
    """The row as the encoder sees it, and the mean and scale that come back."""
    mean = sum(row) / len(row)
    if normalisation == "centre":
        return [value - mean for value in row], mean, 1.0
    if normalisation == "layer-norm":
        std = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
        return [(value - mean) / (std + 1e-5) for value in row], mean, std
    rms = math.sqrt(sum(value**2 for value in row) / len(row))
    return [value / rms for value in row], 0.0, rms


@pytest.mark.parametrize("normalisation", ["centre", "layer-norm", "rms-norm"])
@pytest.mark.parametrize("architecture", TOKENWISE)
def test_what_normalising_takes_off_comes_back(architecture: str, normalisation: str):
    sae, x = random_sae(architecture, normalisation=normalisation), inputs()
    coded = sae.code(x)
    for row, codes, error in zip(as_lists(x), coded.codes, coded.error, strict=True):
        seen, mean, scale = standardised(row, normalisation)
        expected = slow_codes(sae, seen)
        assert torch.allclose(codes, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)
        reconstruction = [value * scale + mean for value in slow_reconstruction(sae, expected)]
        rest = torch.tensor(row, dtype=torch.float64) - torch.tensor(reconstruction, dtype=torch.float64)
        assert torch.allclose(error, rest, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", TRANSCODING)
def test_a_transcoder_predicts_its_target(architecture: str, skip: bool):
    target = HookPoint(2, "mlp")
    sae = random_sae(architecture, subtract_decoder_bias=False, target=target, d_out=D_OUT, skip=skip)
    x = inputs()
    expected = sae.encode(x) @ sae.W_dec + sae.b_dec
    for row, codes in zip(as_lists(x), as_lists(sae.encode(x)), strict=True):
        assert slow_codes(sae, row) == pytest.approx(codes, rel=1e-11, abs=1e-11)
    if skip:
        expected = expected + (sae.W_skip @ x.T).T
    assert torch.allclose(sae.reconstruct(x), expected)
    assert (sae.target, sae.is_transcoder, sae.d_out) == (target, True, D_OUT)
    with pytest.raises(TypeError, match="leaves no error"):
        sae.code(x)


@pytest.mark.parametrize("architecture", TRANSCODING)
def test_a_transcoder_gets_no_frame_of_its_input_on_its_output(architecture: str):
    options = {"subtract_decoder_bias": False, "target": HookPoint(2, "mlp"), "d_out": D_OUT}
    sae = random_sae(architecture, normalisation="layer-norm", **options)
    x = inputs()
    assert torch.allclose(sae.reconstruct(x), sae.encode(x) @ sae.W_dec + sae.b_dec)


CONFIGS = [
    {},
    {"normalisation": "layer-norm"},
    {"subtract_decoder_bias": False, "target": HookPoint(2, "mlp"), "d_out": D_OUT, "skip": True},
]


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "layer-norm", "skip-transcoder"])
@pytest.mark.parametrize("architecture", TOKENWISE)
def test_files_keep_an_sae(architecture: str, config: dict, tmp_path: Path):
    if "target" in config and architecture not in TRANSCODING:
        with pytest.raises(SettingsError, match="cannot be a transcoder"):
            random_sae(architecture, **config)
        return
    sae = random_sae(architecture, **config).float()
    digest = files.save(sae, tmp_path, explained_variance=0.5)
    loaded = files.load(tmp_path)
    assert type(loaded) is type(sae) and loaded.config == sae.config and loaded.options == sae.options
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in sae.state_dict().items())
    assert digest == files.save(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "config.json").read_text())["explained_variance"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "telepathic"}, "architecture 'telepathic' is not known"),
        ({"d_sae": D_SAE + 1}, "has shape"),
        ({"k": None}, "lacks 'k'"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused(change: dict, message: str, tmp_path: Path):
    files.save(random_sae("topk").float(), tmp_path)
    path = tmp_path / "config.json"
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    with pytest.raises(InputError, match=message):
        files.load(tmp_path)


def test_missing_tensors_and_cut_files_are_refused(tmp_path: Path):
    files.save(random_sae("gated").float(), tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors, content = load_file(path), path.read_bytes()
    tensors.pop("r_mag")
    save_file(tensors, path)
    with pytest.raises(InputError, match="lacks r_mag"):
        files.load(tmp_path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot read"):
        files.load(tmp_path)
