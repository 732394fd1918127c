"""Jacobians between two SAEs beside autograd through the model's own modules, in every family; pairs that learn."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import D_MODEL, FAMILIES, adapter_of, random_ids
from test_train_stage import change_the_model, request
from torch import Tensor
from training_fakes import recipe

from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.loading import load_model
from circuitcli.models.mlp import Mlp, mlp_between
from circuitcli.models.taps import read
from circuitcli.records import Stream
from circuitcli.saes import files
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.sources import load
from circuitcli.stages import collect, train
from circuitcli.training import jacobian
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.architectures.trainable import ActivationMoments
from circuitcli.training.jacobian import Active, Weights, jacobian_size, jacobians
from circuitcli.training.plan import hook_groups

LAYER, N_TOKENS, K = 1, 7, 4
PAIRS = {"jacobian": ("mlp_in", "mlp"), "jacobian-block": ("resid_mid", "resid")}
KNOWN = [family for family in FAMILIES if family != "generic"]
CASES = [(family, kind) for family in KNOWN for kind in PAIRS if (family, kind) != ("neox-parallel", "jacobian-block")]
# Norms and activations of these compute in float32 whatever the model's type.
EXACT = ("gpt2", "neox-parallel", "neox-sequential")


def ends(kind: str) -> tuple[HookPoint, HookPoint]:
    first, second = PAIRS[kind]
    return HookPoint(LAYER, first), HookPoint(LAYER, second)


def case(family: str, kind: str) -> tuple[ModelAdapter, Mlp, Tensor, Tensor]:
    """The model, what lies between, and the activations at both ends."""
    adapter = adapter_of(family)
    reads, writes = ends(kind)
    with torch.no_grad():
        found = read(adapter, random_ids(N_TOKENS), None, [reads, writes])
    mlp = mlp_between(adapter, reads, writes, device=torch.device("cpu"), dtype=torch.float64)
    return adapter, mlp, found[reads][0], found[writes][0]


def modules(adapter: ModelAdapter, kind: str) -> Callable[[Tensor], Tensor]:
    """The same map by the model's own modules."""
    block = adapter.blocks[LAYER]
    norm, out = adapter.module(LAYER, "mlp_norm"), adapter.module(LAYER, "mlp_out")

    def run(x: Tensor) -> Tensor:
        y = block.mlp(norm(x[None]) if kind == "jacobian-block" else x[None])
        y = (y if out is block.mlp else out(y))[0]
        return x + y if kind == "jacobian-block" else y

    return run


def saes(*, d_in: int = 31, d_out: int = 37) -> tuple[Tensor, Tensor]:
    """Decoder rows of the first SAE and encoder columns of the second."""
    generator = torch.Generator().manual_seed(11)
    rows = [torch.randn(width, D_MODEL, generator=generator, dtype=torch.float64) for width in (d_in, d_out)]
    return rows[0].requires_grad_(), rows[1].requires_grad_()


def active(width: int, *, seed: int) -> Active:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(N_TOKENS, width, generator=generator).argsort(dim=1)[:, :K]
    return Active(features, torch.rand(N_TOKENS, K, generator=generator) < 0.8)


def by_autograd(run: Callable[[Tensor], Tensor], x: Tensor, reads: Tensor, writes: Tensor) -> Tensor:
    """Derivatives of all codes of the second SAE (last axis) by all of the first, at the activation itself."""

    def second_codes(change: Tensor, token: int) -> Tensor:
        return run((x[token] + change @ reads)[None])[0] @ writes.T

    zero = torch.zeros(len(reads), dtype=x.dtype)
    found = [
        torch.autograd.functional.jacobian(lambda change, t=t: second_codes(change, t), zero, create_graph=True).T
        for t in range(len(x))
    ]
    return torch.stack(found)  # (token, d_sae_in, d_sae_out)


