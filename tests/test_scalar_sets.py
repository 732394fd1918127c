"""The sets of SAEs that SCALAR compares: their hook points, widths and sharing, and what they cost together."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train_stage import collected, request  # noqa: F401
from torch import Tensor
from training_fakes import MemoryBatches, fully_trained, moments, planted, recipe

from circuitcli.activations.cache import ActivationCache
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ReplacementRecord, SaeRecord, Stream
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.relu import ReluSae
from circuitcli.settings.sources import load
from circuitcli.stages import collect, measure, train
from circuitcli.stages.evaluate import run as evaluate
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import coder_shapes, hook_groups

CONFIGS = Path(__file__).parents[1] / "configs" / "scalar"
# What is there beside sets says how they are measured.
SETS = sorted(path for path in CONFIGS.glob("*.toml") if "[sae]" in path.read_text(encoding="utf-8"))
STREAM = tuple(HookPoint.parse(f"{layer}_act") for layer in range(5))
STEP, D = 12, 16


def rows_of(hooks: tuple[HookPoint, ...]) -> dict[HookPoint, Tensor]:
    return {hook: (1 + seed) * planted(400, seed=seed)[0] for seed, hook in enumerate(hooks)}


def made_of(architecture: str, rows: dict[HookPoint, Tensor], *, d_sae: int = STEP, **changes) -> CoderOptimiser:
    told = recipe(20, d_sae=d_sae, architecture=architecture, k=3, **changes)
    known = {hook: moments(own) for hook, own in rows.items()}
    trainable = new_trainable(tuple(rows), {hook: own[:256] for hook, own in rows.items()}, told.config, known)
    return CoderOptimiser(trainable, told.optimiser_config)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("topk-x8", 330_560),
        ("topk-x40", 1_651_520),
        ("staircase-share", 335_680),
        ("staircase-detach", 335_680),
        ("staircase-untied", 991_040),
        ("staircase-noshare", 991_040),
        ("topk-x40 tied", 340_800),
    ],
)
def test_the_sets_have_as_many_parameters_as_those_of_the_paper(name: str, parameters: int):
    file, _, tied = name.partition(" ")
    settings = load(config=[CONFIGS / f"{file}.toml"], environment={}).settings
    architecture = "topk-tied" if tied else settings.sae.architecture
    assert settings.data.hooks == tuple(map(str, STREAM)) and settings.sae.k == 10
    d_sae, total = settings.sae.d_sae, 0
    for group in hook_groups(architecture, [HookPoint.parse(hook) for hook in settings.data.hooks]):
        rows = {hook: torch.randn(3, 64) for hook in group}
        told = recipe(5, d_sae=d_sae, architecture=architecture)
        made = new_trainable(group, rows, told.config, {hook: moments(own) for hook, own in rows.items()})
        total += sum(parameter.numel() for parameter in made.parameters())
    assert total == parameters


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_every_set_can_be_trained_on_the_hook_points_that_its_file_collects(path: Path):
    settings = load(config=[path], environment={}).settings
    hooks = [HookPoint.parse(hook) for hook in settings.data.hooks] or [
        HookPoint(layer, site) for layer in range(4) for site in settings.data.sites
    ]
    trained = [hook for group in hook_groups(settings.sae.architecture, hooks) for hook in group]
    assert sorted(trained) == sorted(hooks)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#   circuit")]
    assert len(lines) == 2 and all(f"configs/scalar/{path.name}" in line for line in lines)


def test_inputs_of_blocks_stand_below_outputs_as_one_stream_unless_they_are_the_same():
    stairs = "staircase"
    assert hook_groups(stairs, STREAM) == [STREAM]
    assert [shape.width for shape in coder_shapes(stairs, STREAM)] == [1, 2, 3, 4, 5]
    assert [shape.width for shape in coder_shapes("topk-tied", STREAM)] == [1] * 5
    mlps = tuple(HookPoint(layer, "mlp") for layer in range(3))
    assert hook_groups(stairs, sorted((*STREAM, *mlps))) == [STREAM, mlps]
    both = [HookPoint(layer, site) for layer in range(3) for site in ("resid_pre", "resid")]
    assert [len(group) for group in hook_groups(stairs, both)] == [3, 3]
    blocks = [HookPoint(layer, site) for layer in (1, 2) for site in ("resid_mid", "resid")]
    assert hook_groups("staircase-block", blocks) == [tuple(blocks[:2]), tuple(blocks[2:])]
    assert [shape.width for shape in coder_shapes("staircase-block", tuple(blocks[:2]))] == [1, 2]


def test_saes_of_an_untied_staircase_learn_as_saes_of_their_widths_that_stand_alone():
    rows = rows_of(STREAM[:3])
    # Beyond any gradient, as the clipped norm would be that of all.
    together = made_of("staircase-untied", rows, clip=1e6)
    alone = {
        hook: made_of("topk", {hook: own}, d_sae=STEP * (number + 1), clip=1e6)
        for number, (hook, own) in enumerate(rows.items())
    }
    for index, batch in enumerate(MemoryBatches(rows, 64, 20).from_step(0)):
        found = together.step(batch, index=index)
        for hook, one in alone.items():
            (result,) = one.step({hook: batch[hook]}, index=index).values()
            assert torch.equal(result.losses["reconstruction"], found[hook].losses["reconstruction"])
    for hook, coder in together.finished().items():
        assert torch.equal(coder.W_dec, alone[hook].finished()[hook].W_dec)


def test_tied_saes_share_all_features_and_have_biases_of_their_own():
    coders = fully_trained(made_of("topk-tied", rows_of(STREAM[:3])), rows_of(STREAM[:3])).finished()
    first, *others = coders.values()
    for other in others:
        assert torch.equal(first.W_enc, other.W_enc) and torch.equal(first.W_dec, other.W_dec)
        assert not torch.equal(first.b_enc, other.b_enc) and not torch.equal(first.b_dec, other.b_dec)


@pytest.fixture
def run_path(collected: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(collected, tmp_path / "run"))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with what enters three blocks."""
    path = tmp_path_factory.mktemp("stream") / "run"
    collect.run(request(path, Stream(), data__hooks="0_act,1_act,2_act", data__tokens=1000))
    return path


