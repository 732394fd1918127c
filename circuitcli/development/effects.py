"""What each feature of a crosscoder over checkpoints does to a metric at each of them (arXiv:2509.05291).

The indirect effect of feature i at checkpoint t is, to first order, its code times the gradient of the metric of that
checkpoint's model along the direction d_i(t) that it writes there, summed over positions: what the metric loses if the
feature's contribution is taken away at that checkpoint alone. `ablated` is that loss itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution import metrics
from circuitcli.attribution.metrics import Metric
from circuitcli.attribution.prompts import Prompt
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import leaf, tapped
from circuitcli.saes.checkpoint_crosscoder import CheckpointCrosscoder

# Codes and copies of prompts that are in memory at once.
_CODES_AT_ONCE, _ROWS_AT_ONCE = 2**25, 64


@dataclass(frozen=True)
class Read:
    """Some prompts of one length at one checkpoint: activations at the hook point where nodes can stand, gradients of
    the metric there, and the metric itself."""

    activation: Float[Tensor, "text position d_model"]
    gradient: Float[Tensor, "text position d_model"]
    metric: Float[Tensor, " text"]


def by_length(prompts: Sequence[Prompt], *, most: int = 64) -> list[list[Prompt]]:
    """Prompts that can be run at once."""
    lengths: dict[tuple[int, int], list[Prompt]] = {}
    for prompt in prompts:
        lengths.setdefault((len(prompt.ids), prompt.first), []).append(prompt)
    return [group[start : start + most] for group in lengths.values() for start in range(0, len(group), most)]


def read(adapter: ModelAdapter, hook: HookPoint, prompts: Sequence[Prompt], *, metric: str) -> Read:
    """Run a checkpoint on prompts of one length, each with a target unless the metric is about the prompt's own tokens.
    Raises SettingsError for a metric without a gradient at the clean run."""
    seen: dict[HookPoint, Tensor] = {}

    def open_(x: Tensor) -> Tensor:
        seen[hook] = leaf(x)
        return seen[hook]

    ids = _ids(adapter, prompts)
    with torch.enable_grad(), tapped(adapter, {hook: open_}):
        logits = adapter.logits(ids)
        measured = _metric(metric, ids, logits, prompts)
        value = measured.value(logits[:, measured.positions])
        (gradient,) = torch.autograd.grad(value.sum(), [seen[hook]])
    first = prompts[0].first
    return Read(seen[hook].detach()[:, first:], gradient[:, first:], value.detach())


def _ids(adapter: ModelAdapter, prompts: Sequence[Prompt]) -> Tensor:
    return torch.tensor([prompt.ids for prompt in prompts], device=adapter.device)


def _metric(name: str, ids: Tensor, logits: Tensor, prompts: Sequence[Prompt]) -> Metric:
    assert name == "cross-entropy" or all(prompt.target is not None for prompt in prompts)
    targets = [prompt.target or 0 for prompt in prompts]
    made = metrics.build(
        name,
        ids=ids,
        last=logits[:, -1],
        target=torch.tensor(targets, device=ids.device),
        foil=[prompt.foil for prompt in prompts],
    )
    if made.is_flat_at_clean:
        raise SettingsError(
            f"the metric {name} has no gradient at the clean run", hint="use --metric log-prob or logit-diff"
        )
    return made


@torch.no_grad()
def indirect_effects(
    coder: CheckpointCrosscoder, reads: Sequence[Sequence[Read]]
) -> Float[Tensor, "checkpoint text d_sae"]:
    """Effects of all features on the metric of each prompt, in its unit.

    reads: of each checkpoint, in their order, the batches of prompts, the same for all.
    """
    batches = [_effects_of_batch(coder, batch) for batch in zip(*reads, strict=True)]
    return torch.cat(batches, dim=1)


def _effects_of_batch(coder: CheckpointCrosscoder, batch: Sequence[Read]) -> Float[Tensor, "checkpoint text d_sae"]:
    n_texts, n_positions = batch[0].activation.shape[:2]
    size = max(1, _CODES_AT_ONCE // (n_positions * coder.d_sae))
    parts = []
    for start in range(0, n_texts, size):
        texts = slice(start, start + size)
        codes = _codes(coder, batch, texts)
        slopes = (
            one.gradient[texts].to(codes) @ rows.to(codes).T for one, rows in zip(batch, coder.decoders(), strict=True)
        )
        parts.append(torch.stack([(codes * slope).sum(dim=1) for slope in slopes]))
    return torch.cat(parts, dim=1)


def _codes(coder: CheckpointCrosscoder, batch: Sequence[Read], texts: slice) -> Float[Tensor, "text position d_sae"]:
    return coder.encode(coder.side_by_side([one.activation[texts].to(coder.W_enc) for one in batch]))


@torch.no_grad()
def ablated(
    adapter: ModelAdapter,
    coder: CheckpointCrosscoder,
    batch: Sequence[Read],
    prompts: Sequence[Prompt],
    features: Sequence[int],
    *,
    number: int,
    metric: str,
) -> Float[Tensor, "feature text"]:
    """What the metric of checkpoint ``number`` loses without what each feature writes there: one run for each.

    adapter: of that checkpoint. batch: its prompts at all checkpoints, which the codes follow from.
    """
    codes = _codes(coder, batch, slice(None))
    decoder, ids, first = coder.decoders()[number], _ids(adapter, prompts), prompts[0].first
    measured = _metric(metric, ids, adapter.logits(ids), prompts)
    lost = []
    for feature in features:
        written = codes[..., feature, None] * decoder[feature]  # (text, position, d_model)
        parts = []
        for start in range(0, len(prompts), _ROWS_AT_ONCE):
            texts = torch.arange(start, min(start + _ROWS_AT_ONCE, len(prompts)), device=ids.device)

            def take_off(x: Tensor, written: Tensor = written, texts: Tensor = texts) -> Tensor:
                edited = x.clone()
                edited[:, first:] -= written[texts].to(x)
                return edited

            with tapped(adapter, {coder.hook: take_off}):
                logits = adapter.logits(ids[texts])
            parts.append(batch[number].metric[texts] - measured.value(logits[:, measured.positions], texts))
        lost.append(torch.cat(parts))
    return torch.stack(lost)
