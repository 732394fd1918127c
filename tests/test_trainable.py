"""What each architecture learns, beside the plain definition of its loss and on data with known features."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_fakes import ACTIVE, D_IN, SINGLE, MemoryBatches, fully_trained, optimiser, planted, recipe

from circuitcli.evaluation.quality import reconstruction
from circuitcli.hookpoints import HookPoint
from circuitcli.saes import base
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.training.architectures import thresholded
from circuitcli.training.architectures.jumprelu import Jump, Step, TrainableJumpRelu
from circuitcli.training.architectures.relu import default_l1_weight
from circuitcli.training.architectures.thresholded import TrainableThresholded
from circuitcli.training.initial import folded, with_unit_decoder
from circuitcli.training.plan import hook_groups

HOOK = HookPoint(1, "resid")
READS, PREDICTS = HookPoint(1, "mlp_in"), HookPoint(1, "mlp")
AUTOENCODERS = [name for name in SINGLE if not name.endswith("transcoder")]
# Features active per token that come out on the planted data, whose rows have two each.
OPTIONS = {"relu": {"l1_weight": 1.0}, "gated": {"l1_weight": 2.0}}
# A penalty on the codes themselves leaves more features active than there are; narrow prefixes mix features.
LARGEST_L0 = {"relu": 5, "gated": 1.25 * ACTIVE}
LEAST_MEDIAN_COSINE = {"matryoshka": 0.94}


def trainable_of(architecture: str, rows: Tensor, **changes):
    """A double-precision trainable with random parameters, and its inputs."""
    made = optimiser(HOOK, rows, recipe(10, architecture=architecture, **changes)).trainable.double()
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if isinstance(made, TrainableJumpRelu):
        made.sae.threshold.data.abs_()
    return made


def scaled(made, rows: Tensor) -> Tensor:
    return rows.double() * made.scale


def result(made, rows: Tensor, *, share: float = 1.0):
    """As `training_forward`, in double precision."""
    x = scaled(made, rows)
    return made.forward_pass(x, x, share=share)


def plain_loss(architecture: str, made, x: Tensor) -> dict[str, Tensor]:
    """Losses written down as in the papers, dense, by plain autograd. JumpReLU's L0 has no plain gradient."""
    sae, variance, settings = made.sae, made.variance, made.config.sae
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    norms = sae.W_dec.norm(dim=1)
    if architecture == "relu":
        codes = pre.relu()
        return {
            "reconstruction": (codes @ sae.W_dec + sae.b_dec - x).square().sum(dim=1).mean() / variance,
            "l1": settings.l1_weight * (codes * norms).sum(dim=1).mean() / variance,
        }
    if architecture == "gated":
        z = (x - sae.b_dec) @ sae.W_enc
        gate = z + sae.b_enc
        codes = (gate > 0) * (z * sae.r_mag.exp() + sae.b_mag).relu()
        frozen = gate.relu() @ sae.W_dec.detach() + sae.b_dec.detach()
        return {
            "reconstruction": (codes @ sae.W_dec + sae.b_dec - x).square().sum(dim=1).mean() / variance,
            "l1": settings.l1_weight * gate.relu().sum(dim=1).mean() / variance,
            "gate": (frozen - x).square().sum(dim=1).mean() / variance,
        }
    n = settings.k * len(x)
    if architecture in ("batchtopk", "matryoshka"):
        kept = torch.zeros(pre.numel(), dtype=torch.bool)
        kept[pre.detach().flatten().argsort(descending=True)[:n]] = True
        codes = (pre * kept.view_as(pre)).relu()
    else:
        kept = torch.zeros_like(pre, dtype=torch.bool)
        for row in range(len(x)):
            kept[row, pre[row].detach().argsort(descending=True)[: settings.k]] = True
        codes = (pre * kept).relu()
    edges = [sae.d_sae]
    if architecture == "matryoshka":
        edges = sorted({max(1, round(share * sae.d_sae)) for share in settings.prefixes} | {sae.d_sae})
    missed = [codes[:, :edge] @ sae.W_dec[:edge] + sae.b_dec - x for edge in edges]
    return {"reconstruction": sum(part.square().sum(dim=1).mean() for part in missed) / variance / len(edges)}


