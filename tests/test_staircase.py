"""Staircases beside the plain definition, beside SAEs that share nothing, and on layers whose features persist."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_train_stage import request
from torch import Tensor
from training_fakes import MemoryBatches, fully_trained, moments, optimiser, planted, recipe

from circuitcli.errors import SettingsError
from circuitcli.evaluation.quality import reconstruction
from circuitcli.hookpoints import HookPoint
from circuitcli.records import SaeRecord, Stream
from circuitcli.saes import files
from circuitcli.saes.topk import TopKSae
from circuitcli.stages import collect, train
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import hook_groups
from circuitcli.training.trainer import Trainer

HOOKS = tuple(HookPoint(layer, "resid") for layer in (1, 2, 3))
KINDS = ("staircase", "staircase-detach")
STEP = 7


def layers(n_rows: int) -> dict[HookPoint, Tensor]:
    return {hook: (1 + seed) * planted(n_rows, seed=seed)[0] for seed, hook in enumerate(HOOKS)}


def staircase(rows: dict[HookPoint, Tensor], made) -> CoderOptimiser:
    first = {hook: own[:256] for hook, own in rows.items()}
    known = {hook: moments(own) for hook, own in rows.items()}
    return CoderOptimiser(new_trainable(tuple(rows), first, made.config, known), made.optimiser_config)


def random_staircase(kind: str, rows: dict[HookPoint, Tensor], **changes):
    """In double precision, with random parameters; some features are dead, differently in each layer."""
    trainable = staircase(rows, recipe(10, d_sae=STEP, architecture=kind, k=3, **changes)).trainable.double()
    generator = torch.Generator().manual_seed(3)
    for parameter in trainable.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for step in trainable.coders:
        step.silent_tokens.copy_(2000 * (torch.rand(step.sae.d_sae, generator=generator) < 0.7))
    return trainable


def plain_losses(trainable, index: int, x: Tensor, watched: Tensor) -> dict[str, Tensor]:
    """Written down as in the paper, dense, with the slices that the layer has."""
    step, width = trainable.coders[index], STEP * (index + 1)
    W_enc, W_dec = trainable.W_enc[:, :width], trainable.W_dec[:width]
    if trainable.detaches:
        W_enc = torch.cat([W_enc[:, : width - STEP].detach(), W_enc[:, width - STEP :]], dim=1)
        W_dec = torch.cat([W_dec[: width - STEP].detach(), W_dec[width - STEP :]])
    pre = (x - step.sae.b_dec) @ W_enc + step.sae.b_enc
    kept = torch.zeros_like(pre, dtype=torch.bool)
    for row in range(len(x)):
        kept[row, pre[row].detach().argsort(descending=True)[:3]] = True
    error = x - (pre * kept).relu() @ W_dec - step.sae.b_dec
    losses = {"reconstruction": error.square().sum(dim=1).mean() / step.variance}
    if len(watched):
        # More may be revived than there are features: k_aux is half the width of x.
        codes, rest = pre[:, watched].relu(), error.detach()
        order = codes.argsort(dim=1, descending=True).argsort(dim=1)
        codes = codes * (order < x.shape[1] // 2)
        spread = (rest - rest.mean(dim=0)).square().sum()
        losses["auxk"] = step.config.auxk_weight * (codes @ W_dec[watched] - rest).square().sum() / spread
    return losses


def allowed(trainable, index: int) -> Tensor:
    """Features that AuxK may revive in a layer, by the rule in words."""
    found = []
    for feature in range(STEP * (index + 1)):
        holders = [step for step in trainable.coders if feature < step.sae.d_sae]
        dead = [bool(step.silent_tokens[feature] >= 2000) for step in holders]
        if trainable.detaches:
            is_dead = feature >= STEP * index and bool(trainable.coders[index].silent_tokens[feature] >= 2000)
        else:
            is_dead = all(dead)
        found += [feature] * is_dead
    return torch.tensor(found, dtype=torch.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_tied_slices(kind: str):
    rows = {hook: own.double() for hook, own in layers(40).items()}
    trainable = random_staircase(kind, rows)
    watched = [allowed(trainable, index) for index in range(len(HOOKS))]
    assert all(len(own) for own in watched)
    inputs = [rows[step.sae.hook] * step.scale for step in trainable.coders]
    plain = [plain_losses(trainable, i, x, watched[i]) for i, x in enumerate(inputs)]
    for step in trainable.coders:
        # The method's own rounds to float32.
        step.scaled = lambda x, scale: x * scale
    found = trainable.training_forward(rows, share=0.5)
    for hook, expected in zip(HOOKS, plain, strict=True):
        assert set(found[hook].losses) == set(expected) == {"reconstruction", "auxk"}
        for name, loss in expected.items():
            assert torch.allclose(found[hook].losses[name], loss, rtol=1e-9), (hook, name)
    parameters = list(trainable.parameters())
    ours = torch.autograd.grad(sum(sum(found[hook].losses.values()) for hook in HOOKS), parameters)
    theirs = torch.autograd.grad(sum(sum(losses.values()) for losses in plain), parameters)
    assert all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("kind", "is_zero"), [("staircase", False), ("staircase-detach", True)])
def test_inherited_features_learn_from_later_layers_unless_detached(kind: str, is_zero: bool):
    rows = layers(60)
    trainable = random_staircase(kind, rows).float()
    found = trainable.training_forward(rows, share=0.5)
    last = sum(found[HOOKS[2]].losses.values())
    W_enc, W_dec = torch.autograd.grad(last, (trainable.W_enc, trainable.W_dec))
    for own in (W_enc.T, W_dec):
        assert bool((own[: 2 * STEP] == 0).all()) == is_zero
        assert own[2 * STEP :].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_staircase_of_one_step_is_a_topk_sae(kind: str):
    rows, _ = planted(2_000)
    options = {"d_sae": 48, "k": 3, "dead_tokens": 500}
    step = fully_trained(staircase({HOOKS[0]: rows}, recipe(30, architecture=kind, **options)), {HOOKS[0]: rows})
    plain = fully_trained(optimiser(HOOKS[0], rows, recipe(30, **options)), {HOOKS[0]: rows})
    made, expected = step.finished()[HOOKS[0]], plain.finished()[HOOKS[0]]
    for name, parameter in expected.named_parameters():
        assert torch.equal(getattr(made, name), parameter), name
    assert step.trainable.dead_share(HOOKS[0]) == plain.trainable.dead_share(HOOKS[0])


def test_the_first_layer_of_a_detached_staircase_learns_as_if_it_were_alone():
    rows = layers(2_000)
    options = {"k": 3, "dead_tokens": 500, "clip": 1e9}
    made = fully_trained(staircase(rows, recipe(30, architecture="staircase-detach", **options)), rows).finished()
    alone = fully_trained(optimiser(HOOKS[0], rows[HOOKS[0]], recipe(30, **options)), rows).finished()[HOOKS[0]]
    assert all(torch.equal(getattr(made[HOOKS[0]], name), own) for name, own in alone.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_are_native_saes_with_the_same_rows(kind: str):
    rows = layers(3_000)
    trainable = fully_trained(staircase(rows, recipe(25, d_sae=20, architecture=kind)), rows).trainable
    made = trainable.finished()
    assert [type(sae) for sae in made.values()] == [TopKSae] * 3
    assert [sae.d_sae for sae in made.values()] == [20, 40, 60] and all(sae.k == 2 for sae in made.values())
    first, second, third = made.values()
    assert torch.equal(second.W_dec[:20], first.W_dec) and torch.equal(third.W_enc[:, :40], second.W_enc)
    assert torch.allclose(third.W_dec.norm(dim=1), torch.ones(60), atol=1e-5)
    for step, (hook, sae) in zip(trainable.coders, made.items(), strict=True):
        x = rows[hook][:300]
        pre = (x * step.scale - step.sae.b_dec) @ trainable.W_enc[:, : sae.d_sae] + step.sae.b_enc
        values, indices = pre.topk(2, dim=1)
        codes = torch.zeros_like(pre).scatter(1, indices, values.relu())
        scaled = codes @ trainable.W_dec[: sae.d_sae] + step.sae.b_dec
        assert torch.allclose(sae.reconstruct(x), scaled / step.scale, rtol=1e-4, atol=1e-4)


def persisting(n_rows: int) -> tuple[dict[HookPoint, Tensor], Tensor]:
    """Two layers: the second holds the first one's features and as many of its own, one of each active."""
    generator = torch.Generator().manual_seed(7)
    features = F.normalize(torch.randn(24, 16, generator=generator), dim=1)
    old, new = (torch.randint(0, 12, (n_rows,), generator=generator) for _ in range(2))
    weights = 3 + 3 * torch.rand(n_rows, 2, 1, generator=generator)
    below = weights[:, 0] * features[old]
    return {HOOKS[0]: below, HOOKS[1]: below + weights[:, 1] * features[12 + new]}, features


