"""Planted features: their moments, how a stack of autoencoders learns them, how far it got, and `circuit toy`."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from cli_support import here
from safetensors.torch import load_file
from torch import nn

import circuitcli as circuit
from circuitcli.errors import CircuitError, SettingsError
from circuitcli.render.heatmaps import HeatMap, HeatMaps, draw_heat_maps
from circuitcli.settings.toy import ToySettings
from circuitcli.toys import gradients as products
from circuitcli.toys.ground_truth import MEASURING, correlations, plant, probabilities
from circuitcli.toys.measures import largest_cosines, measure
from circuitcli.toys.stack import Model, Stack, models
from circuitcli.toys.training import Checkpoint, train

CPU = torch.device("cpu")
SMALL = ToySettings(
    d_model=12, n_features=20, n_active=2, l1_weights=(0.1, 3.0), ratios=(0.5, 2.0), batch_size=32, steps=30
)


def settings(**changes) -> ToySettings:
    return ToySettings.model_validate(SMALL.model_dump() | changes)


def stack_of(chosen: ToySettings) -> Stack:
    return Stack(models(chosen), chosen, seed=3, device=CPU)


def moments(chosen: ToySettings, n_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each feature is active in each example, and all strengths of active ones."""
    truth = plant(chosen, seed=1)
    active, strengths = torch.zeros(n_batches * chosen.batch_size, chosen.n_features), []
    for index in range(n_batches):
        drawn = truth.batch(index)
        active[index * chosen.batch_size + drawn.examples, drawn.features] = 1
        strengths.append(drawn.strengths)
    return active, torch.cat(strengths)


