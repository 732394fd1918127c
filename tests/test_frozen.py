"""Attribution graphs: edges are exactly what interventions in the frozen model do, in every family and mix."""

import numpy as np
import pytest
import torch
from subjects import log_prob, logit_difference, mixed_subject, random_subject, subject_with
from support import D_MODEL, D_SAE, MIXES, adapter_of, random_coders, random_sae
from test_attribution import EXACT
from test_influence import dense_influence
from torch.nn import functional as F

import circuitcli
from circuitcli.attribution.correlation import rank_correlation
from circuitcli.attribution.frozen import linear
from circuitcli.attribution.frozen.checking import check_edges
from circuitcli.attribution.frozen.counting import expected_edges, expected_features, possible_edges
from circuitcli.attribution.frozen.linear import EMBED, FrozenModel, divisor
from circuitcli.attribution.frozen.nodes import explained_logits, likeliest
from circuitcli.attribution.frozen.search import FrozenSearch
from circuitcli.errors import InputError
from circuitcli.graphs.influence import ERROR, FEATURE, LOGIT, TOKEN
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models import freezing
from circuitcli.models.freezing import Frozen
from circuitcli.models.rules import applied
from circuitcli.models.taps import keep, leaf, tapped
from circuitcli.progress import NOTE
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.gated import GatedSae
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.matching_pursuit import MatchingPursuitSae
from circuitcli.saes.relu import ReluSae
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.graph import GraphSettings

SEQUENTIAL = ("full",)
FAMILIES = ("gpt2", "neox-parallel", "llama", "gemma2", "qwen3")
# All mixes in one family, and in the others those that differ most.
PAIRS = [
    (family, mix)
    for family in FAMILIES
    for mix in (MIXES if family == "gpt2" else ("transcoders", "clt-skip", "full", "attention"))
    if not (family == "neox-parallel" and mix in SEQUENTIAL)
]


def tolerance(family):
    """Some families compute norms in single precision whatever the model's is."""
    return 1e-11 if family in EXACT else 2e-5


def searched(subject, **settings):
    return FrozenSearch(subject, GraphSettings(frozen=True, **{"batch_size": 16, **settings}))


def dense(search):
    """All edges as a matrix."""
    rows = search.rows
    matrix = np.zeros((search.nodes.n, search.nodes.n))
    matrix[rows.edge_targets, rows.sources] = rows.values
    return matrix


def changes(search, seen):
    """What each node is in a run of the frozen model, beyond what it is in the clean one: a row each."""
    model, nodes, subject = search.model, search.nodes, search.subject
    n_rows = len(seen.normed[0])
    found = np.zeros((n_rows, nodes.n))
    for active in nodes.active:
        coder, before = subject.coders[active.hook], model.seen.reads[active.hook].detach()
        change = seen.reads[active.hook] - before
        divided = divisor(coder, before)
        pre = (change if divided is None else change / divided) @ coder.W_enc
        if coder.architecture == "gated":
            pre = pre * coder.r_mag.exp()
        found[:, active.start : active.start + len(active)] = pre[:, active.positions, active.indices]
    with torch.no_grad():
        logits = subject.adapter.unembedded(seen.normed[0])[:, -1]
        logits = logits - subject.adapter.unembedded(model.seen.normed[0].detach())[:, -1]
    found[:, nodes.n_sources :] = (logits - logits.mean(dim=-1, keepdim=True))[:, list(nodes.logits)]
    return found


def doubled(search, numbers):
    """By place what doubling each of some sources adds, a row each: by their names, from codes, errors and tokens."""
    subject, moves = search.subject, {}

    def move(place):
        shape = (len(numbers), subject.n_spliced, D_MODEL)
        return moves.setdefault(place, torch.zeros(shape, dtype=torch.float64))

    for row, number in enumerate(numbers):
        node = NodeId.parse(search.nodes.name(number))
        at = node.position - subject.first
        if node.is_token:
            move(EMBED)[row, at] = subject.adapter.embedding(subject.clean.input_ids)[0, node.position]
        elif node.is_error:
            move(node.hook)[row, at] = subject.errors[node.hook][0, at]
        else:
            coder, scale = subject.coders[node.hook], subject.scale(node.hook)
            code = subject.codes[node.hook][0, at, node.index] * (1.0 if scale is None else scale[0, at, 0])
            for place in coder.writes:
                move(place)[row, at] = code * coder.decoder(place)[node.index]
    return moves


