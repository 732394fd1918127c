"""The k largest pre-activations found through bfloat16, against a full search in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuitcli.saes.fast import screening, selection
from circuitcli.saes.fast.screening import Screen, flat_places, not_below
from circuitcli.saes.fast.selection import Above, BatchTopK, Crowded, TopK
from circuitcli.saes.fast.sparse import Encoder, decode, dense_pre_activations, encode, pre_activations

BATCH, D_IN, D_SAE, K = 12, 48, 400, 4


def problem(seed: int, *, like_rows: float = 0.0, bias: float = 0.1, spread: float = 1.0) -> tuple[Tensor, ...]:
    """Tokens, encoder and bias; like_rows: how much of each feature is that of its neighbour."""
    generator = torch.Generator().manual_seed(seed)
    rows, W_enc, b_enc = (torch.randn(shape, generator=generator) for shape in ((BATCH, D_IN), (D_IN, D_SAE), (D_SAE,)))
    W_enc = (1 - like_rows) * W_enc + like_rows * W_enc[:, :1]
    return rows * torch.logspace(-spread, spread, BATCH)[:, None], W_enc / D_IN**0.5, bias * b_enc


def screened(rows: Tensor, W_enc: Tensor, b_enc: Tensor, k: int = K) -> tuple[Tensor, Tensor]:
    screen = Screen(rows, W_enc, b_enc)
    return screen.largest(0, torch.addmm(screen.bias, screen.rows, screen.weights), k)


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(screening, "has_bfloat16_units", lambda: True)


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.1, 30.0]),
    st.sampled_from([0.0, 4.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_are_those_of_the_full_search(seed: int, like_rows: float, bias: float, spread: float):
    rows, W_enc, b_enc = problem(seed, like_rows=like_rows, bias=bias, spread=spread)
    values, features = screened(rows, W_enc, b_enc)
    exact = rows.double() @ W_enc.double() + b_enc.double()
    assert torch.allclose(values.double(), exact.gather(1, features), rtol=1e-5, atol=1e-5 * (bias + 10**spread))
    assert all(len(set(names)) == K for names in features.tolist())
    # What was left out is no larger, but for the rounding of float32.
    left_out = exact.scatter(1, features, -torch.inf).amax(dim=1)
    size = exact.abs().amax(dim=1) + bias + 1e-3
    assert (left_out <= exact.gather(1, features).amin(dim=1) + 1e-5 * size).all()


def test_without_the_bound_some_of_the_largest_would_be_missed():
    rows, W_enc, b_enc = problem(0, like_rows=0.97)
    rounded = rows.bfloat16() @ W_enc.bfloat16() + b_enc.bfloat16()
    exact = (rows.double() @ W_enc.double() + b_enc.double()).topk(K).indices
    missed = [set(a) != set(b) for a, b in zip(rounded.topk(K).indices.tolist(), exact.tolist(), strict=True)]
    assert any(missed)
    _, features = screened(rows, W_enc, b_enc)
    assert [set(row) for row in features.tolist()] == [set(row) for row in exact.tolist()]


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.99]), st.sampled_from([0.0, 0.1, 30.0]))
@settings(max_examples=60, deadline=None)
def test_no_product_is_off_by_more_than_is_said(seed: int, like_rows: float, bias: float):
    rows, W_enc, b_enc = problem(seed, like_rows=like_rows, bias=bias)
    screen = Screen(rows, W_enc, b_enc)
    rounded = torch.addmm(screen.bias, screen.rows, screen.weights).double()
    exact = rows.double() @ W_enc.double() + b_enc.double()
    allowed = screen._slack[:, None].double() + screening._ROUNDED * rounded.abs()
    assert ((rounded - exact).abs() <= allowed).all()


def worst(where: str) -> tuple[Tensor, Tensor]:
    """A token and an encoder in which feature 40 is the largest, and feature 41 seems to be so by far: every single
    rounding makes the one smaller and the other larger, and their products cancel but for that."""
    step = 0.98 * 2.0**-8
    # Rounded to 1 and to -(1 + 2**-7), both smaller by the step.
    rounded_down = torch.tensor([1 + step, -(1 + 2.0**-7 - step)]).repeat(32)
    sides = torch.zeros(2, 128)
    sides[0, :64] = sides[1, 64:] = 1.0
    bad = torch.cat([rounded_down, -rounded_down])
    row, pair = (bad, sides) if where == "rows" else (torch.ones(128), bad * sides)
    encoder = torch.zeros(64, 129)
    encoder[:, 128] = -1.0
    encoder[40:42, :128], encoder[40:42, 128] = pair, torch.tensor([0.05, 0.0])
    return torch.cat([row, torch.ones(1)])[None], encoder.T


@pytest.mark.parametrize("where", ["rows", "weights"])
@pytest.mark.parametrize("rule", [TopK(1), BatchTopK(1), Above(torch.tensor(0.03), 0.5)], ids=str)
def test_the_largest_is_found_where_all_errors_add_up(where, rule, always):
    rows, W_enc = worst(where)
    rounded = (rows.bfloat16() @ W_enc.bfloat16())[0]
    assert rounded.argmax() == 41 and rounded[41] > rounded[40] + 0.4
    codes = encode(rows, Encoder(W_enc, torch.zeros(64), None), rule)
    assert codes.features.tolist() == [40]


def test_numbers_too_small_for_a_norm_count_too():
    rows = 1e-25 * torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    W_enc = 1e-6 * torch.randn(128, 1024, generator=torch.Generator().manual_seed(1))
    # What processors may take for zero, with weights that make it all there is.
    rows[:, 0] = 5e-39
    W_enc[0] = 1e10 * torch.randn(1024, generator=torch.Generator().manual_seed(2))
    values, features = screened(rows, W_enc, torch.zeros(1024))
    exact = rows.double() @ W_enc.double()
    assert torch.allclose(values.double().sort(descending=True).values, exact.topk(K).values, rtol=1e-4, atol=0)
    assert torch.allclose(values.double(), exact.gather(1, features), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rule", [TopK(K), BatchTopK(3), Above(torch.tensor(1.0), 1.0)], ids=str)
def test_no_token_has_no_codes(rule, always):
    _, W_enc, b_enc = problem(1)
    codes = encode(torch.zeros(0, D_IN), Encoder(W_enc, b_enc, None), rule)
    assert len(codes.values) == len(codes.starts) == 0


def test_most_tokens_have_few_candidates(monkeypatch):
    """Or nothing would be won: the float32 product is taken for none of these."""
    monkeypatch.setattr(torch, "addmm", None)
    generator = torch.Generator().manual_seed(0)
    rows, W_enc = torch.randn(64, 256, generator=generator), torch.randn(256, 2048, generator=generator) / 16
    screen = Screen(rows, W_enc, torch.zeros(2048))
    values, _ = screen.largest(0, screen.rows @ screen.weights, 16)
    assert torch.allclose(values.sort(descending=True).values, (rows @ W_enc).topk(16).values, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_token_that_is_not_finite_is_multiplied_in_float32(bad):
    rows, W_enc, b_enc = problem(1)
    rows[3, 5] = bad
    values, _ = screened(rows, W_enc, b_enc)
    assert values[3].isnan().all() or values[3].isinf().all()
    fine = torch.arange(BATCH) != 3
    assert torch.allclose(values[fine].sort(descending=True).values, (rows @ W_enc + b_enc)[fine].topk(K).values)


def test_weights_that_are_not_finite_are_no_secret():
    rows, W_enc, b_enc = problem(1)
    W_enc[2, 7] = torch.nan
    values, _ = screened(rows, W_enc, b_enc)
    assert values.isnan().any(dim=1).all()


@given(st.integers(0, 1000), st.sampled_from([1, 3, 8, 64, 100]), st.sampled_from([-2.0, 0.0, 1.0]))
@settings(max_examples=40, deadline=None)
def test_places_and_floors_are_as_defined(seed: int, width: int, floor: float):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(6, width, generator=generator).bfloat16()
    floors = floor + 0.5 * torch.rand(6, generator=generator)
    mask = not_below(pre, floors)
    assert mask[pre.float() >= floors[:, None]].all(), "the floor is rounded down"
    assert not mask[pre.float() < floors[:, None] - 2**-6 * floors[:, None].abs() - 1e-30].any()
    assert flat_places(mask).tolist() == mask.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("rule", [TopK(K), BatchTopK(3), Above(torch.tensor(2.0), 0.5)], ids=str)
def test_a_step_is_that_of_the_dense_definition(rule, always, monkeypatch):
    monkeypatch.setattr(selection, "PIECE_ROWS", 7)
    rows, W_enc, b_enc = problem(2, spread=0.3)
    W_dec = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(4))

    def gradients(way) -> list[Tensor]:
        parts = [part.clone().requires_grad_() for part in (rows, W_enc, b_enc, W_dec)]
        codes = way(parts[0], Encoder(parts[1], parts[2], None), rule)
        loss = (decode(codes.positive(), parts[3]) - rows).square().sum()
        return [loss.detach(), *torch.autograd.grad(loss, parts)]

    for found, expected in zip(gradients(pre_activations), gradients(dense_pre_activations), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_it_is_done_for_float32_alone_on_processors_that_gain_by_it(monkeypatch):
    made = []
    original = Screen.__init__

    def noted(self, *parts, **options):
        made.append(1)
        original(self, *parts, **options)

    def n_screens(rows: Tensor, W_enc: Tensor, b_enc: Tensor, k: int = K) -> int:
        made.clear()
        encode(rows, Encoder(W_enc, b_enc, None), TopK(k))
        return len(made)

    monkeypatch.setattr(Screen, "__init__", noted)
    monkeypatch.setattr(screening, "has_bfloat16_units", lambda: True)
    parts = problem(3)
    assert n_screens(*parts) == 1
    assert n_screens(*parts, k=100) == 0
    assert n_screens(*(part.double() for part in parts)) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert n_screens(*parts) == 0
    monkeypatch.setattr(screening, "has_bfloat16_units", lambda: False)
    assert n_screens(*parts) == 0
    assert not screening.pays(torch.device("cuda"), d_sae=10**6, k=1)


@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.sampled_from([1.0, 50.0]),
    st.sampled_from([1, 5, 1024]),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_of_the_batch_are_those_of_the_full_search(
    seed: int, k: int, like_rows: float, crowd: float, piece_rows: int
):
    rows, W_enc, b_enc = problem(seed, like_rows=like_rows, spread=0.3)
    # Some tokens hold many times more than their share.
    rows[::6] *= crowd
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "has_bfloat16_units", lambda: True)
        patch.setattr(selection, "PIECE_ROWS", piece_rows)
        codes = pre_activations(rows, Encoder(W_enc, b_enc, None), BatchTopK(k))
    exact = rows.double() @ W_enc.double() + b_enc.double()
    taken = exact[codes.tokens, codes.features]
    assert len(set(zip(codes.tokens.tolist(), codes.features.tolist(), strict=True))) == k * BATCH
    assert codes.tokens.tolist() == sorted(codes.tokens.tolist())
    assert torch.allclose(codes.values.double(), taken, rtol=1e-5, atol=1e-5 * crowd)
    left_out = exact.index_put((codes.tokens, codes.features), exact.new_tensor(-torch.inf)).max()
    assert left_out <= taken.min() + 1e-5 * exact.abs().max()


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([0.5, 2.0, 100.0]),
    st.sampled_from([1, 5, 1024]),
)
@settings(max_examples=60, deadline=None)
def test_those_above_floors_are_those_of_the_definition(seed: int, like_rows: float, height: float, piece_rows: int):
    rows, W_enc, b_enc = problem(seed, like_rows=like_rows, spread=0.3)
    floors = height * torch.rand(D_SAE, generator=torch.Generator().manual_seed(seed + 1))
    for floor in (floors, torch.tensor(height)):
        rule = Above(floor, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(screening, "has_bfloat16_units", lambda: True)
            patch.setattr(selection, "PIECE_ROWS", piece_rows)
            codes = pre_activations(rows, Encoder(W_enc, b_enc, None), rule)
        exact = rows.double() @ W_enc.double() + b_enc.double()
        made = torch.zeros_like(exact, dtype=torch.bool).index_put((codes.tokens, codes.features), torch.tensor(True))
        # Rounding in float32 decides about those that are that close.
        sure = (exact - floor).abs() > 1e-5 * (exact.abs() + height)
        assert torch.equal(made[sure], (exact > floor)[sure])
        assert torch.allclose(codes.values.double(), exact[codes.tokens, codes.features], rtol=1e-5, atol=1e-5 * height)
        assert codes.tokens.tolist() == sorted(codes.tokens.tolist())


def test_more_above_the_floor_than_are_worth_it_are_refused_as_ever(always):
    rows, W_enc, b_enc = problem(8, spread=0.3)
    n_above = int((rows @ W_enc + b_enc > 1.0).sum())
    encoder = Encoder(W_enc, b_enc, None)
    enough, too_few = (Above(torch.tensor(1.0), (n_above + more) / (BATCH * D_SAE)) for more in (0.5, -0.5))
    assert len(pre_activations(rows, encoder, enough).values) == n_above
    with pytest.raises(Crowded):
        pre_activations(rows, encoder, too_few)


def test_a_batch_takes_the_float32_product_only_if_it_must(always, monkeypatch):
    rows, W_enc, b_enc = problem(6, spread=0.3)
    looked = []
    original = selection._largest
    monkeypatch.setattr(
        selection, "_largest", lambda *parts, **options: looked.append(1) or original(*parts, **options)
    )
    encode(rows, Encoder(W_enc, b_enc, None), BatchTopK(3))
    assert not looked
    # All features alike: any may be among the largest.
    encode(rows, Encoder(W_enc[:, :1].expand(-1, D_SAE), torch.zeros(D_SAE), None), BatchTopK(3))
    assert looked


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["rows", "weights", "bias"])
def test_a_batch_with_numbers_that_are_not_finite_does_not_hide_them(bad, where, always):
    rows, W_enc, b_enc = problem(7, spread=0.3)
    {"rows": rows, "weights": W_enc, "bias": b_enc}[where].view(-1)[-1] = bad
    for rule in (TopK(K), BatchTopK(3), Above(torch.tensor(3.0), 1.0)):
        values = encode(rows, Encoder(W_enc, b_enc, None), rule).values
        assert not values.isfinite().all()


def test_two_runs_choose_the_same_bits(always):
    rows, W_enc, b_enc = problem(5)
    one, two = (encode(rows, Encoder(W_enc, b_enc, None), TopK(K)) for _ in range(2))
    assert torch.equal(one.values, two.values) and torch.equal(one.features, two.features)
