"""Training from finished coders on: they are taken over as they are, whatever they are for, and learn further."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_jacobian import case
from test_train_stage import collected, request  # noqa: F401
from torch import Tensor
from training_fakes import MemoryBatches, moments, planted, recipe

from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import SaeRecord
from circuitcli.saes import files
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.exchange import sae_lens
from circuitcli.saes.exchange.place import About
from circuitcli.saes.exchange.tensors import Foreign
from circuitcli.settings.sources import load
from circuitcli.stages import train
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.architectures.registry import new_trainable
from circuitcli.training.architectures.trainable import Trainable
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import hook_groups
from circuitcli.training.starting import Start, started

SITES = ("resid_mid", "mlp_in", "mlp", "resid")
HOOK = HookPoint(1, "resid")
WIDTH, K = 24, 3
NORMALISATIONS = ("none", "centre", "layer-norm", "rms-norm")


def activations(seed: int, *, scale: float = 1.0) -> dict[HookPoint, Tensor]:
    """Rows at all sites of two layers, of other sizes at each."""
    return {
        HookPoint(layer, site): scale * (1 + number + layer) * planted(300, seed=seed + number + 10 * layer)[0]
        for layer in (0, 1)
        for number, site in enumerate(SITES)
    }


def trainable_of(architecture: str, rows: Mapping[HookPoint, Tensor]) -> tuple[Trainable, dict[HookPoint, Tensor]]:
    """An untrained group, and its activations."""
    hooks = hook_groups(architecture, sorted(rows))[0]
    own = {hook: rows[hook] for hook in hooks}
    mlp = case("gpt2", architecture)[1] if DESCRIPTIONS[architecture].needs_mlp else None
    config = replace(recipe(10, d_sae=WIDTH, architecture=architecture, k=K).config, seed=5)
    return new_trainable(hooks, own, config, {hook: moments(one) for hook, one in own.items()}, mlp=mlp), own


def finished_of(made: Trainable, rows: Mapping[HookPoint, Tensor]) -> dict[HookPoint, SparseCoder]:
    made.calibrate(rows, n_tokens=300)
    return made.finished()


def random_coder(architecture: str, *, normalisation: str = "none", seed: int = 1) -> SparseCoder:
    options = {"k": K} if architecture.endswith("topk") else {}
    coder = ARCHITECTURES[architecture](SaeConfig(HOOK, 16, WIDTH, normalisation=normalisation), **options)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in coder.named_parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        if name == "threshold":
            parameter.data.abs_()
    return coder.eval().requires_grad_(False)


def assert_same(coder: SparseCoder, other: SparseCoder, rows: Mapping[HookPoint, Tensor]) -> None:
    """That both write the same, with the same features; where rows may be any length, codes are in their own units."""
    x = coder.joined(rows).double()
    coder, other = coder.double(), other.double()
    one, two = coder.encode(x), other.encode(x)
    assert ((one > 1e-4) & (two == 0)).sum() + ((two > 1e-4) & (one == 0)).sum() == 0 and (one > 0).any()
    for hook in coder.writes:
        theirs = other.decode(two, other.written_frame(x), hook=hook)
        ours = coder.decode(one, coder.written_frame(x), hook=hook)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("architecture", DESCRIPTIONS)
def test_without_a_step_every_architecture_gives_back_the_coders_that_it_began_from(architecture: str):
    made, rows = trainable_of(architecture, activations(3))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.project_parameters()
    coders = finished_of(made, rows)
    # On other activations, whose moments are others.
    again, others = trainable_of(architecture, activations(40, scale=2.5))
    again.begin_from(coders, others)
    for hook, coder in again.finished().items():
        assert_same(coder, coders[hook], others)
        assert coder.config == coders[hook].config


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("architecture", ["relu", "gated", "topk", "jumprelu"])
def test_coders_of_other_libraries_are_taken_over_with_what_they_do_to_their_input(
    architecture: str, normalisation: str
):
    coder = random_coder(architecture, normalisation=normalisation)
    made, rows = trainable_of(architecture, {HOOK: 7.0 * planted(300)[0]})
    made.begin_from({HOOK: coder}, rows)
    (back,) = made.finished().values()
    assert_same(back, coder, rows)
    result = made.training_forward(rows, share=0.0)[HOOK]
    # What is missed counts as the coder sees it.
    x = rows[HOOK]
    frame = coder.normal_frame(x)
    error = x - coder.reconstruct(x)
    if frame is not None:
        error, x = error / frame.scale, (x - frame.mean) / frame.scale
    expected = error.square().sum() / (x - x.mean(dim=0)).square().sum()
    assert float(result.fvu) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_training_on_makes_less_be_missed_and_keeps_the_lengths_of_decoder_rows(normalisation: str):
    coder = random_coder("topk", normalisation=normalisation)
    made, rows = trainable_of("topk", {HOOK: planted(300)[0]})
    made.begin_from({HOOK: coder}, rows)
    optimiser = CoderOptimiser(made, recipe(60, peak=0.02).optimiser_config)
    steps = [
        optimiser.step(batch, index=index)[HOOK].fvu
        for index, batch in enumerate(MemoryBatches(rows, 128, 60).from_step(0))
    ]
    assert steps[-1] < 0.3 * steps[0]
    (back,) = made.finished().values()
    assert torch.allclose(back.W_dec.norm(dim=1), coder.W_dec.norm(dim=1), rtol=1e-4)


def test_what_learned_before_meets_the_whole_penalty_from_the_first_step():
    coder, rows = random_coder("relu"), {HOOK: planted(300)[0]}
    made, _ = trainable_of("relu", rows)
    assert not made.training_forward(rows, share=0.0)[HOOK].losses["l1"].any()
    made.begin_from({HOOK: coder}, rows)
    first, last = (made.training_forward(rows, share=share)[HOOK].losses["l1"] for share in (0.0, 1.0))
    assert torch.equal(first, last) and first > 0


def test_coders_decide_what_is_trained_unless_another_k_is_asked_for():
    starts = {HOOK: Start(random_coder("topk"))}
    chosen = started(load({}).settings, starts, explicit=())
    assert (chosen.sae.architecture, chosen.sae.d_sae, chosen.sae.k) == ("topk", WIDTH, K)
    assert started(load({"sae.k": 2}).settings, starts, explicit={"sae.k"}).sae.k == 2
    jumprelu = {HOOK: Start(random_coder("jumprelu"), "batchtopk")}
    assert started(load({}).settings, jumprelu, explicit=()).sae.architecture == "batchtopk"
    chosen = load({"sae.architecture": "jumprelu"}).settings
    assert started(chosen, jumprelu, explicit={"sae.architecture"}).sae.architecture == "jumprelu"


@pytest.mark.parametrize(
    ("coders", "options", "words"),
    [
        ([random_coder("topk")], {"sae.d_sae": 48}, "sae.d_sae=48, but the coders of --from have 24"),
        ([random_coder("topk")], {"sae.architecture": "relu"}, "relu cannot go on from topk coders"),
        ([random_coder("topk"), random_coder("relu")], {}, "not one architecture"),
        ([random_coder("abstopk")], {}, "abstopk codes, as none that is trained here"),
    ],
    ids=["width", "architecture", "mixed", "unknown"],
)
def test_coders_that_cannot_be_trained_on_so_are_refused(coders: list, options: dict, words: str):
    starts = {}
    for layer, coder in enumerate(coders):
        coder.config = replace(coder.config, hook=HookPoint(layer, "resid"))
        starts[coder.hook] = Start(coder)
    with pytest.raises(CircuitError, match=words):
        started(load(options).settings, starts, explicit=set(options))


def test_coders_with_thresholds_of_their_own_are_no_start_for_batchtopk_nor_any_for_a_staircase():
    made, rows = trainable_of("batchtopk", {HOOK: planted(300)[0]})
    with pytest.raises(InputError, match="thresholds of its features' own"):
        made.begin_from({HOOK: random_coder("jumprelu")}, rows)
    hooks = (HookPoint(0, "resid"), HOOK)
    stairs, rows = trainable_of("staircase", {hook: planted(300)[0] for hook in hooks})
    coders = finished_of(stairs, rows)
    coders[hooks[0]].W_enc[0, 0] += 1
    with pytest.raises(InputError, match="shares no features"):
        stairs.begin_from(coders, rows)


@pytest.fixture(scope="module")
def trained_before(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run with SAEs of another width and k than the others' settings."""
    path = Path(shutil.copytree(collected, tmp_path_factory.mktemp("before") / "run"))
    train.run(request(path, sae__k=6, sae__d_sae=40, train__tokens=1280))
    return path


