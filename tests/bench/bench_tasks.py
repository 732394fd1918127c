"""How many nodes do each of twenty choices in Python source, in SAEs, transcoders and neurons.

    python -m tests.bench.bench_tasks --saes RUN --transcoders RUN [--prompts 32] [--tasks NAME,NAME]

The runs hold coders of builtin:tiny at mlp and from mlp_in to mlp, in all of its blocks. Of each task: the share of
prompts in which the model's logit of the target is above that of the foil (half of the prompts are the other way round)
and the mean difference; how much of what the counterfactual changes goes through the MLPs at all, which is what there
is to explain here, as attention runs free; and for each kind of node the size of the smallest circuit with that
faithfulness: nodes at each position, errors among them (behind the +), ranked by the size of their effect (integrated
gradients, counterfactual baseline) and cut by bisection.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.baselines import BaselineRule
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.positions import Positions
from circuitcli.attribution.prompts import Needs, Prompt, encode_example
from circuitcli.hookpoints import NodeId
from circuitcli.models.loading import LanguageModel, load_model
from circuitcli.saes import files
from circuitcli.saes.coders import Coders
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import ModelSettings
from circuitcli.validation.circuits import circuit_metric, kept_nodes
from circuitcli.validation.recoded import neurons
from tests.planted.python_tasks import TASKS, Task


def of_run(run: Path, site: str) -> Coders:
    """The coders of a run that read a site."""
    return Coders.of(files.load(path) for path in sorted((run / "saes").glob(f"{site}.*")))


@dataclass(frozen=True)
class Size:
    """Nodes of the smallest circuit, the errors among them, and what share of the counterfactual's change there was to
    explain; None where all nodes together do not reach the faithfulness."""

    nodes: int | None
    errors: int
    share: float


class Ranked:
    """All nodes of a panel, the strongest first, and how faithful so many of them are."""

    def __init__(self, panel: Panel, settings: GraphSettings) -> None:
        self.panel, self.nodes = panel, self._ranked(panel, PanelEffects(panel, settings))
        self.empty, self.clean = self._metric([]), sum(panel.metric_clean()) / panel.n_prompts

    @staticmethod
    def _ranked(panel: Panel, effects: PanelEffects) -> list[NodeId]:
        found: list[tuple[float, NodeId]] = []
        for hook in panel.hooks:
            pieces = [*effects.of_features(hook)] if hook in panel.coders else []
            pieces += [*effects.of_error(hook)] if panel.coders.writers(hook) else []
            for means in pieces:
                values = means.values[0].flatten()
                for flat in values.nonzero().flatten().tolist():
                    target = means.piece.target(flat)
                    name = panel.node_id(means.piece.hook, target.index, target.group)
                    found.append((abs(float(values[flat])), NodeId.parse(name)))
        return [node for _, node in sorted(found, key=lambda pair: -pair[0])]

    def _metric(self, nodes: Sequence[NodeId]) -> float:
        values = []
        for subject, baseline in self.panel.subjects():
            values += circuit_metric(subject, baseline, [kept_nodes(subject, nodes)], batch_size=64)[0].tolist()
        return sum(values) / len(values)

    def faithfulness(self, n: int) -> float:
        """Of the first so many."""
        return (self._metric(self.nodes[:n]) - self.empty) / (self.clean - self.empty)

    def smallest(self, wanted: float) -> int | None:
        """How many are needed; of several crossings one, as faithfulness need not rise with every node."""
        low, high = 0, 1
        while self.faithfulness(high) < wanted:
            if high == len(self.nodes):
                return None
            low, high = high, min(2 * high, len(self.nodes))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.faithfulness(middle) >= wanted else (middle, high)
        return high


def size(model: LanguageModel, coders: Coders, prompts: Sequence[Prompt], *, wanted: float) -> Size:
    """The smallest circuit of these coders' nodes."""
    panel = Panel.of(
        model.adapter,
        coders,
        prompts,
        metric="logit-diff",
        positions=Positions.of("all", prompts),
        baseline_of=BaselineRule("counterfactual", coders),
        batch_size=64,
    )
    ranked = Ranked(panel, GraphSettings())
    n = ranked.smallest(wanted)
    other = differences(model, [prompt.counterfactual or () for prompt in prompts], prompts).mean()
    share = (ranked.clean - ranked.empty) / (ranked.clean - float(other))
    return Size(n, sum(node.is_error for node in ranked.nodes[: n or 0]), share)


@torch.no_grad()
def differences(
    model: LanguageModel, ids: Sequence[Sequence[int]], prompts: Sequence[Prompt]
) -> Float[Tensor, " prompt"]:
    """Logit of each prompt's target minus that of its foil behind these tokens."""
    logits = model.adapter.logits(torch.tensor([list(row) for row in ids]))[:, -1]
    rows = torch.arange(len(prompts))
    targets, foils = (torch.tensor([getattr(prompt, name) for prompt in prompts]) for name in ("target", "foil"))
    return logits[rows, targets] - logits[rows, foils]


def encoded(task: Task, model: LanguageModel, n: int) -> list[Prompt]:
    """Prompts of a task in tokens, all of the commonest length."""
    needs = Needs(foil=True, counterfactual=True)
    examples = task.examples(model.tokenizer, n)
    prompts = [encode_example(example, model.tokenizer, model.adapter, needs=needs) for example in examples]
    lengths = [len(prompt.ids) for prompt in prompts]
    usual = max(set(lengths), key=lengths.count)
    return [prompt for prompt in prompts if len(prompt.ids) == usual]


def shown(found: Size) -> str:
    """Features and errors of a circuit."""
    return "–" if found.nodes is None else f"{found.nodes - found.errors} + {found.errors}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saes", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--faithfulness", type=float, default=0.8)
    parser.add_argument("--tasks", default=",".join(task.name for task in TASKS))
    chosen = parser.parse_args()
    model = load_model(ModelSettings(name="builtin:tiny"))
    kinds = {
        "SAEs": of_run(chosen.saes, "mlp"),
        "transcoders": of_run(chosen.transcoders, "mlp_in"),
    }
    kinds["neurons"] = neurons(model.adapter, kinds["SAEs"])
    sizes: dict[str, list[int]] = {name: [] for name in kinds}
    print("| task | right | difference | through MLPs | " + " | ".join(kinds) + " |\n|" + "---|" * (4 + len(kinds)))
    for task in (task for task in TASKS if task.name in chosen.tasks.split(",")):
        prompts = encoded(task, model, chosen.prompts)
        clean = differences(model, [prompt.ids for prompt in prompts], prompts)
        found = {name: size(model, coders, prompts, wanted=chosen.faithfulness) for name, coders in kinds.items()}
        for name, one in found.items():
            sizes[name] += [] if one.nodes is None else [one.nodes]
        cells = (
            task.name,
            f"{float((clean > 0).float().mean()):.2f}",
            f"{float(clean.mean()):.2f}",
            f"{found['neurons'].share:.2f}",
            *map(shown, found.values()),
        )
        print("| " + " | ".join(cells) + " |", flush=True)
    means = [f"{geometric_mean(some):.0f} ({len(some)})" if some else "–" for some in sizes.values()]
    print("| **geometric mean of nodes (tasks)** | | | | " + " | ".join(means) + " |")


if __name__ == "__main__":
    main()
