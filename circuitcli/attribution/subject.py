"""What is explained, run once: prompts of one length through a model with coders, and the metric of each."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcli.attribution import metrics
from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.metrics import Metric
from circuitcli.attribution.prompts import Prompt
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import BlockPass, block_pass, first_block, rerun
from circuitcli.models.taps import Callback
from circuitcli.saes.base import Frame, SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import Encoded, error_of

TokenNames = Callable[[Sequence[int]], Sequence[str]]


@dataclass(frozen=True)
class CodedRun:
    """Codes and frames by what is read, errors by what is written, at the spliced positions of a clean run."""

    codes: Mapping[HookPoint, Float[Tensor, "text position d_sae"]]
    errors: Mapping[HookPoint, Float[Tensor, "text position d_out"]]
    frames: Mapping[HookPoint, Frame | None]


@dataclass(frozen=True)
class Subject:
    """Prompts of one length, run cleanly once; their codes, errors and frames; and what is measured."""

    adapter: ModelAdapter
    coders: Coders
    prompts: tuple[Prompt, ...]
    clean: BlockPass
    coded: CodedRun
    metric: Metric
    targets: tuple[int, ...] = ()

    @property
    def n_texts(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    @property
    def first(self) -> int:
        """The first position that can carry nodes."""
        return self.prompts[0].first

    @property
    def n_spliced(self) -> int:
        """Number of positions that carry nodes."""
        return self.prompts[0].n_spliced

    @property
    def codes(self) -> Mapping[HookPoint, Float[Tensor, "text position d_sae"]]:
        """Codes of the clean run by what is read."""
        return self.coded.codes

    @property
    def errors(self) -> Mapping[HookPoint, Float[Tensor, "text position d_out"]]:
        """Errors of the clean run by what is written."""
        return self.coded.errors

    @cached_property
    def metric_clean(self) -> Float[Tensor, " text"]:
        """The metric of the unchanged model."""
        residual = self.clean.final_residual[:, self.metric.positions]

        def run(texts: Sequence[int]) -> Tensor:
            rows = torch.tensor(texts, device=self.adapter.device)
            return self.metric.value(self.adapter.head(residual[rows]), rows)

        size = rows_at_once(self, self.adapter.n_layers, backward=False, at_most=self.n_texts)
        with torch.no_grad():
            return torch.cat(list(in_batches(range(self.n_texts), run, size=size)))

    def clean_logits(self, positions: slice = slice(None)) -> Float[Tensor, "text position vocab"]:
        """Logits of the unchanged model at some positions."""
        with torch.no_grad():
            return self.adapter.head(self.clean.final_residual[:, positions])

    def activation(self, hook: HookPoint) -> Float[Tensor, "text position d_model"]:
        """The clean activation, in the coders' number type."""
        return self.clean.activations[hook].to(next(iter(self.coders.values())).W_enc.dtype)

    def scale(self, hook: HookPoint) -> Float[Tensor, "text position 1"] | None:
        """The factor by which decoding the codes of a coder multiplies; None for one."""
        frame = self.coded.frames[hook]
        return None if frame is None else frame.scale

    def run(
        self,
        callbacks: Mapping[HookPoint, Callback],
        *,
        texts: Int[Tensor, " row"] | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> Float[Tensor, "row position d_model"]:
        """The residual before block ``stop`` (by default: after the last), run with taps; earlier blocks than ``start``
        are taken from the clean run.

        texts: which prompt each row is a copy of; by default each once.
        """
        begin = min(first_block(hook) for hook in callbacks) if start is None else start
        rows = self.n_texts if texts is None else len(texts)
        several = texts if self.n_texts > 1 else None
        return rerun(self.adapter, self.clean, callbacks, rows=rows, start=begin, stop=stop, texts=several)

    def logits(
        self,
        callbacks: Mapping[HookPoint, Callback],
        *,
        texts: Int[Tensor, " row"] | None = None,
        positions: slice = slice(None),
        start: int | None = None,
    ) -> Float[Tensor, "row position vocab"]:
        """Logits of a tapped run at some positions."""
        return self.adapter.head(self.run(callbacks, texts=texts, start=start)[:, positions])

    def metric_of(
        self,
        callbacks: Mapping[HookPoint, Callback],
        *,
        texts: Int[Tensor, " row"] | None = None,
        start: int | None = None,
    ) -> Float[Tensor, " row"]:
        """The metric of a tapped run."""
        logits = self.logits(callbacks, texts=texts, positions=self.metric.positions, start=start)
        return self.metric.value(logits, texts)

    def copies(self, n: int) -> Int[Tensor, " row"]:
        """Which prompt each row is of, where each has so many rows, one prompt after the other."""
        return torch.arange(self.n_texts, device=self.adapter.device).repeat_interleave(n)

    @property
    def n_bytes(self) -> int:
        """Size of the tensors that it holds."""
        kept = (self.clean.residuals, self.clean.activations, self.codes, self.errors)
        return sum(value.numel() * value.element_size() for part in kept for value in part.values())


def build(
    adapter: ModelAdapter,
    coders: Coders,
    prompts: Sequence[Prompt],
    *,
    metric: str = "log-prob",
    token_names: TokenNames | None = None,
) -> Subject:
    """The subject of prompts of one length; ``token_names`` is for messages.

    A target is the model's most likely next token unless the prompt names one. Raises SettingsError for a metric that
    lacks something.
    """
    ids = torch.tensor([prompt.ids for prompt in prompts], device=adapter.device)
    clean = block_pass(adapter, ids, None, coders.hooks, for_copies=True)
    with torch.no_grad():
        last = adapter.head(clean.final_residual[:, -1:])[:, 0]
    likeliest = last.argmax(dim=-1).tolist()
    targets = [top if prompt.target is None else prompt.target for prompt, top in zip(prompts, likeliest, strict=True)]
    for prompt, target in zip(prompts, targets, strict=True):
        if metric == "logit-diff" and prompt.foil == target:
            raise SettingsError(
                f"{prompt.place + ': ' if prompt.place else ''}target and foil are the same token, "
                f"{target if token_names is None else repr(token_names([target])[0])}"
                f"{', the most likely next one' if prompt.target is None else ''}",
                hint="name another --foil, or another --target",
            )
    measured = metrics.build(
        metric,
        ids=ids,
        last=last,
        target=torch.tensor(targets, device=adapter.device),
        foil=[prompt.foil for prompt in prompts],
    )
    return subject_of(adapter, coders, prompts, clean, measured, targets=targets)


def subject_of(
    adapter: ModelAdapter,
    coders: Coders,
    prompts: Sequence[Prompt],
    clean: BlockPass,
    metric: Metric,
    *,
    targets: Sequence[int] = (),
) -> Subject:
    """The subject of a clean run."""
    coded = code_run(coders, clean.activations, first=prompts[0].first)
    return Subject(adapter, coders, tuple(prompts), clean, coded, metric, tuple(targets))


def code_run(
    coders: Coders, activations: Mapping[HookPoint, Float[Tensor, "text position d_model"]], *, first: int
) -> CodedRun:
    """Codes, errors and frames of a clean run at the spliced positions."""
    encoded: dict[HookPoint, Encoded] = {}
    with torch.no_grad():
        for hook, coder in coders.items():
            x = activations[hook][:, first:].to(coder.W_enc)
            codes, frame = coder.encode_framed(x)
            encoded[hook] = Encoded(x, codes, frame, None)
        errors = {}
        for hook in coders.written:
            writers = coders.writers(hook)
            errors[hook] = error_of(writers, hook, activations[hook][:, first:].to(writers[0].W_enc), encoded)
    return CodedRun(
        codes={hook: read.codes for hook, read in encoded.items()},
        errors=errors,
        frames={hook: read.frame for hook, read in encoded.items()},
    )


def fitted(coder: SparseCoder, adapter: ModelAdapter) -> SparseCoder:
    """The coder on the model's device, in double precision for a double-precision model. Raises if it does not fit."""
    for hook in {coder.hook, *coder.writes}:
        adapter.check(hook)
    coder.check_width(adapter.d_model)
    dtype = torch.float64 if adapter.dtype == torch.float64 else torch.float32
    return coder.to(adapter.device, dtype).requires_grad_(False)


def check_finite(numbers: Iterable[float], what: str) -> None:
    """Raise InputError, naming what it is, for what is no number: in half precision large activations overflow."""
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"{what} is not finite", hint="run the model in float32: --dtype float32")
