"""Whether a model's hook points are what their names say, tested in every block on a few tokens.

`probing` changes copies of the tokens at each site and `verdicts` holds the result against the definitions; here the
parts that are wrong are refused, and blocks and head, run alone on several rows, must give the model's own numbers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from circuitcli.errors import CircuitError, InputError, first_line
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.layout import SUPPORTED
from circuitcli.models.partial import CleanPass, clean_pass, growing_axes, run_blocks
from circuitcli.models.placing import placed
from circuitcli.models.probing import N_ROWS, OWN_WAY, BlockView, NoStreamError, Probed, probe
from circuitcli.models.verdicts import Tolerance, Verdict, percent, verdict
from circuitcli.models.window import window

logger = logging.getLogger(__name__)

N_TOKENS = 8
# By which configurations multiply logits, or divide them.
_LOGIT_SCALES = ("logit_scale", "lm_head_multiplier")
_LOGIT_DIVISORS = ("logits_scaling",)


def adapter_of(model: PreTrainedModel) -> ModelAdapter:
    """The adapter of a model, its hook points checked; those that are wrong are refused by it, with the reason.

    A model without weights, as used for estimates, is taken as its structure says. Raises InputError if the structure
    is not understood, or the residual stream itself is not what it should be.
    """
    adapter = ModelAdapter.of(model)
    if adapter.device.type != "meta":
        adapter = checked(adapter)
    if adapter.family == "generic":
        _tell_guess(adapter)
    return adapter


def checked(adapter: ModelAdapter) -> ModelAdapter:
    """The adapter with what a few tokens showed. Raises InputError as `adapter_of` does."""
    ids, tolerance = few_tokens(adapter), Tolerance.of(adapter.dtype)
    with _explained(adapter, ids):
        if adapter.family == "generic":
            adapter = placed(adapter, ids, tolerance=tolerance.relative)
        check = _Check(adapter, tolerance)
        probed = probe(adapter, ids, check.judge)
        adapter = check.adapter(probed)
        clean = clean_pass(adapter, ids)
        adapter = _with_axes(adapter, probed, clean)
        check.compare_blocks(adapter, clean)
        return _with_head(adapter, clean, tolerance)


def few_tokens(adapter: ModelAdapter) -> Int[Tensor, "1 position"]:
    """Ids of ordinary tokens, spread over the vocabulary."""
    configs = (adapter.model.config, adapter.text_config)
    special = {
        value
        for config in configs
        for name, value in vars(config).items()
        if "token" in name and isinstance(value, int)
    }
    n_ids = min(adapter.n_token_ids, int(getattr(adapter.text_config, "vocab_size", adapter.n_token_ids)))
    spread = (7919 * (step + 1) % n_ids for step in range(N_TOKENS + 10 * len(special)))
    ordinary = [number for number in spread if number not in special] or [0]
    return torch.tensor([ordinary[: min(N_TOKENS, window(adapter.model.config) or N_TOKENS)]], device=adapter.device)


class _Check:
    """Collects what the probe shows, block by block."""

    def __init__(self, adapter: ModelAdapter, tolerance: Tolerance) -> None:
        self._adapter, self._tolerance = adapter, tolerance
        self._verdicts: list[Verdict] = []
        self._streams: list[tuple[Tensor, Tensor]] = []

    def judge(self, layer: int, view: BlockView) -> None:
        """Take a block's view. Raises InputError out of its turn, or if something is done to the stream before it."""
        if layer != len(self._verdicts):
            raise _refused(self._adapter, "its blocks do not each run once, one after the other")
        rows = list(OWN_WAY)
        if view.left is not None and view.arrived is not None:
            left = view.left[rows]
            why = f"the output of block {layer - 1} is changed before block {layer} reads it"
            self._compare(view.arrived[rows], left, beside=left, why=why)
        self._verdicts.append(verdict(view, self._tolerance))
        self._streams.append((view.sites["resid_pre"][rows], view.sites["resid"][rows]))

    def adapter(self, probed: Probed) -> ModelAdapter:
        """The adapter with the verdicts."""
        old = self._adapter
        pairs = zip(old.layouts, self._verdicts, strict=True)
        layouts = [replace(layout, is_parallel=verdict.is_parallel) for layout, verdict in pairs]
        blocks = enumerate(self._verdicts)
        refused = {HookPoint(layer, site): why for layer, verdict in blocks for site, why in verdict.wrong.items()}
        return ModelAdapter(old.model, layouts, replace(old.findings, refused=refused, edited=probed.edited))

    def compare_blocks(self, adapter: ModelAdapter, clean: CleanPass) -> None:
        """Raise InputError if a block that is run alone on several rows does not give the model's own numbers."""
        for layer, (before, after) in enumerate(self._streams):
            with torch.no_grad():
                alone = run_blocks(adapter, clean, before, start=layer, stop=layer + 1)
            why = f"block {layer}, run alone on several rows, does not add the same to the stream as in the model"
            self._compare(alone, after, beside=after - before, why=why)

    def _compare(self, one: Tensor, other: Tensor, *, beside: Tensor, why: str) -> None:
        missed = _apart(one, other, self._tolerance, beside=beside)
        if not missed <= self._tolerance.relative:
            raise _refused(self._adapter, f"{why}: it is {percent(missed)} off")


