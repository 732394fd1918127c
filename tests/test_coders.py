"""Any mix of coders that read one place and write others: the identities of the design against plain definitions."""

from dataclasses import replace

import pytest
import torch
from subjects import mixed_subject, panel_of, random_baseline, random_prompt, subject_with
from support import D_SAE, MIXES, adapter_of, random_coders, random_sae
from test_attribution import EXACT, all_targets, check_outgoing_edges, whole_masks

from circuitcli.attribution.ablation import ablate
from circuitcli.attribution.edges import Taken, Target, ends_of, incoming, joint_steps, sources_of, to_output
from circuitcli.attribution.exact_edges import with_exact
from circuitcli.attribution.gradients import attribution_patching, integrated_gradients
from circuitcli.attribution.naive import NaiveSearch
from circuitcli.attribution.panel import Kept, Panel
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.selection import Circuit, find_circuit
from circuitcli.errors import InputError
from circuitcli.hookpoints import OUTPUT, HookPoint, NodeId
from circuitcli.models.taps import tapped
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import Edit, Encoded, error_of, shifted, splice
from circuitcli.saes.topk import TopKSae
from circuitcli.schema import POLICIES
from circuitcli.settings.graph import GraphSettings
from circuitcli.validation.circuits import circuit_metric, kept_nodes
from circuitcli.validation.scores import Case, measure, on_other_prompts

# Parallel blocks have no middle of the stream.
SEQUENTIAL = ("full",)
FAMILIES = ("gpt2", "neox-parallel", "llama", "gemma2", "qwen3")
PAIRS = [(family, mix) for family in FAMILIES for mix in MIXES if not (family == "neox-parallel" and mix in SEQUENTIAL)]


class PlainRun:
    """The slow definition: one full pass in which every spliced hook point is decoded anew from its parts.

    codes, errors: functions that give the values that take the place of those of this run.
    """

    def __init__(self, subject, codes=lambda hook, f: f, errors=lambda hook, e: e):
        self.subject, self.change_codes, self.change_errors = subject, codes, errors
        self.x, self.f, self.frame = {}, {}, {}

    def logits(self):
        coders = self.subject.coders
        with torch.no_grad(), tapped(self.subject.adapter, {hook: self._tap(hook) for hook in coders.hooks}):
            return self.subject.adapter.logits(self.subject.clean.input_ids)

    def metric(self):
        return self.subject.metric.value(self.logits()[:, self.subject.metric.positions])

    def _read(self, coder, x):
        x = x[:, self.subject.first :].double()
        self.x[coder.hook], self.f[coder.hook] = x, coder.encode(x)
        self.frame[coder.hook] = None if coder.is_transcoder else coder.frame(x)

    def _tap(self, hook):
        coders = self.subject.coders
        own = coders.get(hook)

        def tap(x):
            if own is not None and not own.is_transcoder:
                self._read(own, x)
            new = x.clone()
            if coders.writers(hook):
                explained = edited = 0.0
                for coder in coders.writers(hook):
                    frame = self.frame[coder.hook]
                    skip = 0.0 if not coder.config.skip else coder.skip(self.x[coder.hook], hook)
                    codes = self.f[coder.hook]
                    explained = explained + coder.decode(codes, frame, hook=hook) + skip
                    changed = self.change_codes(coder.hook, codes)
                    edited = edited + coder.decode(changed, frame, hook=hook) + skip
                error = x[:, self.subject.first :].double() - explained
                new[:, self.subject.first :] = (edited + self.change_errors(hook, error)).to(x)
            if own is not None and own.is_transcoder:
                self._read(own, new)
            return new

        return tap


@pytest.mark.parametrize(("family", "mix"), PAIRS)
def test_splicing_any_mix_with_its_errors_returns_the_same_logits(family, mix):
    subject = mixed_subject(family, mix)
    run = PlainRun(subject)
    tolerance = 1e-10 if family in EXACT else 1e-3
    torch.testing.assert_close(run.logits(), subject.clean_logits(), rtol=0, atol=tolerance)
    for hook, codes in subject.codes.items():
        torch.testing.assert_close(codes, run.f[hook], rtol=0, atol=tolerance)
    assert all(float(error.abs().max()) > 1e-3 for error in subject.errors.values())


