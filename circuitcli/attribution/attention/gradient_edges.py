"""The edges of a gradient graph, split into heads: of several prompts the mean parts.

Patterns follow the text there, so a head has two parts: what it moves, and where it looks. Edges of integrated
gradients are averaged over the path between the two runs, and so are their parts, point by point.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.attention.heads import HeadSplit, Parts, Write
from circuitcli.attribution.attention.passes import Backward, direct_pass
from circuitcli.attribution.baselines import Baseline
from circuitcli.attribution.edges import joint_steps
from circuitcli.attribution.mean_edges import taken_by
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.attribution.subject import Subject
from circuitcli.attribution.targets import Target, TargetRows
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.progress import task
from circuitcli.saes.splice import shifted

Key = tuple[HookPoint, Target]

# Rules in which attention is the model's own, or linear with a constant pattern.
_BACKWARD = {
    "ig": Backward("ig"),
    "atp": Backward("atp"),
    "exact": Backward("exact"),
    "relp": Backward("relp", is_frozen=True),
}


def check_method(method: str) -> None:
    """Raise SettingsError for a method whose edges cannot be split into heads."""
    if method not in _BACKWARD:
        raise SettingsError(
            f"edges of --method {method} cannot be split into heads: its gradients within attention are scaled",
            hint="leave out --heads, or use --method ig, atp or relp",
        )


def panel_parts(effects: PanelEffects, between: Sequence[tuple[Key, Key]]) -> Parts:
    """Parts of edges between nodes of a panel, in their order. Raises SettingsError for a method without any."""
    check_method(effects.settings.method)
    panel, total = effects.panel, None
    with task("heads of edges", total=panel.n_prompts, unit="prompts") as advance:
        for batch in panel.numbers:
            subject, _ = panel.subject(batch)
            edges = _Edges(effects, batch, between)
            for text in range(subject.n_texts):
                for parts, weight in edges.parts(text):
                    part = parts.times(weight / panel.n_prompts)
                    total = part if total is None else total.plus(part)
                advance(1)
    assert total is not None
    return total


@dataclass(frozen=True)
class _Edges:
    """Edges on the prompts of one batch."""

    effects: PanelEffects
    batch: int
    between: Sequence[tuple[Key, Key]]

    def parts(self, text: int) -> Iterator[tuple[Parts, float]]:
        """Parts on one prompt, for each point of the path, with its weight."""
        for share, weight in taken_by(self.effects.settings).shares():
            split = HeadSplit(self.subject, text=text, backward=self.backward, values=self._values(share))
            yield self._parts(split, text), weight

    def _parts(self, split: HeadSplit, text: int) -> Parts:
        size = self.effects.settings.batch_size
        numbers = {key: number for number, key in enumerate(dict.fromkeys(source for source, _ in self.between))}
        keys, sources = list(numbers), [numbers[source] for source, _ in self.between]
        carried = split.carried(len(keys), lambda number: self._write(keys[number], text), batch_size=size)
        pieces: list[tuple[list[int], Parts]] = []
        for hook, into in self._into.items():
            gradients = partial(self._of, split, text, hook)
            pieces += split.pieces(into, sources, gradients, carried, batch_size=size)
        return Parts.gathered(pieces)

    @cached_property
    def _into(self) -> dict[HookPoint, dict[Target, list[int]]]:
        """Numbers of the edges into each target, by the hook point that names it."""
        found: dict[HookPoint, dict[Target, list[int]]] = {}
        for number, (_, (hook, target)) in enumerate(self.between):
            found.setdefault(hook, {}).setdefault(target, []).append(number)
        return found

    @property
    def subject(self) -> Subject:
        """The prompts of the batch."""
        return self.effects.panel.subject(self.batch)[0]

    @property
    def baseline(self) -> Baseline:
        """What their nodes are set to."""
        return self.effects.panel.subject(self.batch)[1]

    @property
    def backward(self) -> Backward:
        """How derivatives are taken."""
        return _BACKWARD[self.effects.settings.method]

    @cached_property
    def _masks(self) -> Tensor:
        return self.effects.panel.masks(self.subject)

    @cached_property
    def _steps(self) -> dict[HookPoint, Tensor]:
        return joint_steps(self.subject, self.baseline)

    def _values(self, share: float) -> dict[HookPoint, Float[Tensor, "text position d_model"]] | None:
        """What spliced hook points go on with at a share of the path."""
        if share == 0:
            return None
        subject = self.subject
        return {
            hook: shifted(
                subject.activation(hook), (-share * step).expand(subject.n_texts, -1, -1), first=subject.first
            )
            for hook, step in self._steps.items()
        }

    @cached_property
    def _reached(self) -> dict[HookPoint, Float[Tensor, "text spliced d_in"]] | None:
        """What each coder reads where all sources are at their baseline; None for derivatives at the clean run."""
        if not taken_by(self.effects.settings).points:
            return None
        subject = self.subject
        every = torch.arange(subject.n_texts, device=subject.adapter.device)
        with direct_pass(subject, every, backward=self.backward, values=self._values(1.0)) as run:
            return {
                hook: (run.reads if coder.is_transcoder else run.arriving)[hook]
                .detach()[:, subject.first :]
                .to(coder.W_enc)
                for hook, coder in subject.coders.items()
            }

    def _of(self, split: HeadSplit, text: int, hook: HookPoint, some: Sequence[Target]) -> Mapping[int, Tensor]:
        """Derivatives of targets that a hook point names, by what attention adds."""
        subject = self.subject
        rows = TargetRows(
            subject,
            hook,
            [target.index for target in some],
            split.texts.expand(len(some)),
            self._masks[text, [target.group for target in some]],
            {group: self.effects.of(self.batch, group) for group in self.effects.groups(hook)},
            reached=self._reached,
        )
        outputs, seeds = [], []
        for end, vectors in rows.vectors().items():
            output = (split.run.reads if end.going_on else split.run.arriving)[end.hook]
            if output.requires_grad:
                seed = output.new_zeros(len(some), *output.shape)
                seed[:, 0, subject.first :] = vectors.to(output)
                outputs.append(output)
                seeds.append(seed)
        return split.towards(outputs, seeds) if outputs else {}

    def _write(self, key: Key, text: int) -> Write:
        """What a node writes beyond its baseline, at the positions that it stands for."""
        (hook, target), subject = key, self.subject
        where = self._masks[text, target.group, :, None]
        if target.index is None:
            errors = subject.errors[hook] - self.baseline.errors[hook]
            return {hook: errors[text] * where}
        coder, scale = subject.coders[hook], subject.scale(hook)
        index = target.index
        codes = (subject.codes[hook][..., index] - self.baseline.codes[hook][..., index])[text, :, None] * where
        codes = codes if scale is None else codes * scale[text]
        return {place: codes * coder.decoder(place)[index] for place in coder.writes}
