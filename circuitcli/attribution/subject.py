"""The behaviour under study: a prompt run through a model with SAEs, its metric, and its baseline."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution import metrics
from circuitcli.attribution.metrics import Metric
from circuitcli.attribution.prompts import Prompt, Written, encode_prompt
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, parse_layers
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.loading import LanguageModel
from circuitcli.models.partial import CleanPass, clean_pass, first_block, rerun
from circuitcli.models.taps import Callback
from circuitcli.saes.base import Coded, SparseCoder
from circuitcli.settings.graph import GraphSettings


@dataclass(frozen=True)
class Target:
    """The token whose probability is explained; a text alone does not always name one."""

    id: int
    text: str


@dataclass(frozen=True)
class Subject:
    """One prompt, run cleanly once; codes, errors and frames at its spliced positions; and what is measured."""

    adapter: ModelAdapter
    saes: Mapping[HookPoint, SparseCoder]
    prompt: Prompt
    clean: CleanPass
    coded: Mapping[HookPoint, Coded]
    metric: Metric

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """The spliced hook points in model order."""
        return tuple(sorted(self.saes))

    @property
    def metric_clean(self) -> float:
        """The metric of the unchanged model."""
        return float(self.metric.value(self.clean.logits)[0])

    def activation(self, hook: HookPoint) -> Float[Tensor, "1 position d_model"]:
        """The clean activation, in the SAE's number type."""
        return self.clean.activations[hook].to(self.saes[hook].W_enc)

    def logits(
        self, callbacks: Mapping[HookPoint, Callback], *, rows: int, start: int | None = None
    ) -> Float[Tensor, "batch position vocab"]:
        """Logits of ``rows`` copies of the prompt, run with taps; earlier blocks are taken from the clean run."""
        begin = min(first_block(hook) for hook in callbacks) if start is None else start
        return self.adapter.head(rerun(self.adapter, self.clean, callbacks, rows=rows, start=begin))

    def metric_of(self, callbacks: Mapping[HookPoint, Callback], *, rows: int = 1) -> Float[Tensor, " batch"]:
        """The metric of ``rows`` tapped runs."""
        return self.metric.value(self.logits(callbacks, rows=rows))


def build(
    language_model: LanguageModel,
    saes: Mapping[HookPoint, SparseCoder],
    settings: GraphSettings,
    *,
    prompt: Written,
    target: str | int | None,
    foil: str | int | None,
) -> tuple[Subject, Target]:
    """The subject of a prompt, and its target.

    The target, a text or an id, is the model's most likely next token unless named. Raises InputError for a prompt or
    target that is no token, and for SAEs that do not fit the model.
    """
    adapter, tokenizer = language_model.adapter, language_model.tokenizer
    encoded = encode_prompt(prompt, tokenizer, adapter)
    prepared = {hook: fitted(sae, adapter) for hook, sae in saes.items()}
    clean = clean_pass(adapter, encoded.ids, tuple(prepared))
    wanted = int(clean.logits[0, -1].argmax()) if target is None else target
    if isinstance(wanted, str):
        wanted = tokenizer.single_token(wanted, what="target")
    other = tokenizer.single_token(foil, what="foil") if isinstance(foil, str) else foil
    if other == wanted and settings.metric == "logit-diff":
        raise SettingsError(
            f"target and foil are the same token, {foil!r}{'' if target is not None else ', the most likely next one'}",
            hint="name another --foil, or another --target",
        )
    metric = metrics.build(settings, ids=encoded.ids, clean_logits=clean.logits, target=wanted, foil=other)
    return subject_of(adapter, prepared, encoded, clean, metric), Target(wanted, tokenizer.token_strings([wanted])[0])


def subject_of(
    adapter: ModelAdapter,
    saes: Mapping[HookPoint, SparseCoder],
    prompt: Prompt,
    clean: CleanPass,
    metric: Metric,
) -> Subject:
    """The subject of a clean run."""
    return Subject(adapter, saes, prompt, clean, code_run(saes, clean, first=prompt.first), metric)


def code_run(saes: Mapping[HookPoint, SparseCoder], clean: CleanPass, *, first: int) -> dict[HookPoint, Coded]:
    """Codes, errors and frames (1, spliced position, ...) of a clean run."""
    with torch.no_grad():
        return {hook: sae.code(clean.activations[hook][:, first:].to(sae.W_enc)) for hook, sae in saes.items()}


def fitted(sae: SparseCoder, adapter: ModelAdapter) -> SparseCoder:
    """The SAE on the model's device, in double precision for a double-precision model. Raises if it does not fit."""
    adapter.check(sae.hook)
    sae.check_width(adapter.d_model)
    dtype = torch.float64 if adapter.dtype == torch.float64 else torch.float32
    return sae.to(adapter.device, dtype).requires_grad_(False)


def check_finite(numbers: Iterable[float], what: str) -> None:
    """Raise InputError, naming what it is, for what is no number: in half precision large activations overflow."""
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"{what} is not finite", hint="run the model in float32: --dtype float32")


def chosen_hooks(available: Sequence[HookPoint], settings: GraphSettings, *, n_layers: int) -> list[HookPoint]:
    """The hook points of a circuit: those with SAEs that the settings name. Raises InputError if none is left."""
    layers = range(n_layers) if settings.layers is None else parse_layers(settings.layers, n_layers=n_layers)
    sites = None if settings.sites is None else {part for text in settings.sites for part in text.split(",")}
    hooks = [hook for hook in sorted(available) if hook.layer in layers and (sites is None or hook.site in sites)]
    if not hooks:
        raise InputError(
            f"no SAE at layers {settings.layers or ':'}, sites {' '.join(sorted(sites)) if sites else 'any'}",
            hint=f"there are SAEs at {' '.join(str(hook) for hook in sorted(available))}",
        )
    return hooks
