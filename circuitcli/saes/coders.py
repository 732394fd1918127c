"""The sparse coders that a model is run through together, and what each of them reads and writes.

Features are named by where they are read, errors by where they are written. At a written hook point
``x = sum of decode(f) over the coders that write there + what their skips carry + e``.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SparseCoder


class Coders(Mapping[HookPoint, SparseCoder]):
    """Coders by the hook point that each reads, in the order of the model."""

    def __init__(self, by_hook: Mapping[HookPoint, SparseCoder]) -> None:
        """Raises InputError if a hook point is explained twice, or written before what is written there is read."""
        self._by_hook = {hook: by_hook[hook] for hook in sorted(by_hook)}
        for hook in self.written:
            _check_written(hook, self.writers(hook))

    @classmethod
    def of(cls, coders: Iterable[SparseCoder]) -> "Coders":
        """These coders. Raises InputError too if two of them read one hook point."""
        by_hook: dict[HookPoint, SparseCoder] = {}
        for coder in coders:
            if coder.hook in by_hook:
                raise InputError(
                    f"two coders read {coder.hook}: {_named(by_hook[coder.hook])} and {_named(coder)}",
                    hint="choose one of them for each hook point",
                )
            by_hook[coder.hook] = coder
        return cls(by_hook)

    def __getitem__(self, hook: HookPoint) -> SparseCoder:
        return self._by_hook[hook]

    def __iter__(self) -> Iterator[HookPoint]:
        return iter(self._by_hook)

    def __len__(self) -> int:
        return len(self._by_hook)

    @cached_property
    def written(self) -> tuple[HookPoint, ...]:
        """The spliced hook points: those that a coder writes, in the order of the model."""
        return tuple(sorted({hook for coder in self.values() for hook in coder.writes}))

    @cached_property
    def hooks(self) -> tuple[HookPoint, ...]:
        """All hook points that name nodes, by features that are read there or by an error that is written there."""
        return tuple(sorted({*self, *self.written}))

    def writers(self, hook: HookPoint) -> tuple[SparseCoder, ...]:
        """The coders that write a hook point, in the order of what they read."""
        return self._writers.get(hook, ())

    @cached_property
    def _writers(self) -> dict[HookPoint, tuple[SparseCoder, ...]]:
        return {
            hook: tuple(coder for coder in self.values() if hook in coder.writes)
            for hook in {hook for coder in self.values() for hook in coder.writes}
        }

    def errors_of(self, hook: HookPoint) -> tuple[HookPoint, ...]:
        """Where the coder that reads a hook point is the last one to write: these errors move together with its codes
        where a path is integrated over, so that every node is in one group."""
        coder = self[hook]
        return tuple(sorted(place for place in coder.writes if self.writers(place)[-1] is coder))

    def group_of_error(self, hook: HookPoint) -> HookPoint:
        """What the coder reads whose group the error of a written hook point is in."""
        return self.writers(hook)[-1].hook


def _check_written(hook: HookPoint, writers: tuple[SparseCoder, ...]) -> None:
    autoencoders = [coder for coder in writers if not coder.is_transcoder]
    if autoencoders and len(writers) > 1:
        other = next(coder for coder in writers if coder is not autoencoders[0])
        raise InputError(
            f"{hook} is explained twice: by {_named(autoencoders[0])} and by {_named(other)}",
            hint="choose the autoencoder or the transcoders, with --sites or --sae",
        )
    for coder in writers:
        if coder.is_transcoder and hook == coder.hook:
            raise InputError(f"{_named(coder)} writes what it reads, and more: it is neither an autoencoder nor one")
        if hook < coder.hook:
            raise InputError(f"{_named(coder)} writes {hook}, which comes before what it reads")


def _named(coder: SparseCoder) -> str:
    if not coder.is_transcoder:
        return f"the autoencoder at {coder.hook}"
    return f"the transcoder from {coder.hook} to {' '.join(map(str, coder.writes))}"