@pytest.mark.parametrize(("family", "mix"), PAIRS)
def test_outgoing_edges_of_any_mix_sum_to_the_node_effects(family, mix):
    check_outgoing_edges(mixed_subject(family, mix, n_texts=2), tolerance=1e-9 if family in EXACT else 5e-4)


def flat_direction(subject, hook, kind, seed=0):
    """A node of a hook point, as (text, position, index or None)."""
    if kind == "error":
        return 0, subject.n_spliced - 2, None
    text, position, index = subject.codes[hook][:1].nonzero()[seed].tolist()
    return text, position, index


class DirectOracle:
    """The direct path by its definition: every spliced hook point goes on with its clean activation plus what one node
    u itself writes there plus what live skips carry."""

    def __init__(self, subject, move):
        """move: by written hook point what u adds there, (1, spliced, d_model)."""
        self.subject, self.move = subject, move
        self.arriving, self.going_on = {}, {}

    def run(self):
        with torch.no_grad(), tapped(self.subject.adapter, {h: self._tap(h) for h in self.subject.coders.hooks}):
            self.logits = self.subject.adapter.logits(self.subject.clean.input_ids)
        return self

    def _tap(self, hook):
        coders, first = self.subject.coders, self.subject.first

        def tap(x):
            self.arriving[hook] = x[:, first:]
            new = x.clone()
            if coders.writers(hook):
                new = self.subject.clean.activations[hook].clone()
                new[:, first:] += self.move.get(hook, 0.0)
                for coder in coders.writers(hook):
                    if coder.config.skip:
                        clean = self.subject.clean.activations[coder.hook][:, first:]
                        new[:, first:] += coder.skip(self.going_on[coder.hook] - clean, hook)
            self.going_on[hook] = new[:, first:]
            return new

        return tap

    def target(self, hook, index, position, effects):
        """``g_d f_d`` or ``g_x . e`` in this run; what normalisation takes off is that of the clean run."""
        coders = self.subject.coders

        def codes_of(coder):
            frame = self.subject.coded.frames[coder.hook]
            x = self.going_on[coder.hook] if coder.is_transcoder else self.arriving[coder.hook]
            z = x if frame is None else (x - frame.mean) / (frame.scale + 1e-5)
            z = z - coder.b_dec if coder.config.subtract_decoder_bias else z
            return coder.sparsify(z @ coder.W_enc + coder.b_enc), x

        if index is None:
            error = self.arriving[hook]
            for coder in coders.writers(hook):
                codes, x = codes_of(coder)
                error = error - coder.decode(codes, self.subject.coded.frames[coder.hook], hook=hook)
                error = error - coder.skip(x, hook) if coder.config.skip else error
            gradient = effects[coders.group_of_error(hook)].gradients[hook][0, position]
            return float(gradient @ error[0, position])
        coder, frame = coders[hook], self.subject.coded.frames[hook]
        scale = 1.0 if frame is None else frame.scale[0, position]
        gradients = effects[hook].gradients
        slope = sum(gradients[place][0, position] @ coder.decoder(place)[index] for place in coder.writes)
        return float(scale * slope * codes_of(coder)[0][0, position, index])


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel"])
@pytest.mark.parametrize("mix", sorted(MIXES))
def test_every_edge_of_any_mix_is_the_derivative_along_the_direct_path(family, mix):
    """Finite differences of full passes, from a feature and an error of each hook point into one of each later one."""
    if family == "neox-parallel" and mix in SEQUENTIAL:
        pytest.skip("parallel blocks have no middle of the stream")
    subject = mixed_subject(family, mix)
    baseline = random_baseline(subject)
    effects = attribution_patching(subject, baseline)
    coders, step, compared = subject.coders, 1e-5, 0
    found = {}
    for hook in coders.hooks:
        rows = all_targets(subject, hook)
        found[hook] = rows, incoming(subject, hook, rows, effects, baseline, masks=whole_masks(subject))
    for source in coders.hooks:
        for kind in ("feature", "error"):
            if (kind == "feature" and source not in coders) or (kind == "error" and not coders.writers(source)):
                continue
            _, at, index = flat_direction(subject, source, kind)
            move = {}
            if index is None:
                difference = (subject.errors[source] - baseline.errors[source])[0, at]
                move[source] = torch.zeros_like(subject.errors[source])
                move[source][0, at] = difference
            else:
                coder, scale = coders[source], subject.scale(source)
                amount = subject.codes[source][0, at, index] - baseline.codes[source][0, 0, index]
                for place in coder.writes:
                    move[place] = torch.zeros_like(subject.errors[place])
                    factor = 1.0 if scale is None else scale[0, at]
                    move[place][0, at] = coder.decoder(place)[index] * amount * factor
            up, down = (
                DirectOracle(subject, {place: sign * step * one for place, one in move.items()}).run()
                for sign in (1, -1)
            )
            for hook in coders.hooks:
                rows, edges = found[hook]
                wanted = rows[-1:] + ([] if hook not in coders else rows[: subject.codes[hook][0].count_nonzero()][-1:])
                for row in wanted:
                    target, number = row[1], rows.index(row)
                    slope = (
                        up.target(hook, target.index, target.group, effects)
                        - down.target(hook, target.index, target.group, effects)
                    ) / (2 * step)
                    got = 0.0
                    if edges is not None and index is None and source in edges.errors:
                        got = float(edges.errors[source][number, at])
                    elif edges is not None and index is not None and source in edges.features:
                        got = float(edges.features[source].dense()[number, at, index])
                    assert got == pytest.approx(slope, rel=1e-4, abs=1e-7), (str(source), kind, str(hook), target)
                    compared += slope != 0.0
    assert compared > 3


