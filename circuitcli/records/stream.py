"""Records in the order in which they came."""

from collections.abc import Iterable, Iterator
from typing import ClassVar, TypeVar

from circuitcli.records.base import Record

R = TypeVar("R", bound=Record)


class Stream:
    """Records in the order in which they came; later ones of the same thing replace earlier ones."""

    same_thing: ClassVar[dict[str, tuple[str, ...]]] = {
        "activations": ("hook",),
        "sae": ("hook",),
        "evaluation": ("path",),
        "features": ("hook",),
        "feature": ("id",),
    }

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records = list(records)

    def __add__(self, more: "Iterable[Record] | Stream") -> "Stream":
        return Stream([*self.records, *(more.records if isinstance(more, Stream) else more)])

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def of(self, kind: type[R]) -> list[R]:
        """All records of one kind; of several about the same hook point or feature, the last."""
        found = [record for record in self.records if isinstance(record, kind)]
        keys = self.same_thing.get(kind.model_fields["kind"].default)
        if keys is None:
            return found
        return list({tuple(getattr(record, key) for key in keys): record for record in found}.values())

    def last(self, kind: type[R]) -> R | None:
        """The newest record of one kind."""
        return next((record for record in reversed(self.records) if isinstance(record, kind)), None)