def test_features_that_persist_are_found_once_and_used_in_both_layers():
    rows, features = persisting(20_000)
    made = fully_trained(staircase(rows, recipe(600, d_sae=24, architecture="staircase")), rows)
    below, above = made.finished().values()
    fresh = persisting(4_000)[0]
    assert reconstruction(below, fresh[HOOKS[0]].split(1000)).explained_variance > 0.95
    assert reconstruction(above, fresh[HOOKS[1]].split(1000)).explained_variance > 0.9
    cosines = F.normalize(above.W_dec, dim=1) @ features.T
    assert cosines[:24, :12].max(dim=0).values.median() > 0.97 and cosines[:, 12:].max(dim=0).values.median() > 0.97
    measured = made.trainable.training_forward({hook: own[:1000] for hook, own in rows.items()}, share=1.0)[HOOKS[1]]
    parts = [float(measured.measures[f"l0_step_{step}"]) for step in range(2)]
    assert sum(parts) == pytest.approx(float(measured.l0)) and parts[0] > 0.6


def test_a_feature_that_lives_in_another_layer_is_left_alone_by_auxk():
    rows = layers(50)
    trainable = random_staircase("staircase", rows)
    for step in trainable.coders:
        step.silent_tokens.fill_(2000)
    trainable.coders[0].silent_tokens[4] = trainable.coders[2].silent_tokens[11] = 0
    for step, may_revive in zip(trainable.coders, trainable._revivable(), strict=True):
        step.may_revive = may_revive
        assert step.dead().tolist() == [n for n in range(step.sae.d_sae) if n not in (4, 11)]