def group_at_baseline(subject, hook, baseline):
    """A plain run with the group of a coder ablated: its codes, and the errors that it is the last to write."""
    errors = subject.coders.errors_of(hook)
    return PlainRun(
        subject,
        codes=lambda place, f: baseline.codes[place].expand_as(f) if place == hook else f,
        errors=lambda place, e: baseline.errors[place].expand_as(e) if place in errors else e,
    )


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_integrated_gradients_of_a_group_sum_to_what_ablating_it_changes(mix):
    subject = mixed_subject("gpt2", mix)
    baseline = random_baseline(subject, scale=0.1)
    in_groups = [place for hook in subject.coders for place in subject.coders.errors_of(hook)]
    assert sorted(in_groups) == list(subject.coders.written)
    for hook in subject.coders:
        reached = float(subject.metric_clean - group_at_baseline(subject, hook, baseline).metric())
        fine = integrated_gradients(subject, hook, baseline, steps=200, batch_size=100)
        total = float(fine.features.sum()) + sum(float(error.sum()) for error in fine.errors.values())
        assert float(fine.gap) == pytest.approx(total - reached, abs=1e-9)
        coarse = integrated_gradients(subject, hook, baseline, steps=20, batch_size=100)
        assert abs(float(fine.gap)) <= abs(float(coarse.gap)) * 0.2 + 1e-6


@pytest.mark.parametrize("mix", ["clt", "clt-resid", "transcoders"])
def test_integrated_edges_to_the_output_sum_to_what_the_direct_path_carries(mix):
    subject = mixed_subject("gpt2", mix)
    baseline = random_baseline(subject, scale=0.1)
    effects = {hook: integrated_gradients(subject, hook, baseline, steps=4, batch_size=16) for hook in subject.coders}
    edges = to_output(subject, effects, baseline, method="ig", steps=300, batch_size=100)
    for hook, edge in edges.items():
        coder = subject.coders[hook]
        if coder.writes == (subject.coders.written[-1],):
            continue
        move = {}
        for place in coder.writes:
            scale = 1.0 if subject.scale(hook) is None else subject.scale(hook)
            move[place] = ((baseline.codes[hook] - subject.codes[hook]) @ coder.decoder(place)) * scale
            if place in subject.coders.errors_of(hook):
                move[place] = move[place] + baseline.errors[place] - subject.errors[place]
        direct = DirectOracle(subject, move).run()
        reached = float(subject.metric_clean - subject.metric.value(direct.logits[:, -1:]))
        total = float(edge.features.sum()) + sum(float(error.sum()) for error in edge.errors.values())
        assert total == pytest.approx(reached, abs=2e-3 + 2e-3 * abs(reached))


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama"])
@pytest.mark.parametrize("mix", sorted(MIXES))
def test_ablating_one_node_of_any_mix_is_one_separate_pass(family, mix):
    if family == "neox-parallel" and mix in SEQUENTIAL:
        pytest.skip("parallel blocks have no middle of the stream")
    subject = mixed_subject(family, mix)
    baseline = random_baseline(subject)
    tolerance = 1e-9 if family in EXACT else 2e-3
    for hook in subject.coders.hooks:
        nodes = (
            [(int(index), at) for at, index in subject.codes[hook][0].nonzero()[:2].tolist()]
            if hook in (subject.coders)
            else []
        )
        nodes += [(None, 1)] if subject.coders.writers(hook) else []
        measured = [other for other in subject.coders if other.layer > hook.layer]
        rows = [(0, Target(index, at)) for index, at in nodes]
        made = ablate(subject, hook, rows, baseline, measured=measured, masks=whole_masks(subject))
        for row, (index, at) in enumerate(nodes):

            def codes(place, f, index=index, at=at, hook=hook):
                f = f.clone()
                if place == hook and index is not None:
                    f[0, at, index] = baseline.codes[hook][0, 0, index]
                return f

            def errors(place, e, index=index, at=at, hook=hook):
                e = e.clone()
                if place == hook and index is None:
                    e[0, at] = baseline.errors[hook][0, 0]
                return e

            plain = PlainRun(subject, codes, errors)
            expected = float(subject.metric_clean - plain.metric())
            assert float(made.effect[row]) == pytest.approx(expected, abs=tolerance)
            for other in measured:
                codes = subject.coders[other].encode(made.read[other])[row]
                torch.testing.assert_close(codes, plain.f[other][0], rtol=0, atol=tolerance)


