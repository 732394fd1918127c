"""A model that learns together with its SAEs, beside the plain definition of the loss and from a command's run."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import adapter_of
from test_end_to_end import Words as Block
from test_train_stage import collected, request  # noqa: F401
from training_fakes import moments, recipe

from circuitcli.errors import SettingsError
from circuitcli.evaluation.spliced import Texts
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import load_model
from circuitcli.saes import files
from circuitcli.settings.model import ModelSettings
from circuitcli.stages import train
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.joint import TrainableJoint, Words
from circuitcli.training.optimiser import CoderOptimiser

HOOKS = (HookPoint(0, "resid"), HookPoint(1, "mlp"))


def words() -> Words:
    blocks = [Block([3, 1, 4, 1, 5, 9], [0, 1, 2, 3, 5]), Block([2, 6, 5, 3], [1, 2, 3])]
    ((ids, mask, target, stored),) = Texts.of(blocks, pad_id=0, batch_size=2, device=torch.device("cpu"))
    return Words(ids, mask, target, stored)


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_the_loss_is_the_models_own_and_the_mean_of_what_saes_miss_and_both_learn_from_it(architecture: str):
    adapter = adapter_of("gpt2", dtype=torch.float32)
    rows = {hook: torch.randn(60, adapter.d_model) for hook in HOOKS}
    told = recipe(10, d_sae=20, architecture=architecture, k=3, auxk_weight=0.0)
    coders = [new_trainable((hook,), {hook: own}, told.config, {hook: moments(own)}) for hook, own in rows.items()]
    made, batch = TrainableJoint(coders, adapter, weight=2.0, rate_factor=0.1), words()
    found = made.training_forward(batch, share=1.0)
    loss = torch.stack([part for result in found.values() for part in result.losses.values()]).sum()
    # The same by whole passes: predictions of each text alone, and codes as matrices.
    activations: dict[HookPoint, list] = {hook: [] for hook in HOOKS}
    nats = []
    for ids, positions in (([3, 1, 4, 1, 5, 9], [0, 1, 2, 3, 5]), ([2, 6, 5, 3], [1, 2, 3])):
        out = adapter.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        nats.append(F.cross_entropy(out.logits[0, :-1], torch.tensor(ids[1:]), reduction="none"))
        activations[HOOKS[0]].append(out.hidden_states[1][0, positions])
        block = adapter.blocks[1]
        middle = out.hidden_states[1] + block.attn(block.ln_1(out.hidden_states[1]))[0]
        activations[HOOKS[1]].append(block.mlp(block.ln_2(middle))[0, positions])
    expected = torch.cat(nats).mean()
    for coder in coders:
        x = torch.cat(activations[coder.sae.hook]) * coder.scale
        missed = (x - coder.sae.reconstruct(x)).square().sum()
        if architecture == "relu":
            l1 = (coder.sae.encode(x) @ coder.sae.W_dec.norm(dim=1)).sum()
            missed = missed + (adapter.d_model / 4096) ** 0.5 * 5 * l1
        expected = expected + 2.0 / 2 * missed / (x - x.mean(dim=0)).square().sum()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    parameters = list(made.parameters())
    ours, theirs = (torch.autograd.grad(one, parameters, allow_unused=True) for one in (loss, expected))
    for gradient, other in zip(ours, theirs, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None and other is not None:
            assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-5)


def test_a_shared_weight_is_one_parameter_and_the_model_has_its_own_learning_rate():
    adapter = adapter_of("gpt2", dtype=torch.float32)
    rows = {HOOKS[0]: torch.randn(60, adapter.d_model)}
    told = recipe(10, d_sae=20, k=3)
    coder = new_trainable((HOOKS[0],), rows, told.config, {HOOKS[0]: moments(rows[HOOKS[0]])})
    made = TrainableJoint([coder], adapter, weight=1.0, rate_factor=0.1)
    assert len(made.weights) == len(list(adapter.model.parameters()))
    assert {made.rate_factor(name) for name, _ in made.named_parameters() if "weights" in name} == {0.1}
    assert made.rate_factor("saes.0.sae.W_enc") == 1.0
    with pytest.raises(SettingsError, match="does not learn"):
        TrainableJoint([coder], adapter_of("gpt2", dtype=torch.float64), weight=1.0, rate_factor=0.1)


FEW = {
    "train__objective": "joint",
    "train__tokens": 2560,
    "train__regularisation": 1.0,
    "train__model_rate": 1e-3,
    "train__loss_tokens": 200,
    "sae__d_sae": 48,
    "train__checkpoint_tokens": 1280,
}


@pytest.fixture
def run_path(collected: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(collected, tmp_path / "run"))


def test_a_run_trains_both_and_goes_on_after_a_kill_to_the_same_bits(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = Path(shutil.copytree(run_path, tmp_path / "other"))
    unbroken = train.run(request(other, **FEW))
    learn = CoderOptimiser.step

    def interrupted(self, batch, *, index):
        if index == 14:
            raise RuntimeError("the machine fails")
        return learn(self, batch, index=index)

    monkeypatch.setattr(CoderOptimiser, "step", interrupted)
    with pytest.raises(RuntimeError):
        train.run(request(run_path, **FEW))
    monkeypatch.undo()
    assert not (run_path / "model").exists()
    assert [one.digest for one in train.run(request(run_path, **FEW))] == [one.digest for one in unbroken]
    weights = [path / "model" / "model.safetensors" for path in (run_path, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    model = load_model(ModelSettings(name=str(other / "model"), device="cpu"))
    assert model.adapter.n_layers == 4 and model.tokenizer.hf.encode("def f") == model.tokenizer.hf.encode("def f")
    assert files.read_config(run_path / unbroken[0].path)["model"] == str((run_path / "model").absolute())
    # They are measured with the model that they learned with, which is easier to explain the more that counted.
    freer = train.run(request(other, force=True, **FEW | {"train__regularisation": 1e-3}))
    for record, alone in zip(unbroken, freer, strict=True):
        assert record.explained_variance > alone.explained_variance


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sae__architecture": "batchtopk"}, "does not learn together with the model"),
        ({"sae__architecture": "transcoder"}, "does not learn together with the model"),
        ({"train__keep": "best"}, "train.keep=best does not go with"),
        ({"train__downstream_weight": 1.0}, "no effect on joint training"),
    ],
)
def test_what_cannot_learn_together_is_refused(run_path: Path, changes: dict, words: str):
    with pytest.raises(SettingsError, match=words):
        train.run(request(run_path, **FEW | changes))
