"""How well each method of node effects foretells what ablating the node does, and how long it takes.

    python -m tests.bench.bench_effects --model DIR --run RUN [--pairs 8] [--file nounpp_test.json]
    python -m tests.bench.bench_effects --model builtin:tiny --run RUN [--pairs 8]
    python -m tests.bench.bench_effects ... --whole
    python -m tests.bench.bench_effects --peer

RUN has SAEs of the model. Pairs are those of subject-verb agreement beside the checkout, of builtin:tiny pieces of
Python source, each with another piece as its counterfactual; the metric is the difference of logits of what the two are
followed by. Every live feature and error of every SAE is ablated by itself, at one position or at all at once; for each
site, the mean over SAEs and pairs of: the correlations of what a method says with what ablation does, the share of
nodes with the right sign among those with a hundredth of the largest effect, how many of the ten strongest are among
the ten that the method calls strongest, and the slope of the one by the other. seconds: for all nodes of all SAEs.
Below, what circuits come of it: the share of the behaviour that is kept with the so many strongest nodes of all SAEs
alone, and that is left without them, both with single ablations ranking them too.

--whole takes away all nodes of an SAE at one position together instead, and compares with what their effects add up to:
an attention or an MLP as a whole, as is done where effects are of components and not of features.

--peer compares gradients with gim-explain's, if that is installed: with TransformerLens, to which it does all of its
rule, and with transformers' own models, to which it does a part.
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

import circuitcli as circuit
from circuitcli.allocator import keep_freed_memory
from circuitcli.api.coders import spliced
from circuitcli.attribution.ablation import ablate, live_sources
from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.edges import Target
from circuitcli.attribution.examples import Example, LeftOut
from circuitcli.attribution.gradients import Effects, attribution_patching, integrated_gradients
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.prompt_files import read_examples
from circuitcli.attribution.prompts import Needs, Prompt, encode_all, encode_example
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.models.rules.activations import linear_activations
from circuitcli.models.rules.norms import frozen_norms
from circuitcli.models.taps import around
from circuitcli.saes.coders import Coders
from circuitcli.text import files as text
from circuitcli.text.blocks import token_blocks
from circuitcli.validation.circuits import Kept, circuit_metric

PAIRS = Path(__file__).parents[3] / "shared" / "data" / "subject-verb"
ROWS, LENGTH, STRONGEST = 64, 10, 10
SIZES = (30, 100, 300, 1000)
Method = Callable[[Panel], Mapping[HookPoint, Effects]]


def integrated(panel: Panel, *, steps: int | None) -> Mapping[HookPoint, Effects]:
    subject, baseline = panel.subject(0)
    return {
        hook: integrated_gradients(subject, hook, baseline, steps=steps, batch_size=ROWS) for hook in subject.coders
    }


def patched(panel: Panel, *, rule: str) -> Mapping[HookPoint, Effects]:
    subject, baseline = panel.subject(0)
    return attribution_patching(subject, baseline, rule=rule)


def relp_with_live_attention(panel: Panel) -> Mapping[HookPoint, Effects]:
    """As the authors' code does unless told otherwise: norms and activation functions alone."""
    subject, baseline = panel.subject(0)
    with ExitStack() as stack:
        for module, call in [*frozen_norms(panel.adapter), *linear_activations(panel.adapter)]:
            stack.enter_context(around(module, call))
        return attribution_patching(subject, baseline)


METHODS: Mapping[str, Method] = {
    "ig": partial(integrated, steps=None),
    "ig, 10 steps": partial(integrated, steps=10),
    "ig, 100 steps": partial(integrated, steps=100),
    "atp": partial(patched, rule="atp"),
    "relp": partial(patched, rule="relp"),
    "relp, live patterns": relp_with_live_attention,
    "gim": partial(patched, rule="gim"),
    "frozen": partial(patched, rule="frozen"),
}


@dataclass(frozen=True)
class Score:
    """How what a method says of some nodes agrees with what ablating each of them does."""

    pearson: float
    spearman: float
    sign: float
    strongest: float
    slope: float

    @classmethod
    def of(cls, said: Tensor, exact: Tensor) -> "Score":
        large = exact.abs() >= 0.01 * exact.abs().max()
        first = set(exact.abs().topk(min(STRONGEST, len(exact))).indices.tolist())
        called = set(said.abs().topk(min(STRONGEST, len(exact))).indices.tolist())
        return cls(
            correlation(said, exact),
            correlation(ranks(said), ranks(exact)),
            float((said.sign() == exact.sign())[large].double().mean()),
            len(first & called) / len(first),
            float((said * exact).sum() / exact.square().sum()),
        )


def correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def ranks(x: Tensor) -> Tensor:
    return x.argsort().argsort().double()


def exact_effects(panel: Panel, hook: HookPoint, nodes: Sequence[Target]) -> Tensor:
    """What ablating each node by itself does."""
    subject, baseline = panel.subject(0)
    masks = panel.masks(subject)
    parts = [
        ablate(subject, hook, [(0, node) for node in nodes[begin : begin + ROWS]], baseline, measured=(), masks=masks)
        for begin in range(0, len(nodes), ROWS)
    ]
    return torch.cat([part.effect for part in parts]).double()


