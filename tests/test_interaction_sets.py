"""Sets of SAEs beside each other: what areas are compared, on which prompts, and how a report is refused."""

import json

import numpy as np
import pytest
from cli_support import here

from circuitcli.cli.summaries import tables
from circuitcli.errors import InputError
from circuitcli.records import InteractionComparisonRecord
from circuitcli.render.measured import interaction_sets
from circuitcli.render.plots import draw
from circuitcli.validation.interaction_sets import CAP, compared, read_sets


def pair(name, kl, *, n_edges=(0, 2, 8), source="resid.0", target="resid.1", floor=0.5, n_tokens=30):
    """One pair of a report; kl: of each prompt at each point."""
    return {
        **{"kind": "interaction", "name": name, "source": source, "target": target, "n_edges": n_edges},
        **{"kl": np.mean(kl, axis=0).tolist(), "floor": floor, "unit": "nats", "n_live": 4, "n_possible": n_edges[-1]},
        **{"absolute": {"value": 0.0}, "relative": {"value": 0.0}, "absolute_above": {"value": 0.0}},
        **{"relative_above": {"value": 0.0}, "n_prompts": len(kl), "n_tokens": n_tokens},
        **{"kl_of_prompts": kl, "floor_of_prompts": [floor] * len(kl)},
    }


def report(folder, name, *pairs):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(pairs[0] if len(pairs) == 1 else {"name": name, "pairs": pairs}))
    return path


KL = [[4.0, 2.0, 1.0], [2.0, 2.0, 0.5], [5.0, 1.0, 1.0]]


def test_improvements_are_of_areas_in_percent_prompt_by_prompt(tmp_path):
    half = [[value / 2 for value in row] for row in KL]
    paths = [
        report(tmp_path, "topk", pair("topk", KL), pair("topk", half, source="resid.1", target="resid.2")),
        report(
            tmp_path,
            "staircase",
            # The same curve over twice as many edges: as much more in absolute area, and none in the relative one.
            pair("staircase", KL, n_edges=(0, 4, 16)),
            pair("staircase", half, source="resid.1", target="resid.2", floor=0.25),
            pair("staircase", half, source="resid.2", target="resid.3"),
        ),
    ]
    topk, staircase = read_sets(paths)
    first, second, both = compared(staircase, topk, bootstrap=200, seed=0)
    assert (first.source, first.target, first.n_pairs) == ("resid.0", "resid.1", 1)
    area = np.mean([(a + b) / 2 * 2 + (b + c) / 2 * 6 for a, b, c in KL])
    assert first.absolute["against"] == pytest.approx(area) and first.absolute["value"] == pytest.approx(2 * area)
    assert first.absolute["improvement"] == pytest.approx(-100) and first.absolute["error"] == pytest.approx(0)
    assert first.relative["value"] == pytest.approx(area / 8) and first.relative["improvement"] == pytest.approx(0)
    assert first.relative_above["value"] == pytest.approx(area / 8 - 0.5)
    assert second.absolute["improvement"] == pytest.approx(0)
    # Above a lower floor is more.
    assert second.absolute_above["value"] == pytest.approx(second.absolute_above["against"] + 0.25 * 8)
    assert both.source is None and both.n_pairs == 2 and both.n_prompts == 3
    assert both.absolute["value"] == pytest.approx(2 * area + area / 2)
    assert both.absolute["improvement"] == pytest.approx(100 * (1 - 2.5 / 1.5))
    assert both.relative["value"] == pytest.approx((area / 8 + area / 16) / 2)


def test_the_interval_is_over_prompts_that_both_sets_share(tmp_path):
    noisy = [[3.0 * value, value, value] for value in (1.0, 5.0, 2.0, 9.0, 4.0, 7.0)]
    other = [[0.6 * value for value in row] for row in noisy]
    paths = [report(tmp_path, name, pair(name, kl)) for name, kl in (("a", noisy), ("b", other), ("c", noisy[::-1]))]
    sets = read_sets(paths)
    (paired,) = compared(sets[1], sets[0], bootstrap=300, seed=0)
    assert paired.absolute["improvement"] == pytest.approx(40) and paired.absolute["error"] == pytest.approx(
        0, abs=1e-9
    )
    (reversed_,) = compared(sets[2], sets[0], bootstrap=300, seed=0)
    assert reversed_.absolute["improvement"] == pytest.approx(0) and reversed_.absolute["error"] > 20
    low, high = reversed_.absolute["low"], reversed_.absolute["high"]
    assert low < 0 < high and reversed_.absolute["error"] == pytest.approx((high - low) / 2)
    (single,) = read_sets([report(tmp_path, "one", pair("one", noisy[:1]))])
    (alone,) = compared(single, single, bootstrap=300, seed=0)
    assert alone.absolute["low"] is None and alone.absolute["improvement"] == 0