def gathered(whole: Tensor, first: Active, second: Active) -> Tensor:
    tokens = torch.arange(len(whole))[:, None, None]
    return whole[tokens, first.features[:, :, None], second.features[:, None, :]]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_mlp_leads_from_one_hook_point_to_the_other(family: str, kind: str):
    _, mlp, x, y = case(family, kind)
    assert torch.allclose(mlp(x), y, rtol=1e-10 if family in EXACT else 1e-4, atol=1e-10 if family in EXACT else 1e-5)
    assert (mlp.gate is None) == (family in EXACT) and (mlp.after is not None) == (family in ("gemma2", "gemma3"))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_jacobians_are_those_of_autograd_through_the_models_modules(family: str, kind: str):
    adapter, mlp, x, _ = case(family, kind)
    reads, writes = saes()
    first, second = active(len(reads), seed=1), active(len(writes), seed=2)
    expected = gathered(by_autograd(modules(adapter, kind), x, reads, writes), first, second)
    found = jacobians(x, mlp, weights(mlp, reads, writes), first.features, second.features)
    tolerance = 1e-10 if family in EXACT else 1e-4
    assert expected.abs().max() > 0.1
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def weights(mlp: Mlp, reads: Tensor, writes: Tensor) -> Weights:
    before = reads if mlp.before is None else reads * mlp.before.gain
    after = writes if mlp.after is None else writes * mlp.after.gain
    inward = torch.stack([before @ branch.weight.T for branch in mlp.branches])
    return Weights(reads, writes, after @ mlp.down.weight, inward)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_penalty_and_its_gradients_are_those_of_autograd(family: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jacobian, "PIECE_TOKENS", 3)
    _, mlp, x, _ = case(family, kind)
    reads, writes = saes()
    first, second = active(len(reads), seed=1), active(len(writes), seed=2)
    both = first.is_active[:, :, None] & second.is_active[:, None, :]
    whole = by_autograd(mlp, x, reads, writes)
    expected = (gathered(whole, first, second).abs() * both).sum() / N_TOKENS / K**2
    found = jacobian_size(x, mlp, reads=reads, writes=writes, active_in=first, active_out=second)
    assert torch.allclose(found, expected, rtol=1e-9)
    ours, theirs = (torch.autograd.grad(5 * size, (reads, writes), retain_graph=True) for size in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-12) and other.abs().max() > 0


def test_the_penalty_does_not_depend_on_the_size_of_the_batch():
    _, mlp, x, _ = case("gpt2", "jacobian-block")
    reads, writes = saes()
    first, second = active(len(reads), seed=1), active(len(writes), seed=2)
    once = jacobian_size(x, mlp, reads=reads, writes=writes, active_in=first, active_out=second)
    double = [Active(own.features.repeat(2, 1), own.is_active.repeat(2, 1)) for own in (first, second)]
    twice = jacobian_size(x.repeat(2, 1), mlp, reads=reads, writes=writes, active_in=double[0], active_out=double[1])
    assert torch.allclose(once, twice)


@pytest.mark.parametrize(
    ("family", "kind"), [("gpt2", "jacobian"), ("llama", "jacobian-block"), ("gemma2", "jacobian")]
)
def test_a_pair_pays_for_what_its_scaled_codes_do_to_each_other(family: str, kind: str):
    _, mlp, x, y = case(family, kind)
    hooks = ends(kind)
    rows = {hooks[0]: x, hooks[1]: 5 * y}
    known = {
        hook: ActivationMoments(float(own.square().sum(1).mean()), float(own.var(0).sum()))
        for hook, own in rows.items()
    }
    made = recipe(5, d_sae=30, k=K, architecture=kind, jacobian_weight=0.3, dead_tokens=10**6)
    trainable = new_trainable(
        hooks, {hook: own.float() for hook, own in rows.items()}, made.config, known, mlp=mlp
    ).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in trainable.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for end in trainable.coders:
        # The method's own rounds to float32.
        end.scaled = lambda rows, scale: rows * scale
    found = trainable.training_forward(rows, share=0.5)
    assert set(found) == set(hooks) and set(found[hooks[0]].losses) == {"reconstruction"}
    one, other = (end.sae for end in trainable.coders)
    scales = [end.scale for end in trainable.coders]
    codes = one.encode(x * scales[0])
    error = x * scales[0] - one.decode(codes)
    sizes = []
    for token in range(len(x)):

        def second_codes(own: Tensor, token: int = token) -> Tensor:
            raw = (one.decode(own[None]) + error[token]) / scales[0]
            # The SAE does not choose again: its active features are those of the clean activation.
            pre = other.pre_activations(mlp(raw) * scales[1])[0]
            return pre * (other.encode(y[token][None] * 5 * scales[1])[0] > 0)

        whole = torch.autograd.functional.jacobian(second_codes, codes[token], create_graph=True)
        sizes.append((whole * (codes[token] > 0)).abs().sum() / K**2)
    expected = 0.3 * torch.stack(sizes).mean()
    assert torch.allclose(found[hooks[1]].losses["jacobian"], expected, rtol=1e-4)
    assert float(found[hooks[1]].measures["jacobian"]) == pytest.approx(float(expected) / 0.3, rel=1e-4)
    theirs = torch.autograd.grad(expected, (one.W_dec, other.W_enc))
    ours = torch.autograd.grad(found[hooks[1]].losses["jacobian"], (one.W_dec, other.W_enc))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-7) for a, b in zip(ours, theirs, strict=True))


