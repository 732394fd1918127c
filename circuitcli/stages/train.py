"""``circuit train``: sparse autoencoders for all collected hook points, in one pass over the cache."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, Record, SaeRecord, TrainedRecord
from circuitcli.settings.settings import Settings
from circuitcli.stages.estimates import BYTES, memory, size, weight_bytes
from circuitcli.stages.inputs import activation_records
from circuitcli.stages.measuring import warnings
from circuitcli.stages.replacement import replacements
from circuitcli.stages.request import Request, changing_nothing, fingerprint, resumable
from circuitcli.stages.starting import begun_activations, begun_settings, read_starts, start_sources
from circuitcli.stages.sweep import swept, variants
from circuitcli.stages.training import FOLDER, SWEEP, Training, check_processes, finished_saes
from circuitcli.training.architectures.descriptions import DESCRIPTIONS
from circuitcli.training.plan import (
    Plan,
    check_objective,
    coder_shapes,
    hook_groups,
    pool_tokens,
    read_hooks,
    training_plan,
    width,
)
from circuitcli.training.readers import unread
from circuitcli.training.schedule import default_rate

if TYPE_CHECKING:
    from circuitcli.models.adapter import ModelAdapter

logger = logging.getLogger(__name__)

NAME = "train"
# Numbers for each feature and row of a batch that are held at once.
_DENSE_COPIES, _SPARSE_COPIES = 6, 2
_LOGITS_COPIES = 5
# Settings that change no result, or no more than another device does. What training begins from is an input.
_NO_MATTER = (
    "train.checkpoint_tokens",
    "train.log",
    "train.parallel",
    "train.tf32",
    "train.start",
    "train.baselines",
    "train.baseline_tokens",
)
# Settings on which the measuring of finished SAEs depends and nothing else: eval_tokens are kept out of the training.
_MEASURING, _COMPOUND = ("train.loss_tokens",), "train.compound"


def run(request: Request) -> list[Record]:
    """One record for each hook point, trained now or before; of a sweep one for each variant too, and its plot.

    A sweep leaves the run's own SAEs as they are. Raises InputError without activations or with too few, SettingsError
    if k is more than the width, CircuitError if a loss stops being finite.
    """
    activations = activation_records(request, stage=NAME)
    check_processes(request.settings)
    chosen = variants(request.settings)
    sources = start_sources(request, activations, folder=FOLDER)
    # What they begin from is read when there is something to do.
    for settings in () if sources else chosen.values():
        _check(settings, activations)
    inputs = {f"activations {record.hook}": record.digest for record in activations}
    inputs |= {f"start at {hook}": source.digest for hook, source in sources.items()}
    without = {*_NO_MATTER, _COMPOUND, *unread(chosen.values())}
    measuring = (*_MEASURING, _COMPOUND) if request.settings.train.compound else _MEASURING
    print_ = fingerprint(request, ("sae.", "train.", "seed"), inputs, without=without, measuring=measuring)
    is_sweep = bool(request.settings.train.sweep)
    folder, name = (Path(FOLDER) / SWEEP, SWEEP) if is_sweep else (Path(FOLDER), NAME)
    training = Training(request, name, chosen, folder, print_, sources=sources)
    records = resumable(
        request,
        name,
        print_,
        partial(_work, training),
        partial=training.partial,
        keeps=True,
        clean=lambda: training.unfinished.remove(),
    )
    for line in warnings(record for record in records if isinstance(record, TrainedRecord)):
        logger.warning(line)
    return records


def _check(settings: Settings, activations: list[ActivationsRecord]) -> None:
    """Raise SettingsError or InputError for settings that cannot be trained with."""
    check_objective(settings)
    hook_groups(settings.sae.architecture, [HookPoint.parse(record.hook) for record in activations])
    for record in activations:
        width(settings, d_in=record.d_model)
    training_plan(settings, n_rows=activations[0].n_tokens)


def _work(training: Training, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    activations = activation_records(training.request, stage=NAME)
    with changing_nothing():
        training, activations = _prepared(training, activations)
    settings = training.request.settings
    finished = finished_saes(training, activations, resumes=resumes)
    plan = training_plan(settings, n_rows=activations[0].n_tokens)
    facts = {"tokens": plan.tokens, "held_out": plan.held_out}
    records = swept(training, finished) if settings.train.sweep else [SaeRecord(**one.fields) for one in finished]
    return [*records, *replacements(training, finished)], facts


def _prepared(training: Training, activations: list[ActivationsRecord]) -> tuple[Training, list[ActivationsRecord]]:
    """The training with the coders that it begins from, and the activations that are trained on."""
    request, chosen = training.request, training.variants
    if training.sources:
        starts = read_starts(request, training.sources)
        activations = begun_activations(activations, starts)
        request = replace(request, settings=begun_settings(request, starts))
        chosen = variants(request.settings)
        for settings in chosen.values():
            _check(settings, activations)
        training = replace(training, request=request, starts={hook: one.coder for hook, one in starts.items()})
    costs = _costs(chosen, activations)
    held = 4 * 4 * sum(cost.parameters for cost in costs)
    return replace(training, variants=chosen, state_bytes=held, features=_features(costs)), activations


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people."""
    activations = activation_records(request, stage=NAME)
    if sources := start_sources(request, activations, folder=FOLDER):
        starts = read_starts(request, sources)
        activations, request = (
            begun_activations(activations, starts),
            replace(request, settings=begun_settings(request, starts)),
        )
    plan = training_plan(request.settings, n_rows=activations[0].n_tokens)
    costs = _costs(variants(request.settings), activations)
    read, outline = _read(request, activations), _outline(request)
    parameters = sum(cost.parameters for cost in costs)
    rates = sorted({cost.rate(plan.n_steps) for cost in costs})
    return [
        ("autoencoders", f"{sum(len(cost.d_saes) for cost in costs)}: {' '.join(one.hook for one in read)}"),
        ("features", _features(costs)),
        ("tokens", f"{plan.tokens:,} in {plan.n_steps:,} steps of {plan.batch_size:,}; {plan.held_out:,} held out"),
        ("learning rate", " ".join(f"{rate:.2g}" for rate in rates)),
        ("disk", f"{size(4 * parameters)}, and {size(_state_bytes(request.settings, parameters))} while training"),
        *_memory(request, read, plan, costs, outline),
        *_revival(costs, plan),
    ]


