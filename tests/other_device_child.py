"""Training on a device that is not the CPU, beside the CPU. `test_other_device` runs this in a process of its own, with
and without the kernels of a GPU (OTHER_DEVICE_WAYS), because the back end stays for as long as the process."""

import os

import other_device
import pytest
import torch
import torch.nn.functional as F
from support import hf_model, random_ids
from torch import Tensor
from training_fakes import D_IN, SINGLE, fully_trained, moments, planted, recipe

from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.mlp import Mlp, Projection
from circuitcli.models.partial import clean_pass, first_block, rerun
from circuitcli.models.taps import leaf
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.optimiser import CoderOptimiser

IS_REAL = other_device.is_real()
if not IS_REAL:
    other_device.register()
OTHER = torch.device(os.environ.get("TESTS_DEVICE", other_device.NAME))
# Few: Triton's interpreter takes a millisecond for a row or a feature.
N_STEPS, D_SAE, BATCH = 2, 16, 16
OPTIONS = {"relu": {"l1_weight": 1.0}, "gated": {"l1_weight": 2.0}, "matryoshka": {"prefixes": (0.5, 1.0)}}
HOOKS = {
    "transcoder": (HookPoint(1, "mlp_in"), HookPoint(1, "mlp")),
    "skip-transcoder": (HookPoint(1, "mlp_in"), HookPoint(1, "mlp")),
    "staircase": (HookPoint(1, "resid"), HookPoint(2, "resid")),
    "staircase-detach": (HookPoint(1, "resid"), HookPoint(2, "resid")),
    "jacobian": (HookPoint(1, "mlp_in"), HookPoint(1, "mlp")),
}


@pytest.fixture(autouse=True, params=os.environ.get("OTHER_DEVICE_WAYS", "of the device").split(","))
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "kernels":
        other_device.run_kernels(monkeypatch.setattr)
    if request.param == "dense":
        monkeypatch.delenv("TRITON_INTERPRET")


def mlp(device: torch.device) -> Mlp:
    generator = torch.Generator().manual_seed(2)

    def projection(d_in: int, d_out: int) -> Projection:
        weight = torch.randn(d_out, d_in, generator=generator) / d_in**0.5
        return Projection(weight.to(device), torch.zeros(d_out, device=device))

    return Mlp(projection(D_IN, 24), projection(24, D_IN), F.gelu)


def first_step(architecture: str, device: torch.device) -> dict[str, Tensor]:
    """Losses and gradients of a trainable's first step, with a dead feature, on the CPU; it then learns to the end."""
    hooks = HOOKS.get(architecture, (HookPoint(1, "resid"),))
    rows = {hook: planted(256, seed=seed)[0] for seed, hook in enumerate(hooks)}
    options = OPTIONS.get(architecture, {})
    made = recipe(N_STEPS, architecture=architecture, d_sae=D_SAE, **options)
    first = {hook: own.to(device) for hook, own in rows.items()}
    about = {hook: moments(own) for hook, own in rows.items()}
    lies_between = mlp(device) if architecture == "jacobian" else None
    optimiser = CoderOptimiser(new_trainable(hooks, first, made.config, about, mlp=lies_between), made.optimiser_config)
    for name, silent in optimiser.trainable.named_buffers():
        if name.endswith("silent_tokens"):
            silent[3] = made.config.dead_tokens
    results = optimiser.step({hook: own[:BATCH] for hook, own in rows.items()}, index=0)
    found = {f"{hook} {name}": part for hook, result in results.items() for name, part in result.losses.items()}
    found |= {name: parameter.grad for name, parameter in optimiser.parameters.items() if parameter.grad is not None}
    assert {number.device.type for number in found.values()} == {device.type}
    found = {name: number.detach().cpu().clone() for name, number in found.items()}
    finished = fully_trained(optimiser, rows, batch_size=BATCH).trainable.finished()
    assert {value.device.type for sae in finished.values() for value in sae.state_dict().values()} == {"cpu"}
    return found


@pytest.mark.parametrize("architecture", [*SINGLE, "staircase", "staircase-detach", "jacobian"])
def test_a_student_learns_as_on_the_cpu(architecture: str):
    here, there = (first_step(architecture, device) for device in (torch.device("cpu"), OTHER))
    assert here.keys() == there.keys() and any("auxk" in name for name in here)
    for name, value in here.items():
        atol = 1e-5 * max(1.0, float(value.abs().max())) if IS_REAL else 1e-6
        assert torch.allclose(there[name], value, rtol=1e-3 if IS_REAL else 1e-4, atol=atol), name


def numbers(adapter: ModelAdapter) -> list[Tensor]:
    """Logits, those of a changed rerun, a gradient and logit effects, on the CPU."""
    ids, hook, seen = random_ids().to(adapter.device), HookPoint(1, "resid_mid"), []

    def change(activation: Tensor) -> Tensor:
        seen.append(leaf(activation * torch.arange(1, 4, device=adapter.device)[:, None, None]))
        return seen[0]

    clean = clean_pass(adapter, ids, (hook,))
    logits = adapter.head(rerun(adapter, clean, {hook: change}, rows=3, start=first_block(hook)))
    logits[:, -1].log_softmax(-1)[:, 5].sum().backward()
    found = [clean.logits, clean.activations[hook], logits, seen[0].grad]
    assert {number.device.type for number in found} == {OTHER.type}
    return [number.detach().cpu() for number in (*found, adapter.logit_effect(torch.ones(2, adapter.d_model)))]


@pytest.mark.skipif(OTHER.type == "cpu", reason="that is one device")
def test_a_model_on_two_devices_gives_the_numbers_of_one():
    import accelerate

    plain = hf_model("llama", dtype=torch.float32).to(OTHER)
    split, there, here = hf_model("llama", dtype=torch.float32), f"{OTHER.type}:0", torch.device("cpu")
    layout = ModelAdapter.of(plain).layout
    places = {layout.embedding: there, "model.rotary_emb": there, layout.final_norm: there, "lm_head": here}
    places |= {f"{layout.blocks}.{number}": here if number == 1 else there for number in range(3)}
    accelerate.dispatch_model(split, places, force_hooks=True)
    for one, other in zip(numbers(ModelAdapter.of(plain)), numbers(ModelAdapter.of(split)), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(IS_REAL, reason="this is about the stand-in")
def test_a_mix_of_devices_is_refused():
    far, near = torch.ones(3, device=OTHER), torch.ones(3)
    assert (far + far).tolist() == [2, 2, 2] and (far * torch.tensor(2.0)).tolist() == [2, 2, 2]
    for mixed in (
        lambda: far + near,
        lambda: near * far.sum(),
        lambda: torch.cat([far, near]),
        lambda: torch.stack([far.sum(), near.sum()]),
        lambda: near[far.long()],
        lambda: far.index_select(0, near.long()),
        lambda: far.numpy(),
    ):
        with pytest.raises(RuntimeError):
            mixed()
