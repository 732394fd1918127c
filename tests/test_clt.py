"""Training cross-layer transcoders: the same numbers as the plain dense definition."""

import pytest
import torch
from torch import Tensor
from training_fakes import MemoryBatches, moments, recipe

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder
from circuitcli.training.architectures.clt import TrainableClt
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import coder_shapes, hook_groups

READS = tuple(HookPoint(layer, "mlp_in") for layer in (2, 3, 4))
WRITES = tuple(HookPoint(layer, "mlp") for layer in (2, 3, 4))
D_IN, D_OUT, D_SAE, K = 10, 7, 24, 3


def rows(n: int, *, seed: int = 0) -> dict[HookPoint, Tensor]:
    """Random inputs, and what a random sparse cross-layer map with noise makes of them."""
    generator = torch.Generator().manual_seed(seed)
    found = {hook: (1 + hook.layer) * torch.randn(n, D_IN, generator=generator) + 0.5 for hook in READS}
    maps = torch.Generator().manual_seed(7)
    codes = [
        (found[hook] @ torch.randn(D_IN, 12, generator=maps) - 6.0 * (1 + hook.layer) ** 0.5).relu() for hook in READS
    ]
    for number, hook in enumerate(WRITES):
        parts = [codes[below] @ torch.randn(12, D_OUT, generator=maps) for below in range(number + 1)]
        found[hook] = torch.stack(parts).sum(dim=0) * 0.3**hook.layer + torch.randn(D_OUT, generator=maps)
    return found


def untrained(data: dict[HookPoint, Tensor], **changes) -> CoderOptimiser:
    made = recipe(changes.pop("n_steps", 60), d_sae=D_SAE, k=K, architecture="clt", **changes)
    first = {hook: own[:256] for hook, own in data.items()}
    about = {hook: moments(own) for hook, own in data.items()}
    return CoderOptimiser(new_trainable((*READS, *WRITES), first, made.config, about), made.optimiser_config)


