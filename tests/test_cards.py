"""Cards of the features of every kind of coder, against slow definitions: codes of both signs, all that is written."""

from functools import cache
from itertools import accumulate

import pytest
import torch
from support_collect import language_model, texts
from torch import Tensor

from circuitcli.errors import InputError
from circuitcli.features.cards import card, cards
from circuitcli.features.lines import Details, Histogram
from circuitcli.features.logits import background, directions, logit_effects
from circuitcli.features.statistics import BINS_PER_OCTAVE
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.models.taps import read, tapped
from circuitcli.saes.abstopk import AbsTopKSae
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.crosscoder import Crosscoder
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.signed_topk import SignedTopKSae
from circuitcli.saes.topk import TopKSae

D_MODEL, D_SAE, WINDOW, N_CONTEXTS = 24, 30, 3, 4
TEXTS = texts(19, 1, 40, 7, 33)


def at(*names: str) -> tuple[HookPoint, ...]:
    return tuple(HookPoint.parse(name) for name in names)


def coder_of(architecture: type[SparseCoder], reads: str, writes: tuple[str, ...], **options: object) -> SparseCoder:
    """A random coder; feature 3 is never active, and few pre-activations are above zero."""
    target, *further = at(*writes)
    config = SaeConfig(*at(reads), D_MODEL, D_SAE, target=target, further=tuple(further), subtract_decoder_bias=False)
    coder, generator = architecture(config, **options), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        coder.W_enc[:, 3] = 0.0
        coder.b_enc.sub_(4.0)[3] = 0.0 if architecture is AbsTopKSae else -1e6
    return coder.eval().requires_grad_(False)


@cache
def model() -> LanguageModel:
    return language_model()


def crosscoder() -> Crosscoder:
    """A crosscoder of two layers of the residual stream; feature 3 is never active."""
    config = SaeConfig(HookPoint(0, "resid"), 2 * D_MODEL, D_SAE, subtract_decoder_bias=False)
    coder, generator = Crosscoder(config, hooks=["resid.0", "resid.2"]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (name != "threshold"))
        coder.b_enc.sub_(6.0)[3] = -1e6
    return coder.eval().requires_grad_(False)


def codes_of(coder: SparseCoder) -> list[tuple[list[int], Tensor]]:
    """Tokens and codes of each text, run alone."""
    found = []
    for text in TEXTS:
        ids = model().tokenizer.with_bos(model().tokenizer.encode(text))
        hooks = coder.hook_points if isinstance(coder, Crosscoder) else [coder.hook]
        seen = read(model().adapter, torch.tensor([ids]), None, hooks)
        x = torch.cat([seen[hook][0] for hook in hooks], dim=1)
        found.append((ids[1:], coder.encode(x)[1:]))
    return found


CODERS = {
    "sae": (TopKSae, "resid.1", ("resid.1",), {"k": 4}),
    "sae of both signs": (AbsTopKSae, "resid.1", ("resid.1",), {"k": 4}),
    "transcoder of both signs": (SignedTopKSae, "mlp_in.1", ("mlp.1",), {"k": 4}),
    "transcoder of attention": (JumpReluSae, "attn_in.2", ("attn.2",), {}),
    "layer of a cross-layer transcoder": (TopKSae, "mlp_in.0", ("mlp.0", "mlp.1", "mlp.2"), {"k": 3}),
}


def best_blocks(found: list[tuple[list[int], Tensor]], index: int, sign: int) -> list[tuple[float, int, int]]:
    """Size, text and place of the strongest code of this sign in each text, strongest first."""
    peaks = [(*(sign * codes[:, index]).max(dim=0), number) for number, (_, codes) in enumerate(found)]
    return sorted(((float(v), n, int(p)) for v, p, n in peaks if v > 0), key=lambda peak: (-peak[0], peak[1]))


def check_histogram(found: Histogram, own: Tensor) -> None:
    """What lies below each edge is as much as of all codes at once, but for what five digits of it leave open."""
    assert sum(found.counts) == len(own) and list(found.edges) == sorted(found.edges)
    for edge, below in zip(found.edges, accumulate(found.counts, initial=0), strict=True):
        near = 1e-4 * abs(edge)
        assert int((own < edge - near).sum()) <= below <= int((own < edge + near).sum())