def test_an_edit_of_codes_and_errors_is_what_the_plain_run_makes_of_it():
    """Several nodes at once: errors take codes off as they are encoded, not as they are edited."""
    for mix in MIXES:
        subject = mixed_subject("gpt2", mix)
        baseline = random_baseline(subject)

        def codes(hook, f, baseline=baseline):
            changed = f.clone()
            changed[..., ::2] = baseline.codes[hook][..., ::2].expand_as(changed[..., ::2])
            return changed

        def errors(hook, e, baseline=baseline):
            changed = e.clone()
            changed[:, ::2] = baseline.errors[hook].expand_as(e)[:, ::2]
            return changed

        edit = Edit(lambda hook, f: codes(hook, f) - f, lambda hook, e: errors(hook, e) - e)
        with torch.no_grad():
            logits = subject.logits(splice(subject.coders, edit, first=subject.first))
        torch.testing.assert_close(logits, PlainRun(subject, codes, errors).logits(), rtol=0, atol=1e-9)


def panel(mix, prompts, *, batch_size, positions="sum", kept_bytes=2**30):
    """Prompts of several lengths through a mix of coders, with one baseline for all."""
    subject = subject_with(adapter_of("gpt2"), random_coders(mix)[:3], n=5, first=1)
    baseline = random_baseline(subject)
    made = Panel.of(
        subject.adapter,
        subject.coders,
        prompts,
        metric="log-prob",
        positions=Positions.of(positions, prompts),
        baseline_of=lambda subject, numbers: baseline,
        batch_size=batch_size,
    )
    return replace(made, kept=Kept(kept_bytes))


def everything(graph):
    """Effects of nodes and weights of edges by name."""
    return {node.id: node.effect for node in graph.nodes} | {(e.source, e.target): e.weight for e in graph.edges}


