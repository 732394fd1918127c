"""The features package against slow definitions: statistics, peaks with their windows, logit effects."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support import D_MODEL, D_SAE, VOCAB, adapter_of, random_sae
from support_collect import language_model, text_of_rows

from circuitcli.activations.cache import ActivationCache, Text
from circuitcli.activations.storage.token_shards import TokenRows
from circuitcli.development.promoted import promoted
from circuitcli.features import describe, logits, peaks, scan
from circuitcli.features.statistics import QUANTILES, SHOWN_BINS, ActivationStatistics
from circuitcli.hookpoints import HookPoint
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.topk import TopKSae

HOOK = HookPoint(1, "resid")
WINDOW, N_CONTEXTS = 3, 4


class MemoryCache(ActivationCache):
    """An ActivationCache over tensors: blocks of the given lengths, positions from 1 as after a BOS.

    The tokens numbered in ``left_out`` have no row.
    """

    def __init__(self, lengths: list[int], *, seed: int = 0, left_out: Sequence[int] = ()) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.hooks = (HOOK,)
        n_tokens = sum(lengths)
        self.has_row = torch.ones(n_tokens, dtype=torch.bool)
        self.has_row[list(left_out)] = False
        self._edges = [0, int(self.has_row.sum())]
        self.activations = torch.randn(n_tokens, D_MODEL, generator=generator)[self.has_row]
        block = torch.repeat_interleave(torch.arange(len(lengths)) * 3, torch.tensor(lengths))
        position = torch.cat([torch.arange(1, length + 1) for length in lengths])
        token = torch.randint(0, VOCAB, (n_tokens,), generator=generator)
        self.everything = TokenRows(token, block, position)
        self.all = self.everything.at(self.has_row)

    def rows(self, hook: HookPoint, start: int, stop: int) -> torch.Tensor:
        assert hook == HOOK and 0 <= start <= stop <= self.n_tokens
        return self.activations[start:stop]

    def tokens(self, start: int, stop: int) -> TokenRows:
        assert 0 <= start <= stop <= self.n_tokens
        return TokenRows(*(column[start:stop] for column in (self.all.token, self.all.block, self.all.position)))

    def text(self, start: int, stop: int) -> Text:
        chosen = torch.tensor(text_of_rows(self.everything.block.tolist(), self.has_row.tolist(), start, stop))
        return Text(self.everything.at(chosen), self.has_row[chosen])


class ReluSae(SparseCoder):
    """An SAE that is not TopK: half of its features are active at a token."""

    architecture = "relu"

    def sparsify(self, pre):
        return pre.relu()


class Words(Tokenizer):
    """A tokenizer whose tokens read as their numbers."""

    def __init__(self) -> None:
        pass

    def token_strings(self, ids):
        return [f" t{index}" for index in ids]


LENGTHS = [5, 1, 17, 9, 2, 30, 4, 4, 11, 8, 1, 1, 23]


@pytest.fixture
def cache() -> MemoryCache:
    return MemoryCache(LENGTHS)


def sae_of(architecture: str) -> SparseCoder:
    topk = random_sae(HOOK, dtype=torch.float32)
    # Feature 7 is dead.
    topk.b_enc.data[7] = -1e4
    if architecture == "topk":
        return topk
    relu = ReluSae(topk.config)
    relu.load_state_dict(topk.state_dict())
    return relu.requires_grad_(False)


def scanned(cache: MemoryCache, sae: SparseCoder, *, batch_size: int = 16, n_tokens: int | None = None):
    return scan.scan(
        cache,
        sae,
        n_tokens=n_tokens or cache.n_tokens,
        batch_size=batch_size,
        n_contexts=N_CONTEXTS,
        window=WINDOW,
    )


def best_blocks(codes: torch.Tensor, block: torch.Tensor) -> list[tuple[float, int]]:
    """Value and row of the peak of each block in which one feature is active, strongest first, earlier first."""
    found = []
    for name in block.unique().tolist():
        rows = (block == name).nonzero()[:, 0]
        peak = int(codes[rows].argmax())
        if codes[rows[peak]] > 0:
            found.append((float(codes[rows[peak]]), int(rows[peak])))
    return sorted(found, key=lambda entry: (-entry[0], entry[1]))


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_counts_means_and_extremes_equal_those_of_all_codes_at_once(cache: MemoryCache, architecture: str) -> None:
    sae = sae_of(architecture)
    codes = sae.encode(cache.activations)
    statistics = scanned(cache, sae).statistics
    assert statistics.n_tokens == cache.n_tokens
    assert statistics.n_active.tolist() == (codes > 0).sum(dim=0).tolist()
    assert torch.allclose(statistics.density, (codes > 0).double().mean(dim=0))
    assert torch.allclose(statistics.largest, codes.amax(dim=0))
    expected = codes.double().sum(dim=0) / (codes > 0).sum(dim=0).clamp(min=1)
    assert torch.allclose(statistics.mean, expected)
    assert 7 not in statistics.live and len(statistics.live) < D_SAE


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_quantiles_are_within_three_percent_of_the_exact_ones(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 2, 3, 10, 999, 30]
    samples = [torch.randn(size, generator=generator).exp() * scale for size in sizes]
    statistics = ActivationStatistics(len(sizes) + 1)
    for feature, sample in enumerate(samples):
        for part in sample.split(400):
            statistics.add(torch.full((len(part),), feature), part, n_tokens=len(part))
    for feature, (sample, found) in enumerate(
        zip(samples, statistics.quantiles(torch.arange(len(sizes))), strict=True)
    ):
        exact = np.quantile(sample.double().numpy(), QUANTILES, method="inverted_cdf")
        assert np.allclose(found.numpy(), exact, rtol=0.03), feature


def test_quantiles_beyond_the_histogram_stay_within_the_exact_extremes() -> None:
    statistics = ActivationStatistics(2)
    statistics.add(torch.tensor([0, 0, 1]), torch.tensor([1e-12, 3e-12, 1e9]), n_tokens=3)
    quantiles = statistics.quantiles(torch.tensor([0, 1]))
    assert quantiles[0].amax() <= 3e-12 and quantiles[0].amin() >= 1e-12
    assert quantiles[1].tolist() == pytest.approx([1e9] * len(QUANTILES))


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 40.0])
def test_a_histogram_counts_every_activation_once_in_log_spaced_bins(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.randn(size, generator=generator) * spread).exp().clamp(1e-30, 1e30) for size in (1, 30, 5000)]
    statistics = ActivationStatistics(len(samples) + 1)
    for feature, sample in enumerate(samples):
        for part in sample.split(400):
            statistics.add(torch.full((len(part),), feature), part, n_tokens=len(part))
    for feature, sample in enumerate(samples):
        found = statistics.histogram(feature)
        assert found is not None and len(found.counts) <= SHOWN_BINS
        expected, _ = np.histogram(sample.double().numpy(), bins=np.array(found.edges))
        assert list(found.counts) == expected.tolist() and sum(found.counts) == len(sample)
        assert found.counts[0] and found.counts[-1], "no bin is empty at the ends"
        octaves = np.diff(np.log2(found.edges[1:-1]))
        assert np.allclose(octaves, octaves[:1]), "inner bins are equally wide"
    assert statistics.histogram(len(samples)) is None


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_the_histograms_of_a_scan_are_those_of_all_codes_at_once(cache: MemoryCache, architecture: str) -> None:
    sae = sae_of(architecture)
    codes = sae.encode(cache.activations)
    statistics = scanned(cache, sae).statistics
    for feature in range(D_SAE):
        own = codes[:, feature][codes[:, feature] > 0].double().numpy()
        found = statistics.histogram(feature)
        assert (found is None) == (not len(own))
        if found is not None:
            assert list(found.counts) == np.histogram(own, bins=np.array(found.edges))[0].tolist()


@pytest.mark.parametrize("n_peaks", [5, 32])
@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_peaks_are_the_best_blocks_by_their_largest_activation(
    cache: MemoryCache, architecture: str, n_peaks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "LABEL_PEAKS", n_peaks)
    sae = sae_of(architecture)
    codes = sae.encode(cache.activations)
    found = scanned(cache, sae).peaks
    for feature in range(D_SAE):
        expected = best_blocks(codes[:, feature], cache.all.block)[:n_peaks]
        count = len(expected)
        # Codes are sums of float32 numbers of size 1; how they are batched changes their last bits.
        assert found.values[feature, :count].tolist() == pytest.approx([value for value, _ in expected], abs=1e-6)
        assert not found.values[feature, count:].any()
        rows = torch.tensor([row for _, row in expected], dtype=torch.int64)
        assert found.token[feature, :count].tolist() == cache.all.token[rows].tolist()
        assert found.block[feature, :count].tolist() == cache.all.block[rows].tolist()
        assert found.position[feature, :count].tolist() == cache.all.position[rows].tolist()
        assert len(set(found.block[feature, :count].tolist())) == count


@pytest.mark.parametrize("left_out", [(), (0, 5, 7, 8, 9, 33, 34, 63, 64, 66, 75, 93, 115), range(1, 116, 3)])
def test_windows_show_each_token_with_its_activation_and_end_at_the_ends_of_the_block(left_out: Sequence[int]) -> None:
    cache, sae = MemoryCache(LENGTHS, left_out=left_out), sae_of("relu")
    codes = torch.zeros(len(cache.has_row), D_SAE)
    codes[cache.has_row] = sae.encode(cache.activations)
    text = cache.everything
    lines = describe.describe(HOOK, scanned(cache, sae), None, Words())
    seen_edges = set()
    for line in lines:
        feature = int(line["id"].rpartition("/")[2])
        expected = best_blocks(codes[:, feature], text.block)[:N_CONTEXTS]
        assert len(line["contexts"]) == len(expected)
        for context, (value, row) in zip(line["contexts"], expected, strict=True):
            rows = (text.block == text.block[row]).nonzero()[:, 0].tolist()
            first, last = max(rows[0], row - WINDOW), min(rows[-1], row + WINDOW)
            seen_edges |= {("first", first == rows[0]), ("last", last == rows[-1])}
            assert context["tokens"] == [f" t{token}" for token in text.token[first : last + 1].tolist()]
            assert context["activations"] == pytest.approx(codes[first : last + 1, feature].tolist(), rel=1e-3)
            assert context["activations"][context["peak"]] == pytest.approx(value, rel=1e-3)
            assert context["position"] == int(text.position[row])
    assert len(seen_edges) == 4


def test_a_window_of_zero_shows_the_peak_alone(cache: MemoryCache) -> None:
    summary = scan.scan(cache, sae_of("topk"), n_tokens=20, batch_size=7, n_contexts=1, window=0)
    line = next(describe.describe(HOOK, summary, None, Words()))
    assert line["contexts"][0]["peak"] == 0
    assert line["contexts"][0]["activations"] == [line["max"]]


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_the_result_does_not_depend_on_the_batch_size(cache: MemoryCache, batch_size: int) -> None:
    sae = sae_of("topk")
    whole, parts = scanned(cache, sae, batch_size=10_000), scanned(cache, sae, batch_size=batch_size)
    assert torch.equal(whole.statistics.n_active, parts.statistics.n_active)
    assert torch.equal(whole.peaks.block, parts.peaks.block)
    assert torch.equal(whole.peaks.tokens, parts.peaks.tokens)
    assert torch.allclose(whole.peaks.activations, parts.peaks.activations, atol=1e-5)


@pytest.mark.parametrize("n_tokens", [1, 6, 50])
def test_only_the_first_tokens_are_looked_at(cache: MemoryCache, n_tokens: int) -> None:
    sae = sae_of("topk")
    statistics = scanned(cache, sae, n_tokens=n_tokens).statistics
    assert statistics.n_tokens == n_tokens
    expected = (sae.encode(cache.activations[:n_tokens]) > 0).sum(dim=0)
    assert statistics.n_active.tolist() == expected.tolist()


@pytest.mark.parametrize("size", [1, 4, 16, 500])
def test_spans_cover_all_rows_and_never_cut_a_block(cache: MemoryCache, size: int) -> None:
    spans = list(scan.block_spans(cache, cache.n_tokens, size=size))
    edges = [start for start, _ in spans] + [cache.n_tokens]
    assert [stop for _, stop in spans] == edges[1:] and edges[0] == 0
    allowed = {0, *np.cumsum(LENGTHS).tolist()}
    assert set(edges) <= allowed
    for start, stop in spans:
        tokens = cache.tokens(start, stop)
        assert stop - start <= size or len(tokens.block.unique()) == 1 or stop - start <= 2 * max(LENGTHS)


def test_equal_peaks_are_kept_in_the_order_of_the_text() -> None:
    codes = torch.tensor([[2.0], [1.0], [2.0], [0.0], [2.0], [3.0]])
    rows = torch.arange(6)
    found = peaks.Peaks(1, n_peaks=2, n_windows=2, window=1)
    for first, last in ((0, 4), (4, 6)):
        part = codes[first:last]
        blocks = peaks.CodedBlocks(
            part, rows[first:last], rows[first:last], rows[first:last], torch.arange(len(part) + 1)
        )
        found.add(blocks, peaks.entries(part))
    assert found.token.tolist() == [[5, 0]]


def test_the_token_before_a_peak_is_known_inside_its_block_only(cache: MemoryCache) -> None:
    found = scanned(cache, sae_of("relu")).peaks
    starts = cache.all.position == 1
    for feature in range(D_SAE):
        for slot in found.values[feature].nonzero()[:, 0].tolist():
            block, position = int(found.block[feature, slot]), int(found.position[feature, slot])
            row = int(((cache.all.block == block) & (cache.all.position == position)).nonzero())
            expected = peaks.NO_TOKEN if starts[row] else int(cache.all.token[row - 1])
            assert int(found.previous[feature, slot]) == expected


@pytest.mark.parametrize("chunk", [1, 3 * VOCAB, 10**6])
def test_logit_effects_are_the_extremes_of_the_direct_path(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "MAX_LOGITS", chunk)
    adapter = adapter_of("llama", dtype=torch.float32)
    directions = random_sae(HOOK, dtype=torch.float32).W_dec[:7]
    found = logits.logit_effects(adapter, directions, n_top=3, vocab_size=VOCAB - 5)
    for row, effect in enumerate(adapter.logit_effect(directions)[:, : VOCAB - 5]):
        order = effect.argsort(descending=True)
        assert found.promoted[row].tolist() == order[:3].tolist()
        assert found.suppressed[row].tolist() == order.flip(0)[:3].tolist()
        assert found.promoted_effects[row].tolist() == pytest.approx(effect[order[:3]].tolist())
        assert found.suppressed_effects[row].tolist() == pytest.approx(effect[order.flip(0)[:3]].tolist())


@pytest.mark.parametrize("chunk", [1, 10**6])
def test_the_most_telling_tokens_are_furthest_from_what_other_features_do_to_them(chunk, monkeypatch) -> None:
    monkeypatch.setattr(logits, "MAX_LOGITS", chunk)
    adapter, sae = adapter_of("llama", dtype=torch.float32), random_sae(HOOK, dtype=torch.float32)
    with torch.no_grad():
        # Every feature moves one token far, without knowing anything of it.
        adapter.unembedding.weight[5] *= 50
    others = logits.background(adapter, sae, vocab_size=VOCAB - 5)
    found = logits.logit_effects(adapter, sae.W_dec, n_top=3, vocab_size=VOCAB - 5, others=others)
    effects = adapter.logit_effect(sae.W_dec)[:, : VOCAB - 5].double()
    deviation = effects.std(dim=0, correction=0)
    telling = (effects - effects.mean(dim=0)) / (deviation.square() + deviation.median() ** 2).sqrt()
    for row, (effect, score) in enumerate(zip(effects, telling, strict=True)):
        raised = [token for token in score.argsort(descending=True).tolist() if effect[token] > 0][:3]
        lowered = [token for token in score.argsort().tolist() if effect[token] < 0][:3]
        assert (found.promoted[row].tolist(), found.suppressed[row].tolist()) == (raised, lowered)
        assert found.promoted_effects[row].tolist() == pytest.approx(effect[raised].tolist(), rel=1e-4)
    plain = logits.logit_effects(adapter, sae.W_dec, n_top=3, vocab_size=VOCAB - 5)
    listed, before = (int((torch.cat([one.promoted, one.suppressed], dim=1) == 5).sum()) for one in (found, plain))
    assert before > 0.9 * len(effects) and listed < before / 2


def test_what_features_of_a_checkpoint_promote_is_ranked_beside_other_features() -> None:
    model, sae = language_model(), TopKSae(SaeConfig(HookPoint(1, "resid"), 24, 30), k=4).requires_grad_(False)
    sae.W_dec.copy_(torch.randn(30, 24, generator=torch.Generator().manual_seed(0)))
    size = model.tokenizer.vocab_size
    effects = model.adapter.logit_effect(sae.W_dec)[:, :size].double()
    deviation = effects.std(dim=0, correction=0)
    telling = (effects - effects.mean(dim=0)) / (deviation.square() + deviation.median() ** 2).sqrt()
    features = [4, 0, *range(7, 30)]
    expected = [
        [token for token in telling[feature].argsort(descending=True).tolist() if effects[feature][token] > 0][:3]
        for feature in features
    ]
    assert promoted(model, sae, features) == [[*model.tokenizer.token_strings(tokens)] for tokens in expected]
    raw = [effects[feature].argsort(descending=True)[:3].tolist() for feature in features]
    assert raw != expected and promoted(model, sae, []) == []


def test_where_features_move_nothing_no_token_is_told_from_others() -> None:
    adapter = adapter_of("llama", dtype=torch.float32)
    silent = logits.background_of(adapter, torch.zeros(3, D_MODEL), vocab_size=VOCAB)
    assert bool((silent.scale == 1).all()) and not bool(silent.mean.any())


def test_a_logit_effect_is_the_change_of_centred_logits_where_the_final_norm_is_linear() -> None:
    adapter = adapter_of("llama", dtype=torch.float32)
    direction = torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(0))
    residual = torch.randn(1, 1, D_MODEL, generator=torch.Generator().manual_seed(1))
    scale = residual.pow(2).mean().sqrt()
    step = 1e-2
    # Steps that keep the norm's denominator change the logits by the effect over that denominator.
    tangent = direction - (direction * residual[0]).sum() / residual.pow(2).sum() * residual[0]
    change = (adapter.head(residual + step * tangent) - adapter.head(residual - step * tangent))[0, 0] / (2 * step)
    effect = adapter.logit_effect(tangent)[0] / scale
    assert torch.allclose(change - change.mean(), effect, rtol=1e-2, atol=1e-2 * float(effect.abs().amax()))


@pytest.mark.parametrize("site, writes", [("resid", True), ("mlp", True), ("attn_in", False), ("mlp_in", False)])
def test_only_directions_of_the_residual_stream_have_logit_effects(site: str, writes: bool) -> None:
    assert logits.writes_to_residual(HookPoint(0, site)) is writes


def test_a_wide_sae_is_read_in_smaller_pieces(cache: MemoryCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_CODES", 8 * D_SAE)
    sizes = []
    sae = sae_of("topk")
    encode = sae.encode
    monkeypatch.setattr(sae, "encode", lambda x: (sizes.append(len(x)), encode(x))[1])
    scanned(MemoryCache([4] * 20), sae, batch_size=4096)
    assert max(sizes) <= 8 and sum(sizes) == 80


def test_lines_are_plain_values_with_the_promised_fields(cache: MemoryCache) -> None:
    sae = sae_of("topk")
    assert isinstance(sae, TopKSae)
    summary = scanned(cache, sae)
    adapter = adapter_of("gpt2", dtype=torch.float32)
    effects = logits.logit_effects(adapter, sae.W_dec[summary.statistics.live], n_top=2, vocab_size=VOCAB)
    lines = list(describe.describe(HOOK, summary, effects, Words()))
    assert [line["id"] for line in lines] == [f"resid.1/{index}" for index in summary.statistics.live.tolist()]
    for line in lines:
        assert list(line)[:2] == ["kind", "id"] and line["kind"] == "feature" and line["label"]
        assert list(line["quantiles"]) == ["0.1", "0.25", "0.5", "0.75", "0.9", "0.99"]
        assert sorted(line["quantiles"].values()) == list(line["quantiles"].values())
        assert len(line["promoted"]) == len(line["suppressed"]) == 2
        assert line["promoted"][0][1] >= line["promoted"][1][1] > line["suppressed"][1][1] >= line["suppressed"][0][1]


def test_what_is_drawn_is_as_likely_of_each_text_and_does_not_depend_on_the_batch_size(cache: MemoryCache) -> None:
    sae = sae_of("relu")
    options = {"n_tokens": cache.n_tokens, "n_contexts": 2, "window": WINDOW, "n_samples": 5}
    found = [scan.scan(cache, sae, batch_size=size, **options).samples for size in (1, 16, 1000)]
    for other in found[1:]:
        assert torch.equal(other.values, found[0].values) and torch.equal(other.tokens, found[0].tokens)
    codes, samples = sae.encode(cache.activations), found[0]
    for feature in range(D_SAE):
        n = int((samples.values[feature] > 0).sum())
        blocks = samples.block[feature, :n].tolist()
        active = cache.all.block[codes[:, feature] > 0].unique().tolist()
        assert len(set(blocks)) == n == min(5, len(active)) and set(blocks) <= set(active)
        assert bool((samples.activations[feature, :n, WINDOW] > 0).all())


def test_of_many_documents_each_peak_is_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document goes on as long as its blocks are full, also from one piece of codes to the next."""
    lengths, document = [], []
    for number in range(60):
        parts = [8] * (number % 4) + [1 + number % 7]
        lengths += parts
        document += [number] * len(parts)
    cache, sae = MemoryCache(lengths), sae_of("relu")
    monkeypatch.setattr(scan, "MANY_DOCUMENTS", 60)
    codes = sae.encode(cache.activations)
    of_row = torch.tensor(document)[cache.all.block // 3]
    for size in (1, 20, 10_000):
        found = scanned(cache, sae, batch_size=size).peaks
        for feature in (0, 5, 11):
            best = best_blocks(codes[:, feature], of_row)[: found.n_peaks]
            n = int((found.values[feature] > 0).sum())
            assert found.values[feature, :n].tolist() == pytest.approx([value for value, _ in best], rel=1e-5)
            assert found.document[feature, :n].tolist() == [int(of_row[row]) for _, row in best]
            assert found.position[feature, :n].tolist() == [int(cache.all.position[row]) for _, row in best]
            for slot in range(min(n, N_CONTEXTS)):
                row = best[slot][1]
                assert int(found.tokens[feature, slot, WINDOW]) == int(cache.all.token[row])
                assert float(found.activations[feature, slot, WINDOW]) == pytest.approx(
                    float(codes[row, feature]), rel=1e-5
                )
    monkeypatch.setattr(scan, "MANY_DOCUMENTS", 61)
    assert scanned(cache, sae).peaks.document.unique().tolist() == [peaks.NO_TOKEN]