def check_side(side: object, found: list[tuple[list[int], Tensor]], index: int, *, sign: int) -> None:
    every = torch.cat([codes for _, codes in found])[:, index].double()
    own = every[every * sign > 0]
    assert side.n_active == len(own) and side.density == pytest.approx(len(own) / len(every), rel=1e-4)
    furthest = side.max if sign > 0 else side.min
    assert furthest == pytest.approx(float(sign * (sign * own).max()), rel=1e-4)
    assert side.mean == pytest.approx(float(own.mean()), rel=1e-4)
    exact = torch.quantile(sign * own, 0.5, interpolation="lower")
    assert sign * side.quantiles["0.5"] == pytest.approx(float(exact), rel=0.03)
    check_histogram(side.histogram, own)
    blocks = best_blocks(found, index, sign)
    expected = blocks[:N_CONTEXTS]
    # Those at quantiles are from other texts, as long as there are some.
    further = side.contexts[len(expected) :]
    assert {context.block for context in further} == {number for _, number, _ in blocks[N_CONTEXTS:]}
    for context in side.contexts:
        size = sign * found[context.block][1][context.position - 1, index].double()
        assert abs(context.activations[context.peak]) == pytest.approx(float(size), rel=1e-3)
        near = ((sign * own / size).log2().abs() < 1 / BINS_PER_OCTAVE).sum() / len(own)
        assert context.quantile == pytest.approx(float((sign * own <= size).sum()) / len(own), abs=float(near) + 1e-3)
    for context, (value, number, place) in zip(side.contexts, expected, strict=False):
        tokens, codes = found[number]
        around = slice(max(place - WINDOW, 0), place + WINDOW + 1)
        assert list(context.tokens) == model().tokenizer.token_strings(tokens[around])
        assert context.activations == pytest.approx(codes[around, index].tolist(), rel=1e-3, abs=1e-4)
        assert context.activations[context.peak] == pytest.approx(sign * value, rel=1e-3)
        assert (context.block, context.position) == (number, place + 1)


@pytest.mark.parametrize("name", list(CODERS))
def test_cards_tell_where_and_how_strongly_every_feature_is_active_with_either_sign(name: str):
    architecture, reads, writes, options = CODERS[name]
    coder = coder_of(architecture, reads, writes, **options)
    found = codes_of(coder)
    made = list(cards(coder, TEXTS, model=model(), n_contexts=N_CONTEXTS, window=WINDOW))
    every = torch.cat([codes for _, codes in found])
    assert [one.id for one in made] == [f"{reads}/{index}" for index in every.any(dim=0).nonzero()[:, 0].tolist()]
    is_signed = bool((every < 0).any())
    assert is_signed == ("both signs" in name)
    for one in made:
        index = int(one.id.rpartition("/")[2])
        if bool((every[:, index] > 0).any()):
            check_side(one, found, index, sign=1)
        else:
            assert one.n_active == 0 and one.contexts == () and one.label.startswith("negative: ")
        norms = {str(hook): pytest.approx(float(coder.decoder(hook)[index].norm()), rel=1e-3) for hook in coder.writes}
        assert one.decoder_norms == (norms if len(writes) > 1 else None)
        assert (one.negative is not None) == bool((every[:, index] < 0).any())
        if one.negative is not None:
            check_side(one.negative, found, index, sign=-1)
            assert one.negative.label in one.label


def test_a_crosscoder_is_described_by_all_that_it_reads_and_promotes_by_the_last_stream_that_it_writes():
    coder = crosscoder()
    found, every = codes_of(coder), torch.cat([codes for _, codes in codes_of(coder)])
    made = list(cards(coder, TEXTS, model=model(), n_contexts=N_CONTEXTS, window=WINDOW, n_logits=3))
    assert [one.id for one in made] == [f"resid.0/{index}" for index in every.any(dim=0).nonzero()[:, 0].tolist()]
    assert 0 < len(made) < D_SAE
    for one in made:
        index = int(one.id.rpartition("/")[2])
        check_side(one, found, index, sign=1)
        first, last = coder.W_dec[index].split(D_MODEL)
        assert one.decoder_norms == {
            "resid.0": pytest.approx(float(first.norm()), rel=1e-3),
            "resid.2": pytest.approx(float(last.norm()), rel=1e-3),
        }
        # The numbers are plain effects of tokens that `test_features` holds against their definition.
        size = model().tokenizer.vocab_size
        effect = model().adapter.logit_effect(last[None])[0, :size]
        others = background(model().adapter, coder, vocab_size=size)
        told = logit_effects(model().adapter, last[None], n_top=3, vocab_size=size, others=others).promoted[0]
        assert [value for _, value in one.promoted] == pytest.approx(effect[told].tolist(), rel=1e-3)