@pytest.mark.parametrize(("mix", "make"), [("clt-resid", "atp"), ("transcoders", "ig"), ("clt", "naive")])
def test_a_graph_of_several_prompts_has_the_means_of_their_graphs_whatever_the_batch_size(mix, make):
    prompts = [random_prompt(n, first=1, seed=seed) for seed, n in enumerate((4, 3, 4), start=2)]
    is_naive = make == "naive"
    settings = GraphSettings(
        method="ig" if is_naive else make,
        ig_steps=3,
        down=500,
        up=5000,
        min_share=0,
        threshold_exp=-20 if is_naive else -1000,
    )

    def graph(prompts, batch_size, **options):
        made = panel(mix, prompts, batch_size=batch_size, **options)
        if not is_naive:
            return find_circuit(made, settings.model_copy(update={"batch_size": batch_size}))
        search = NaiveSearch(made, settings, {}, 0)
        parts = [search.part(hook) for hook in made.hooks]
        return Circuit(
            tuple(node for part in parts for node in part.nodes if node.effect is not None),
            tuple(edge for part in parts for edge in part.edges),
            {},
        )

    alone = [everything(graph([prompt], 64)) for prompt in prompts]
    for batch_size in (1, 64):
        together = graph(prompts, batch_size)
        found = everything(together)
        assert len(found) > 50
        for name, value in found.items():
            expected = sum(one.get(name) or 0.0 for one in alone) / 3
            # Edges of single prompts under the naive graph's threshold are missed.
            assert value is None or abs(value - expected) < (2**-20 if is_naive else 1e-9), name
        for edge in together.edges[::10]:
            values = torch.tensor([one.get((edge.source, edge.target), 0.0) for one in alone], dtype=torch.float64)
            assert edge.standard_error == pytest.approx(float(values.std() / 3**0.5), abs=1e-6)
            least = 2**-20 if is_naive else 0.0
            assert edge.active == pytest.approx(float((values.abs() > least).double().mean()))
    again = everything(graph(prompts, 2, kept_bytes=0))
    assert {name: value for name, value in again.items() if value is not None} == pytest.approx(
        {name: value for name, value in found.items() if value is not None}, abs=1e-9
    )