@pytest.mark.parametrize("correlation", ["none", "examples"])
def test_features_are_active_as_often_as_asked_for(correlation: str):
    chosen = settings(correlation=correlation, batch_size=5000, decay=0.9)
    active, strengths = moments(chosen, 4)
    expected = probabilities(chosen)
    assert float(expected.sum()) == pytest.approx(2)
    assert torch.allclose(expected[1:] / expected[:-1], expected[1] / expected[0])
    errors = (expected * (1 - expected) / len(active)).sqrt()
    assert ((active.mean(0) - expected).abs() < 4.5 * errors).all()
    assert float(strengths.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(strengths.square().mean()) == pytest.approx(1 / 3, abs=0.01)


def test_pairs_of_features_come_together_as_normal_numbers_of_their_correlation_do():
    chosen = settings(n_features=6, n_active=3, decay=1, correlation="examples", batch_size=10000)
    active, _ = moments(chosen, 4)
    matrix = correlations(chosen, seed=1)
    assert torch.allclose(matrix.diagonal(), torch.ones(6, dtype=torch.float64))
    assert float(matrix.triu(1).max()) > 0.3
    # Sheppard: both of two normal numbers are below their median with this probability.
    expected = 1 / 4 + matrix.clamp(-1, 1).asin() / (2 * torch.pi)
    together = active.T @ active / len(active)
    assert torch.allclose(together.double(), expected, atol=4.5 * 0.5 / len(active) ** 0.5)


def test_the_authors_correlation_switches_whole_batches_and_leaves_no_example_empty():
    chosen = settings(n_features=512, n_active=5, correlation="batches", batch_size=64)
    matrix = correlations(chosen, seed=0)
    # As measured of the authors' code: standard deviation 3.1, correlation .052.
    assert float(matrix.diagonal().sqrt().mean()) == pytest.approx(3.1, abs=0.1)
    assert float((matrix.sum() - matrix.trace()) / 511 / matrix.trace()) == pytest.approx(0.052, abs=0.003)
    truth = plant(chosen, seed=0)
    source = torch.Generator().manual_seed(0)
    drawn = torch.stack([truth._probabilities_of_a_batch(source) for _ in range(50)])
    assert torch.allclose(drawn.mean(1), torch.tensor(5 / 512))
    raw = drawn / (drawn / probabilities(chosen).float()).amax(1, keepdim=True) / probabilities(chosen).float()
    assert float((raw < 0.1).float().mean()) == pytest.approx(0.34, abs=0.05)
    assert float((raw > 0.9).float().mean()) == pytest.approx(0.34, abs=0.05)
    batch = truth.batch(0)
    assert batch.examples.unique().tolist() == list(range(64)) and (batch.examples.diff() >= 0).all()


def test_strengths_of_the_first_code_are_products_of_two():
    _, strengths = moments(settings(strength="product", batch_size=5000), 2)
    assert float(strengths.mean()) == pytest.approx(1 / 4, abs=0.01)
    assert float(strengths.square().mean()) == pytest.approx(1 / 9, abs=0.01)


@pytest.mark.parametrize("correlation", ["none", "examples", "batches"])
def test_a_batch_follows_from_seed_and_number_and_is_the_sum_of_its_features(correlation: str):
    truth = plant(settings(correlation=correlation), seed=1)
    one = truth.batch(7)
    assert torch.equal(one.x, plant(settings(correlation=correlation), seed=1).batch(7).x)
    codes = torch.zeros(32, 20).index_put_((one.examples, one.features), one.strengths)
    assert torch.allclose(one.x, codes @ truth.directions, atol=1e-6)
    others = [truth.batch(8).x, truth.batch(7, stream=MEASURING).x, plant(settings(), seed=2).batch(7).x]
    assert not any(torch.equal(one.x, other) for other in others)
    noisy = plant(settings(correlation=correlation, noise=0.5), seed=1).batch(7)
    assert float((noisy.x - one.x).std()) == pytest.approx(0.5, abs=0.06)


def test_features_that_would_be_more_than_certain_are_refused():
    with pytest.raises(SettingsError, match=r"toy.n_active=15 needs a first feature of probability"):
        plant(settings(n_active=15, decay=0.9), seed=0)


class Alone(nn.Module):
    """The published autoencoder by itself, with plain autograd."""

    def __init__(self, first) -> None:
        super().__init__()
        self.W_enc, self.b_enc = nn.Parameter(first.W_enc.clone()), nn.Parameter(first.b_enc.clone())
        self.W_dec = nn.Parameter(first.W_dec.clone())

    def loss(self, x: torch.Tensor, l1_weight: float) -> torch.Tensor:
        codes = (x @ self.W_enc.T + self.b_enc).relu()
        self.W_dec.data /= self.W_dec.data.norm(dim=1, keepdim=True)
        return (codes @ self.W_dec - x).square().mean() + l1_weight * codes.sum(1).mean()


@pytest.mark.parametrize("dense_share", [0.0, 0.4, 2.0], ids=["dense", "mixed", "sparse"])
@pytest.mark.parametrize("divides", [True, False], ids=["divided", "whole"])
def test_a_stack_learns_as_each_does_alone_with_torch_adam(
    dense_share: float, divides: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(products, "DENSE_SHARE", dense_share)
    chosen = settings(divide_penalty=divides, learning_rate=3e-3, l1_weights=(0.01, 3.0))
    stack, truth = stack_of(chosen), plant(chosen, seed=1)
    alone = [Alone(own) for _, own in stack.dictionaries()]
    first = {name: tensor.clone() for name, tensor in stack.state().items()}
    adams = [torch.optim.Adam(one.parameters(), lr=3e-3) for one in alone]
    for index in range(50):
        x = truth.batch(index).x
        stack.step(x)
        for one, adam, model in zip(alone, adams, stack.models, strict=True):
            adam.zero_grad()
            one.loss(x, model.l1_weight / (model.width if divides else 1)).backward()
            adam.step()
    for one, (_, own) in zip(alone, stack.dictionaries(), strict=True):
        decoder = one.W_dec / one.W_dec.norm(dim=1, keepdim=True)
        for made, expected in ((own.W_enc, one.W_enc), (own.b_enc, one.b_enc), (own.W_dec, decoder)):
            assert torch.allclose(made, expected, atol=1e-5)
    # Where nothing moves all agree.
    assert all(float((stack.state()[name] - before).abs().max()) > 0.03 for name, before in first.items())


@pytest.mark.parametrize("level", [-50.0, 0.0, 50.0], ids=["none active", "some", "all"])
def test_sums_over_active_codes_are_the_dense_products(level: float, monkeypatch: pytest.MonkeyPatch):
    stack, x = stack_of(SMALL), plant(SMALL, seed=1).batch(0).x
    whole = stack.tensors
    pre = products.encoded(x, whole.W_enc, whole.b_enc) + level
    dense = products.dense_gradients(x, pre.clone(), whole.W_dec, stack.layout)
    for share in (0.0, 0.5, 2.0):
        monkeypatch.setattr(products, "DENSE_SHARE", share)
        for made, expected in zip(products.gradients(x, pre.clone(), whole.W_dec, stack.layout), dense, strict=True):
            assert torch.allclose(made, expected, atol=1e-6 * float(1 + expected.abs().max()))


def test_what_is_broken_off_goes_on_with_the_same_bits(tmp_path: Path):
    truth = plant(SMALL, seed=1)
    whole, first = stack_of(SMALL), stack_of(settings(steps=11))
    train(whole, truth, Checkpoint(tmp_path / "none"))
    train(first, truth, Checkpoint(tmp_path / "state"))
    Checkpoint(tmp_path / "state").save(first)
    second = stack_of(SMALL)
    train(second, truth, Checkpoint(tmp_path / "state"))
    assert second.done == whole.done == 30
    assert all(torch.equal(tensor, second.state()[name]) for name, tensor in whole.state().items())
    (tmp_path / "state").write_bytes(b"no tensors")
    with pytest.raises(CircuitError, match="cannot go on from"):
        train(stack_of(SMALL), truth, Checkpoint(tmp_path / "state"))


@pytest.mark.parametrize(("name", "every", "seen"), [("W_enc", 2, 2), ("b_enc", 2, 2), ("W_dec", 1000, 30)])
def test_weights_that_are_no_numbers_end_the_training(tmp_path: Path, name: str, every: int, seen: int):
    """At the next checkpoint, and at the end where none comes before it."""
    stack = stack_of(settings(checkpoint_steps=every))
    stack.parameters[name].data[3] = torch.nan
    with pytest.raises(CircuitError, match=rf"the weights of l1=0.1,ratio=0.5 are not finite after {seen} steps"):
        train(stack, plant(SMALL, seed=1), Checkpoint(tmp_path / "state"))


def test_measures_of_a_known_dictionary_are_what_they_are_by_definition():
    chosen = settings(l1_weights=(0.1,), ratios=(1.0, 2.0), eval_batches=3)
    truth, stack = plant(chosen, seed=1), stack_of(chosen)
    (_, own), (_, larger) = stack.dictionaries()
    order = torch.randperm(20)
    own.W_dec.copy_(truth.directions[order])
    own.W_enc.zero_()
    own.b_enc.copy_(torch.tensor([0.25] * 3 + [-1.0] * 17))
    larger.b_enc.fill_(-100.0)
    first, second = measure(stack, truth)
    x = torch.cat([truth.batch(index, stream=MEASURING).x for index in range(3)])
    made = 0.25 * own.W_dec[:3].sum(0)
    assert first.mmcs == pytest.approx(1) and first.found == 1 and first.quarters == pytest.approx((1,) * 4)
    assert first.mmcs_of_live == pytest.approx(1) and first.l0 == 3 and first.dead == pytest.approx(17 / 20)
    assert first.loss == pytest.approx(float((x - made).square().mean()), rel=1e-5)
    assert first.fvu == pytest.approx(first.loss / float((x - x.mean(0)).square().mean()), rel=1e-5)
    assert first.mmcs_with_larger == pytest.approx(float(largest_cosines(own.W_dec, larger.W_dec).mean()))
    assert second.mmcs_with_larger is None and second.mmcs_of_live is None and second.dead == 1
    # Three live features of the twenty that are needed, and none.
    assert first.is_collapsed and second.is_collapsed
    own.b_enc.fill_(0.25)
    assert not measure(stack, truth)[0].is_collapsed


def test_a_right_penalty_finds_planted_features_and_a_large_one_collapses(tmp_path: Path):
    sizes = {"d_model": 20, "n_features": 32, "n_active": 1.5, "batch_size": 64, "steps": 500}
    chosen = settings(**sizes, l1_weights=(1.0, 30.0), ratios=(2.0,), learning_rate=0.01)
    truth, stack = plant(chosen, seed=0), stack_of(chosen)
    train(stack, truth, Checkpoint(tmp_path / "state"))
    right, large = measure(stack, truth)
    assert right.mmcs > 0.94 and right.found > 0.9 and not right.is_collapsed
    assert large.is_collapsed and large.mmcs < 0.7


def test_cells_without_a_number_are_hatched_and_have_no_text():
    maps = [
        HeatMap("a", [[0.5, None], [0.0, 1.0]], [[True, False], [False, False]]),
        HeatMap("b", [[1e-3, 0.1], [0.0, 2]], is_log=True),
    ]
    figure = draw_heat_maps(HeatMaps(maps, columns=["x", "y"], rows=["1", "2"], title="t"))
    first, second = figure.axes[:2]
    assert [text.get_text() for text in first.texts] == [".50×", "0", "1.00"]
    assert [patch.get_hatch() for patch in first.patches] == ["////"] and first.patches[0].get_xy() == (0.5, -0.5)
    assert [text.get_text() for text in second.texts] == ["1e-3", ".10", "2.00"]


TOY = (
    "toy", "--d-model", "12", "--features", "20", "--l1", "0.1,50", "--ratios", "0.5,2", "--steps", "24", "--json",
    *("--set", "toy.batch_size=32", "--set", "toy.n_active=2", "--set", "toy.eval_batches=2"),
)  # fmt: skip


def test_the_command_leaves_dictionaries_a_table_and_heat_maps_and_is_not_run_twice(tmp_path: Path):
    done = here(*TOY, cwd=tmp_path)
    assert done.status == 0 and done.kinds == ["run", *["toy"] * 4, "report", "figure"], done.stderr
    run = tmp_path / "runs" / "toy"
    rows = list(csv.DictReader((run / "toy" / "toy.csv").open()))
    toys = [record for record in done.records if record["kind"] == "toy"]
    assert [row["name"] for row in rows] == [record["name"] for record in toys]
    assert [row["mmcs_with_larger"] == "" for row in rows] == ["mmcs_with_larger" not in record for record in toys]
    assert [float(row["mmcs"]) for row in rows] == [record["mmcs"] for record in toys]
    tensors, truth = load_file(run / toys[0]["path"]), load_file(run / "toy" / "features.safetensors")
    for record in toys:
        decoder = tensors[f"{record['name']}/W_dec"]
        assert decoder.shape == (record["d_dict"], 12)
        assert float(largest_cosines(truth["features"], decoder).mean()) == pytest.approx(record["mmcs"])
    assert "MMCS" in (run / "figures" / "toy.svg").read_text() and not (run / "toy" / "checkpoint.safetensors").exists()
    # There is nothing in it for the commands that work on the run used last.
    assert not (tmp_path / ".circuit-run").exists()
    assert here(*TOY, cwd=tmp_path).stdout == done.stdout
    other = here(*TOY, "--set", "toy.noise=0.1", cwd=tmp_path)
    assert other.status == 3 and "toy.noise was 0.0 and is now 0.1" in other.stderr and "--force" in other.stderr
    assert here(*TOY, "--set", "toy.noise=0.1", "--force", cwd=tmp_path).stdout != done.stdout


def test_python_gets_the_numbers_of_the_command(tmp_path: Path):
    done = here(*TOY, cwd=tmp_path)
    sizes = {"d_model": 12, "n_features": 20, "n_active": 2, "l1_weights": (0.1, 50), "ratios": [0.5, 2], "steps": 24}
    found = circuit.toy(**sizes, device="cpu", settings={"batch_size": 32, "eval_batches": 2})
    told = [record for record in done.records if record["kind"] == "toy"]
    assert [one.model.name for one in found] == [record["name"] for record in told] and len(found) == 4
    assert [one.mmcs for one in found] == [record["mmcs"] for record in told]
    assert [own.W_dec.shape for own in found.dictionaries] == [(10, 12), (10, 12), (40, 12), (40, 12)]
    with pytest.raises(SettingsError, match=r"l1_weights=\[-1\]"):
        circuit.toy(l1_weights=[-1])
    with pytest.raises(SettingsError, match="n_active=500 needs"):
        circuit.toy(n_active=500)


def test_an_interrupted_command_goes_on_and_comes_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert here(*TOY, "--run", str(whole), cwd=tmp_path).status == 0
    step = Stack.step

    def interrupted(self: Stack, x: torch.Tensor) -> None:
        if self.done == 13:
            raise KeyboardInterrupt
        step(self, x)

    monkeypatch.setattr(Stack, "step", interrupted)
    assert here(*TOY, "--run", str(broken), "--set", "toy.checkpoint_steps=5", cwd=tmp_path).status == 130
    assert (broken / "toy" / "checkpoint.safetensors").is_file()
    taken: list[int] = []
    monkeypatch.setattr(Stack, "step", lambda self, x: (taken.append(self.done), step(self, x))[1])
    assert here(*TOY, "--run", str(broken), cwd=tmp_path).status == 0
    assert taken[0] == 10
    for name in ("toy/dictionaries.safetensors", "toy/features.safetensors", "toy/toy.csv", "figures/toy.svg"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_a_collapse_is_said_aloud_and_a_dry_run_tells_the_time(tmp_path: Path):
    words = [*TOY, "--set", "toy.learning_rate=0.1"]
    done = here(*words, cwd=tmp_path)
    collapsed = [json.loads(line)["name"] for line in done.stdout.splitlines() if '"collapsed": true' in line]
    assert "l1=50,ratio=2" in collapsed and "collapsed, nearly all of what they need is dead" in done.stderr
    told = here(*words, "--dry-run", "--run", "other", cwd=tmp_path)
    assert told.status == 0 and "4: 2 sizes, 2 weights" in told.stderr and re.search(r"about \d+ s", told.stderr)
    assert not (tmp_path / "other").exists()
    assert here(*words, "--set", "toy.n_active=19", cwd=tmp_path).status == 2


def test_models_of_one_width_lie_together_whatever_the_order_of_the_settings():
    chosen = models(settings(l1_weights=(3.0, 0.1, 0.1), ratios=(2.0, 0.5)))
    assert chosen == [Model(0.1, 0.5, 10), Model(3.0, 0.5, 10), Model(0.1, 2.0, 40), Model(3.0, 2.0, 40)]
