"""The plot of what became of features while a model was trained, with what seeds and chance give beside it."""

from collections.abc import Iterator, Sequence

from circuitcli.records import DevelopmentRecord, MatchRecord
from circuitcli.render.checkpoint_axis import checkpoint_axis
from circuitcli.render.plots import Axis, Number, Panel, Plot, Series

# Distances of which the shares are drawn; those between make the lines many.
_DRAWN = (0.3, 0.5, 0.7)
_SHARE = Axis("share of features", from_zero=True)
_COUNT = Axis("features", from_zero=True)
_OWN, _SEEDS, _SHUFFLED = "checkpoints", "another seed, same checkpoint", "shuffled"


def plot_of(record: DevelopmentRecord, matches: Sequence[MatchRecord]) -> Plot | None:
    """Panels of one hook point: features of the last checkpoint found before, by two measures; of each found at the one
    before; births and deaths; lives; and cosines of pairs. None where there are not two checkpoints."""
    if len(record.checkpoints) < 2:
        return None
    x, axis = checkpoint_axis(record.steps)
    by = [one for one in matches if one.by == record.by]
    found = [Panel([*_to_last(record, by, x, at)], axis, _SHARE, title) for at, title in _thresholds(by)]
    steps = Panel([*_to_next(record, x)], axis, _SHARE, f"found at the checkpoint before: cosine ≥ {record.least:g}")
    still = Panel([*_still(record, x)], axis, _SHARE, "there without a break")
    lives = Panel([*_lives(record, x)], axis, Axis("features", from_zero=True), "births and deaths")
    cosines = Panel([*_cosines(record, by)], Axis("cosine of a pair"), _COUNT, f"pairs made by {record.by}")
    rows = [found, [steps, still, lives], [*_measures(record, matches, axis, x), cosines]]
    return Plot(rows, title=f"{record.hook}: {len(record.checkpoints)} checkpoints", width=3.4, height=2.3)


def _thresholds(matches: Sequence[MatchRecord]) -> Iterator[tuple[int, str]]:
    for index, distance in enumerate(matches[0].distances if matches else ()):
        if any(abs(distance - drawn) < 1e-9 for drawn in _DRAWN):
            yield index, f"features of the last found: distance < {distance:g}"


def _to_last(
    record: DevelopmentRecord, matches: Sequence[MatchRecord], x: Sequence[Number], index: int
) -> Iterator[Series]:
    """For each checkpoint the share of the last one's features that have a partner there, with an interval; the same of
    those that the token alone does not explain; and another seed of the last, and shuffled checkpoints."""
    last = record.checkpoints[-1]
    to_last = {(one.source, one.control): one for one in matches if one.target == last and one.control != "seed"}
    seeds = [one for one in matches if one.target == last and one.control == "seed"]
    for control, label in ((None, _OWN), ("shuffled", _SHUFFLED)):
        placed = zip(x, record.checkpoints, strict=True)
        there = [(at, one) for at, name in placed if (one := to_last.get((name, control)))]
        places = [at for at, _ in there]
        yield Series(places, [one.shares[index] for _, one in there], label)
        if control is None:
            for bound in ("low", "high"):
                yield Series(places, [getattr(one, bound)[index] for _, one in there], "95 % interval")
            yield Series(places, [one.context_shares[index] for _, one in there], "of those, not of single tokens")
    if seeds:
        mean = sum(one.shares[index] for one in seeds) / len(seeds)
        yield Series((x[0], x[-1]), (mean, mean), _SEEDS)


def _to_next(record: DevelopmentRecord, x: Sequence[Number]) -> Iterator[Series]:
    for values, label in ((record.matched, _OWN), (record.seeds, _SEEDS), (record.shuffled, _SHUFFLED)):
        there = [(at, value) for at, value in zip(x, values, strict=True) if value is not None]
        if there:
            yield Series([at for at, _ in there], [value for _, value in there], label)


def _lives(record: DevelopmentRecord, x: Sequence[Number]) -> Iterator[Series]:
    yield Series(x, record.live, "live")
    yield Series(x, record.token_level, "of single tokens")
    yield Series(x[1:], record.born[1:], "born")
    # They are there for the last time at the checkpoint before.
    yield Series(x[1:], record.died[:-1], "died")


def _still(record: DevelopmentRecord, x: Sequence[Number]) -> Iterator[Series]:
    yield Series(x, record.still, "of the first, still there")
    yield Series(x, record.since, "of the last, there since")
    if None not in record.seeds:
        # Where each step keeps no more than another seed would.
        seeds = [value for value in record.seeds if value is not None]
        kept = [1.0]
        for value in seeds[1:]:
            kept.append(kept[-1] * value)
        yield Series(x, kept, "what changing seeds alone would keep")


def _cosines(record: DevelopmentRecord, matches: Sequence[MatchRecord]) -> Iterator[Series]:
    """How many pairs have which cosine: of the first and the middle checkpoint with the last, of seeds, shuffled."""
    names = record.checkpoints
    last, middle = names[-1], names[(len(names) - 1) // 2]
    wanted = [(names[0], None, f"{names[0]}, {last}"), (names[0], "shuffled", _SHUFFLED), (last, "seed", _SEEDS)]
    if middle not in (names[0], last):
        wanted.insert(1, (middle, None, f"{middle}, {last}"))
    for source, control, label in wanted:
        found = [one for one in matches if (one.source, one.target, one.control) == (source, last, control)]
        if found:
            counts = found[0].histogram
            yield Series([(number + 0.5) / len(counts) for number in range(len(counts))], counts, label)


def _measures(
    record: DevelopmentRecord, matches: Sequence[MatchRecord], axis: Axis, x: Sequence[Number]
) -> Iterator[Panel]:
    """The mean cosine of pairs with the last checkpoint by either measure, and shares by what features write."""
    last = record.checkpoints[-1]
    places = dict(zip(record.checkpoints, x, strict=True))
    own = [one for one in matches if one.target == last and one.control is None and one.by == record.by]
    names = ("cosine", "other_cosine")
    by = ("activation", "decoder") if record.by != "decoder" else ("decoder", "activation")
    means = [
        Series([places[one.source] for one in own], [getattr(one, name) or 0.0 for one in own], f"by {of}")
        for name, of in zip(names, by, strict=True)
    ]
    yield Panel(means, axis, Axis("mean cosine", from_zero=True), f"pairs with {last}, made by {record.by}")
    of_decoder = [one for one in matches if one.by == "decoder"]
    index = next((index for index, _ in _thresholds(of_decoder)), 0)
    yield Panel([*_to_last(record, of_decoder, x, index)], axis, _SHARE, f"by decoder: distance < {_DRAWN[0]:g}")
