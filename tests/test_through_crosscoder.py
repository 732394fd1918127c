"""A crosscoder over checkpoints: what it is trained on, what it tells of features, and its files."""

from pathlib import Path

import pytest
import torch
from support import adapter_of, random_ids
from support_collect import write_cache, write_rows

from circuitcli.activations.aligned import AlignedCache
from circuitcli.activations.cache import ActivationCache
from circuitcli.attribution.prompts import Prompt
from circuitcli.development import effects, turning
from circuitcli.development.crosscoder import Crosscoding, over_layers
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.checkpoint_crosscoder import CheckpointCrosscoder
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed
from circuitcli.training.optimiser import CoderOptimiser

HOOK = HookPoint(1, "resid")
NAMES = ("step0", "step8", "step64")


def coder(d_model: int, *, d_sae: int = 20, scales=(1.0, 0.5, 2.0), dtype=torch.float64) -> CheckpointCrosscoder:
    """With random weights; a third of the codes are not zero."""
    made = CheckpointCrosscoder(
        SaeConfig(HOOK, 3 * d_model, d_sae, subtract_decoder_bias=False), checkpoints=NAMES, scales=scales
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        made.threshold.fill_(0.1)
    return made.to(dtype).eval().requires_grad_(False)


def test_caches_side_by_side_are_the_rows_of_each(tmp_path: Path):
    for number, width in enumerate((4, 4, 4)):
        write_cache(tmp_path / str(number), [5, 7], {HOOK: width, HookPoint(number, "mlp"): 3})
    cache = AlignedCache([tmp_path / str(number) for number in range(3)], HOOK)
    assert [str(hook) for hook in cache.hooks] == ["resid.0", "resid.1", "resid.2"] and cache.n_tokens == 12
    for number, hook in enumerate(cache.hooks):
        own = ActivationCache(tmp_path / str(number), [HOOK])
        assert torch.equal(cache.rows(hook, 3, 9), own.rows(HOOK, 3, 9))
        assert torch.equal(cache.mean(hook), own.mean(HOOK))
    write_cache(tmp_path / "other", [5, 6], {HOOK: 4})
    with pytest.raises(InputError, match="not of the same tokens"):
        AlignedCache([tmp_path / "0", tmp_path / "other"], HOOK)


def prompts(n: int, length: int, *, with_target: bool = True) -> list[Prompt]:
    texts = [random_ids(length, seed=number)[0].tolist() for number in range(n)]
    return [
        Prompt("x", tuple(ids), tuple(map(str, ids)), 1, target=3 + number if with_target else None)
        for number, ids in enumerate(texts)
    ]


@pytest.mark.parametrize("metric", ["log-prob", "cross-entropy"])
def test_indirect_effects_are_what_small_ablations_at_one_checkpoint_lose(metric: str):
    adapters = [adapter_of("gpt2", seed=seed) for seed in range(3)]
    made = coder(adapters[0].d_model)
    # Small contributions, for which the first order is all.
    made.W_dec.mul_(1e-5)
    # The prompt's own tokens are what the cross-entropy is about: it needs no target.
    has_target = metric != "cross-entropy"
    batches = effects.by_length([*prompts(2, 5, with_target=has_target), *prompts(3, 4, with_target=has_target)])
    assert [len(batch) for batch in batches] == [2, 3]
    reads = [[effects.read(adapter, HOOK, batch, metric=metric) for batch in batches] for adapter in adapters]
    found = effects.indirect_effects(made, reads)
    assert found.shape == (3, 5, 20) and float(found.abs().max()) > 1e-8
    features = [1, 4, 7, 12, 19]
    for number, adapter in enumerate(adapters):
        start = 0
        for index, batch in enumerate(batches):
            of_batch = [one[index] for one in reads]
            lost = effects.ablated(adapter, made, of_batch, batch, features, number=number, metric=metric)
            expected = found[number, start : start + len(batch), features].T
            torch.testing.assert_close(lost, expected, rtol=2e-3, atol=1e-10)
            start += len(batch)


def test_a_metric_without_a_gradient_at_the_clean_run_is_refused():
    with pytest.raises(SettingsError, match="no gradient"):
        effects.read(adapter_of("gpt2"), HOOK, prompts(1, 4), metric="kl")


def test_directions_are_measured_in_units_of_each_checkpoint():
    made = coder(4)
    norms = made.decoder_norms()
    for number, scale in enumerate((1.0, 0.5, 2.0)):
        own = made.W_dec[:, 4 * number : 4 * number + 4].norm(dim=1) * scale
        torch.testing.assert_close(norms[number], own)
    shares = turning.relative(norms)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(20, dtype=torch.float64))