def said(panel: Panel, effects: Mapping[HookPoint, Effects], hook: HookPoint, nodes: Sequence[Target]) -> Tensor:
    """What a method says of each node."""
    subject, _ = panel.subject(0)
    masks = panel.masks(subject)[0].double()  # (group, spliced)
    features = masks @ effects[hook].features[0].detach().double()
    errors = masks @ effects[panel.coders.group_of_error(hook)].errors[hook][0].detach().double()
    return torch.stack(
        [errors[node.group] if node.index is None else features[node.group, node.index] for node in nodes]
    )


@dataclass
class Table:
    """What was found on the prompts so far, with one baseline."""

    scores: dict[tuple[str, str, str], list[Score]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    circuits: dict[str, Tensor] = field(default_factory=dict)
    behaviour: float = 0.0
    n_nodes: int = 0
    n_prompts: int = 0

    def show(self, title: str) -> None:
        n = self.n_prompts
        print(f"\n{title}, {n} prompts, {self.n_nodes:,} ablations")
        print(f"{'':40} {'Pearson':>8} {'Spearman':>9} {'sign':>6} {'top 10':>7} {'slope':>6} {'seconds':>8}")
        for (where, site, name), found in sorted(self.scores.items(), key=lambda item: item[0][:2]):
            means = [sum(getattr(one, name) for one in found) / len(found) for name in Score.__annotations__]
            numbers = "{:8.3f} {:9.3f} {:6.3f} {:7.2f} {:6.2f}".format(*means)
            print(f"{where:10} {site:8} {name:20} {numbers} {self.seconds[name] / n:8.2f}")
        print(f"{'ablating them':80} {self.seconds['exact'] / n:8.2f}")
        if not self.circuits:
            return
        heads = " ".join(f"{f'{what} {size}':>11}" for what in ("kept", "without") for size in SIZES)
        print(f"{'':20} {heads}   (of {self.behaviour / n:.2f} logits)")
        for name, values in self.circuits.items():
            print(f"{name:20} " + " ".join(f"{float(value):12.3f}" for value in values / self.behaviour), flush=True)


def compare(model: LanguageModel, coders: Coders, prompts: Sequence[Prompt], *, whole: bool) -> None:
    """The tables of each baseline, again after every few prompts."""
    tables = {"zero": Table(), "counterfactual": Table()}
    for number, prompt in enumerate(prompts, 1):
        for kind, table in tables.items():
            (whole_nodes if whole else of_prompt)(model, coders, prompt, kind, table)
            if number in (1, 2, 4, 8, 16, 32, len(prompts)):
                table.show(f"{kind} baseline")


def of_prompt(model: LanguageModel, coders: Coders, prompt: Prompt, kind: str, table: Table) -> None:
    """Add what is found on one prompt."""
    panels = {
        where: Panel.of(
            model.adapter,
            coders,
            [prompt],
            metric="logit-diff",
            positions=Positions.of(positions, [prompt]),
            baseline_of=BaselineRule(kind, coders),
            batch_size=ROWS,
        )
        for where, positions in {"positions": "all", "summed": "sum"}.items()
    }
    panels["positions"].subject(0)
    methods = {name: partial(method, panels["positions"]) for name, method in METHODS.items()}
    effects = {name: timed(method, table.seconds, name) for name, method in methods.items()}
    strengths: dict[str, list[tuple[float, HookPoint, Target]]] = defaultdict(list)
    for where, panel in panels.items():
        for hook in coders:
            nodes = live_sources(panel, hook)
            exact = timed(partial(exact_effects, panel, hook, nodes), table.seconds, "exact")
            table.n_nodes += len(nodes)
            values = {name: said(panel, found, hook, nodes) for name, found in effects.items()}
            for name, value in values.items():
                table.scores[where, hook.site, name].append(Score.of(value, exact))
            for name, value in {**values, "ablating each node": exact}.items() if where == "positions" else ():
                strengths[name] += zip(value.abs().tolist(), [hook] * len(nodes), nodes, strict=True)
    table.n_prompts += 1
    add_circuits(panels["positions"], strengths, table)


def whole_nodes(model: LanguageModel, coders: Coders, prompt: Prompt, kind: str, table: Table) -> None:
    """Add how effects of all nodes of an SAE at a position add up to what taking them away together does."""
    panel = Panel.of(
        model.adapter,
        coders,
        [prompt],
        metric="logit-diff",
        positions=Positions.of("all", [prompt]),
        baseline_of=BaselineRule(kind, coders),
        batch_size=ROWS,
    )
    n_positions = panel.subject(0)[0].n_spliced
    places = {
        site: [(hook, at) for hook in coders if hook.site == site for at in range(n_positions)]
        for site in {hook.site for hook in coders}
    }
    exact = {site: timed(partial(taken_away, panel, some), table.seconds, "exact") for site, some in places.items()}
    for name, method in METHODS.items():
        effects = timed(partial(method, panel), table.seconds, name)
        sums = {
            hook: effects[hook].features[0].sum(dim=-1) + effects[coders.group_of_error(hook)].errors[hook][0]
            for hook in coders
        }
        for site, some in places.items():
            values = torch.stack([sums[hook][at].detach() for hook, at in some]).double()
            table.scores["whole", site, name].append(Score.of(values, exact[site]))
    table.n_nodes += sum(map(len, places.values()))
    table.n_prompts += 1


def taken_away(panel: Panel, places: Sequence[tuple[HookPoint, int]]) -> Tensor:
    """What taking all nodes of an SAE at a position away together does, for each."""
    subject, baseline = panel.subject(0)
    rest = []
    for hook, at in places:
        gone = kept(panel, [])
        gone.features[hook][0, at], gone.errors[hook][0, at] = True, True
        rest.append(gone.complement())
    return (subject.metric_clean - circuit_metric(subject, baseline, rest, batch_size=ROWS)[:, 0]).double()


def add_circuits(panel: Panel, strengths: Mapping[str, list[tuple[float, HookPoint, Target]]], table: Table) -> None:
    """Keep the strongest nodes alone, or all but these, as each method ranks them."""
    subject, baseline = panel.subject(0)
    ends = [kept(panel, []), kept(panel, []).complement()]
    nothing, everything = circuit_metric(subject, baseline, ends, batch_size=ROWS)
    table.behaviour += float(everything - nothing)
    for name, nodes in strengths.items():
        ranked = sorted(nodes, key=lambda node: -node[0])
        some = [kept(panel, ranked[:size]) for size in SIZES]
        metrics = circuit_metric(subject, baseline, [*some, *(one.complement() for one in some)], batch_size=ROWS)
        table.circuits[name] = table.circuits.get(name, 0) + (metrics - nothing)[:, 0]


def kept(panel: Panel, nodes: Sequence[tuple[float, HookPoint, Target]]) -> Kept:
    """The masks of nodes at single positions."""
    subject, _ = panel.subject(0)
    masks = panel.masks(subject)[0]
    features = {hook: torch.zeros_like(codes, dtype=torch.bool) for hook, codes in subject.codes.items()}
    errors = {hook: torch.zeros(error.shape[:2], dtype=torch.bool) for hook, error in subject.errors.items()}
    for _, hook, node in nodes:
        if node.index is None:
            errors[hook][0] |= masks[node.group]
        else:
            features[hook][0, :, node.index] |= masks[node.group]
    return Kept(features, errors)


def timed(work: Callable, seconds: dict[str, float], name: str):
    start = time.perf_counter()
    made = work()
    seconds[name] += time.perf_counter() - start
    return made


def agreement(model: LanguageModel, file: str, n: int) -> tuple[Prompt, ...]:
    """Pairs of subject-verb agreement that are one token longer than a subject and its verb."""
    return encode_all(
        read_examples(str(PAIRS / file)),
        model.tokenizer,
        model.adapter,
        needs=Needs(foil=True, counterfactual=True),
        left_out=LeftOut(allowed=True),
        most=n,
    )


def source_code(model: LanguageModel, n: int) -> tuple[Prompt, ...]:
    """Pieces of Python source, each with the next as its counterfactual."""
    blocks = token_blocks(
        lambda start: text.documents(text.BUILTIN, start=start), model.tokenizer, block_length=LENGTH, pack=True
    )
    # Every so many: pieces of different files.
    pieces = [tuple(block.ids.tolist()) for block in islice(blocks, 0, 3000, 50)]
    with torch.no_grad():
        likeliest = [int(model.adapter.logits(torch.tensor([ids]))[0, -1].argmax()) for ids in pieces]
    pairs = [
        Example(prompt="", ids=ids, target=target, foil=foil, counterfactual=other)
        for (ids, target), (other, foil) in zip(
            zip(pieces, likeliest, strict=True), zip(pieces[1:], likeliest[1:], strict=False), strict=False
        )
        if target != foil
    ]
    return tuple(encode_example(pair, model.tokenizer, model.adapter) for pair in pairs[:n])


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("CIRCUIT_TEST_MODEL", "builtin:tiny"))
    parser.add_argument("--run", help="a run, or a directory, with SAEs of the model")
    parser.add_argument("--file", default="nounpp_test.json")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    if options.peer:
        from tests.bench.gim_peer import compare_with_peer

        return compare_with_peer()
    model = circuit.load_model(options.model)
    coders = spliced(circuit.load_coders(options.run), model, layers=None, sites=None)
    make = source_code if options.model.startswith("builtin:") else partial(agreement, file=options.file)
    prompts = make(model, n=options.pairs)
    print(f"{options.model}, {' '.join(map(str, coders))}; {torch.get_num_threads()} threads")
    compare(model, coders, prompts, whole=options.whole)


if __name__ == "__main__":
    main()
