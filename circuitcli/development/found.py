"""What was found at one hook point, as records; torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

from circuitcli.development.checkpoints import Checkpoint
from circuitcli.development.lives import History, Life
from circuitcli.hookpoints import HookPoint
from circuitcli.records import DevelopmentRecord, MatchRecord
from circuitcli.settings.develop import DevelopSettings

SEED, SHUFFLED = "seed", "shuffled"


@dataclass(frozen=True)
class Pair:
    """A comparison that is made: source and target by (checkpoint, seed); is_step: of neighbours."""

    source: tuple[int, int]
    target: tuple[int, int]
    control: str | None = None
    is_step: bool = False

    @property
    def name(self) -> str:
        """What it is called in the ledger."""
        return f"{self.source} {self.target} {self.control or ''}"

    @property
    def links(self) -> bool:
        """Whether its pairs link a feature to that of the next checkpoint."""
        return self.is_step and self.control is None


def pairs_of(n_seeds: Sequence[int]) -> list[Pair]:
    """All comparisons of checkpoints with so many seeds each: each with the one before and with the last, both also
    shuffled, and its seeds with each other."""
    last, found = len(n_seeds) - 1, []
    for number in range(len(n_seeds)):
        found += [Pair((number, seed), (number, 0), SEED) for seed in range(1, n_seeds[number])]
        wanted = [(number - 1, number, True)] if number else []
        wanted += [(number, last, False)] if number < last - 1 else []
        for source, target, is_step in wanted:
            found += [Pair((source, 0), (target, 0), control, is_step) for control in (None, SHUFFLED)]
    return found


@dataclass(frozen=True)
class Found:
    """Matches, lives, and at each checkpoint how many features are live, and how many of them are of single tokens."""

    checkpoints: tuple[Checkpoint, ...]
    matches: tuple[MatchRecord, ...]
    lives: tuple[Life, ...]
    live: tuple[int, ...]
    token_level: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Names of the checkpoints."""
        return [one.name for one in self.checkpoints]

    def record(self, settings: DevelopSettings, hook: HookPoint, *, report: str, table: str) -> DevelopmentRecord:
        """What became of the features; report and table are where it is told at length."""
        history = History.of(self.lives, len(self.checkpoints))
        return DevelopmentRecord(
            hook=str(hook),
            by=settings.by,
            least=settings.least,
            checkpoints=tuple(self.names),
            steps=tuple(one.step for one in self.checkpoints),
            live=history.live,
            token_level=self.token_level,
            born=history.born,
            died=history.died,
            still=history.still,
            since=history.since,
            whole=history.n_whole,
            lives=len(self.lives),
            matched=self._same(settings, None),
            seeds=self._same(settings, SEED),
            shuffled=self._same(settings, SHUFFLED),
            report=report,
            table=table,
        )

    def _same(self, settings: DevelopSettings, control: str | None) -> tuple[float | None, ...]:
        """Of each checkpoint the share of features with a partner at the one before, or by a control."""
        found = {
            one.target: one.same
            for one in reversed(self.matches)
            if one.by == settings.by and one.control == control and (one.is_step or control == SEED)
        }
        return tuple(found.get(name) for name in self.names)
