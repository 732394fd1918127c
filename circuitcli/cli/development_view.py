"""Tables and sentences of features through training, for people."""

from collections.abc import Iterator, Sequence

from circuitcli.cli.console import Rows
from circuitcli.records import DevelopmentRecord, MatchRecord, Record


def developments(made: Sequence[Record]) -> Rows:
    """Of each checkpoint how many features there are, how many were there before, and what seeds and chance give."""
    rows = [
        (
            one.hook,
            one.checkpoints[at],
            f"{one.live[at]:,}",
            f"{one.token_level[at]:,}",
            *(_share(shares[at]) for shares in (one.matched, one.seeds, one.shuffled)),
            f"{one.born[at]:,}" if at else "",
            f"{one.died[at]:,}" if at < len(one.live) - 1 else "",
            _share(one.still[at]),
            _share(one.since[at]),
        )
        for one in made
        if isinstance(one, DevelopmentRecord)
        for at in range(len(one.checkpoints))
    ]
    head = ("hook point", "checkpoint", "live", "of tokens", "found before", "by a seed", "shuffled", "born", "die")
    return Rows((*head, "first still", "last since"), rows, "features through training; shares of live features")


def told(made: Sequence[Record]) -> Iterator[str]:
    """A sentence for each hook point: what of the last checkpoint's features the first had, beside what seeds of the
    last and shuffled features give."""
    for one in made:
        if not isinstance(one, DevelopmentRecord) or len(one.checkpoints) < 2:
            continue
        first, last = one.checkpoints[0], one.checkpoints[-1]
        of_last = [match for match in made if isinstance(match, MatchRecord) and match.hook == one.hook]
        of_last = [match for match in of_last if match.target == last and match.by == one.by]
        found = {(match.source, match.control): match.same for match in of_last}
        there = _share(found.get((first, None)))
        said = f"{one.hook}: of the {one.live[-1]:,} features of {last}, {there} are there at {first}"
        before = one.checkpoints[-2]
        said += f" and {_share(found.get((before, None)))} at {before}" if before != first else ""
        said += f" (cosine by {one.by} of {one.least:g} or more)"
        seeds = [same for (_, control), same in found.items() if control == "seed"]
        if seeds:
            said += f"; another seed of {last} has {_share(sum(seeds) / len(seeds))}"
        yield f"{said}; shuffled features {_share(found.get((first, 'shuffled')))}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