@pytest.mark.parametrize("name", ["sae of both signs", "layer of a cross-layer transcoder"])
def test_the_card_of_one_feature_is_its_card_among_all(name: str):
    architecture, reads, writes, options = CODERS[name]
    coder = coder_of(architecture, reads, writes, **options)
    asked = {"model": model(), "n_contexts": 2, "window": 1, "n_logits": 3}
    every = {one.id: one for one in cards(coder, TEXTS, **asked)}
    last = max(every, key=lambda name: int(name.rpartition("/")[2]))
    assert card(coder, TEXTS, feature=int(last.rpartition("/")[2]), **asked) == every[last]
    some = [5, 3, 11]
    assert [one.id for one in cards(coder, TEXTS, features=some, **asked)] == [f"{reads}/{n}" for n in (3, 5, 11)]


def test_a_feature_that_is_never_active_has_a_card_of_what_it_would_do():
    coder = coder_of(TopKSae, "mlp_in.1", ("mlp.1",), k=4)
    made = card(coder, TEXTS, feature=3, model=model(), n_logits=2)
    assert isinstance(made, Details) and made.label == "never active"
    assert (made.n_active, made.density, made.contexts, len(made.promoted)) == (0, 0.0, (), 2)


def test_only_so_many_tokens_are_looked_at():
    coder = coder_of(TopKSae, "resid.1", ("resid.1",), k=4)
    made = list(cards(coder, TEXTS, model=model(), n_tokens=25))
    assert sum(one.n_active for one in made) == int((torch.cat([c for _, c in codes_of(coder)])[:25] > 0).sum())


@pytest.mark.parametrize(
    ("texts_", "feature", "told"), [([], 1, "no token"), ([""], 1, "no token"), (TEXTS, 99, "/99")]
)
def test_what_has_no_card_is_refused(texts_: list[str], feature: int, told: str):
    coder = coder_of(TopKSae, "resid.1", ("resid.1",), k=4)
    with pytest.raises(InputError, match=told) as caught:
        card(coder, texts_, feature=feature, model=model())
    assert caught.value.hint


WRITES = [
    *[("mlp.1",), ("mlp.0", "mlp.1", "mlp.2"), ("attn.0", "mlp.2"), ("resid.1",), ("resid.0", "resid.2")],
    *[("mlp.0", "resid.1", "mlp.2"), ("mlp.0", "resid_mid.1", "mlp.1"), ("attn.1", "mlp_in.2"), ("embed", "mlp.0")],
]


@pytest.mark.parametrize("writes", WRITES, ids=" ".join)
def test_logit_effects_are_those_of_all_that_is_written_and_reaches_the_last_residual_directly(writes: tuple[str, ...]):
    """Everything that the blocks compute is held at its clean value; a stream that is written goes on with its own."""
    coder, adapter = coder_of(TopKSae, writes[0], writes, k=4), model().adapter
    ids, last = torch.tensor([[5, 9, 33]]), HookPoint(2, "resid")
    computed = [HookPoint(layer, site) for layer in range(3) for site in ("attn", "mlp")]
    written = [hook for hook in coder.writes if hook.site not in ("attn_in", "mlp_in")]
    clean = read(adapter, ids, None, {*computed, *written, last})
    changed = {hook: clean[hook] + (coder.decoder(hook)[7] if hook in written else 0) for hook in [*computed, *written]}
    seen: dict[HookPoint, Tensor] = {}
    callbacks = {hook: (lambda x, hook=hook: changed[hook]) for hook in changed}
    callbacks[last] = lambda x: seen.setdefault(last, changed.get(last, x))
    with torch.no_grad(), tapped(adapter, callbacks):
        adapter.logits(ids)
    expected = (seen[last] - clean[last])[0, 1]
    assert torch.allclose(directions(coder, torch.tensor([7]))[0], expected, atol=1e-4)


def test_what_only_attention_or_an_mlp_reads_has_no_direct_effect():
    assert directions(coder_of(TopKSae, "mlp_in.1", ("mlp_in.1",), k=4), torch.tensor([0])) is None
