"""What taking nodes away did, over several prompts or pieces of text: the metric, the next token, later features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.attribution.metrics import LAST
from circuitcli.attribution.subject import check_finite
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.saes.base import SparseCoder
from circuitcli.validation.ablation import Without, without
from circuitcli.validation.scores import Case

# Tokens in front of a token that tell where in the text it is.
_CONTEXT = 8


@dataclass(frozen=True)
class Shift:
    """One number before and after the ablation."""

    name: str
    clean: float
    ablated: float

    @property
    def change(self) -> float:
        """Ablated minus clean."""
        return self.ablated - self.clean


@dataclass(frozen=True)
class Told:
    """What the ablation did to one prompt; tokens are next-token probabilities at its end."""

    prompt: str
    effect: float
    tokens: tuple[Shift, ...]


@dataclass(frozen=True)
class JointAblation:
    """What ablating all nodes together did; ``effect`` is m(clean) - m(ablated), the mean over prompts or blocks.

    metric_clean, metric_ablated: means over what was run; of blocks, those in which a node differs from its baseline.
    tokens: next-token probabilities at the end of the first prompt; contexts: probabilities of the text's own tokens,
    where those changed most; features: activations of later hook points, the largest over positions, the mean over
    prompts or over the blocks in which something was ablated.
    """

    effect: float
    standard_error: float | None
    metric_clean: float
    metric_ablated: float
    tokens: tuple[Shift, ...]
    features: tuple[Shift, ...]
    prompts: tuple[Told, ...] = ()
    contexts: tuple[Shift, ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether no number has changed."""
        changes = [told.effect for told in self.prompts] + [shift.change for shift in self.contexts]
        return self.effect == 0 and not any(changes) and not self.features


class Tally:
    """Ablates the nodes in one case after the other, and adds up; the ``top`` largest changes are listed."""

    def __init__(
        self, nodes: Sequence[NodeId], later: Mapping[HookPoint, SparseCoder], tokenizer: Tokenizer, *, top: int
    ) -> None:
        self.nodes, self.later, self.tokenizer, self.top = tuple(nodes), later, tokenizer, top
        self.clean: list[float] = []
        self.ablated: list[float] = []
        self._told: list[Told] = []
        self._before: dict[HookPoint, Tensor] = {}
        self._after: dict[HookPoint, Tensor] = {}
        self._n_measured = 0
        self._contexts: list[Shift] = []

    def add(self, case: Case, prompts: Sequence[str]) -> None:
        """Prompts, of which the next token counts. Raises InputError if a metric is not finite."""
        subject = case.subject
        clean, run = subject.clean_logits(LAST)[:, -1], self._run(case, None, LAST)
        effects = (subject.metric_clean - run.metric).tolist()
        for row, (prompt, effect) in enumerate(zip(prompts, effects, strict=True)):
            tokens = _token_shifts(clean[row], run.logits[row, -1], self.tokenizer, self.top)
            self._told.append(Told(prompt, effect, tokens))

    def add_text(self, case: Case, where: Bool[Tensor, " position"]) -> None:
        """A piece of text, of which all tokens count; nodes are ablated at these positions. Raises as `add` does."""
        run = self._run(case, where[None], slice(0, -1))
        found = [*self._contexts, *_context_shifts(case, run, self.tokenizer, self.top)]
        self._contexts = sorted(found, key=lambda shift: -abs(shift.change))[: self.top]

    def add_unchanged(self) -> None:
        """A piece of text in which the nodes are at baseline anyway, so that nothing changes."""
        self.clean.append(float("nan"))
        self.ablated.append(float("nan"))

    def _run(self, case: Case, where: Tensor | None, positions: slice) -> Without:
        subject = case.subject
        run = without(subject, self.nodes, case.baseline, later=self.later, where=where, positions=positions)
        check_finite(subject.metric_clean.tolist(), "the metric")
        check_finite(run.metric.tolist(), "the metric without these nodes")
        self.clean += subject.metric_clean.tolist()
        self.ablated += run.metric.tolist()
        self._n_measured += subject.n_texts
        for total, part in ((self._before, run.before), (self._after, run.after)):
            for hook, values in part.items():
                of_texts = values.sum(dim=0)
                total[hook] = total[hook] + of_texts if hook in total else of_texts
        return run

    def result(self) -> JointAblation:
        """All of it."""
        clean, ablated = torch.tensor([self.clean, self.ablated], dtype=torch.float64)
        effects = (clean - ablated).nan_to_num(0.0)
        count = len(effects)
        return JointAblation(
            effect=float(effects.mean()),
            standard_error=float(effects.std() / count**0.5) if count > 1 else None,
            metric_clean=float(clean.nanmean()),
            metric_ablated=float(ablated.nanmean()),
            tokens=self._told[0].tokens if self._told else (),
            features=self._feature_shifts(),
            prompts=tuple(self._told),
            contexts=tuple(self._contexts),
        )

    def _feature_shifts(self) -> tuple[Shift, ...]:
        taken = {(node.hook, node.index) for node in self.nodes}
        shifts: list[Shift] = []
        for hook, total in self._before.items():
            before, after = total / self._n_measured, self._after[hook] / self._n_measured
            largest = (after - before).abs().topk(min(self.top + len(taken), before.numel())).indices.tolist()
            shifts += [
                Shift(str(NodeId(hook, index)), float(before[index]), float(after[index]))
                for index in largest
                if (hook, index) not in taken and before[index] != after[index]
            ]
        return tuple(sorted(shifts, key=lambda shift: -abs(shift.change))[: self.top])


def _token_shifts(
    clean: Float[Tensor, " vocab"], ablated: Float[Tensor, " vocab"], tokenizer: Tokenizer, top: int
) -> tuple[Shift, ...]:
    before, after = clean.float().softmax(dim=-1), ablated.float().softmax(dim=-1)
    largest = (after - before).abs().topk(min(top, before.numel())).indices.tolist()
    names = tokenizer.token_strings(largest)
    return tuple(
        Shift(name, float(before[index]), float(after[index])) for name, index in zip(names, largest, strict=True)
    )


def _context_shifts(case: Case, run: Without, tokenizer: Tokenizer, top: int) -> list[Shift]:
    """The tokens of a text whose own probability changed most, with the tokens in front of each."""
    ids = case.subject.prompts[0].ids
    following = torch.tensor(ids[1:], device=run.logits.device)[:, None]
    before, after = (
        logits.float().softmax(dim=-1).gather(1, following)[:, 0]
        for logits in (case.subject.clean_logits(slice(0, -1))[0], run.logits[0])
    )
    largest = (after - before).abs().topk(min(top, before.numel())).indices.tolist()
    names = {
        place: "".join(tokenizer.token_strings(ids[max(0, place + 1 - _CONTEXT) : place + 1]))
        + " → "
        + tokenizer.token_strings(ids[place + 1 : place + 2])[0]
        for place in largest
    }
    return [
        Shift(names[place], float(before[place]), float(after[place]))
        for place in largest
        if before[place] != after[place]
    ]