def test_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path):
    rows = layers(2_000)

    def trainer(name: str) -> Trainer:
        made = recipe(12, d_sae=20, architecture="staircase", dead_tokens=300)
        return Trainer(
            [staircase(rows, made)],
            MemoryBatches(rows, 64, 12),
            batch_size=64,
            checkpoints=Checkpoints(tmp_path / name, "test"),
            checkpoint_steps=5,
            logs={},
        )

    unbroken, broken = trainer("unbroken"), trainer("broken")
    for made in (unbroken, broken):
        made._log = lambda *_: None
    unbroken.run()
    batches = broken.batches.from_step(0)
    for index in range(5):
        broken.optimisers[0].step(next(batches), index=index)
    broken.checkpoints.save(5, broken.optimisers)
    again = trainer("broken")
    again._log = lambda *_: None
    again.run()
    state, expected = again.optimisers[0].state(), unbroken.optimisers[0].state()
    assert set(state) == set(expected) and all(torch.equal(state[name], expected[name]) for name in expected)


def test_each_site_has_one_staircase_over_its_layers():
    hooks = [HookPoint(layer, site) for layer in (2, 0, 1) for site in ("resid", "mlp") if (layer, site) != (1, "mlp")]
    assert hook_groups("staircase", hooks) == [
        tuple(HookPoint(layer, "resid") for layer in (0, 1, 2)),
        tuple(HookPoint(layer, "mlp") for layer in (0, 2)),
    ]
    with pytest.raises(SettingsError, match="the run has one layer") as caught:
        hook_groups("staircase", [HookPoint(4, "resid"), HookPoint(4, "mlp")])
    assert "circuit collect --layers" in caught.value.hint


def test_a_staircase_has_a_short_name_however_high_it_is():
    hooks = [HookPoint(layer, "resid_pre") for layer in range(40)]
    rows = dict.fromkeys(hooks, torch.randn(8, 4))
    assert staircase(rows, recipe(5, d_sae=3, architecture="staircase")).name == "resid_pre.0+resid_pre.39"


def test_train_makes_a_staircase_of_a_run(tmp_path: Path):
    path = tmp_path / "run"
    collect.run(request(path, Stream(), data__sites="resid", data__layers="0:3"))
    flags = {"data__sites": "resid", "data__layers": "0:3", "sae__d_sae": 100, "sae__architecture": "staircase"}
    facts = dict(train.plan(request(path, **flags)))
    assert facts["autoencoders"] == "3: resid.0 resid.1 resid.2" and facts["features"] == "100 200 300"
    records = train.run(request(path, **flags))
    assert [record.hook for record in records] == ["resid.0", "resid.1", "resid.2"]
    assert [record.d_sae for record in records] == [100, 200, 300]
    for record in records:
        assert isinstance(record, SaeRecord) and record.architecture == "topk" and record.explained_variance > 0.3
        assert files.load(path / record.path).d_sae == record.d_sae
        assert files.read_config(path / record.path)["trained_as"] == "staircase"
        line = json.loads((path / record.path / "metrics.jsonl").read_text().splitlines()[-1])
        steps = [value for name, value in line.items() if name.startswith("l0_step_")]
        assert len(steps) == record.d_sae // 100 and sum(steps) == pytest.approx(line["l0"], rel=1e-5)