@pytest.mark.parametrize("architecture", ["staircase", "staircase-untied"])
def test_records_tell_how_many_features_of_each_step_are_active_and_they_add_up(
    stream: Path, tmp_path: Path, architecture: str
):
    path = Path(shutil.copytree(stream, tmp_path / "run"))
    few = {"sae__d_sae": 32, "train__tokens": 640, "train__eval_tokens": 100, "train__loss_tokens": 0}
    asked = request(path, sae__architecture=architecture, **few)
    records = [record for record in train.run(asked) if isinstance(record, SaeRecord)]
    assert [len(record.l0_per_chunk) for record in records] == [record.d_sae // 32 for record in records]
    for record in records:
        assert sum(record.l0_per_chunk) == pytest.approx(record.l0, abs=1e-9)
    again = replace(asked, records=asked.run.stream())
    measured = [one for one in evaluate(again) if one.kind == "evaluation"]
    assert [one.l0_per_chunk for one in measured] == [list(record.l0_per_chunk) for record in records]


def test_what_saes_cost_together_is_in_a_record_beside_what_each_costs_alone(run_path: Path):
    few = {"sae__d_sae": 32, "train__tokens": 640, "train__loss_tokens": 200}
    before = train.run(request(run_path, **few))
    assert not any(isinstance(record, ReplacementRecord) for record in before)
    # Only the measuring is done again.
    *saes, found = train.run(request(run_path, train__compound=True, **few))
    assert [one.digest for one in saes] == [one.digest for one in before]
    assert isinstance(found, ReplacementRecord) and set(found.ce_increases) == {one.hook for one in saes}
    assert found.ce_increase == pytest.approx(found.ce_spliced - found.ce_clean)
    assert train.run(request(run_path, train__compound=True, **few))[-1] == found


def exact(hook: HookPoint, d: int) -> ReluSae:
    """An SAE that misses nothing: a feature for each direction of each axis."""
    coder, both = ReluSae(SaeConfig(hook, d, 2 * d)), torch.cat([torch.eye(d), -torch.eye(d)])
    coder.W_dec.data, coder.W_enc.data = both, both.T.clone()
    return coder.requires_grad_(False)


def test_compound_loss_is_that_of_the_clean_model_with_exact_saes_and_of_the_ablated_one_with_zero_saes(run_path: Path):
    asked = request(run_path, train__loss_tokens=200)
    hooks = [HookPoint(1, "attn"), HookPoint(1, "resid")]
    cache = ActivationCache(run_path / "activations", hooks)
    bench = measure.held_out(asked, cache, range(cache.n_tokens - 300, cache.n_tokens))
    clean = bench.replacement({hook: exact(hook, 128) for hook in hooks})
    assert clean["ce_spliced"] == pytest.approx(clean["ce_clean"], abs=1e-5)
    zeros = {hook: ReluSae(SaeConfig(hook, 128, 4)).requires_grad_(False) for hook in hooks}
    ablated = bench.replacement(zeros)
    assert (
        ablated["ce_spliced"] == pytest.approx(ablated["ce_zero"], abs=1e-5) != pytest.approx(clean["ce_clean"], 0.01)
    )
    for hook, coder in zeros.items():
        alone = bench.facts(coder)
        assert bench.replacement({hook: coder})["ce_spliced"] == pytest.approx(alone["ce_spliced"], abs=1e-6)
