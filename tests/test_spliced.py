"""The model's loss with an SAE in it, against one run for each text and position by position."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import D_MODEL, adapter_of, random_ids, random_sae
from test_training_quality import HOOK, constant_sae, identity_sae

from circuitcli.evaluation import spliced
from circuitcli.evaluation.spliced import ModelLoss, SplicedLoss, Texts
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import read, tapped
from circuitcli.saes import base
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.relu import ReluSae

LENGTHS = (7, 5, 9, 1)
MLP_IN, MLP = HookPoint(1, "mlp_in"), HookPoint(1, "mlp")


class Rows:
    """A block of text."""

    def __init__(self, ids: list[int], positions: list[int] | None = None) -> None:
        self.ids = ids
        self.positions = [*range(len(ids))] if positions is None else positions


def rows(*, first: int = 0) -> list[Rows]:
    return [Rows(random_ids(n, seed=n)[0].tolist(), [*range(first, n)]) for n in LENGTHS]


def texts(blocks: list[Rows] | None = None) -> Texts:
    return Texts.of(rows() if blocks is None else blocks, pad_id=3, batch_size=2, device=torch.device("cpu"))


def loss(adapter: ModelAdapter, sae: SparseCoder, mean: torch.Tensor, blocks: list[Rows] | None = None) -> ModelLoss:
    return SplicedLoss(adapter, texts(blocks), {sae.hook, sae.target}).measure(sae, mean=mean)


def mean_at(adapter: ModelAdapter, hook: HookPoint = HOOK) -> torch.Tensor:
    return read(adapter, random_ids(), None, [hook])[hook][0].mean(dim=0)


def transcoder() -> ReluSae:
    config = SaeConfig(MLP_IN, D_MODEL, 31, subtract_decoder_bias=False, target=MLP, skip=True)
    made = ReluSae(config).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return made


def oracle(adapter: ModelAdapter, blocks: list[Rows], replace) -> tuple[float, float]:
    """Cross-entropy, and KL from the untouched run, of runs in which ``replace(ids, x, position)`` stands at stored
    positions of the hook point that it names; one text at a time, summed position by position."""
    entropy, divergence, n = 0.0, 0.0, 0
    for block in blocks:
        ids = torch.tensor([block.ids])
        hook, values = replace(ids)

        def callback(x, values=values, positions=block.positions):
            changed = x.clone()
            changed[0, positions] = values[0, positions]
            return changed

        with torch.no_grad():
            clean = adapter.logits(ids)[0]
            with tapped(adapter, {hook: callback}):
                edited = adapter.logits(ids)[0]
        for position in range(len(block.ids) - 1):
            p, q = F.softmax(clean[position], dim=0).tolist(), F.softmax(edited[position], dim=0).tolist()
            entropy -= math.log(q[block.ids[position + 1]])
            divergence += math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            n += 1
    return entropy / n, divergence / n


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("first", [0, 1])
def test_losses_are_those_of_one_run_for_each_text(family: str, first: int):
    adapter, sae, blocks = adapter_of(family), random_sae(HOOK), rows(first=first)
    mean = mean_at(adapter)
    found = loss(adapter, sae, mean, blocks)

    def reconstructed(ids):
        x = read(adapter, ids, None, [HOOK])[HOOK]
        return HOOK, sae.decode(sae.encode(x), sae.frame(x))

    tolerance = 1e-9 if family == "gpt2" else 1e-5
    cases = {
        "clean": lambda ids: (HOOK, read(adapter, ids, None, [HOOK])[HOOK]),
        "spliced": reconstructed,
        "mean": lambda ids: (HOOK, mean.expand(1, ids.shape[1], -1)),
        "zero": lambda ids: (HOOK, torch.zeros(1, ids.shape[1], D_MODEL, dtype=torch.float64)),
    }
    for name, replace in cases.items():
        entropy, divergence = oracle(adapter, blocks, replace)
        assert getattr(found, f"ce_{name}") == pytest.approx(entropy, rel=tolerance), name
        assert name == "clean" or getattr(found, f"kl_{name}") == pytest.approx(divergence, rel=tolerance), name
    assert found.n_predictions == texts().n_predictions == sum(n - 1 for n in LENGTHS)
    assert found.ce_increase == pytest.approx(found.ce_spliced - found.ce_clean)
    assert found.kl_recovered == pytest.approx(1 - found.kl_spliced / found.kl_mean)


@pytest.mark.parametrize("first", [0, 1])
def test_loss_recovered_is_one_for_the_identity_and_zero_for_the_mean(first: int):
    adapter, blocks = adapter_of("gpt2"), rows(first=first)
    mean = mean_at(adapter)
    perfect, useless = (loss(adapter, sae, mean, blocks) for sae in (identity_sae(), constant_sae(mean)))
    assert perfect.ce_spliced == pytest.approx(perfect.ce_clean) and perfect.kl_spliced == pytest.approx(0, abs=1e-12)
    assert perfect.loss_recovered in (pytest.approx(1.0), None) and perfect.kl_recovered == pytest.approx(1.0)
    assert useless.ce_spliced == pytest.approx(useless.ce_mean) and useless.kl_recovered == pytest.approx(0, abs=1e-9)
    assert useless.ce_zero != useless.ce_mean


def test_shares_recovered_follow_from_the_losses():
    # Two texts: predictions, then sums of clean, spliced, mean and zero cross-entropy, and of the three divergences.
    sums = torch.tensor([[2, 4, 5, 8, 18, 1.0, 2, 9], [1, 2, 2.5, 4, 9, 0.5, 1, 9]], dtype=torch.float64)
    found = ModelLoss.of(sums)
    assert (found.n_predictions, found.ce_clean, found.ce_spliced) == (3, 2.0, 2.5)
    assert found.loss_recovered == pytest.approx(0.75) and found.loss_recovered_zero == pytest.approx(6.5 / 7)
    assert found.kl_recovered == pytest.approx(0.5)
    harmless = sums.clone()
    harmless[:, 3:5], harmless[:, 6] = sums[:, 1:2], 0
    found = ModelLoss.of(harmless)
    assert found.loss_recovered is None and found.loss_recovered_zero is None and found.kl_recovered is None


def test_a_transcoder_replaces_its_target_by_what_it_predicts_from_the_same_run():
    adapter, made, blocks = adapter_of("gpt2"), transcoder(), rows(first=1)
    mean = mean_at(adapter, MLP)
    found = loss(adapter, made, mean, blocks)

    def predicted(ids):
        return MLP, made.reconstruct(read(adapter, ids, None, [MLP_IN])[MLP_IN])

    entropy, divergence = oracle(adapter, blocks, predicted)
    assert found.ce_spliced == pytest.approx(entropy) and found.kl_spliced == pytest.approx(divergence)
    entropy, _ = oracle(adapter, blocks, lambda ids: (MLP, mean.expand(1, ids.shape[1], -1)))
    assert found.ce_mean == pytest.approx(entropy)


@pytest.mark.parametrize("at_once", [1, 100])
def test_codes_are_held_of_a_piece_of_the_text_and_the_losses_stay(at_once: int, monkeypatch: pytest.MonkeyPatch):
    """A wide SAE's codes of a batch of text would be gigabytes."""
    adapter, saes = adapter_of("gpt2"), (random_sae(HOOK), transcoder())
    whole = [loss(adapter, sae, mean_at(adapter, sae.target)) for sae in saes]
    monkeypatch.setattr(base, "CODES_AT_ONCE", at_once)
    sizes: list[int] = []
    encode = SparseCoder.encode
    monkeypatch.setattr(
        SparseCoder, "encode", lambda sae, x: (sizes.append(x.shape[:-1].numel() * sae.d_sae), encode(sae, x))[1]
    )
    for sae, expected in zip(saes, whole, strict=True):
        sizes.clear()
        found = loss(adapter, sae, mean_at(adapter, sae.target))
        assert found.ce_spliced == pytest.approx(expected.ce_spliced, rel=1e-12)
        assert found.kl_spliced == pytest.approx(expected.kl_spliced, rel=1e-9)
        assert sizes and max(sizes) <= max(at_once, sae.d_sae)