@pytest.fixture
def run_path(collected: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(collected, tmp_path / "run"))


def on(path: Path, start: Path | str, **changes):
    """A request to train on; the tests' own settings of shape are those of new coders."""
    asked = request(path, train__start=str(start), train__tokens=1280, **changes)
    sae = {name: value for name, value in changes.items() if name.startswith("sae__")}
    chosen = asked.settings.model_copy(
        update={"sae": load({name.replace("__", "."): value for name, value in sae.items()}).settings.sae}
    )
    return replace(asked, settings=chosen)


def test_a_run_trains_on_from_another_runs_coders_at_all_hook_points_and_goes_on_after_a_kill(
    run_path: Path, trained_before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = Path(shutil.copytree(run_path, tmp_path / "other"))
    unbroken = train.run(on(other, trained_before))
    before = {
        record.hook: record
        for record in train.run(request(trained_before, sae__k=6, sae__d_sae=40, train__tokens=1280))
    }
    assert [record.hook for record in unbroken] == list(before)
    for record in unbroken:
        assert isinstance(record, SaeRecord) and (record.d_sae, record.k) == (40, 6)
        assert record.explained_variance > before[record.hook].explained_variance
        assert files.read_config(other / record.path)["begun_from"] == before[record.hook].digest
    learn = CoderOptimiser.step

    def interrupted(self, batch, *, index):
        if index == 9 and self.name == "resid.1":
            raise RuntimeError("the machine fails")
        return learn(self, batch, index=index)

    monkeypatch.setattr(CoderOptimiser, "step", interrupted)
    with pytest.raises(RuntimeError):
        train.run(on(run_path, trained_before))
    monkeypatch.undo()
    assert [one.digest for one in train.run(on(run_path, trained_before))] == [one.digest for one in unbroken]


def test_another_start_is_another_training(run_path: Path, trained_before: Path, tmp_path: Path):
    copy = Path(shutil.copytree(trained_before / "saes", tmp_path / "copy"))
    first = train.run(on(run_path, copy))
    # Where they lie makes no difference.
    assert train.run(on(run_path, trained_before)) == first
    coder = files.load(copy / "resid.1")
    coder.b_enc[0] += 1
    files.save(coder, copy / "resid.1", trained_as="topk")
    with pytest.raises(InputError, match=r"start at resid\.1"):
        train.run(on(run_path, copy))


def test_one_of_several_hook_points_trains_on_from_a_coder_of_another_library(
    run_path: Path, trained_before: Path, tmp_path: Path
):
    coder = files.load(trained_before / "saes" / "resid.1")
    sae_lens.write([Foreign(coder, About())], tmp_path / "foreign")
    (record,) = train.run(on(run_path, f"sae_lens:{tmp_path / 'foreign'}", sae__k=4))
    assert (record.hook, record.architecture, record.k, record.d_sae) == ("resid.1", "topk", 4, 40)


def test_starts_that_make_no_sense_are_refused_and_change_nothing(run_path: Path, trained_before: Path):
    with pytest.raises(InputError, match="would be replaced by what is trained from it"):
        train.run(on(trained_before, trained_before))
    manifest = (run_path / "run.json").read_text()
    with pytest.raises(SettingsError, match="makes no difference"):
        train.run(on(run_path, trained_before, train__sweep="sae.d_sae=8,16"))
    with pytest.raises(CircuitError, match="no SAE in"):
        train.run(on(run_path, run_path / "activations"))
    with pytest.raises(SettingsError, match="relu cannot go on from topk coders"):
        train.run(on(run_path, trained_before, sae__architecture="relu"))
    assert (run_path / "run.json").read_text() == manifest and not (run_path / "saes").exists()
    assert dict(train.plan(on(run_path, trained_before)))["features"] == "40"