def _apart(one: Tensor, other: Tensor, tolerance: Tolerance, *, beside: Tensor) -> float:
    norms = other.float().norm(dim=-1)
    return tolerance.missed((one - other).float().norm(dim=-1), beside.float().norm(dim=-1), stream=norms)


def _with_axes(adapter: ModelAdapter, probed: Probed, clean: CleanPass) -> ModelAdapter:
    pairs = zip(clean.arguments, probed.arguments, strict=True)
    axes = tuple(growing_axes(one, several, rows=N_ROWS) for one, several in pairs)
    return ModelAdapter(adapter.model, adapter.layouts, replace(adapter.findings, axes=axes))


def _with_head(adapter: ModelAdapter, clean: CleanPass, tolerance: Tolerance) -> ModelAdapter:
    """The adapter with the factor of the logits. Raises InputError if the head does not rebuild them."""
    width = adapter.unembedding.get_parameter("weight").shape[-1]
    if width != adapter.d_model:
        raise _refused(adapter, f"its unembedding reads {width} numbers, but the stream has {adapter.d_model}")
    logits, missed = clean.logits, float("inf")
    with torch.no_grad():
        plain = adapter.head(clean.final_residual)
        # Some devices have no float64.
        ours, its = plain.cpu().double(), logits.cpu().double()
        fitted = float((ours * its).sum() / ours.square().sum())
        for scale in (1.0, *_named_scales(adapter), fitted):
            scaled = ModelAdapter(adapter.model, adapter.layouts, replace(adapter.findings, logit_scale=scale))
            missed = _apart(scaled.head(clean.final_residual), logits, tolerance, beside=logits)
            if missed <= tolerance.relative:
                return scaled
    raise _refused(adapter, f"the guessed final norm and unembedding miss its logits by {percent(missed)}")


def _named_scales(adapter: ModelAdapter) -> Iterator[float]:
    for names, sign in ((_LOGIT_SCALES, 1), (_LOGIT_DIVISORS, -1)):
        for name in names:
            value = getattr(adapter.text_config, name, None)
            if isinstance(value, int | float) and value:
                yield float(value) ** sign


def _refused(adapter: ModelAdapter, why: str) -> InputError:
    return InputError(
        f"model type '{adapter.model_type}' cannot be used: {why}",
        hint=SUPPORTED,
    )


@contextmanager
def _explained(adapter: ModelAdapter, ids: Int[Tensor, "1 position"]) -> Iterator[None]:
    """A model that fails on a few tokens, or overflows its number type there, is no fault of ours."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not _is_finite(adapter, ids):
            raise _not_finite(adapter) from error
        if isinstance(error, CircuitError):
            raise
        why = str(error) if isinstance(error, NoStreamError) else f"it fails on a few tokens: {first_line(error)}"
        raise _refused(adapter, why) from error


def _is_finite(adapter: ModelAdapter, ids: Int[Tensor, "1 position"]) -> bool:
    """Whether the model's own logits are; where they are not, nothing can be told of its hook points."""
    try:
        with torch.no_grad():
            return bool(adapter.logits(ids).isfinite().all())
    except Exception:
        # What fails altogether is told by its own error.
        return True


def _not_finite(adapter: ModelAdapter) -> InputError:
    name = str(adapter.dtype).removeprefix("torch.")
    is_small = torch.finfo(adapter.dtype).bits < 32
    return InputError(
        f"the model gives numbers that are not finite in {name}",
        hint="run it in another number type, --dtype float32" if is_small else "are its weights damaged? copy it again",
    )


def _tell_guess(adapter: ModelAdapter) -> None:
    """Say what was guessed, and what was refused."""
    layout = adapter.layout
    told = f"attention {layout.attention} adds {layout.attn_out}, MLP {layout.feed_forward} adds {layout.mlp_out}"
    refused = sorted({hook.site for hook in adapter.findings.refused})
    logger.warning(
        "model type %s is not known; guessed from its structure%s: in blocks %s %s%s",
        adapter.model_type,
        ", which is checked when it runs" if adapter.device.type == "meta" else " and checked on a few tokens",
        adapter.layout.blocks,
        told,
        f"; not offered in some or all blocks: {' '.join(refused)}" if refused else "",
    )
