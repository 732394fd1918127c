"""Running a model with some features changed."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import wrong_type
from circuitcli.api.baselines import baseline_rule
from circuitcli.api.behaviours import Prompts, one_prompt
from circuitcli.api.coders import SomeCoders, spliced
from circuitcli.api.models import as_model
from circuitcli.attribution import subject as subjects
from circuitcli.attribution.baselines import Baseline as BaselineState
from circuitcli.attribution.examples import Written
from circuitcli.attribution.metrics import log_softmax
from circuitcli.attribution.positions import where
from circuitcli.attribution.subject import Subject
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.loading import LanguageModel
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.saes.splice import Edit, splice
from circuitcli.settings.graph import Baseline, GraphSettings, Metric
from circuitcli.validation.circuits import check_node


@dataclass(frozen=True)
class _Change:
    """What becomes of a node: its own value times a factor, another value, or (neither) its baseline."""

    factor: float | None = None
    value: float | None = None


_HINT = "write HOOK/INDEX, for example resid.1/17, resid.1/17@4 at one position, or mlp.2/error"


@dataclass(frozen=True)
class Prediction:
    """A next token with its probability in the changed run and in the unchanged one."""

    token: str
    probability: float
    clean: float


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A prompt, run with some nodes changed.

    logits, clean_logits: (position, vocab), of the changed and of the unchanged model. metric, metric_clean: the log
    probability of the target, in nats, or what else was asked for.
    """

    tokens: tuple[str, ...]
    logits: Float[Tensor, "position vocab"]
    clean_logits: Float[Tensor, "position vocab"]
    metric: float
    metric_clean: float
    unit: str
    tokenizer: Tokenizer

    @property
    def effect(self) -> float:
        """What the change took away: the metric of the unchanged model minus that of the changed one."""
        return self.metric_clean - self.metric

    def top(self, n: int = 5, *, position: int = -1) -> tuple[Prediction, ...]:
        """The n most likely next tokens behind a position, by default the last."""
        changed, clean = (log_softmax(logits[position]).exp() for logits in (self.logits, self.clean_logits))
        best = changed.topk(min(n, len(changed))).indices.tolist()
        names = self.tokenizer.token_strings(best)
        return tuple(
            Prediction(name, float(changed[token]), float(clean[token]))
            for name, token in zip(names, best, strict=True)
        )

    def __repr__(self) -> str:
        likely = ", ".join(f"{one.token!r} {one.probability:.2f}" for one in self.top(3))
        return f"Run({''.join(self.tokens[-8:])!r}: {likely}; effect {self.effect:+.4f} {self.unit})"


def run(
    model: LanguageModel,
    coders: SomeCoders,
    prompt: Prompts,
    *,
    ablate: str | Iterable[str] = (),
    scale: Mapping[str, float] | None = None,
    values: Mapping[str, float] | None = None,
    target: str | int | None = None,
    foil: str | int | None = None,
    counterfactual: Written | None = None,
    metric: Metric | None = None,
    baseline: Baseline | None = None,
    cache: ActivationCache | None = None,
    seed: int = 0,
) -> Run:
    """One prompt, run with features or errors taken away, scaled, or set to a value.

        circuit.run(model, coders, "for i in range(", ablate=["resid.1/17", "mlp.2/error@5"]).top(5)
        circuit.run(model, coders, "for i in range(", scale={"resid.1/17": 3.0}).effect
        circuit.run(model, coders, "for i in range(", values={"resid.2/40@5": 8.0}, target="0").metric

    Names are those of nodes: at all positions, or at one behind an ``@``. ablate: what goes to its baseline (``zero``
    unless another is named, as for `find_circuit`). scale: factors, values: new activations, of codes as they are
    encoded in this run, so that what was changed before is seen by what comes later; an error is scaled alike. All else
    keeps what it has in this run, so without a change the logits are the model's own.

    Raises InputError for a node that model or coders lack, SettingsError for one that is named twice.
    """
    model, chosen = as_model(model), spliced(coders, model, layers=None, sites=None)
    behaviour, prompts = one_prompt(
        prompt,
        model,
        several=("run", "run them one after the other"),
        target=target,
        foil=foil,
        counterfactual=counterfactual,
        metric=metric,
        baseline=baseline,
    )
    subject = subjects.build(model.adapter, chosen, prompts, metric=behaviour.metric)
    n_tokens = GraphSettings().baseline_tokens
    rule = baseline_rule(behaviour.baseline, chosen, model, cache=cache, n_tokens=n_tokens, seed=seed)
    changes = _changes(ablate, scale or {}, values or {})
    for node in changes:
        check_node(subject, node)
    logits = _logits(subject, _edit(subject, changes, rule(subject, (0,))))
    changed = subject.metric.value(logits[:, subject.metric.positions])
    return Run(
        tokens=prompts[0].tokens,
        logits=logits[0].cpu(),
        clean_logits=subject.clean_logits()[0].cpu(),
        metric=float(changed[0]),
        metric_clean=float(subject.metric_clean[0]),
        unit=subject.metric.unit,
        tokenizer=model.tokenizer,
    )