def test_models_whose_mlp_is_not_known_are_refused():
    adapter = adapter_of("generic")
    with pytest.raises(SettingsError, match="not known for model type 'stablelm'") as caught:
        mlp_between(adapter, *ends("jacobian"), device=torch.device("cpu"), dtype=torch.float64)
    assert "GPT-2" in caught.value.hint


def test_parallel_blocks_have_no_block_pairs():
    adapter = adapter_of("neox-parallel")
    with pytest.raises(SettingsError, match=r"resid_mid\.1 does not exist: attention and MLP read the same"):
        mlp_between(adapter, *ends("jacobian-block"), device=torch.device("cpu"), dtype=torch.float64)


def test_pairs_are_trained_in_each_layer_that_has_both_ends():
    hooks = [HookPoint(0, "resid"), HookPoint(1, "resid_mid"), HookPoint(1, "resid"), HookPoint(1, "mlp_in")]
    assert hook_groups("jacobian-block", hooks) == [ends("jacobian-block")]
    with pytest.raises(SettingsError, match="no layer with both") as caught:
        hook_groups("jacobian", hooks)
    assert "--sites mlp_in,mlp" in caught.value.hint


DATA = {"data__layers": "1:2", "data__sites": "mlp_in,mlp,resid_mid,resid", "data__tokens": 8000}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with activations; tests copy it."""
    path = tmp_path_factory.mktemp("collected") / "run"
    collect.run(request(path, Stream(), **DATA))
    return path


def size_of(path: Path, records: list, kind: str) -> float:
    """The penalty of saved SAEs, in raw units, on cached activations."""
    adapter = load_model(load({"model.device": "cpu"}).settings.model).adapter
    mlp = mlp_between(adapter, *ends(kind), device=torch.device("cpu"), dtype=torch.float32)
    one, other = (files.load(path / record.path) for record in records)
    cache = ActivationCache(path / "activations", ends(kind))
    x, y = (cache.rows(hook, 0, 500) for hook in ends(kind))
    whole = []
    for sae, rows in ((one, x), (other, y)):
        values, features = sae.pre_activations(rows).topk(sae.k, dim=1)
        whole.append(Active(features, values > 0))
    return float(jacobian_size(x, mlp, reads=one.W_dec, writes=other.W_enc.T, active_in=whole[0], active_out=whole[1]))


@pytest.mark.parametrize("kind", PAIRS)
def test_training_with_the_penalty_leaves_two_topk_saes_that_depend_less_on_each_other(
    kind: str, collected: Path, tmp_path: Path
):
    found = {}
    for weight in (0.0, 1.0):
        path = Path(shutil.copytree(collected, tmp_path / str(weight)))
        changes = {"sae__architecture": kind, "sae__jacobian_weight": weight, "train__tokens": 12_800}
        records = train.run(request(path, **DATA, **changes))
        assert [record.hook for record in records] == [str(hook) for hook in ends(kind)]
        assert all(isinstance(files.load(path / record.path), TopKSae) for record in records)
        found[weight] = (size_of(path, records, kind), [record.explained_variance for record in records])
    assert found[1.0][0] < 0.7 * found[0.0][0]
    assert all(one > other - 0.1 for one, other in zip(found[1.0][1], found[0.0][1], strict=True))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_plan_names_the_hook_points_of_the_pair_alone(kind: str, collected: Path):
    facts = dict(train.plan(request(collected, **DATA, sae__architecture=kind)))
    assert facts["autoencoders"] == f"2: {' '.join(map(str, ends(kind)))}"


def test_activations_that_do_not_follow_by_the_mlp_are_noticed(collected: Path, tmp_path: Path, monkeypatch):
    change_the_model(monkeypatch, block=1)
    path = Path(shutil.copytree(collected, tmp_path / "run"))
    with pytest.raises(InputError, match=r"mlp\.1 does not follow from mlp_in\.1"):
        train.run(request(path, **DATA, sae__architecture="jacobian"))
