"""What one autoencoder learns, and the parts that it learns by."""

import math

import pytest
import torch
import torch.nn.functional as F
from training_fakes import D_IN, MemoryBatches, moments, optimiser, planted, recipe, trained

from circuitcli.errors import InputError, SettingsError
from circuitcli.evaluation.quality import reconstruction
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.sae import SaeSettings
from circuitcli.settings.settings import Settings
from circuitcli.settings.train import TrainSettings
from circuitcli.training.architectures.trainable import count_silent_tokens
from circuitcli.training.initial import geometric_median, input_scale
from circuitcli.training.loss import missed_variance
from circuitcli.training.plan import default_batch_size, pool_tokens, training_plan, width
from circuitcli.training.ranks import ALONE
from circuitcli.training.schedule import LearningRateSchedule, default_rate
from circuitcli.training.trainer import total

HOOK = HookPoint(1, "resid")


def test_planted_features_are_recovered():
    rows, features = planted(20_000)
    sae = trained(rows, recipe(500)).finished()[HOOK]
    held_out, _ = planted(4_000, seed=0)
    assert reconstruction(sae, held_out.split(1000)).explained_variance > 0.9
    best = (F.normalize(sae.W_dec, dim=1) @ features.T).max(dim=0).values
    assert best.mean() > 0.9 and best.median() > 0.98


def test_decoder_rows_stay_on_the_unit_sphere():
    rows, _ = planted(1_000)
    sae = trained(rows, recipe(20)).finished()[HOOK]
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-5)


def test_optimiser_is_adam_along_the_clipped_gradient_without_its_part_along_the_decoder():
    rows, _ = planted(500)
    made = recipe(10, auxk_weight=0.0, clip=0.01)
    trainable = optimiser(HOOK, rows, made)
    twin = optimiser(HOOK, rows, made).trainable.sae
    trainable.step({HOOK: rows}, index=3)
    x = rows * trainable.trainable.scale
    loss = missed_variance(x, twin.decode(twin.encode(x)), variance=trainable.trainable.variance)
    loss.backward()
    decoder = twin.W_dec
    decoder.grad -= (decoder.grad * decoder).sum(dim=1, keepdim=True) * decoder.detach()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
    torch.optim.Adam(
        twin.parameters(), lr=made.optimiser_config.schedule.rate(3), betas=(0.5, 0.95), eps=6.25e-10
    ).step()
    with torch.no_grad():
        decoder /= decoder.norm(dim=1, keepdim=True)
    for one, other in zip(trainable.trainable.sae.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4 * float(other.detach().abs().max()))


def test_no_gradient_of_a_step_is_in_memory_while_the_next_one_is_made():
    hook, (rows, _) = HookPoint(1, "resid"), planted(64)
    made = optimiser(hook, rows, recipe(4))
    made.step({hook: rows}, index=0)
    assert all(moved.grad is None for group in made.optimizer.param_groups for moved in group["params"])
    assert all(parameter.grad is None for parameter in made.trainable.parameters())


def test_what_only_further_steps_need_is_let_go_and_the_sae_stays():
    hook, (rows, _) = HookPoint(1, "resid"), planted(64)
    made = optimiser(hook, rows, recipe(4))
    made.step({hook: rows}, index=0)
    made.keep_if_best(0.5, step=1)
    before = made.finished()[hook].state_dict()
    made.free_training_state()
    assert all("exp_avg" not in name and not name.startswith("best.") for name in made.state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.finished()[hook].state_dict().items())


def test_dead_features_are_revived():
    rows, _ = planted(5_000)
    revived = []
    for weight in (0.0, 1 / 32):
        trainable = optimiser(HOOK, rows, recipe(300, auxk_weight=weight, d_sae=48))
        with torch.no_grad():
            trainable.trainable.sae.b_enc[:30] = -1.5
        for index, batch in enumerate(MemoryBatches({HOOK: rows}, 256, 300).from_step(0)):
            trainable.step(batch, index=index)
        revived.append(int((trainable.trainable.silent_tokens[:30] < 2000).sum()))
    assert revived[0] < 10 < 20 < revived[1]


def test_loss_of_predicting_the_mean_is_one():
    rows, _ = planted(3_000)
    predicted = rows.mean(dim=0).expand_as(rows)
    assert missed_variance(rows, predicted, variance=moments(rows).variance).item() == pytest.approx(1.0, abs=1e-4)


def test_scaled_activations_have_their_width_as_mean_squared_norm():
    rows, _ = planted(3_000)
    scale = input_scale(moments(rows).mean_square_norm, d_in=D_IN)
    assert (scale * rows).square().sum(dim=1).mean().item() == pytest.approx(D_IN, rel=1e-4)
    assert input_scale(0.0, d_in=D_IN) == 1.0


def test_geometric_median_is_not_moved_by_outliers():
    x = torch.randn(501, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:50] += 1e6
    median = geometric_median(x)
    assert median.norm() < 0.5
    nearby = median + 0.01 * torch.eye(3, dtype=torch.float64)
    distance = (x - median).norm(dim=1).sum()
    assert all((x - other).norm(dim=1).sum() > distance for other in nearby)
    assert torch.equal(geometric_median(torch.ones(4, 3)), torch.ones(3))