def _changes(ablate: object, scale: object, values: object) -> dict[NodeId, _Change]:
    """Every node that is named, and what becomes of it. Raises SettingsError for names and numbers that are none."""
    names = [ablate] if isinstance(ablate, str) else ablate
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise wrong_type("ablate", ablate, "a list of names", hint=_HINT)
    asked = [(NodeId.parse(name), _Change()) for name in names if isinstance(name, str)]
    asked += [(node, _Change(factor=number)) for node, number in _numbers(scale, "scale")]
    asked += [(node, _Change(value=number)) for node, number in _numbers(values, "values")]
    changes: dict[NodeId, _Change] = {}
    for node, change in asked:
        same = [other for other in changes if other.feature == node.feature]
        if node in changes or any(None in (other.position, node.position) for other in same):
            raise SettingsError(f"{node.feature} is named twice", hint="say once what becomes of it at a position")
        if node.is_error and change.value is not None:
            raise SettingsError(f"{node} is a vector, which no number sets", hint="ablate it, or scale it")
        changes[node] = change
    return changes


def _numbers(given: object, name: str) -> list[tuple[NodeId, float]]:
    if not isinstance(given, Mapping):
        raise wrong_type(name, given, "a mapping from names to numbers", hint=_HINT)
    found = []
    for node, number in given.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not isinstance(node, str) or not is_number:
            raise wrong_type(name, {node: number}, "a number for each name", hint=_HINT)
        found.append((NodeId.parse(node), float(number)))
    return found


def _edit(subject: Subject, changes: Mapping[NodeId, _Change], baseline: BaselineState) -> Edit:
    """The edit of a run in which these nodes are changed, by what they are in that run."""
    masks = {node: where(subject.prompts, node.position, subject.adapter.device) for node in changes}

    def new(change: _Change, own: Tensor, absent: Tensor) -> Tensor:
        if change.value is not None:
            return torch.full_like(own, change.value)
        return absent.expand_as(own) if change.factor is None else own * change.factor

    def codes(hook: HookPoint, encoded: Float[Tensor, "row position d_sae"]) -> Tensor | None:
        moved = torch.zeros_like(encoded)
        for node, change in changes.items():
            if node.hook == hook and node.index is not None:
                own, absent = encoded[..., node.index], baseline.codes[hook][..., node.index]
                moved[..., node.index] += (new(change, own, absent) - own) * masks[node]
        return moved if any(node.hook == hook and not node.is_error for node in changes) else None

    def error(hook: HookPoint, own: Float[Tensor, "row position d_out"]) -> Tensor | None:
        moved = torch.zeros_like(own)
        for node, change in changes.items():
            if node.hook == hook and node.is_error:
                moved += (new(change, own, baseline.errors[hook]) - own) * masks[node][..., None]
        return moved if any(node.hook == hook and node.is_error for node in changes) else None

    return Edit(codes, error)


def _logits(subject: Subject, edit: Edit) -> Float[Tensor, "text position vocab"]:
    with torch.no_grad():
        return subject.logits(splice(subject.coders, edit, first=subject.first))