@pytest.mark.parametrize(("family", "mix"), PAIRS)
def test_doubling_any_source_in_the_frozen_model_changes_every_node_by_exactly_its_edge(family, mix):
    search = searched(mixed_subject(family, mix))
    nodes, matrix = search.nodes, dense(search)
    numbers = [*range(0, nodes.n_features, 3), *range(nodes.n_features, nodes.n_sources)]
    found = changes(search, search.model.moved(doubled(search, numbers)))
    np.testing.assert_allclose(found, matrix[:, numbers].T, rtol=0, atol=tolerance(family) * np.abs(matrix).max())
    assert {int(kind) for kind in nodes.kinds[numbers]} == {FEATURE, ERROR, TOKEN}
    assert (nodes.orders[search.rows.sources] < nodes.orders[search.rows.edge_targets]).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_frozen_model_is_linear_in_all_its_sources_together(family):
    search = searched(mixed_subject(family, "clt-skip"))
    numbers = [3, 20, 41, search.nodes.n_features + 2, search.nodes.tokens_start + 1]
    moves = doubled(search, numbers)
    together = {place: (torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])[:, None, None] * move).sum(0, keepdim=True)
                for place, move in moves.items()}  # fmt: skip
    weights = np.array([1.0, -2.0, 0.5, 3.0, -1.0])
    expected = dense(search)[:, numbers] @ weights
    found = changes(search, search.model.moved(together))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * tolerance(family) * np.abs(expected).max())


def plain_frozen_gpt2(subject, moves):
    """GPT-2 with transcoders written out with its weights: attention patterns and denominators those of the clean run.

    Gives what each transcoder reads, and the output of the final norm.
    """
    model, first = subject.adapter.model, subject.first
    ids = subject.clean.input_ids
    with torch.no_grad():
        model.set_attn_implementation("eager")
        clean = model(ids, output_attentions=True, output_hidden_states=True)
        inner, reads = model.transformer, {}

        def norm(module, x, of):
            scale = (of.var(dim=-1, unbiased=False, keepdim=True) + module.eps).rsqrt()
            return (x - x.mean(dim=-1, keepdim=True)) * scale * module.weight + module.bias

        def added(name, x):
            x = x.clone()
            x[:, first:] += moves.get(HookPoint.parse(name), torch.zeros(1, 1, 1, dtype=torch.float64))
            return x

        x = added("embed", inner.wte(ids)) + inner.wpe(torch.arange(ids.shape[1]))
        for layer, block in enumerate(inner.h):
            before = clean.hidden_states[layer]
            value = block.attn.c_attn(norm(block.ln_1, x, before))[..., -D_MODEL:]
            heads = value.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)
            mixed = block.attn.c_proj((clean.attentions[layer] @ heads).transpose(1, 2).flatten(2))
            middle = before + block.attn(block.ln_1(before), attention_mask=_causal(ids.shape[1]))[0]
            x = x + mixed
            reads[HookPoint(layer, "mlp_in")] = norm(block.ln_2, x, middle)
            hook = HookPoint(layer, "mlp")
            mlp = added(str(hook), block.mlp(block.ln_2(middle)))
            coder = subject.coders[HookPoint(layer, "mlp_in")]
            if coder.config.skip:
                change = reads[coder.hook] - subject.clean.activations[coder.hook]
                mlp[:, first:] += coder.skip(change, hook)[:, first:]
            x = x + mlp
        last = inner.h[-1]
        end = middle + last.mlp(last.ln_2(middle))
        return reads, norm(inner.ln_f, x, end)


def _causal(n):
    return torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1)[None, None]