def test_the_papers_area_ends_at_its_own_number_of_edges(tmp_path):
    wide = pair("x40", [[4.0, 2.0, 0.0]], n_edges=(0, CAP // 2, CAP // 2 + CAP))
    (found,) = read_sets([report(tmp_path, "x40", wide)])
    scores = found.pairs[0].scores()
    assert scores["capped"] == pytest.approx([CAP / 2 * 3 + CAP / 2 * 1.5])
    assert scores["relative_capped"] == pytest.approx(scores["capped"] / found.pairs[0].record.n_possible)


def test_what_cannot_be_compared_is_refused(tmp_path):
    good = report(tmp_path, "good", pair("good", KL))
    for name, content in (
        ("scores", {"faithfulness": 1}),
        ("cut", {**pair("cut", KL), "kl_of_prompts": KL[:2]}),
        ("none", {"pairs": []}),
        ("words", {**pair("words", KL), "kl_of_prompts": "many"}),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="not a report of interaction curves"):
            read_sets([good, path])
    with pytest.raises(InputError, match="named twice"):
        read_sets([good, good])
    others = [
        report(tmp_path, "elsewhere", pair("elsewhere", KL, source="mlp_in.0", target="mlp.0")),
        report(tmp_path, "longer", pair("longer", KL, n_tokens=60)),
    ]
    for path, said in zip(others, ("no pair of hook points in common", "of 60 tokens"), strict=True):
        one, other = read_sets([good, path])
        with pytest.raises(InputError, match=said):
            list(compared(other, one, bootstrap=10, seed=0))


def test_sets_are_drawn_and_told_without_a_run_and_named_by_where_they_lie(tmp_path):
    half = [[value / 2 for value in row] for row in KL]
    for run, kl in (("topk", KL), ("staircase", half)):
        (tmp_path / run / "reports").mkdir(parents=True)
        report(tmp_path / run / "reports", "blocks", pair("blocks", kl))
    files = "topk/reports/blocks.json,staircase/reports/blocks.json"
    done = here("render", "--interaction", files, "-o", "edges.svg", "--json", cwd=tmp_path)
    assert done.status == 0, done.stderr
    (made,) = [record for record in done.records if record["kind"] == "interactions"]
    assert (made["name"], made["against"]) == ("staircase", "topk")
    assert "relative 50 +- 0 % less" in done.stderr
    assert "resid.0 to resid.1" in (tmp_path / "edges.svg").read_text()
    sets = read_sets([tmp_path / name for name in files.split(",")])
    curves = {one.name: [measured.record for measured in one.pairs] for one in sets}
    axes, _ = draw(interaction_sets(curves, [InteractionComparisonRecord.model_validate(made)])).axes
    (table,) = tables([InteractionComparisonRecord(**made)], tmp_path)
    change = "-50.0 \u00b1 0.0"
    assert [row[:4] for row in table.rows] == [("staircase", "resid.0 -> resid.1", change, change)]
    (several,) = tables(curves["topk"] * 2, tmp_path)
    assert [row[:2] for row in several.rows] == [("resid.0 -> resid.1", "4 of 8")] * 2
    lines = {str(line.get_label()): [*map(tuple, line.get_xydata().tolist())] for line in axes.lines}
    assert lines["topk"] == [(2, pytest.approx(5 / 3)), (8, pytest.approx(2.5 / 3))]
    assert "-50.0 \u00b1 0.0 %" in axes.get_title(loc="left")
    for words, status in (
        (("--interaction", "topk/reports/blocks.json", "-o", "a.svg"), 2),
        (("--interaction", files, "-o", "a.html"), 2),
        (("--interaction", "nowhere.json,topk/reports/blocks.json", "-o", "a.svg"), 3),
    ):
        done = here("render", *words, cwd=tmp_path)
        assert (done.status, len(done.errors)) == (status, 2), (words, done.stderr)