def plain(
    clt: TrainableClt, batch: dict[HookPoint, Tensor], *, thresholds: list[float] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The loss by dense products, and what is missed at each layer, scaled; codes are the K * batch largest of a layer,
    or those above its threshold."""
    layers = list(clt.layers)
    loss, errors = torch.zeros((), dtype=torch.float64), []
    for number, write in enumerate(WRITES):
        total = layers[number].b_dec
        for below in range(number + 1):
            x = batch[READS[below]] * clt.scales[READS[below]]
            pre = x @ layers[below].W_enc + layers[below].b_enc
            least = pre.detach().flatten().sort().values[-K * len(pre)] if thresholds is None else thresholds[below]
            codes = torch.where(pre >= least, pre, 0.0).relu()
            total = total + codes @ layers[below].W_dec[:, (number - below) * D_OUT : (number - below + 1) * D_OUT]
        y = batch[write] * clt.scales[write]
        variance = float((y - y.mean(0)).square().sum(1).mean())
        assert variance == pytest.approx(clt.variances[number], rel=1e-3)
        loss = loss + (y - total).square().sum(dim=1).mean() / clt.variances[number]
        errors.append(y - total)
    return loss, errors


def test_loss_and_gradients_are_those_of_plain_dense_autograd():
    data = {hook: own.double() for hook, own in rows(300).items()}
    clt = untrained(data).trainable.double()
    assert isinstance(clt, TrainableClt)
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    results = clt.training_forward(data, share=0.5)
    loss = torch.stack([part for result in results.values() for part in result.losses.values()]).sum()
    expected, errors = plain(clt, data)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    ours, theirs = (torch.autograd.grad(one, list(clt.parameters())) for one in (loss, expected))
    for gradient, other in zip(ours, theirs, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-12)
    assert [float(result.fvu) for result in results.values()] == pytest.approx(
        [float(error.square().sum(1).mean()) / variance for error, variance in zip(errors, clt.variances, strict=True)]
    )
    assert list(results) == list(READS) and all(float(result.l0) == pytest.approx(K) for result in results.values())


def test_dead_features_learn_what_is_missed_in_all_layers_that_they_write():
    data = {hook: own.double() for hook, own in rows(200).items()}
    clt = untrained(data, dead_tokens=50).trainable.double()
    dead = torch.tensor([1, 5])
    clt.layers[1].silent_tokens[dead] = 50
    results = clt.training_forward(data, share=0.5)
    assert [list(result.losses) for result in results.values()] == [
        ["reconstruction"],
        ["reconstruction", "auxk"],
        ["reconstruction"],
    ]
    _, errors = plain(clt, data)
    error = torch.cat(errors[1:], dim=1).detach()
    layer = clt.layers[1]
    pre = data[READS[1]] * clt.scales[READS[1]] @ layer.W_enc[:, dead] + layer.b_enc[dead]
    missed = (error - pre.relu() @ layer.W_dec[dead]).square().sum() / (error - error.mean(dim=0)).square().sum()
    assert float(results[READS[1]].losses["auxk"]) == pytest.approx(float(missed) / 32, rel=1e-9)


def test_finished_coders_together_give_what_was_learned_on_raw_activations():
    data = rows(400)
    optimiser = untrained(data, n_steps=5)
    for index, batch in enumerate(MemoryBatches(data, 64, 5).from_step(0)):
        optimiser.step(batch, index=index)
    clt = optimiser.trainable
    for batch in MemoryBatches(data, 64, 2).from_step(0):
        clt.calibrate(batch, n_tokens=128)
    coders = optimiser.finished()
    each = zip(coders.values(), WRITES, strict=True)
    thresholds = [float(coder.threshold[0]) * clt.scales[write] for coder, write in each]
    pre = data[READS[0]] * clt.scales[READS[0]] @ clt.layers[0].W_enc + clt.layers[0].b_enc
    assert thresholds[0] > 0 and (pre > thresholds[0]).sum() / len(pre) == pytest.approx(K, abs=0.5)
    assert list(coders) == list(READS)
    assert [coder.writes for coder in coders.values()] == [WRITES, WRITES[1:], WRITES[2:]]
    _, errors = plain(clt.double(), {hook: own.double() for hook, own in data.items()}, thresholds=thresholds)
    for write, error in zip(WRITES, errors, strict=True):
        missed = data[write].double() - summed(coders, data, write)
        assert torch.allclose(missed, error.detach() / clt.scales[write], atol=1e-4 * float(data[write].abs().max()))
        biases = [coder.decoder_bias(write).abs().sum() for coder in coders.values() if write in coder.writes]
        assert [bool(bias) for bias in biases] == [False] * (len(biases) - 1) + [True]


def summed(coders: dict[HookPoint, SparseCoder], data: dict[HookPoint, Tensor], write: HookPoint) -> Tensor:
    writers = [coder.double() for coder in coders.values() if write in coder.writes]
    return torch.stack([coder.decode(coder.encode(data[coder.hook].double()), hook=write) for coder in writers]).sum(
        dim=0
    )


def test_training_explains_most_and_keeps_decoder_rows_of_length_one():
    data = rows(4000)
    optimiser = untrained(data, n_steps=300)
    for index, batch in enumerate(MemoryBatches(data, 128, 300).from_step(0)):
        results = optimiser.step(batch, index=index)
    assert all(float(result.fvu) < 0.35 for result in results.values()), [float(one.fvu) for one in results.values()]
    for layer in optimiser.trainable.layers:
        assert torch.allclose(layer.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)


def test_the_layers_must_be_complete():
    hooks = [*READS, *WRITES, HookPoint(3, "resid")]
    assert hook_groups("clt", sorted(hooks)) == [(*READS, *WRITES)]
    shapes = coder_shapes("clt", (*READS, *WRITES))
    assert [(shape.reads, shape.writes) for shape in shapes] == [
        ((hook,), WRITES[number:]) for number, hook in enumerate(READS)
    ]
    for lacking in (WRITES[1], READS[0]):
        with pytest.raises(SettingsError, match=f"lacks {lacking}") as caught:
            hook_groups("clt", [hook for hook in hooks if hook != lacking])
        assert "--sites mlp_in,mlp --layers 2:5" in (caught.value.hint or "")
    with pytest.raises(SettingsError, match=r"lacks mlp_in\.3 mlp\.3"):
        hook_groups("clt", [hook for hook in hooks if hook.layer != 3])
    with pytest.raises(SettingsError, match="one layer"):
        hook_groups("clt", [READS[0], WRITES[0]])
    with pytest.raises(SettingsError, match="none of them"):
        hook_groups("clt", [HookPoint(2, "resid"), HookPoint(3, "resid")])
