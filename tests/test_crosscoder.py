"""Crosscoders: trained, measured and kept; refused where circuits are made."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_clt_stage import digests, request
from training_fakes import MemoryBatches, moments, recipe

from circuitcli.activations.cache import ActivationCache
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import load_model
from circuitcli.models.taps import tapped
from circuitcli.records import Stream
from circuitcli.saes import files
from circuitcli.saes.crosscoder import Crosscoder
from circuitcli.settings.sources import load
from circuitcli.stages import collect, evaluate, graph_grad, inspect, interp, train
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import coder_shapes, hook_groups

HOOKS = (HookPoint(0, "resid"), HookPoint(2, "resid"), HookPoint(3, "resid"))
D, D_SAE, K = 9, 30, 4


def rows(n: int) -> dict[HookPoint, torch.Tensor]:
    """Sums of sparse shared directions, of another size at each layer."""
    generator = torch.Generator().manual_seed(0)
    codes = (torch.randn(n, 20, generator=generator) - 1.0).relu()
    return {
        hook: (1 + hook.layer) * codes @ torch.randn(20, D, generator=generator) + torch.randn(D, generator=generator)
        for hook in HOOKS
    }


def untrained(data: dict[HookPoint, torch.Tensor], *, n_steps: int = 40, **changes) -> CoderOptimiser:
    made = recipe(n_steps, d_sae=D_SAE, k=K, architecture="crosscoder", **changes)
    about = {hook: moments(own) for hook, own in data.items()}
    first = {hook: own[:200] for hook, own in data.items()}
    return CoderOptimiser(new_trainable(HOOKS, first, made.config, about), made.optimiser_config)


def test_loss_and_gradients_are_those_of_plain_dense_autograd():
    data = {hook: own.double() for hook, own in rows(250).items()}
    made = untrained(data).trainable.double()
    result = made.training_forward(data, share=0.3)[HOOKS[0]]
    encoders, decoders = made.W_enc.split(D), made.W_dec.split(D, dim=1)
    x = {hook: data[hook] * scale for hook, scale in zip(HOOKS, made.scales, strict=True)}
    pre = sum(x[hook] @ encoder for hook, encoder in zip(HOOKS, encoders, strict=True)) + made.b_enc
    codes = torch.where(pre >= pre.detach().flatten().sort().values[-K * len(pre)], pre, 0.0).relu()
    fvus = []
    for hook, decoder, bias, variance in zip(HOOKS, decoders, made.b_dec.split(D), made.variances, strict=True):
        missed = x[hook] - codes @ decoder - bias
        fvus.append(missed.square().sum(dim=1).mean() / variance)
    expected = sum(fvus)
    loss = torch.stack(list(result.losses.values())).sum()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    ours, theirs = (torch.autograd.grad(one, list(made.parameters())) for one in (loss, expected))
    for gradient, other in zip(ours, theirs, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-12)
    assert [float(value) for value in result.measures.values()] == [pytest.approx(float(one.detach())) for one in fvus]


def test_it_learns_features_of_several_layers_and_keeps_their_norms():
    data = rows(3000)
    optimiser = untrained(data, n_steps=250)
    for index, batch in enumerate(MemoryBatches(data, 128, 250).from_step(0)):
        result = optimiser.step(batch, index=index)[HOOKS[0]]
    assert float(result.fvu) < 0.3
    trained = optimiser.trainable
    norms = torch.stack([part.norm(dim=1) for part in trained.W_dec.split(D, dim=1)])
    assert torch.allclose(norms.sum(dim=0), torch.ones(D_SAE), atol=1e-5)
    for batch in MemoryBatches(data, 128, 4).from_step(0):
        trained.calibrate(batch, n_tokens=512)
    (coder,) = optimiser.finished().values()
    assert isinstance(coder, Crosscoder) and coder.hook_points == HOOKS and coder.d_model == D
    parts = coder.parts(coder.reconstruct(coder.joined(data)))
    missed = [
        float((data[hook] - part).square().sum() / (data[hook] - data[hook].mean(0)).square().sum())
        for hook, part in parts.items()
    ]
    assert sum(missed) / 3 == pytest.approx(float(result.fvu), abs=0.05)
    assert coder.decoder_norms().shape == (3, D_SAE)


def test_sites_with_several_layers_have_one_each():
    hooks = [*HOOKS, HookPoint(1, "attn"), HookPoint(1, "mlp"), HookPoint(3, "mlp")]
    groups = hook_groups("crosscoder", hooks)
    assert groups == [HOOKS, (HookPoint(1, "mlp"), HookPoint(3, "mlp"))]
    (shape,) = coder_shapes("crosscoder", HOOKS)
    assert (shape.reads, shape.writes) == (HOOKS, HOOKS)
    with pytest.raises(SettingsError, match="one layer"):
        hook_groups("crosscoder", hooks[2:4])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crosscoder") / "run"
    collect.run(request(path, Stream(), data__sites="resid", data__tokens=1500))
    train.run(asked(path))
    return path


def asked(path: Path, **changes):
    return request(path, sae__architecture="crosscoder", **changes)


def test_it_is_kept_measured_and_evaluated(trained: Path):
    (record,) = train.run(asked(trained))
    assert (record.hook, record.hooks, record.architecture) == ("resid.1", ("resid.1", "resid.2"), "crosscoder")
    coder = files.load(trained / record.path)
    assert isinstance(coder, Crosscoder) and (coder.d_in, coder.d_model, coder.d_sae) == (256, 128, 200)
    config = files.read_config(trained / record.path)
    cache = ActivationCache(trained / "activations", list(coder.hook_points))
    held_out = {hook: cache.rows(hook, cache.n_tokens - 150, cache.n_tokens) for hook in coder.hook_points}
    explained = {}
    for hook, part in coder.parts(coder.reconstruct(coder.joined(held_out))).items():
        y = held_out[hook]
        explained[str(hook)] = 1 - float((y - part).square().sum() / (y - y.mean(dim=0)).square().sum())
    assert config["explained_variances"] == pytest.approx(explained, abs=1e-4)
    assert record.explained_variance == pytest.approx(sum(explained.values()) / 2, abs=1e-4)
    assert config["replaced"] == ["resid.1", "resid.2"]
    assert config["ce_spliced"] == pytest.approx(loss_with_all_replaced(coder, trained), rel=1e-4)
    lines = [json.loads(line) for line in (trained / record.path / "metrics.jsonl").read_text().splitlines()]
    assert {"fvu_resid.1", "fvu_resid.2"} <= set(lines[-1]) and lines[-1]["fvu"] < lines[0]["fvu"]
    (evaluated,) = evaluate.run(asked(trained))
    assert evaluated.explained_variance == pytest.approx(record.explained_variance)
    assert evaluated.loss_recovered == pytest.approx(record.loss_recovered)


def loss_with_all_replaced(coder: Crosscoder, path: Path) -> float:
    """By two passes of the model over each text: one is read, in the other what comes of it stands at all layers."""
    model = load_model(load({"model.name": "builtin:tiny", "model.device": "cpu"}).settings.model)
    cache = ActivationCache(path / "activations", list(coder.hook_points))
    start, sum_, n = cache.n_tokens - 150, 0.0, 0
    for block in cache.blocks(start, cache.n_tokens):
        ids = torch.tensor([block.ids])
        seen: dict[HookPoint, torch.Tensor] = {}
        with torch.no_grad(), tapped(model.adapter, {hook: keeping(seen, hook) for hook in coder.hook_points}):
            model.adapter.model(ids)
        parts = coder.parts(coder.reconstruct(coder.joined(seen)))
        taps = {hook: putting(part, block.positions) for hook, part in parts.items()}
        with torch.no_grad(), tapped(model.adapter, taps):
            log_p = model.adapter.model(ids).logits.log_softmax(dim=-1)[0, :-1]
        sum_ -= float(log_p.gather(1, ids[0, 1:, None]).sum())
        n += len(block.ids) - 1
    return sum_ / n


def keeping(seen: dict[HookPoint, torch.Tensor], hook: HookPoint):
    return lambda x: seen.__setitem__(hook, x)


def putting(part: torch.Tensor, positions: list[int]):
    def put(y: torch.Tensor) -> torch.Tensor:
        result = y.clone()
        result[:, positions] = part[:, positions]
        return result

    return put


def test_a_killed_training_goes_on_to_the_same_bits(trained: Path, tmp_path: Path, monkeypatch):
    path = Path(shutil.copytree(trained, tmp_path / "run"))
    step = CoderOptimiser.step

    def interrupted(self, batch, *, index: int):
        if index == 21:
            raise KeyboardInterrupt
        return step(self, batch, index=index)

    with monkeypatch.context() as patched:
        patched.setattr(CoderOptimiser, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(asked(path, force=True))
    assert digests(train.run(asked(path))) == digests(train.run(asked(trained)))


def test_its_features_are_described_with_where_they_are_at_home(trained: Path):
    (record,) = interp.run(asked(trained, interp__contexts=1))
    assert (record.hook, record.n_live + record.n_dead) == ("resid.1", 200) and record.n_live > 5
    line = json.loads((trained / record.path).read_text().splitlines()[0])
    coder = files.load(trained / "saes" / "resid.1")
    index = int(line["id"].partition("/")[2])
    assert list(line["decoder_norms"]) == ["resid.1", "resid.2"]
    assert list(line["decoder_norms"].values()) == pytest.approx(coder.decoder_norms()[:, index].tolist(), rel=1e-3)
    cache = ActivationCache(trained / "activations", list(coder.hook_points))
    codes = coder.encode(coder.joined({hook: cache.rows(hook, 0, cache.n_tokens) for hook in coder.hook_points}))
    assert line["density"] == pytest.approx(float((codes[:, index] > 0).float().mean()), rel=1e-3)


def test_circuits_refuse_it_with_one_sentence(trained: Path):
    with pytest.raises(InputError, match=r"the coder of resid\.1 resid\.2 is a crosscoder") as caught:
        graph_grad.run(request(trained, graph__prompt="def f(x):"))
    assert "sae.architecture=clt" in (caught.value.hint or "")


def test_it_is_inspected_over_all_its_layers(trained: Path):
    (record,) = inspect.run(request(trained, sae_path=str(trained / "saes/resid.1")), is_chosen=True)
    told = record.model_dump()
    assert (told["architecture"], told["hooks"]) == ("crosscoder", ["resid.1", "resid.2"])
    coder = files.load(trained / "saes/resid.1")
    assert isinstance(coder, Crosscoder)
    n_tokens = told["activations"]["n_tokens"]
    cache = ActivationCache(trained / "activations", coder.hook_points)
    x = coder.joined({hook: cache.rows(hook, 0, n_tokens) for hook in coder.hook_points})
    missed = (coder.reconstruct(x) - x).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert told["activations"]["explained_variance"] == pytest.approx(1 - float(missed), abs=1e-4)