def test_first_weights_depend_on_seed_and_hook_point_only():
    rows, other = torch.randn(9, D_IN), HookPoint(2, "resid")
    first = optimiser(HOOK, rows, recipe(1, seed=1)).trainable.sae
    assert torch.equal(first.W_enc, first.W_dec.T) and first.W_enc.T.is_contiguous()
    assert torch.equal(first.W_dec, optimiser(HOOK, rows, recipe(1, seed=1)).trainable.sae.W_dec)
    for hook, seed in ((HOOK, 2), (other, 1)):
        assert not torch.equal(first.W_dec, optimiser(hook, rows, recipe(1, seed=seed)).trainable.sae.W_dec)


def test_activations_that_do_not_vary_are_learned_without_numbers_that_are_not_finite():
    rows = torch.full((100, D_IN), 3.0)
    trainable = optimiser(HOOK, rows, recipe(5, dead_tokens=100))
    for index in range(5):
        assert total(trainable.step({HOOK: rows}, index=index)[HOOK]) < math.inf
    sae = trainable.finished()[HOOK]
    assert torch.allclose(sae.decode(sae.encode(rows)), rows, atol=0.05)


def test_learning_rate_rises_stays_and_falls():
    schedule = LearningRateSchedule(peak=1.0, n_steps=100, warmup=0.1, decay=0.2)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert set(rates[9:81]) == {1.0} and rates[90] == pytest.approx(0.5) and rates[99] == pytest.approx(0.05)
    assert min(rates) > 0 and LearningRateSchedule(1.0, 1, 0.05, 0.3).rate(0) > 0


def test_default_rate_falls_with_the_width_and_the_length_of_the_run():
    assert default_rate(2**14, n_steps=10**6) == default_rate(2**14, n_steps=24_000) == pytest.approx(2e-4)
    assert default_rate(2**16, n_steps=10**6) == pytest.approx(1e-4)
    assert default_rate(2**14, n_steps=6_000) == pytest.approx(4e-4)
    assert default_rate(2**14, n_steps=1) == pytest.approx(1.6e-3)


def test_silence_counts_tokens_since_a_feature_was_active():
    trainable = optimiser(HOOK, torch.randn(300, D_IN), recipe(3, d_sae=5, k=2, dead_tokens=4)).trainable
    for active in ([0, 0, 2], [0, 0]):
        count_silent_tokens(trainable.silent_tokens, torch.tensor(active), n_tokens=2, ranks=ALONE)
    assert trainable.silent_tokens.tolist() == [0, 4, 2, 4, 4]
    assert trainable.dead().tolist() == [1, 3, 4] and trainable.dead_share(HOOK) == pytest.approx(0.6)


def test_plan_holds_out_the_end_of_the_cache_and_passes_once_over_the_rest():
    made = training_plan(Settings(), n_rows=1_000_000)
    assert (made.stop_row, made.batch_size) == (1_000_000 - 16_384, 1024)
    assert made.n_steps == (1_000_000 - 16_384) // 1024
    assert made.dead_tokens == made.tokens // 10
    small = training_plan(Settings(train=TrainSettings(batch_size=100)), n_rows=1_000)
    assert (small.stop_row, small.n_steps) == (900, 9)
    several = training_plan(Settings(train=TrainSettings(batch_size=100, tokens=5_000)), n_rows=1_000)
    assert several.n_steps == 50
    with pytest.raises(InputError, match="no batch"):
        training_plan(Settings(), n_rows=500)


def test_k_above_the_width_is_refused_naming_both():
    assert width(Settings(), d_in=128) == 1024
    with pytest.raises(SettingsError, match=r"sae.k=32 .* 16 features") as caught:
        width(Settings(sae=SaeSettings(d_sae=16)), d_in=128)
    assert caught.value.exit_status == 2 and "16" in caught.value.hint


@pytest.mark.parametrize(
    ("row_bytes", "train", "expected"),
    [
        (2 * 576, {}, 262_144),
        (2 * 576 * 90, {}, 20_712),
        (2 * 4096 * 99, {}, 8192),
        (2 * 4096 * 99, {"batch_size": 10}, 2647),
        (2 * 4096 * 99, {"pool_tokens": 9}, 9),
    ],
)
def test_a_pool_takes_no_more_memory_for_more_hook_points(row_bytes: int, train: dict, expected: int):
    settings = Settings(train=TrainSettings(**train))
    found = pool_tokens(settings, row_bytes=row_bytes, batch_size=settings.train.batch_size or 4096)
    assert found == expected


@pytest.mark.parametrize("tokens", [1, 10_000, 262_144, 700_000, 2**20, 2**21, 10**9])
def test_short_runs_have_steps_enough_and_long_ones_large_batches(tokens: int):
    size = default_batch_size(tokens)
    assert 512 <= size <= 4096 and size & (size - 1) == 0
    assert size == 512 or tokens // size >= 512
    # No larger batch would leave as many steps.
    assert size == 4096 or tokens // (2 * size) < 512
