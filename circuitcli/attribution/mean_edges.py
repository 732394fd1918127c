"""Edges into nodes, means over a panel's prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcli.attribution.averages import ErrorRows, Means, Rows, Sums
from circuitcli.attribution.edges import Target, ends_of, incoming, needs_one_position, sources_of
from circuitcli.attribution.mean_effects import PanelEffects
from circuitcli.attribution.panel import Panel
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import CODES_AT_ONCE

# Numbers of the sums over prompts that are in memory at once, three times over.
SUMS_AT_ONCE = 2**24


@dataclass(frozen=True)
class PanelEdges:
    """Edges into nodes on the prompts of a panel, for gradients as the effects have them."""

    effects: PanelEffects

    @property
    def panel(self) -> Panel:
        """The prompts."""
        return self.effects.panel

    def into(self, hook: HookPoint, targets: Sequence[Target]) -> Iterator[Means]:
        """Mean edges into some nodes of a hook point, from some nodes after the other; a row for each target."""
        passes = (one for batch in self.panel.numbers for one in self._passes(batch, hook, targets))
        first = list(islice(passes, 2))
        if len(first) == 1:
            for rows in first[0]:
                yield from rows.means(self.panel, n_targets=len(targets))
            return
        sums = Sums(self.panel, len(targets))
        for rows in chain.from_iterable(chain(first, passes)):
            sums.add(rows)
        yield from sums.means()

    def targets_at_once(self, hook: HookPoint, targets: Sequence[Target]) -> int:
        """Of one prompt as many as one backward pass takes, so that nothing is summed up; of several as many as there
        is room for sums of all their edges."""
        batch_size, coders = self.effects.settings.batch_size, self.panel.coders
        if self.panel.n_prompts == 1:
            subject, _ = self.panel.subject(0)
            masks = self.panel.masks(subject)[0]
            return self._rows_at_once(subject, hook, [masks[target.group] for target in targets])
        kinds = {target.index is None for target in targets}
        ends = {end for kind in kinds for end in ends_of(coders, hook, is_error=kind)}
        readers = {coder.hook for place in sources_of(coders, ends) for coder in coders.writers(place)}
        n_sums = self.panel.positions.n_groups * sum(coders[reader].d_sae for reader in readers)
        return max(1, min(batch_size, SUMS_AT_ONCE // max(1, n_sums)))

    def _passes(self, batch: int, hook: HookPoint, targets: Sequence[Target]) -> Iterator[list[Rows | ErrorRows]]:
        """Edges into the targets that are live in each prompt of a batch: by source, some rows at once."""
        subject, baseline = self.panel.subject(batch)
        masks = self.panel.masks(subject)
        pairs = live(subject, masks, hook, targets).nonzero().tolist()
        effects = {group: self.effects.of(batch, group) for group in self.effects.groups(hook)}
        size = self._rows_at_once(subject, hook, [masks[text, targets[number].group] for text, number in pairs])
        for begin in range(0, len(pairs), size):
            some = pairs[begin : begin + size]
            rows = [(text, targets[number]) for text, number in some]
            found = incoming(subject, hook, rows, effects, baseline, masks=masks)
            if found is None:
                continue
            numbers: Int[Tensor, " row"] = torch.tensor([number for _, number in some], device=masks.device)
            of_rows = masks[[text for text, _ in some]]
            summed = self.panel.positions.summed
            yield [
                *(Rows(source, parts, of_rows, numbers) for source, parts in found.features.items()),
                *(
                    ErrorRows(place, summed(values[..., None], of_rows), numbers)
                    for place, values in found.errors.items()
                ),
            ]

    def _rows_at_once(self, subject: Subject, hook: HookPoint, where: Sequence[Tensor]) -> int:
        """Targets in one backward pass, so that their codes stay under an eighth of a gigabyte."""
        coders = self.panel.coders
        if not where:
            return 1
        readers = [coder.d_sae for coder in coders.writers(hook)]
        d_codes = sum(readers) if hook not in coders else max(coders[hook].d_sae, sum(readers))
        n_coded = 1 if needs_one_position(coders, hook, torch.stack(list(where))) else subject.n_spliced
        return max(1, min(self.effects.settings.batch_size, CODES_AT_ONCE // (n_coded * d_codes)))


def live(
    subject: Subject, masks: Bool[Tensor, "text group spliced"], hook: HookPoint, targets: Sequence[Target]
) -> Bool[Tensor, "text target"]:
    """Which nodes can have incoming edges in each prompt: errors, and features that are active in the clean run."""
    where = masks[:, [target.group for target in targets]]  # (text, target, spliced)
    features = [number for number, target in enumerate(targets) if target.index is not None]
    found = where.any(dim=2)
    if features:
        codes = subject.codes[hook][:, :, [targets[number].index for number in features]]
        found[:, features] = ((codes != 0).transpose(1, 2) & where[:, features]).any(dim=2)
    return found