def test_features_are_born_die_and_turn_where_their_directions_do():
    lengths = torch.tensor([[1.0, 1.0, 0.1, 0.0], [0.9, 0.2, 0.2, 1.0], [0.8, 0.1, 1.0, 0.3]])
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    directions = torch.stack([torch.stack([x, x, x, x]), torch.stack([x, x, x, x]), torch.stack([y, x, x, x])])
    found = turning.lives(lengths, directions * lengths[..., None])
    assert [(one.first, one.last, one.kind(3)) for one in found] == [
        (0, 2, "throughout"),
        (0, 0, "early"),
        (2, 2, "late"),
        (1, 1, "passing"),
    ]
    counts = turning.turns(found, n_checkpoints=3)
    assert counts.born == (0, 1, 1) and counts.died == (0, 1, 1)
    assert (counts.staying, counts.turned) == (1, 1)
    assert turning.histograms(turning.relative(lengths))[2][-1] == 0
    assert [sum(row) for row in turning.histograms(turning.relative(lengths))] == [4, 4, 4]


def planted(path: Path) -> tuple[AlignedCache, torch.Tensor]:
    """A cache, and what each of 12 features writes at all checkpoints side by side.

    Rows sum directions: four that all checkpoints write, four of the first alone, four of the last two; the
    activations of the last are four times as large."""
    generator = torch.Generator().manual_seed(0)
    codes = (torch.rand(1600, 12, generator=generator) < 0.15) * (1 + torch.rand(1600, 12, generator=generator))
    directions = torch.nn.functional.normalize(torch.randn(3, 12, 10, generator=generator), dim=2)
    there = torch.tensor([[1.0] * 8 + [0.0] * 4, [1.0] * 4 + [0.0] * 4 + [1.0] * 4])[[0, 1, 1]]
    written = directions * there[..., None] * torch.tensor([1.0, 1.0, 4.0])[:, None, None]
    for name, own in zip(NAMES, written, strict=True):
        write_rows(path / name, [800, 800], {HOOK: codes @ own})
    return AlignedCache([path / name for name in NAMES], HOOK), torch.cat(list(written), dim=1)


def crosscoding(cache: AlignedCache, folder: Path) -> Crosscoding:
    values = {
        "sae.k": 2,
        "sae.d_sae": 24,
        "train.tokens": 15_000,
        "train.checkpoint_tokens": 128 * 105,
        "train.batch_size": 128,
        "train.learning_rate": 0.01,
    }
    settings = changed(Settings(), values)
    return Crosscoding(cache, NAMES, settings, folder, "fingerprint", torch.device("cpu"))


def test_a_crosscoder_finds_when_planted_features_are_there_and_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch):
    cache, written = planted(tmp_path)
    job = crosscoding(cache, tmp_path / "whole")
    made, dead = job.trained()
    assert made.hook == HOOK and made.checkpoints == list(NAMES) and 0 <= dead < 1
    assert min(one.explained_variance or 0 for one in job.quality(made)) > 0.8
    assert job.densities(made).sum() == pytest.approx(2, abs=0.7)
    lives = turning.lives(made.decoder_norms(), made.decoders())
    likeness = torch.nn.functional.normalize(made.W_dec, dim=1) @ torch.nn.functional.normalize(written, dim=1).T
    found = [lives[index].kind(3) for index in likeness.argmax(dim=0)]
    assert float(likeness.amax(dim=0).min()) > 0.9
    assert found == ["throughout"] * 4 + ["early"] * 4 + ["late"] * 4
    step = CoderOptimiser.step

    def interrupted(self, batch, *, index: int):
        if index == 105:
            raise KeyboardInterrupt
        return step(self, batch, index=index)

    with monkeypatch.context() as patched:
        patched.setattr(CoderOptimiser, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            crosscoding(cache, tmp_path / "broken").trained()
    begun = []
    monkeypatch.setattr(CoderOptimiser, "step", lambda self, *a, **b: begun.append(b["index"]) or step(self, *a, **b))
    again, _ = crosscoding(cache, tmp_path / "broken").trained()
    assert begun[0] == 105
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), made.parameters(), strict=True))
    job.forget()
    assert not list((tmp_path / "whole").glob("checkpoint"))


def test_its_files_give_it_back_and_no_single_model_takes_it(tmp_path: Path):
    made = coder(5, dtype=torch.float32)
    digest = files.save(made, tmp_path / "resid.1")
    again = files.load(tmp_path / "resid.1")
    assert isinstance(again, CheckpointCrosscoder) and again.checkpoints == list(NAMES)
    assert files.sae_digest(tmp_path / "resid.1") == digest and again.scales == made.scales
    x = torch.randn(7, 15, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again.reconstruct(x), made.reconstruct(x))
    plain = over_layers(made)
    assert torch.equal(plain.reconstruct(x), made.reconstruct(x))
    for refused in (lambda: made.code(x), lambda: made.check_width(15), lambda: made.check_reads({HOOK: 15})):
        with pytest.raises(InputError, match="crosscoder over checkpoints"):
            refused()