def test_named_spans_gather_the_positions_of_their_words():
    """A node at a span has the sum over the span's positions, wherever they are in each prompt."""
    prompts = [
        replace(random_prompt(n, first=1, seed=seed), spans=(("verb", (n - 1,)), ("noun", (1, 2))))
        for seed, n in ((2, 4), (3, 5), (4, 5))
    ]
    settings = GraphSettings(method="atp", down=500, up=5000, min_share=0)
    at_spans = find_circuit(panel("clt", prompts, batch_size=64, positions="spans"), settings)
    expected = {}
    for prompt in prompts:
        each = find_circuit(panel("clt", [prompt], batch_size=64, positions="all"), settings)
        for node in each.nodes:
            if node.place is not None:
                for name, positions in prompt.spans:
                    if node.place.position in positions:
                        key = str(NodeId(node.place.hook, node.place.index, name))
                        expected[key] = expected.get(key, 0.0) + node.effect / 3
    found = {node.id: node.effect for node in at_spans.nodes if node.place is not None}
    assert found == pytest.approx({key: value for key, value in expected.items() if value != 0}, abs=1e-9)
    assert {NodeId.parse(name).position for name in found} == {"verb", "noun"}


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_all_nodes_of_any_mix_are_perfectly_faithful_and_none_not_at_all(mix):
    subject = mixed_subject("gpt2", mix, n_texts=2)
    baseline = random_baseline(subject)
    features = [NodeId(hook, index) for hook in subject.coders for index in range(D_SAE)]
    errors = [NodeId(hook, None) for hook in subject.coders.written]
    for policy in POLICIES:
        runs = measure([Case(subject, baseline, (*features, *errors))], policy=policy, batch_size=8)
        value = float(runs.faithfulness(runs.circuit))
        assert float(runs.faithfulness(runs.complement)) == pytest.approx(0, abs=1e-8)
        if policy == "removed":
            assert abs(value - 1) > 1e-3
        else:
            assert value == pytest.approx(1, abs=1e-8)
        if policy != "kept":
            whole = PlainRun(
                subject,
                lambda hook, f, absent=baseline: absent.codes[hook].expand_as(f),
                lambda hook, e, absent=baseline: absent.errors[hook].expand_as(e),
            )
            torch.testing.assert_close(runs.empty, whole.metric(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("mix", ["clt-resid", "full"])
def test_a_circuit_of_any_mix_runs_with_its_own_nodes_and_all_else_at_baseline(mix):
    subject = mixed_subject("gpt2", mix, n_texts=2)
    baseline = random_baseline(subject)
    nodes = [NodeId(hook, index, 2 + index % 3) for hook in subject.coders for index in range(0, D_SAE, 3)]
    nodes += [NodeId(hook, None, 3) for hook in subject.coders.written]

    def kept(hook, values, absent, is_error):
        changed = absent.expand_as(values).clone()
        for node in nodes:
            if node.hook == hook and node.is_error == is_error:
                place = (slice(None), node.position - subject.first)
                place = place if is_error else (*place, node.index)
                changed[place] = values[place]
        return changed

    slow = PlainRun(
        subject,
        lambda hook, f: kept(hook, f, baseline.codes[hook], False),
        lambda hook, e: kept(hook, e, baseline.errors[hook], True),
    )
    fast = circuit_metric(subject, baseline, [kept_nodes(subject, nodes)], batch_size=4)[0]
    torch.testing.assert_close(fast, slow.metric(), rtol=0, atol=1e-9)


def test_numbers_of_positions_stay_on_other_prompts_only_where_all_have_the_length_of_those_of_the_graph():
    nodes = [
        NodeId(HookPoint(0, "mlp"), 3, 2),
        NodeId(HookPoint(0, "mlp"), 3, 3),
        NodeId(HookPoint(1, "mlp"), 4, "verb"),
    ]
    short, long = (random_prompt(n, first=1) for n in (5, 6))
    assert on_other_prompts(nodes, [short, short], n_positions=5) == tuple(nodes)
    summed = (NodeId(HookPoint(0, "mlp"), 3), nodes[-1])
    assert on_other_prompts(nodes, [short, long], n_positions=5) == summed
    assert on_other_prompts(nodes, [short], n_positions=None) == summed, "a graph of one prompt"


def test_a_hook_point_is_read_once_and_explained_once():
    one, two = random_coders("clt")[:2]
    with pytest.raises(InputError, match=r"two coders read mlp_in\.0"):
        Coders.of([one, one])
    autoencoder = random_sae(HookPoint(1, "mlp"))
    with pytest.raises(InputError, match=r"mlp\.1 is explained twice: by the autoencoder at mlp\.1 and by the tran"):
        Coders.of([one, autoencoder])
    reads_and_writes = SaeConfig(HookPoint(0, "mlp"), 4, 8, target=HookPoint(0, "mlp"), further=(HookPoint(1, "mlp"),))
    with pytest.raises(InputError, match="writes what it reads, and more"):
        Coders.of([TopKSae(reads_and_writes, k=2)])
    assert not TopKSae(replace(reads_and_writes, further=()), k=2).is_transcoder
    assert Coders.of([two, one]).written == tuple(HookPoint(layer, "mlp") for layer in range(3))


def test_paths_pass_residual_autoencoders_where_coders_read_before_and_write_behind_them():
    coders = Coders.of(random_coders("clt-resid"))

    def names(ends):
        return [str(hook) for hook in sources_of(coders, ends)]

    # By way of what the coder at mlp_in.1 reads, though resid.1 lies between.
    assert names(ends_of(coders, HookPoint(2, "mlp"), is_error=True)) == ["resid.0", "resid.1"]
    assert names([HookPoint(2, "mlp_in")]) == ["resid.1"]
    assert names(None) == ["resid.1", "mlp.2"]


class MovedOracle(DirectOracle):
    """The direct path with all sources at a share of the way to their baseline."""

    def __init__(self, subject, baseline, share):
        super().__init__(subject, {hook: -share * step for hook, step in joint_steps(subject, baseline).items()})


def moved_more_than_read(subject, coder, clean, other, position):
    """Which codes changed by ten times their pre-activation's change: others made TopK choose otherwise."""
    frame = subject.coded.frames[coder.hook]

    def seen(run):
        x = (run.going_on if coder.is_transcoder else run.arriving)[coder.hook][0, position]
        z = x if frame is None else (x - frame.mean[0, position]) / (frame.scale[0, position] + 1e-5)
        pre = (z - coder.b_dec if coder.config.subtract_decoder_bias else z) @ coder.W_enc + coder.b_enc
        return pre, coder.sparsify(pre)

    (pre, codes), (pre_other, codes_other) = seen(clean), seen(other)
    return (codes - codes_other).abs() > 10 * (pre - pre_other).abs()


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_edges_of_integrated_gradients_sum_to_what_a_target_changes_by_when_all_its_sources_go_to_their_baseline(mix):
    """Features that are silent in the clean run, and active in the other, too."""
    subject = mixed_subject("gpt2", mix)
    baseline = random_baseline(subject, scale=0.2)
    effects = {hook: integrated_gradients(subject, hook, baseline, steps=3, batch_size=16) for hook in subject.coders}
    clean, other = (MovedOracle(subject, baseline, share).run() for share in (0.0, 1.0))
    coders, compared, silent = subject.coders, 0, 0
    for hook in coders.hooks:
        indices = [*(range(coders[hook].d_sae) if hook in coders else ()), *([None] if coders.writers(hook) else [])]
        rows = [(0, Target(index, position)) for position in range(subject.n_spliced) for index in indices]
        masks, taken = whole_masks(subject), Taken(points=24, method="ig")
        found = incoming(subject, hook, rows, effects, baseline, masks=masks, taken=taken)
        if found is None:
            continue
        sums = sum(edges.dense().sum(dim=(1, 2)) for edges in found.features.values())
        sums = sums + sum(values.sum(dim=1) for values in found.errors.values())
        for row, (_, target) in enumerate(rows):
            before, after = (run.target(hook, target.index, target.group, effects) for run in (clean, other))
            readers = coders.writers(hook) if target.index is None else (coders[hook],)
            steep = [moved_more_than_read(subject, coder, clean, other, target.group) for coder in readers]
            if before == after == 0 or any(one[... if target.index is None else target.index].any() for one in steep):
                continue
            assert float(sums[row]) == pytest.approx(before - after, rel=1e-3, abs=1e-6), (str(hook), target)
            compared += 1
            silent += target.index is not None and before == 0
    assert compared >= 10 and silent >= 2


def write_of(subject, hook, index, position, change):
    """What is added at each hook point that a node writes when its code, or error, changes at a position."""
    move = {}
    for place in (hook,) if index is None else subject.coders[hook].writes:
        move[place] = torch.zeros_like(subject.errors[place])
        scale = 1.0 if index is None or subject.scale(hook) is None else subject.scale(hook)[0, position]
        move[place][0, position] = (
            change if index is None else change * scale * subject.coders[hook].decoder(place)[index]
        )
    return move


def value_in(subject, run, hook, index, position):
    """A code, or an error, as it is encoded in a direct run."""
    coders, encoded = subject.coders, {}
    readers = coders.writers(hook) if index is None else (coders[hook],)
    for coder in readers:
        x = (run.going_on if coder.is_transcoder else run.arriving)[coder.hook]
        codes, frame = coder.encode_framed(x)
        encoded[coder.hook] = Encoded(x, codes, frame, None)
    if index is not None:
        return encoded[hook].codes[0, position, index]
    return error_of(readers, hook, run.arriving[hook], encoded)[0, position]


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_an_exact_edge_is_what_the_metric_loses_where_it_alone_is_taken_away(mix):
    """A direct run with the source at its baseline, then a whole pass with what the target makes of it."""
    subject = mixed_subject("gpt2", mix)
    baseline = random_baseline(subject, scale=0.2)
    panel = panel_of(subject, baseline)
    edges = find_circuit(panel, GraphSettings(method="atp", down=4, up=3, min_share=0)).edges
    chosen = [*edges[:: max(1, len(edges) // 20)]]
    assert len(chosen) > 10 and any(edge.target == OUTPUT for edge in edges)
    for edge in with_exact(panel, chosen, count=len(chosen), batch_size=5):
        source = NodeId.parse(edge.source)
        at, hook, index = source.position - subject.first, source.hook, source.index
        if index is None:
            change = baseline.errors[hook][0, 0] - subject.errors[hook][0, at]
        else:
            change = baseline.codes[hook][0, 0, index] - subject.codes[hook][0, at, index]
        run = DirectOracle(subject, write_of(subject, hook, index, at, change)).run()
        logits = run.logits
        if edge.target != OUTPUT:
            target = NodeId.parse(edge.target)
            place, own = target.position - subject.first, target.hook
            clean = subject.errors[own] if target.index is None else subject.codes[own][..., target.index]
            moved = value_in(subject, run, own, target.index, place) - clean[0, place]
            moves = write_of(subject, own, target.index, place, moved)
            taps = {at: (lambda x, move=move: shifted(x, move, first=subject.first)) for at, move in moves.items()}
            with torch.no_grad(), tapped(subject.adapter, taps):
                logits = subject.adapter.logits(subject.clean.input_ids)
        lost = float(subject.metric_clean - subject.metric.value(logits[:, -1:]))
        assert edge.exact == pytest.approx(lost, abs=1e-9), (edge.source, edge.target)