def test_the_frozen_model_of_gpt2_is_the_one_that_is_written_out_with_its_weights():
    search = searched(mixed_subject("gpt2", "transcoders"))
    numbers = [5, 33, search.nodes.n_features + 1, search.nodes.tokens_start + 2]
    for number in numbers:
        moves = doubled(search, [number])
        seen = search.model.moved(moves)
        reads, normed = plain_frozen_gpt2(search.subject, moves)
        for hook, read in reads.items():
            torch.testing.assert_close(seen.reads[hook], read[:, search.subject.first :], rtol=0, atol=1e-12)
        torch.testing.assert_close(seen.normed[0], normed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_are_those_of_the_backward_rule_for_frozen_models(family):
    """The rule changes the model's own backward pass; without skips, MLPs are leaves in both."""
    search = searched(mixed_subject(family, "clt"))
    subject, leaves, seen = search.subject, {}, {}
    end = HookPoint(2, "mlp_in")

    def tap(hook):
        def callback(x):
            if hook == end:
                seen[hook] = x
                return None
            leaves[hook] = leaf(x)
            return leaves[hook]

        return callback

    hooks = [EMBED, HookPoint(0, "mlp"), HookPoint(1, "mlp"), end]
    with torch.enable_grad(), applied(subject.adapter, "frozen"):
        with tapped(subject.adapter, {hook: tap(hook) for hook in hooks}):
            subject.adapter.logits(subject.clean.input_ids)
    direction = torch.randn(seen[end].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    direction[:, : subject.first] = 0
    expected = torch.autograd.grad((seen[end] * direction).sum(), list(leaves.values()))
    found = search.model.gradients(search.model.seen.reads[end], direction[None, :, subject.first :])
    assert set(found) == set(leaves)
    for hook, gradient in zip(leaves, expected, strict=True):
        atol = 10 * tolerance(family) * float(gradient.abs().max())
        torch.testing.assert_close(found[hook][0], gradient[0, subject.first :], rtol=0, atol=atol)


@pytest.mark.parametrize(("family", "part"), [("llama", "_RSQRT"), ("gpt2", "_attended")])
def test_a_model_with_a_part_that_is_not_constant_is_refused(monkeypatch, family, part):
    if part == "_RSQRT":
        monkeypatch.setattr(freezing, part, frozenset())
    else:
        monkeypatch.setattr(Frozen, part, lambda self, *args, **kwargs: F.scaled_dot_product_attention(*args, **kwargs))
    with pytest.raises(InputError, match="has a part that cannot be held constant"):
        _ = searched(mixed_subject(family, "clt")).model


def test_what_reads_an_mlp_that_is_constant_has_no_incoming_edges_and_all_else_has(caplog):
    """Autoencoders at every site: no coder stands in for the MLPs."""
    caplog.set_level(NOTE)
    search = searched(random_subject("gpt2", sites=("attn", "mlp", "resid")))
    targets = {search.nodes.name(int(n)).partition("/")[0] for n in search.rows.edge_targets}
    assert targets == {"attn.0", "resid.0", "attn.1", "resid.1", "attn.2", "resid.2", "logit"}
    assert "nothing leads to features of mlp.0 mlp.1 mlp.2" in caplog.text


def made(kind, hook, target, *, seed, **options):
    """A random transcoder of an architecture."""
    config = SaeConfig(hook, D_MODEL, D_SAE, subtract_decoder_bias=False, target=target)
    coder, generator = kind(config, **options), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return coder.double().eval().requires_grad_(False)


@pytest.mark.parametrize("kind", [ReluSae, JumpReluSae, GatedSae])
def test_edges_of_every_activation_are_those_of_interventions(kind):
    coders = [made(kind, HookPoint(n, "mlp_in"), HookPoint(n, "mlp"), seed=n) for n in range(3)]
    search = searched(subject_with(adapter_of("gpt2"), coders, first=1))
    numbers, matrix = [*range(0, search.nodes.n_features, 9)], dense(search)
    found = changes(search, search.model.moved(doubled(search, numbers)))
    np.testing.assert_allclose(found, matrix[:, numbers].T, rtol=0, atol=1e-11 * np.abs(matrix).max())


def test_coders_whose_codes_follow_no_pre_activation_are_refused():
    sae = MatchingPursuitSae(SaeConfig(HookPoint(0, "resid"), D_MODEL, D_SAE)).double().requires_grad_(False)
    with pytest.raises(InputError, match="found one after the other"):
        searched(subject_with(adapter_of("gpt2"), [sae]))


@pytest.mark.parametrize(("family", "mix"), [("gpt2", "clt-skip"), ("gpt2", "full"), ("llama", "clt-resid")])
@pytest.mark.parametrize("linear", [True, False])
def test_effects_are_edges_into_the_metric_and_those_by_way_of_features_that_follow(family, mix, linear):
    """effect(u) = edge(u -> metric) + sum over active d of (dm/df_d) edge(u -> d), by back substitution."""
    metric = logit_difference(3, 8) if linear else None
    subject = mixed_subject(family, mix)
    subject = subject_with(subject.adapter, random_coders(mix), n=5, first=1, metric=metric)
    search = FrozenSearch(subject, GraphSettings(frozen=True), logits=(3, 8))
    nodes, matrix = search.nodes, dense(search)
    edges = search.edges
    gradients = edges.model.gradients(edges.model.seen.normed[0], edges.metric_direction())
    effect = edges.sources.contracted(gradients, n_targets=1)[0].numpy().copy()
    if linear:
        expected = matrix[nodes.n_sources] - matrix[nodes.n_sources + 1]
        np.testing.assert_allclose(effect, expected[: nodes.n_sources], atol=tolerance(family) * np.abs(effect).max())
    codes = np.array([nodes.activation(number) for number in range(nodes.n_features)])
    for target in sorted(range(nodes.n_features), key=lambda number: -nodes.orders[number]):
        effect += effect[target] / codes[target] * matrix[target, : nodes.n_sources]
    np.testing.assert_allclose(search.effects.numpy(), effect, atol=10 * tolerance(family) * np.abs(effect).max())


def test_the_features_taken_first_are_those_with_the_most_influence_by_what_is_known(monkeypatch):
    monkeypatch.setattr("circuitcli.attribution.frozen.search.UPDATE", 8)
    subject = mixed_subject("gpt2", "clt-resid")
    whole, some = searched(subject), searched(subject, batch_size=3, max_nodes=25)
    matrix, nodes = dense(whole), whole.nodes
    known = matrix * (nodes.kinds == LOGIT)[:, None]
    expanded = []
    while len(expanded) < 25:
        found, _ = dense_influence(known, nodes.weights)
        ranked = sorted(set(range(nodes.n_features)) - set(expanded), key=lambda number: (-found[number], number))
        chosen = ranked[: min(8, 25 - len(expanded))]
        expanded += chosen
        known[chosen] = matrix[chosen]
    left = np.ones(nodes.n, dtype=bool)
    left[: nodes.n_features] = np.isin(np.arange(nodes.n_features), expanded)
    np.testing.assert_allclose(dense(some), known * left[None], atol=1e-13)
    assert some.n_expanded == 25 and whole.n_expanded == nodes.n_features


def test_batches_are_as_large_as_memory_allows_and_change_nothing(monkeypatch):
    subject = mixed_subject("gpt2", "clt-skip")
    whole, small = searched(subject), searched(subject)
    monkeypatch.setattr("circuitcli.attribution.frozen.search.budget_of", lambda _: 3 * small.model.bytes_of_target)
    assert small.batch_size == 3
    np.testing.assert_allclose(dense(small), dense(whole), rtol=0, atol=1e-13)
    monkeypatch.setattr("circuitcli.attribution.frozen.search.budget_of", lambda _: 1)
    assert small.batch_size == 1


@pytest.mark.parametrize("mix", ["full", "clt-resid", "gaps"])
def test_edges_are_counted_before_any_is_taken(mix):
    """Random attention is not zero anywhere, so that every edge that may be there is."""
    search = searched(mixed_subject("gpt2", mix))
    nodes, rows = search.nodes, search.rows
    counts = np.zeros(nodes.n, dtype=int)
    counts[rows.targets] = rows.counts
    found = np.concatenate([counts[: nodes.n_features], counts[nodes.n_sources :]])
    assert (found == possible_edges(search)).all()
    assert rows.n_edges == expected_edges(search)


def test_features_that_will_be_chosen_are_told_by_coder_before_the_search(monkeypatch):
    monkeypatch.setattr("circuitcli.attribution.frozen.search.UPDATE", 8)
    subject = mixed_subject("gpt2", "clt")
    whole = searched(subject)
    assert expected_features(whole).tolist() == [len(active) for active in whole.nodes.active]
    some = searched(subject, max_nodes=30)
    told = expected_features(some)
    assert told.sum() == pytest.approx(30) and (told <= [len(active) for active in some.nodes.active]).all()
    chosen = some.rows.targets[some.rows.targets < some.nodes.n_features]
    counts = [np.isin(chosen, list(active.numbers)).sum() for active in some.nodes.active]
    assert np.abs(told - counts).max() < 6


def test_explained_logits_are_the_fewest_that_have_the_probability():
    def likely(*probabilities):
        return likeliest(torch.tensor(probabilities, dtype=torch.float64))

    assert likely(0.02, 0.9, 0.01, 0.06, 0.01) == pytest.approx({1: 0.9, 3: 0.06})
    assert likely(0.96, 0.04) == {0: 0.96}
    assert len(likely(*[0.05] * 20)) == 10
    assert likely(0.5, 0.5) == {0: 0.5, 1: 0.5}
    subject = mixed_subject("gpt2", "transcoders")
    (found,) = explained_logits(subject, (7,)).items()
    assert found == (7, pytest.approx(float(subject.clean_logits()[0, -1].softmax(dim=-1)[7])))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_interventions_on_drawn_edges_agree_but_for_rounding_and_tell_real_changes(family):
    search = searched(mixed_subject(family, "clt-skip"))
    checks = check_edges(search.edges, search.pruned.rows, 40, seed=1, batch_size=16)
    facts = checks.facts()
    assert facts["edges"] == 40
    assert facts["relative_error"] < 10 * tolerance(family)
    assert -1 <= facts["rank_correlation_doubled"] <= 1
    coded = [check for check in checks.checks if "token" not in check.source]
    assert 3 < len(coded) < 40
    ranks = rank_correlation(*(np.array([getattr(check, name) for check in coded]) for name in ("weight", "doubled")))
    assert facts["rank_correlation_doubled_coded"] == ranks
    drawn = {(check.source, check.target) for check in checks.checks}
    again = check_edges(search.edges, search.pruned.rows, 40, seed=1, batch_size=7)
    assert {(check.source, check.target) for check in again.checks} == drawn
    for check, other in zip(checks.checks, again.checks, strict=True):
        assert check.doubled == pytest.approx(other.doubled, abs=1e-5)


def test_real_interventions_are_passes_of_the_model_as_it_is():
    search = searched(mixed_subject("gpt2", "transcoders"))
    subject, nodes = search.subject, search.nodes
    first, _, last = nodes.active
    rows = search.rows
    between = rows.kept(np.isin(rows.sources, first.numbers) & np.isin(rows.edge_targets, last.numbers))
    checks = [check for check in check_edges(search.edges, between, 10**6, seed=0, batch_size=64).checks]
    assert len(checks) == between.n_edges > 5
    for check in checks[:6]:
        source, target = NodeId.parse(check.source), NodeId.parse(check.target)
        coder, reader = subject.coders[source.hook], subject.coders[target.hook]
        move = subject.codes[source.hook][0, source.position - 1, source.index] * coder.W_dec[source.index]
        for factor, expected in ((1.0, check.doubled), (-1.0, check.zeroed)):

            def tap(y, at=source.position, by=factor * move):
                y = y.clone()
                y[:, at] += by
                return y

            seen = {}
            taps = {HookPoint(0, "mlp"): tap, target.hook: keep(seen, target.hook)}
            with torch.no_grad(), tapped(subject.adapter, taps):
                subject.adapter.logits(subject.clean.input_ids)
            change = seen[target.hook][0, target.position] - subject.clean.activations[target.hook][0, target.position]
            assert float(change @ reader.W_enc[:, target.index]) == pytest.approx(expected, abs=1e-10)


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, size=30).astype(float), rng.normal(size=30)
    ranks = [
        np.array([((v < values).sum() + (v <= values).sum() + 1) / 2 for v in values]) for values in (first, second)
    ]
    ranks = [len(r) + 1 - r for r in ranks]
    assert rank_correlation(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert rank_correlation(first[:2], second[:2]) is None
    assert rank_correlation(np.ones(5), second[:5]) is None


def test_normalised_autoencoders_read_with_the_statistics_of_the_clean_run():
    hook = HookPoint(1, "resid")
    saes = [random_sae(hook, normalisation="layer-norm"), random_sae(HookPoint(0, "resid"), normalisation="rms-norm")]
    search = searched(subject_with(adapter_of("gpt2"), saes, first=1))
    matrix, nodes = dense(search), search.nodes
    numbers = [*range(0, nodes.n_features, 4)]
    found = changes(search, search.model.moved(doubled(search, numbers)))
    np.testing.assert_allclose(found, matrix[:, numbers].T, rtol=0, atol=1e-11 * np.abs(matrix).max())


def test_rounding_of_a_model_in_half_precision_is_no_bend(monkeypatch):
    """With room to spare, as deeper models round more often."""
    monkeypatch.setattr(linear, "_MOST_BENT", 0.02)
    adapter = circuitcli.load_model("builtin:tiny", dtype="bfloat16").adapter
    hooks = (HookPoint(2, "resid"), HookPoint(3, "resid"))
    coders = {hook: TopKSae(SaeConfig(hook, adapter.d_model, 8), k=2).requires_grad_(False) for hook in hooks}
    FrozenModel(subject_with(adapter, coders, n=12, metric=log_prob(3))).check_affine()