def test_an_sae_stands_only_where_activations_are_stored():
    adapter, zero = adapter_of("gpt2"), torch.zeros(D_MODEL, dtype=torch.float64)
    ids = random_ids(8, seed=3)[0].tolist()
    for positions in ([1, 2, 5], [2, 3, 4, 5, 6, 7], [*range(1, 8)]):
        block = Rows(ids, positions)
        expected, _ = oracle(adapter, [block], lambda ids: (HOOK, zero.expand(1, ids.shape[1], -1)))
        found = loss(adapter, constant_sae(zero), zero, [block])
        assert found.ce_spliced == found.ce_zero == pytest.approx(expected)
    untouched = loss(adapter, constant_sae(zero), zero, [Rows([5, 6], [1])])
    assert untouched.ce_spliced == pytest.approx(untouched.ce_clean)


def test_each_run_starts_at_its_hook_point_and_constants_are_run_once_for_each(monkeypatch: pytest.MonkeyPatch):
    adapter = adapter_of("gpt2")
    block_1, block_2 = (Counted(adapter.blocks[layer]) for layer in (1, 2))
    later = HookPoint(2, "attn")
    spliced_loss = SplicedLoss(adapter, texts(), [HOOK, later])
    n_batches = len(texts().inputs)
    assert (block_1.calls(), block_2.calls()) == (n_batches, n_batches)
    mean = torch.ones(D_MODEL, dtype=torch.float64)
    first = spliced_loss.measure(random_sae(HOOK), mean=mean)
    assert (block_1.calls(), block_2.calls()) == (0, 3 * n_batches)
    second = spliced_loss.measure(random_sae(HOOK, seed=1), mean=mean)
    assert (block_1.calls(), block_2.calls()) == (0, n_batches)
    assert first.ce_mean == second.ce_mean and first.ce_spliced != second.ce_spliced
    spliced_loss.measure(random_sae(later), mean=mean)
    assert (block_1.calls(), block_2.calls()) == (0, 3 * n_batches)


