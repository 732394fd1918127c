"""What becomes of features through training: known permutations, births and deaths, with the baselines beside them."""

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support_collect import write_rows

from circuitcli.cli.development_view import developments, told
from circuitcli.development.checkpoints import Checkpoint
from circuitcli.development.comparing import BINS, Side, compared
from circuitcli.development.found import pairs_of
from circuitcli.development.lives import History, Life, lives, read_lives, steps_of, table
from circuitcli.features.coactivation import Codes
from circuitcli.features.tokens import explained_by_token
from circuitcli.hookpoints import HookPoint
from circuitcli.records import (
    CheckpointRecord,
    DevelopmentRecord,
    FigureRecord,
    MatchRecord,
    Record,
    SaeRecord,
    Stream,
)
from circuitcli.render.development import plot_of
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.relu import ReluSae
from circuitcli.settings.sources import load
from circuitcli.stages import matching
from circuitcli.stages.checkpoint_run import CheckpointRun
from circuitcli.stages.request import Request

HOOK, D_IN, N, NAMES = HookPoint(1, "resid"), 12, 400, ("step0", "step8", "step64")


def coder(features: list[int], *, dead: tuple[int, ...] = ()) -> ReluSae:
    """Each feature reads and writes a direction of its own, by number; those at places of ``dead`` are never active."""
    directions = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(9))
    drawn = directions[features]
    sae = ReluSae(SaeConfig(HOOK, D_IN, len(features))).requires_grad_(False)
    sae.W_dec.copy_(drawn / drawn.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_enc.fill_(-1.0)
    sae.b_enc[list(dead)] = -1e6
    return sae


# Feature 1 is not there from the second checkpoint on, 20 is new there; 2 is dead there and comes back; the last
# checkpoint has one feature fewer.
CODERS = {
    "step0": coder([0, 1, 2, 3, 4, 5]),
    "step8": coder([5, 4, 3, 2, 20, 0], dead=(3,)),
    "step64": coder([20, 0, 2, 5, 3]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[CheckpointRun]:
    """Three checkpoints on one cache, with two seeds: the second has the same features in another order."""
    root = tmp_path_factory.mktemp("runs")
    rows = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(1))
    write_rows(root / "activations", [N], {HOOK: rows})
    made = []
    for name, one in CODERS.items():
        coders, others = {}, list(range(one.d_sae))[::-1]
        for path, sae in ((root / name, one), (root / name / "seeds/1", _reordered(one, others))):
            digest = files.save(sae, path / "saes" / str(HOOK), ce_clean=2.0)
            (path / "activations").symlink_to(root / "activations")
            coders[path] = Stream([_record(sae, digest)])
        record = CheckpointRecord(name=name, step=int(name[4:]), path=f"checkpoints/{name}", n_tokens=N)
        made.append(CheckpointRun(Checkpoint(name, "model"), record, coders))
    return made


def _reordered(one: ReluSae, order: list[int]) -> ReluSae:
    other = ReluSae(one.config).requires_grad_(False)
    other.W_dec.copy_(one.W_dec[order])
    other.W_enc.copy_(one.W_enc[:, order])
    other.b_enc.copy_(one.b_enc[order])
    return other


def _record(sae: ReluSae, digest: str) -> SaeRecord:
    about = {"hook": str(HOOK), "architecture": "relu", "d_in": D_IN, "d_sae": sae.d_sae}
    return SaeRecord(**about, path=f"saes/{HOOK}", digest=digest)


@pytest.fixture(scope="module")
def whole(runs: list[CheckpointRun], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """The run of all checkpoints matched, with its figure, and its records."""
    path = tmp_path_factory.mktemp("whole")
    return path, matched(runs, path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else."""
    monkeypatch.setattr(matching, "drawn", lambda *given: [])


def matched(runs: list[CheckpointRun], path: Path, **changes) -> list[Record]:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    settings = load(named, environment={}, directory=Path("/nonexistent")).settings
    return matching.matched(Request(settings, Stream(), Run(path)), runs, fingerprint="x")


@pytest.mark.parametrize("by", ["activation", "correlation", "decoder"])
@pytest.mark.usefixtures("undrawn")
def test_known_features_are_followed_with_their_births_and_deaths(by: str, runs: list[CheckpointRun], tmp_path: Path):
    made = matched(runs, tmp_path, develop__by=by)
    (told,) = (one for one in made if isinstance(one, DevelopmentRecord))
    assert told.checkpoints == NAMES and told.steps == (0, 8, 64)
    assert told.live == (6, 5, 5) and told.lives == 8
    # 1 and 2 go after the first; 20 comes at the second; 4 goes after it, and 2 is taken for a new one at the last.
    assert (told.born, told.died) == ((6, 1, 1), (2, 1, 0))
    assert told.still == pytest.approx((1, 4 / 6, 3 / 6)) and told.since == pytest.approx((3 / 5, 4 / 5, 1))
    assert told.whole == 3
    assert told.matched == (None, 4 / 5, 4 / 5) and told.seeds == (1, 1, 1)
    found = read_lives(tmp_path / told.report)[HOOK]
    assert [(one.first, one.features) for one in found] == [
        (0, (0, 5, 1)),
        (0, (1,)),
        (0, (2,)),
        (0, (3, 2, 4)),
        (0, (4, 1)),
        (0, (5, 0, 3)),
        (1, (4, 0)),
        (2, (2,)),
    ]
    assert steps_of(found, 3) == [{0: 5, 3: 2, 4: 1, 5: 0}, {5: 1, 2: 4, 0: 3, 4: 0}]
    lines = list(csv.reader((tmp_path / told.table).read_text().splitlines()))
    assert lines[0] == ["born", "died", "checkpoints", "mean_cosine", "label", *NAMES]
    assert lines[2] == ["step0", "step8", "1", "", "", "1", "", ""] and lines[7][-3:] == ["", "4", "0"]
    assert not (tmp_path / matching.PARTIAL).exists() and not (tmp_path / "codes").exists()


def test_every_match_stands_beside_seeds_and_shuffled_features(whole: tuple[Path, list[Record]]):
    made = [one for one in whole[1] if isinstance(one, MatchRecord)]
    by_name = {(one.source, one.target, one.control, one.by): one for one in made}
    assert len(by_name) == len(made)
    for by in ("activation", "decoder"):
        for source, target in (("step0", "step8"), ("step8", "step64"), ("step0", "step64")):
            own, chance = by_name[source, target, None, by], by_name[source, target, "shuffled", by]
            assert own.shares[0] >= 0.6 and own.cosine > chance.cosine and own.shares[0] > chance.shares[0]
            assert all(low <= share <= high for low, share, high in zip(own.low, own.shares, own.high, strict=True))
            assert list(own.shares) == sorted(own.shares) and sum(own.histogram) == min(own.n_source, own.n_target)
        for name in NAMES:
            same = by_name[name, name, "seed", by]
            assert same.shares == (1,) * 5 and same.cosine == pytest.approx(1) and same.other_cosine == pytest.approx(1)
    # Of the dead the numbers are told, and no pair is theirs.
    assert by_name["step0", "step8", None, "activation"].dead_target == 1
    assert sum(by_name["step0", "step8", None, "activation"].histogram) == 5


@pytest.mark.usefixtures("undrawn")
def test_a_killed_matching_goes_on_with_the_next_pair(runs: list[CheckpointRun], tmp_path: Path, monkeypatch):
    compare, made = matching._compare, []

    def counted(sides, settings, pair):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(pair)
        return compare(sides, settings, pair)

    with monkeypatch.context() as patched:
        patched.setattr(matching, "_compare", counted)
        with pytest.raises(KeyboardInterrupt):
            matched(runs, tmp_path / "one")
    again = []
    monkeypatch.setattr(matching, "_compare", lambda *given: (again.append(given[2]), compare(*given))[1])
    after = matched(runs, tmp_path / "one")
    wanted = pairs_of([2, 2, 2])
    assert made == wanted[:3] and again == wanted[3:]
    assert [one.model_dump() for one in after] == [one.model_dump() for one in matched(runs, tmp_path / "two")]


def test_the_report_has_what_its_docstring_says(whole: tuple[Path, list[Record]]):
    content = json.loads((whole[0] / "reports/development.json").read_text())
    names = ["checkpoints", "by", "assignment", "least", "n_tokens", "coders", "matches", "development", "lives"]
    assert list(content) == names
    assert len(content["coders"]) == 6 and content["coders"][0]["ce_clean"] == 2.0
    assert [one.get("n_live") for one in content["coders"]] == [6, None, 5, None, 5, None]


def test_people_are_told_of_each_checkpoint_and_what_seeds_and_chance_give(whole: tuple[Path, list[Record]]):
    made = whole[1]
    rows = developments(made).rows
    assert [row[:4] for row in rows] == [
        (str(HOOK), name, str(n), row[3]) for name, n, row in zip(NAMES, (6, 5, 5), rows, strict=True)
    ]
    assert rows[1][4:6] == ("80.0 %", "100.0 %") and rows[0][7] == rows[2][8] == "" and rows[1][7:9] == ("1", "1")
    (line,) = told(made)
    assert line.startswith("resid.1: of the 5 features of step64, 80.0 % are there at step0 and 80.0 % at step8")
    assert "another seed of step64 has 100.0 %" in line and "shuffled features 0.0 %" in line


def test_a_life_without_partners_is_one_checkpoint_long():
    found = lives([{0, 1}, {0}, {2}], [{0: (0, 0.9)}, {}])
    assert found == [Life(0, (0, 0), (0.9,)), Life(0, (1,), ()), Life(2, (2,), ())]
    history = History.of(found, 3)
    assert (history.live, history.born, history.died) == ((2, 1, 1), (2, 0, 1), (1, 1, 0))
    assert (history.still, history.since, history.n_whole) == ((1, 0.5, 0), (0, 0, 1), 0)
    for before, after in pairwise(range(3)):
        assert history.live[after] == history.live[before] - history.died[before] + history.born[after]
    assert table(found, ["a", "b", "c"]).splitlines()[1] == "a,c,2,0.9000,,0,0,"


def test_what_the_token_explains_is_what_its_other_codes_predict():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (300,), generator=generator)
    dense = torch.zeros(300, 6)
    dense[:, 0] = (tokens == 2).float() * 3
    dense[:, 1] = torch.rand(300, generator=generator)
    dense[:, 2] = (tokens == 1).float() + 0.3 * torch.rand(300, generator=generator)
    # Active on a single token of its kind: no other predicts it.
    tokens[7] = 5
    dense[7, 3] = 1
    dense[:, 4] = 1
    places = dense.nonzero()
    edges = torch.cat([torch.zeros(1, dtype=torch.long), (dense != 0).sum(dim=1).cumsum(0)])
    codes = Codes(6, places[:, 1].int(), dense[places[:, 0], places[:, 1]], edges)
    found = explained_by_token(codes, tokens)
    expected = []
    for feature in range(6):
        column, missed = dense[:, feature].double(), 0.0
        for at in range(300):
            same = (tokens == tokens[at]) & (torch.arange(300) != at)
            missed += float((column[at] - (column[same].mean() if same.any() else 0.0)) ** 2)
        spread = float(((column - column.mean()) ** 2).sum())
        expected.append(max(0.0, 1 - missed / spread) if spread > 1e-9 else 0.0)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found[0] > 0.999 and found[1] < 0.05 and 0.5 < found[2] < 1 and found[3] == found[5] == 0


def test_shuffled_features_are_as_many_and_as_active_but_on_other_tokens():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(500, 30, generator=generator) * (torch.rand(500, 30, generator=generator) < 0.1)
    edges = torch.cat([torch.zeros(1, dtype=torch.long), (dense != 0).sum(dim=1).cumsum(0)])
    places = dense.nonzero()
    codes = Codes(30, places[:, 1].int(), dense[places[:, 0], places[:, 1]], edges)
    wide = torch.randn(30, 16, generator=generator) + torch.tensor([4.0] + [0.0] * 15)
    side = Side(codes, wide / wide.norm(dim=1, keepdim=True), torch.zeros(30))
    other = side.shuffled(3)
    torch.testing.assert_close(other.codes.sums(2), codes.sums(2))
    assert float(other.directions.norm(dim=1).sub(1).abs().max()) < 1e-5
    # Directions are not spread evenly, and random ones that are would be less alike.
    torch.testing.assert_close(other.directions.mean(dim=0), side.directions.mean(dim=0), atol=0.15, rtol=0)
    by = compared(other, side, by="activation", assignment="hungarian")
    assert float(by["activation"].pairs.cosine.mean()) < 0.4 < float(by["decoder"].pairs.cosine.mean())


@pytest.mark.parametrize("steps", [(0, 8, 64), (None, None, None), (5, 5, 6)])
def test_the_plot_shows_all_that_records_say(steps, whole: tuple[Path, list[Record]]):
    made = whole[1]
    assert [one.path for one in made if isinstance(one, FigureRecord)] == [f"figures/development-{HOOK}.svg"]
    record = next(one for one in made if isinstance(one, DevelopmentRecord)).model_copy(update={"steps": steps})
    plot = plot_of(record, [one for one in made if isinstance(one, MatchRecord)])
    assert plot is not None
    lines = {series.label: series for row in plot.rows for panel in row for series in panel.series}
    wanted = {"checkpoints", "shuffled", "another seed, same checkpoint", "born", "died", "of single tokens"}
    assert wanted <= set(lines)
    assert list(lines["born"].y) == [1, 1] and list(lines["died"].y) == [2, 1]
    assert lines["born"].x == ([9, 65] if steps[0] == 0 else [1, 2])
    assert "births and deaths" in (whole[0] / f"figures/development-{HOOK}.svg").read_text()
    assert plot_of(record.model_copy(update={"checkpoints": ("step0",)}), []) is None


def test_one_checkpoint_has_its_seeds_to_compare(runs: list[CheckpointRun], tmp_path: Path):
    made = matched(runs[:1], tmp_path)
    assert {one.control for one in made if isinstance(one, MatchRecord)} == {"seed"}
    alone = [replace(runs[0], coders=dict(list(runs[0].coders.items())[:1]))]
    (record,) = matched(alone, tmp_path / "alone")
    assert isinstance(record, DevelopmentRecord) and record.live == (6,) and record.seeds == (None,)
    assert BINS == 20