def _costs(variants: Mapping[str, Settings], activations: list[ActivationsRecord]) -> "list[_Cost]":
    d_models = {HookPoint.parse(record.hook): record.d_model for record in activations}
    return [
        _Cost.of(settings, hooks, d_models)
        for settings in variants.values()
        for hooks in hook_groups(settings.sae.architecture, list(d_models))
    ]


def _features(costs: "list[_Cost]") -> str:
    return " ".join(f"{d_sae:,}" for d_sae in sorted({d_sae for cost in costs for d_sae in cost.d_saes}))


@dataclass(frozen=True)
class _Cost:
    """What the coders of a group of hook points take: their widths, and how much each reads and writes."""

    settings: Settings
    d_saes: tuple[int, ...]
    d_reads: tuple[int, ...]
    d_writes: tuple[int, ...]

    @classmethod
    def of(cls, settings: Settings, group: tuple[HookPoint, ...], d_models: Mapping[HookPoint, int]) -> "_Cost":
        """d_models: widths of the activations at the group's hook points."""
        shapes = coder_shapes(settings.sae.architecture, group)
        one = width(settings, d_in=d_models[group[0]])
        return cls(
            settings,
            tuple(one * shape.width for shape in shapes),
            tuple(sum(d_models[hook] for hook in shape.reads) for shape in shapes),
            tuple(sum(d_models[hook] for hook in shape.writes) for shape in shapes),
        )

    @property
    def parameters(self) -> int:
        """Numbers in all encoders and decoders."""
        return sum(d_sae * (d_in + d_out) for d_sae, d_in, d_out in self._sizes)

    def revival_bytes(self, batch: int) -> int:
        """What AuxK adds at most to steps of so many tokens, where all features are dead."""
        from circuitcli.training.auxk import most_bytes

        return sum(
            most_bytes(d_sae=d_sae, d_in=d_in, d_out=d_out, batch=batch, k=d_out // 2)
            for d_sae, d_in, d_out in self._sizes
        )

    @property
    def _sizes(self) -> list[tuple[int, int, int]]:
        return list(zip(self.d_saes, self.d_reads, self.d_writes, strict=True))

    @property
    def is_dense(self) -> bool:
        """Whether codes are as many as the features while it learns."""
        return DESCRIPTIONS[self.settings.sae.architecture].is_dense

    def rate(self, n_steps: int) -> float:
        return self.settings.train.learning_rate or default_rate(self.d_saes[0], n_steps=n_steps)


def _outline(request: Request) -> "ModelAdapter | None":
    """The model that finished SAEs are measured with, without its weights; None where none is loaded."""
    from circuitcli.models.loading import load_outline
    from circuitcli.stages.measure import model_settings

    return load_outline(model_settings(request)) if request.settings.train.loss_tokens else None


def _state_bytes(settings: Settings, parameters: int) -> int:
    """What a checkpoint takes: weights, the optimiser's two moments, and the best weights so far."""
    return 4 * parameters * (4 if settings.train.keep == "best" else 3)


def _memory(
    request: Request,
    read: list[ActivationsRecord],
    plan: Plan,
    costs: list[_Cost],
    outline: "ModelAdapter | None",
) -> list[tuple[str, str]]:
    """Rows of the cache and a batch of them; weights, their gradients and the optimiser's two moments, what one SAE
    makes of a batch, and the model that is put through the SAEs at the end."""
    from circuitcli.evaluation.spliced import LOGITS_AT_ONCE

    train = request.settings.train
    row_bytes = sum(one.d_model * BYTES[one.dtype] for one in read)
    half = max(1, pool_tokens(request.settings, row_bytes=row_bytes, batch_size=plan.batch_size) // 2)
    # One pool is read while another is given out, unless there is only one.
    pool = row_bytes * min(half, plan.stop_row) * (2 if half < min(plan.stop_row, plan.tokens) else 1)
    # A batch as it is drawn, put together, and scaled.
    rows = 3 * 4 * plan.batch_size * sum(one.d_model for one in read)
    codes = plan.batch_size * max(
        sum(cost.d_saes) * (_DENSE_COPIES if cost.is_dense else _SPARSE_COPIES) for cost in costs
    )
    model = 0
    if outline is not None:
        # What follows from logits, of the clean run and of an edited one.
        n_logits = min(LOGITS_AT_ONCE, min(train.loss_tokens, plan.held_out) * outline.n_token_ids)
        model = weight_bytes(outline) + _LOGITS_COPIES * 4 * n_logits
    weights = sum(cost.parameters for cost in costs)
    best = 4 * weights if train.keep == "best" else 0
    return memory(pool + rows + best, 4 * (4 * weights + codes) + model, device=request.settings.model.device)


def _revival(costs: list[_Cost], plan: Plan) -> list[tuple[str, str]]:
    """What AuxK adds where nearly all features are dead."""
    learning = [cost for cost in costs if cost.settings.train.auxk_weight]
    if not learning:
        return []
    return [
        (
            "dead features",
            f"up to {size(max(cost.revival_bytes(plan.batch_size) for cost in learning))} more memory, if many",
        )
    ]


def _read(request: Request, activations: list[ActivationsRecord]) -> list[ActivationsRecord]:
    """The hook points that are trained on."""
    architectures = {settings.sae.architecture for settings in variants(request.settings).values()}
    hooks = read_hooks(architectures, [HookPoint.parse(record.hook) for record in activations])
    return [record for record in activations if HookPoint.parse(record.hook) in hooks]
