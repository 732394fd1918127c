"""The naive graph: one node at a time is taken away, and the change of later features and of the metric is measured.

Weight of u -> d is ``f_d(clean) - f_d(ablated)``: what u contributes, in d's activation units. A feature is taken away
at all hook points that its coder writes. Ablations run in batches, from the cached residual before the block of the
first of them, and equal one separate forward pass each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.activity import differing
from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.edges import Target
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.subject import Subject
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import shifted


@dataclass(frozen=True)
class Ablated:
    """What a batch of ablations did: effect on the metric, and what the coder of each measured hook point reads.

    first: of each row the first spliced position at which anything is moved; in front of it nothing changes anywhere.
    """

    effect: Float[Tensor, " row"]
    read: Mapping[HookPoint, Float[Tensor, "row spliced d_in"]]
    first: Int[Tensor, " row"]


def live_sources(panel: Panel, hook: HookPoint) -> list[Target]:
    """Every feature that a hook point names and that differs from its baseline somewhere in some prompt, and its error,
    at each group of positions."""
    sources: list[Target] = []
    if hook in panel.coders:
        parts = (differing(panel, batch, hook).any(dim=0) for batch in panel.numbers)
        different = reduce(torch.logical_or, parts)  # (group, d_sae)
        sources += [Target(index, group) for group, index in different.nonzero().tolist()]
    if panel.coders.writers(hook):
        sources += [Target(None, group) for group in range(panel.positions.n_groups)]
    return sources


def pinned_sources(
    coders: Coders, hook: HookPoint, features: Sequence[int], live: Sequence[Target], *, where: str = "in this prompt"
) -> list[Target]:
    """The live sources among the pinned features. Raises InputError if one is not live or does not exist."""
    d_sae = coders[hook].d_sae
    for index in features:
        if index >= d_sae:
            raise InputError(
                f"{hook} has no feature {index}: its SAE has {d_sae}", hint=f"features are 0 to {d_sae - 1}"
            )
        if not any(source.index == index for source in live):
            raise InputError(
                f"feature {hook}/{index} is silent {where}, so ablating it changes nothing: its effect is exactly 0",
                hint=f"live features of {hook}: {_some(live)}",
            )
    return [source for source in live if source.index in set(features)]


def _some(live: Sequence[Target]) -> str:
    indices = sorted({source.index for source in live if source.index is not None})
    return " ".join(str(index) for index in indices[:12]) + (" ..." if len(indices) > 12 else "")


def ablate(
    subject: Subject,
    hook: HookPoint,
    rows: Sequence[tuple[int, Target]],
    baseline: Baseline,
    *,
    measured: Sequence[HookPoint],
    masks: Bool[Tensor, "text group spliced"],
    shares: Float[Tensor, " row"] | None = None,
) -> Ablated:
    """Ablate a node of a hook point in each row, of the text that the row names.

    shares: how much of the way to its baseline the node of each row goes; all of it unless given.
    """
    texts = torch.tensor([text for text, _ in rows], device=subject.adapter.device)
    moves = ablation_moves(subject, hook, rows, baseline, masks=masks)
    if shares is not None:
        moves = {place: move * shares.to(move)[:, None, None] for place, move in moves.items()}
    seen: dict[HookPoint, Tensor] = {}
    callbacks = {
        place: _tap(subject, place, moves=moves, seen=seen, is_measured=place in measured)
        for place in {*moves, *measured}
    }
    start = min(first_block(place) for place in moves)
    positions = subject.metric.positions
    with torch.no_grad():
        final = subject.run(callbacks, texts=texts, start=start)[:, positions]
        metric = subject.metric.value(subject.adapter.head(final), texts)
    effect = subject.metric_clean[texts] - metric
    first = _first_moved(moves.values())
    # Products of other batch sizes are rounded otherwise: what reaches nothing is known to be zero, not measured.
    alike = (final == subject.clean.final_residual[:, positions][texts]).flatten(1).all(dim=1)
    effect = effect.masked_fill(alike | (first == subject.n_spliced), 0.0)
    return Ablated(effect, {other: x[:, subject.first :] for other, x in seen.items()}, first)


def _tap(
    subject: Subject,
    hook: HookPoint,
    *,
    moves: Mapping[HookPoint, Tensor],
    seen: dict[HookPoint, Tensor],
    is_measured: bool,
) -> Callback:
    """Moves what is ablated and keeps what is measured: an autoencoder reads what arrives, others what goes on."""

    def callback(x: Tensor) -> Tensor | None:
        going_on = shifted(x, moves[hook], first=subject.first) if hook in moves else x
        if is_measured:
            seen[hook] = going_on if subject.coders[hook].is_transcoder else x
        return going_on if hook in moves else None

    return callback


def _first_moved(moves: Iterable[Float[Tensor, "row spliced d_out"]]) -> Int[Tensor, " row"]:
    """The first position of each row that is moved somewhere; one behind the last where none is."""
    moved = reduce(torch.logical_or, ((move != 0).any(dim=-1) for move in moves))
    return torch.where(moved.any(dim=1), moved.to(torch.uint8).argmax(dim=1), moved.shape[1])


def ablation_moves(
    subject: Subject,
    hook: HookPoint,
    rows: Sequence[tuple[int, Target]],
    baseline: Baseline,
    *,
    masks: Bool[Tensor, "text group spliced"],
) -> dict[HookPoint, Float[Tensor, "row position d_out"]]:
    """Change of each written activation in each row: where a feature's coder writes, or of the error alone."""
    features = [number for number, (_, source) in enumerate(rows) if source.index is not None]
    errors = [number for number, (_, source) in enumerate(rows) if source.index is None]
    like = next(iter(subject.errors.values()))
    shape = (len(rows), subject.n_spliced)
    moves: dict[HookPoint, Tensor] = {}
    if features:
        texts, where, indices = _of_rows([rows[number] for number in features], masks)
        coder, scale = subject.coders[hook], subject.scale(hook)
        difference = baseline.codes[hook].expand_as(subject.codes[hook]) - subject.codes[hook]
        amounts = difference[texts, :, indices] * where  # (feature row, spliced)
        amounts = amounts if scale is None else amounts * scale[texts, :, 0]
        for place in coder.writes:
            moves[place] = like.new_zeros(*shape, coder.d_out)
            moves[place][features] = amounts[..., None] * coder.decoder(place)[indices][:, None]
    if errors:
        texts, where, _ = _of_rows([rows[number] for number in errors], masks)
        move = (baseline.errors[hook] - subject.errors[hook])[texts] * where[..., None]
        moves.setdefault(hook, like.new_zeros(*shape, move.shape[-1]))[errors] = move
    return moves


def _of_rows(rows: Sequence[tuple[int, Target]], masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Text, positions and feature of each row."""
    texts = torch.tensor([text for text, _ in rows], device=masks.device)
    groups = torch.tensor([source.group for _, source in rows], device=masks.device)
    indices = torch.tensor([source.index or 0 for _, source in rows], device=masks.device)
    return texts, masks[texts, groups], indices