def test_hook_points_may_come_in_any_order():
    """Each start is reached from another one: forwards, from the first again, and from the embedding."""
    adapter, mean = adapter_of("gpt2"), torch.ones(D_MODEL, dtype=torch.float64)
    saes = [
        random_sae(HookPoint(*place)) for place in ((0, "attn"), (2, "mlp"), (1, "resid"), (0, "embed"), (2, "resid"))
    ]
    for order in (saes, saes[::-1]):
        spliced_loss = SplicedLoss(adapter, texts(), [sae.hook for sae in saes])
        for sae in order:
            assert spliced_loss.measure(sae, mean=mean) == loss(adapter, sae, mean), sae.hook


class Counted:
    """How often a block is run."""

    def __init__(self, block: torch.nn.Module) -> None:
        self._n = 0
        block.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self._n += 1

    def calls(self) -> int:
        """Since the last time."""
        n, self._n = self._n, 0
        return n


@pytest.mark.parametrize("n_rows", [1, 4, 100])
def test_losses_do_not_depend_on_how_many_logits_are_held_at_once(monkeypatch: pytest.MonkeyPatch, n_rows: int):
    adapter, sae, mean = adapter_of("gpt2"), random_sae(HOOK), torch.ones(D_MODEL, dtype=torch.float64)
    expected = loss(adapter, sae, mean)
    monkeypatch.setattr(spliced, "LOGITS_AT_ONCE", n_rows * adapter.n_token_ids)
    found = loss(adapter, sae, mean)
    assert found.ce_spliced == pytest.approx(expected.ce_spliced, rel=1e-12)
    assert found.kl_zero == pytest.approx(expected.kl_zero, rel=1e-12)