@pytest.fixture(params=["matrices", "entries"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How thresholded architectures work, however many codes there are."""
    monkeypatch.setattr(thresholded, "SPARSE_SHARE", -1.0 if request.param == "matrices" else 1.0)
    return str(request.param)


def ways_taken(monkeypatch: pytest.MonkeyPatch, made) -> list[str]:
    """Names of the ways that are taken from now on."""
    taken = []
    for name in ("dense", "sparse"):
        usual = getattr(made, f"forward_{name}")
        monkeypatch.setattr(
            made, f"forward_{name}", lambda *a, usual=usual, name=name, **b: taken.append(name) or usual(*a, **b)
        )
    return taken


@pytest.mark.parametrize("architecture", [name for name in AUTOENCODERS if name != "jumprelu"])
def test_losses_and_gradients_are_those_of_the_plain_definition(
    architecture: str, way: str, monkeypatch: pytest.MonkeyPatch
):
    rows, _ = planted(40)
    made = trainable_of(architecture, rows, k=3, l1_weight=5.0)
    if isinstance(made, TrainableThresholded):
        taken = ways_taken(monkeypatch, made)
        result(made, rows)
        assert taken == ["dense" if way == "matrices" else "sparse"]
    found = made.training_forward({HOOK: rows.double()}, share=1.0)[HOOK]
    # `training_forward` rounds its input to float32; the definition gets the same numbers.
    expected = plain_loss(architecture, made, made.scaled(rows.double(), made.scale).double())
    assert set(found.losses) == set(expected)
    for name, loss in expected.items():
        assert torch.allclose(found.losses[name].double(), loss, rtol=1e-5), name
    parameters = list(made.parameters())
    x = scaled(made, rows)
    forward = result(made, rows)
    total = sum({"reconstruction": _missed(made, x, forward), **forward.losses}.values())
    plain = sum(plain_loss(architecture, made, x).values())
    for one, other in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(plain, parameters), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", ["transcoder", "skip-transcoder"])
def test_transcoders_have_the_loss_and_gradient_of_the_plain_definition(architecture: str):
    rows, others = planted(40)[0], planted(40, seed=1)[0]
    made = optimiser(
        READS, rows, recipe(10, architecture=architecture, k=3), target=(PREDICTS, others)
    ).trainable.double()
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    sae, x, y = made.sae, rows.double() * made.scale, others.double() * made.target_scale
    pre = x @ sae.W_enc + sae.b_enc
    kept = pre.detach().topk(3, dim=1).indices
    codes = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept).relu())
    predicted = codes @ sae.W_dec + sae.b_dec
    if architecture == "skip-transcoder":
        predicted = predicted + x @ sae.W_skip.T
    forward = made.forward_pass(x, y, share=1.0)
    assert torch.allclose(forward.reconstruction, predicted, rtol=1e-12, atol=1e-12)
    parameters = list(made.parameters())
    assert len(parameters) == (5 if architecture == "skip-transcoder" else 4)
    for mine, its in zip(
        torch.autograd.grad(_missed(made, y, forward), parameters),
        torch.autograd.grad((predicted - y).square().sum(dim=1).mean() / made.variance, parameters),
        strict=True,
    ):
        assert mine.abs().max() > 0 and torch.allclose(mine, its, rtol=1e-9, atol=1e-12)


def _missed(made, x: Tensor, forward) -> Tensor:
    return (forward.reconstruction - x).square().sum(dim=1).mean() / made.variance


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_auxk_is_that_of_the_plain_definition_and_reaches_the_encoder(architecture: str, way: str):
    rows, _ = planted(40)
    made = trainable_of(architecture, rows, k=3)
    dead = torch.tensor([2, 5, 11])
    made.silent_tokens[dead] = made.config.dead_tokens
    # The method's own rounds to float32.
    made.scaled = lambda x, scale: x * scale
    loss = made.training_forward({HOOK: rows.double()}, share=1.0)[HOOK].losses["auxk"]
    sae, x = made.sae, scaled(made, rows)
    error = (x - made.forward_pass(x, x, share=1.0).reconstruction).detach()
    # Of gated SAEs the gate's: it decides whether a feature lives.
    pre = (x - sae.b_dec) @ sae.W_enc[:, dead] + sae.b_enc[dead]
    spread = (error - error.mean(dim=0)).square().sum()
    expected = made.config.auxk_weight * (pre.relu() @ sae.W_dec[dead] - error).square().sum() / spread
    assert torch.allclose(loss, expected, rtol=1e-10)
    for name, parameter in made.named_parameters():
        mine, its = (
            torch.autograd.grad(part, parameter, retain_graph=True, allow_unused=True)[0] for part in (loss, expected)
        )
        assert (mine is None or not mine.any()) == (its is None), name
        if its is not None:
            assert torch.allclose(mine, its, rtol=1e-9, atol=1e-12), name


def test_the_penalty_of_relu_rises_over_the_first_half_of_the_run():
    rows, _ = planted(40)
    made = trainable_of("relu", rows)
    weights = [float(result(made, rows, share=share).losses["l1"].detach()) for share in (0.0, 0.25, 0.5, 1.0)]
    assert weights[0] == 0 and weights[1] == pytest.approx(weights[2] / 2) and weights[2] == weights[3] > 0


def test_straight_through_gradients_are_those_of_the_rectangle_kernel():
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(50, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    threshold = torch.rand(6, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    bandwidth = 0.7
    by_pre, by_threshold = torch.autograd.grad(Jump.apply(pre, threshold, bandwidth), (pre, threshold), upstream)
    step = torch.autograd.grad(Step.apply(pre, threshold, bandwidth), threshold, upstream)[0]
    for j in range(6):
        jumps = steps = 0.0
        for t in range(50):
            is_near = abs(pre[t, j].item() - threshold[j].item()) < bandwidth / 2
            jumps -= threshold[j].item() / bandwidth * is_near * float(upstream[t, j])
            steps -= is_near / bandwidth * float(upstream[t, j])
            assert float(by_pre[t, j]) == (float(upstream[t, j]) if pre[t, j] > threshold[j] else 0.0)
        assert float(by_threshold[j]) == pytest.approx(jumps) and float(step[j]) == pytest.approx(steps)


def test_the_gradient_by_a_threshold_is_that_of_the_expected_loss():
    """Over many tokens the kernel estimates the derivative of the mean L0: minus the density at the threshold."""
    pre = torch.randn(400_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    threshold = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    Step.apply(pre, threshold, 0.1).mean().backward()
    density = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(0.8)).exp()
    assert threshold.grad is not None and float(threshold.grad) == pytest.approx(-float(density), rel=0.03)


def test_jumprelu_starts_at_the_l0_asked_for_and_its_thresholds_learn_in_float32():
    rows, _ = planted(2_000)
    made = optimiser(HOOK, rows, recipe(10, architecture="jumprelu", k=3))
    codes = made.trainable.sae.encode(made.trainable.scaled(rows[:256], made.trainable.scale))
    assert (codes > 0).sum(dim=1).double().mean() == pytest.approx(3, abs=0.02)
    before = {name: value.detach().clone() for name, value in made.parameters.items()}
    made.step({HOOK: rows}, index=5)
    moved = {name: float((value.detach() - before[name]).abs().max()) for name, value in made.parameters.items()}
    assert made.trainable.sae.threshold.dtype == torch.float32
    # Adam's first step is its rate in each number; thresholds are small beside the weights, and need more.
    assert moved["sae.threshold"] == pytest.approx(10 * moved["sae.b_enc"], rel=1e-3)


def test_thresholds_of_jumprelu_never_become_negative():
    rows, _ = planted(100)
    made = optimiser(HOOK, rows, recipe(10, architecture="jumprelu")).trainable
    made.sae.threshold.data[::2] = -0.3
    made.project_parameters()
    assert made.sae.threshold.min() == 0 and made.sae.threshold.max() > 0


@pytest.mark.parametrize("k", [1, 4, 8])
def test_jumprelu_is_driven_to_the_l0_asked_for(k: int):
    rows, _ = planted(4_000)
    made = optimiser(HOOK, rows, recipe(600, architecture="jumprelu", k=k))
    # Not from there, but from thresholds that are right for twice as many or half as many.
    other = optimiser(HOOK, rows, recipe(600, architecture="jumprelu", k=max(2, k // 2)))
    made.trainable.sae.threshold.data.copy_(other.trainable.sae.threshold.data)
    sae = fully_trained(made, {HOOK: rows}).trainable.finished()[HOOK]
    assert 0.85 * k < float((sae.encode(rows) > 0).sum(dim=1).double().mean()) < 1.2 * k


def test_both_ways_of_jumprelu_have_one_loss_and_gradient(monkeypatch: pytest.MonkeyPatch):
    rows, _ = planted(60)
    made = trainable_of("jumprelu", rows, k=3, bandwidth=0.8)
    # Some thresholds are nearer to zero than half the bandwidth: pre-activations below zero have a part in it.
    made.sae.threshold.data[::3] = 0.1
    taken, found = ways_taken(monkeypatch, made), []
    for most in (-1.0, 1.0):
        monkeypatch.setattr(thresholded, "SPARSE_SHARE", most)
        forward = result(made, rows)
        total = sum({"reconstruction": _missed(made, scaled(made, rows), forward), **forward.losses}.values())
        found.append((forward, torch.autograd.grad(total, list(made.parameters()))))
    assert taken == ["dense", "sparse"]
    (one, one_gradients), (other, other_gradients) = found
    assert torch.equal(one.active.sort().values, other.active.sort().values)
    assert torch.allclose(one.reconstruction, other.reconstruction, rtol=1e-12, atol=1e-12)
    names = [name for name, _ in made.named_parameters()]
    for name, mine, its in zip(names, one_gradients, other_gradients, strict=True):
        assert mine.abs().max() > 0 and torch.allclose(mine, its, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu"])
def test_a_weight_that_is_no_number_makes_the_loss_none(architecture: str, way: str):
    rows, _ = planted(60)
    made = trainable_of(architecture, rows, k=3)
    made.sae.W_enc.data[0, 3] = torch.nan
    forward = result(made, rows)
    assert not _missed(made, scaled(made, rows), forward).isfinite()


def test_entries_are_worked_on_as_soon_as_they_are_few_and_matrices_once_they_are_many(monkeypatch: pytest.MonkeyPatch):
    rows, _ = planted(60)
    made = trainable_of("relu", rows)
    taken = ways_taken(monkeypatch, made)
    few, many = -1e3, 1e3
    for bias in (many, few, few, many, many, few, few):
        made.sae.b_enc.data.fill_(bias).put_(torch.tensor([3]), torch.tensor(1e4, dtype=torch.float64))
        result(made, rows)
    # What is many comes to light after the product, which is then made again.
    assert taken == ["dense", "dense", "sparse", "dense", "dense", "dense", "sparse"]
    assert float(made.share_above) == pytest.approx(1 / 48)
    assert float(trainable_of("relu", rows).share_above) == 1.0


def test_a_resumed_training_works_in_the_way_that_it_would_have():
    rows, _ = planted(2_000)
    batches = list(MemoryBatches({HOOK: rows}, 64, 12).from_step(0))
    whole, before, after = (optimiser(HOOK, rows, recipe(12, architecture="jumprelu", k=1)) for _ in range(3))
    for index, batch in enumerate(batches):
        whole.step(batch, index=index)
        if index < 5:
            before.step(batch, index=index)
    after.load_state({name: tensor.clone() for name, tensor in before.state().items()})
    assert float(after.trainable.share_above) < thresholded.SPARSE_SHARE
    for index, batch in enumerate(batches[5:], 5):
        after.step(batch, index=index)
    assert all(torch.equal(tensor, after.state()[name]) for name, tensor in whole.state().items())


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_planted_features_are_recovered(architecture: str, way: str):
    rows, features = planted(20_000)
    made = recipe(500, architecture=architecture, **OPTIONS.get(architecture, {}))
    sae = fully_trained(optimiser(HOOK, rows, made), {HOOK: rows}).finished()[HOOK]
    found = reconstruction(sae, planted(4_000)[0].split(1000))
    assert found.explained_variance > 0.85
    assert 0.95 * ACTIVE < found.l0 < LARGEST_L0.get(architecture, 1.1 * ACTIVE)
    best = (F.normalize(sae.W_dec, dim=1) @ features.T).max(dim=0).values
    assert best.median() > LEAST_MEDIAN_COSINE.get(architecture, 0.97)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-4)


@pytest.mark.parametrize("codes_at_once", [2**25, 48 * 130])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_thresholds_are_set_so_that_k_features_are_active(
    architecture: str, codes_at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(base, "CODES_AT_ONCE", codes_at_once)
    rows, _ = planted(5_000)
    made = optimiser(HOOK, rows, recipe(60, architecture=architecture, k=3))
    for index, batch in enumerate(MemoryBatches({HOOK: rows}, 256, 60).from_step(0)):
        made.step(batch, index=index)
    # The first tokens alone have more strong pre-activations than all together may keep.
    strength = made.trainable.sae.pre_activations(made.trainable.scaled(rows, made.trainable.scale)).max(dim=1).values
    rows = rows[strength.argsort(descending=True)]
    for part in rows.split(1000):
        made.trainable.calibrate({HOOK: part}, n_tokens=len(rows))
    sae = made.finished()[HOOK]
    assert isinstance(sae, JumpReluSae) and len(sae.threshold.unique()) == 1
    assert (sae.encode(rows) > 0).sum() == pytest.approx(3 * len(rows), abs=2)


@pytest.mark.parametrize(("architecture", "least"), [("transcoder", 0.8), ("skip-transcoder", 0.9)])
def test_transcoders_predict_a_sparse_map(architecture: str, least: float):
    x, features = planted(20_000)
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(len(features), 9, generator=generator)
    y = (x @ torch.linalg.pinv(features)).clamp(-6, 6) @ outputs + 3 * torch.randn(9, generator=generator)
    if architecture == "skip-transcoder":
        y = y + x @ torch.randn(D_IN, 9, generator=generator)
    rows = {READS: x, PREDICTS: y}
    made = recipe(600, architecture=architecture, k=4)
    trainable = optimiser(READS, x, made, target=(PREDICTS, y))
    sae = fully_trained(trainable, rows).finished()[READS]
    assert (sae.hook, sae.target, sae.d_out, sae.config.skip) == (READS, PREDICTS, 9, architecture[0] == "s")
    assert ACTIVE < float((sae.encode(x) > 0).sum(dim=1).double().mean()) <= 4
    error = (sae.reconstruct(x) - y).square().sum()
    assert 1 - float(error / (y - y.mean(dim=0)).square().sum()) > least


def random_inference(architecture: str):
    rows, _ = planted(300)
    if architecture.endswith("transcoder"):
        target = torch.randn(300, 9, generator=torch.Generator().manual_seed(2))
        made = optimiser(
            READS, rows, recipe(5, architecture=architecture), target=(PREDICTS, target)
        ).trainable.double()
    else:
        made = optimiser(HOOK, rows, recipe(5, architecture=architecture)).trainable.double()
    if hasattr(made, "threshold"):
        made.threshold = 0.4
    generator = torch.Generator().manual_seed(4)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made.inference().double(), rows.double()


@pytest.mark.parametrize("architecture", SINGLE)
def test_folding_a_scale_into_an_sae_is_scaling_around_it(architecture: str):
    sae, x = random_inference(architecture)
    scale, target_scale = 0.37, 2.3 if sae.is_transcoder else 0.37
    raw = folded(sae, scale=scale, target_scale=target_scale)
    assert torch.allclose(raw.reconstruct(x), sae.reconstruct(scale * x) / target_scale, rtol=1e-10, atol=1e-10)
    assert torch.allclose(raw.encode(x), sae.encode(scale * x) / target_scale, rtol=1e-10, atol=1e-10)
    assert torch.equal(raw.W_dec, sae.W_dec)


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu"])
def test_decoder_norms_move_into_the_codes(architecture: str):
    sae, x = random_inference(architecture)
    made = with_unit_decoder(sae)
    norms = sae.W_dec.norm(dim=1)
    assert torch.allclose(made.W_dec.norm(dim=1), torch.ones_like(norms))
    assert torch.allclose(made.reconstruct(x), sae.reconstruct(x), rtol=1e-10, atol=1e-10)
    assert torch.allclose(made.encode(x), sae.encode(x) * norms, rtol=1e-10, atol=1e-10)


def test_a_transcoder_is_trained_in_each_layer_that_has_both_ends():
    hooks = [HookPoint(0, "mlp_in"), HookPoint(1, "mlp_in"), HookPoint(1, "mlp"), HookPoint(1, "resid")]
    assert hook_groups("transcoder", hooks) == [(HookPoint(1, "mlp_in"), HookPoint(1, "mlp"))]
    assert hook_groups("topk", hooks) == [(hook,) for hook in hooks]


def test_the_penalty_of_jumprelu_pulls_by_its_derivative():
    rows, _ = planted(400)
    made = trainable_of("jumprelu", rows, k=3)
    x = scaled(made, rows)
    found = torch.autograd.grad(result(made, rows).losses["l0"], made.sae.threshold)[0]
    counts = Step.apply(made.sae.pre_activations(x), made.sae.threshold, made.config.sae.bandwidth)
    l0 = counts.sum(dim=1).mean()
    by_threshold = torch.autograd.grad(l0, made.sae.threshold)[0]
    assert torch.allclose(found, 2 * (float(l0.detach()) / 3 - 1) / 3 * by_threshold, rtol=1e-9)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "gated"])
def test_products_in_bfloat16_learn_nearly_as_much(architecture: str):
    rows, _ = planted(10_000)
    found = []
    for autocast in (False, True):
        made = recipe(200, architecture=architecture, autocast=autocast, **OPTIONS.get(architecture, {}))
        trainable = fully_trained(optimiser(HOOK, rows, made), {HOOK: rows})
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in trainable.state().values())
        found.append(reconstruction(trainable.finished()[HOOK], planted(2_000)[0].split(1000)).explained_variance)
    assert found[0] != found[1]
    assert found[1] > found[0] - 0.02


def test_the_default_penalty_is_as_hard_on_narrow_models_as_on_wide_ones():
    assert default_l1_weight(4096) == default_l1_weight(10_000) == 5.0
    # A code of the same share of a row's norm is worth the same share of its penalty.
    assert default_l1_weight(64) / 64**0.5 == pytest.approx(default_l1_weight(4096) / 4096**0.5)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_the_penalty_has_the_weight_that_was_asked_for_or_that_of_its_width(architecture: str):
    rows, _ = planted(60)

    def penalty(weight: float | None) -> Tensor:
        made = trainable_of(architecture, rows, l1_weight=weight)
        return result(made, rows).losses["l1"].detach()

    assert torch.allclose(penalty(None), penalty(default_l1_weight(rows.shape[1])))
    assert torch.allclose(penalty(3.0), 3.0 * penalty(1.0)) and float(penalty(0.0)) == 0.0


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_the_default_penalty_means_the_same_in_a_wider_model_with_the_same_activations(architecture: str):
    """Activations that are turned into a space four times as wide have all their losses there."""
    rows, turn = planted(200)[0], torch.linalg.qr(torch.randn(64, D_IN, dtype=torch.float64))[0].T
    narrow, wide = (trainable_of(architecture, own) for own in (rows, (rows.double() @ turn).float()))
    with torch.no_grad():
        ours, theirs = narrow.sae, wide.sae
        ours.W_dec.div_(ours.W_dec.norm(dim=1, keepdim=True))
        theirs.W_dec.copy_(ours.W_dec @ turn)
        theirs.W_enc.copy_(turn.T @ ours.W_enc)
        for name in ("b_enc", "b_mag", "r_mag"):
            if hasattr(ours, name):
                getattr(theirs, name).copy_(getattr(ours, name) * (1 if name == "r_mag" else 2))
        theirs.b_dec.copy_(2 * ours.b_dec @ turn)
    assert wide.scale == pytest.approx(2 * narrow.scale, rel=1e-4)
    found = result(narrow, rows).losses, result(wide, (rows.double() @ turn).float()).losses
    assert set(found[0]) == set(found[1]) and "l1" in found[0]
    for name, loss in found[0].items():
        assert float(found[1][name].detach()) == pytest.approx(float(loss.detach()), rel=1e-3)
