"""What people see: features, progress, tables, one line for each run of a command."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from circuitcli import progress
from circuitcli.cli import summaries
from circuitcli.cli.bars import Bars, show_progress
from circuitcli.cli.console import console, one_line
from circuitcli.cli.feature_view import feature_text
from circuitcli.printable import printable
from circuitcli.records import (
    ExportRecord,
    FeatureRecord,
    FeaturesRecord,
    FigureRecord,
    GraphRecord,
    NodeRecord,
    SaeRecord,
    ScoreRecord,
    UnknownRecord,
)
from circuitcli.runs import Run
from circuitcli.stages.render import recorded

FEATURE = {
    "kind": "feature",
    "id": "resid.2/17",
    "label": "self\x1b[31m",
    "density": 0.0021,
    "max": 8.0,
    "mean": 1.25,
    "quantiles": {"0.5": 1.0, "0.99": 7.5},
    "contexts": [
        {"tokens": ["def", " f", "\n"], "activations": [0.0, 8.0, 2.0], "peak": 1, "block": 12, "position": 37},
        {"tokens": [" x"], "activations": [4.0], "peak": 0, "block": 3, "position": 1},
    ],
    "promoted": [[" Paris", 1.234]],
    "suppressed": [["\t", -2.0]],
}


BELOW = {
    **{"label": 'after "#"', "density": 0.25, "min": -4.0, "mean": -2.0, "quantiles": {"0.5": -3.0}},
    "contexts": [{"tokens": ["#", " the"], "activations": [8.0, -4.0], "peak": 1}],
}


def shown(*, colors: bool, feature: dict = FEATURE) -> str:
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=colors, color_system="truecolor" if colors else None, width=100)
    screen.print(feature_text(feature, marks=not colors))
    return stream.getvalue()


def test_a_feature_is_shown_with_its_label_numbers_and_tokens():
    text = shown(colors=False)
    for part in ("resid.2/17", "density 0.0021", "max 8", "q0.5 1", "q0.99 7.5", "' Paris' +1.23", "'→' -2.00"):
        assert part in text


def test_without_colours_the_strongest_token_of_each_context_is_marked():
    text = shown(colors=False)
    assert "def« f»↵" in text and "« x»" in text
    assert "\x1b" not in text


def test_with_colours_tokens_are_shaded_in_proportion_to_their_activation():
    text = shown(colors=True)
    assert "«" not in text
    full, quarter, half = "48;2;255;140;0m f", "48;2;255;226;191m↵", "48;2;255;198;128m x"
    assert full in text and quarter in text and half in text


def test_codes_below_zero_are_shown_beside_those_above_with_their_own_colour():
    both = {**FEATURE, "negative": BELOW}
    text = shown(colors=False, feature=both)
    for part in ('negative  after "#"', "density 0.25  min -4  mean -2  q0.5 -3", "-4  #« the»", "def« f»↵"):
        assert part in text
    colours = shown(colors=True, feature=both)
    assert "48;2;90;150;255m the" in colours and "48;2;255;140;0m#" in colours
    assert "negative" not in shown(colors=False)


def test_a_feature_that_writes_several_layers_is_shown_with_how_much_it_writes_to_each():
    text = shown(colors=False, feature={**FEATURE, "decoder_norms": {"mlp.1": 0.5, "mlp.2": 0.25}})
    assert "written to  mlp.1 0.5  mlp.2 0.25" in text and "written to" not in shown(colors=False)


def test_text_of_a_model_cannot_steer_the_terminal():
    assert "\\x1b[31m" in shown(colors=False)


@given(st.text())
def test_printable_text_is_printable_and_plain_text_stays(text: str):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert "\n" not in one_line(text)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a terminal shows of progress."""
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(console, "rich", lambda *, stderr: screen)
    yield stream
    progress.set_sink(None)


def test_bars_show_amount_total_unit_and_note(screen: io.StringIO):
    progress.set_sink(Bars())
    with progress.task("collect", total=2000, unit="tokens", done=500) as advance:
        advance(1000, note="loss 0.12")
    final = screen.getvalue().rpartition("collect")[2]
    assert "1,500/2,000 tokens" in final and "loss 0.12" in final


def test_a_task_inside_a_task_is_shown_and_goes_away(screen: io.StringIO):
    progress.set_sink(bars := Bars())
    with progress.task("outer", total=2, unit="steps") as advance:
        assert list(progress.track(range(3), "inner")) == [0, 1, 2]
        advance()
    before, _, final = screen.getvalue().rpartition("outer")
    assert "inner" in before
    assert "1/2 steps" in final and "inner" not in final
    with progress.task("next", total=None, unit="steps"):
        pass
    assert bars._display is None


def test_bars_are_put_away_when_the_work_fails(screen: io.StringIO):
    progress.set_sink(bars := Bars())
    with pytest.raises(ZeroDivisionError), progress.task("collect", total=1, unit="steps"):
        raise ZeroDivisionError
    assert bars._display is None
    assert screen.getvalue().endswith("\x1b[?25h")


def test_nothing_moves_where_nobody_watches(capsys: pytest.CaptureFixture):
    show_progress()
    assert list(progress.track([1, 2], "collect")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def sae(hook: str, **changes: object) -> SaeRecord:
    return SaeRecord(hook=hook, architecture="topk", d_in=3, d_sae=4096, path="", digest="", l0=32.0, **changes)


def test_one_line_counts_what_was_made():
    made = [sae("resid.0"), sae("resid.1"), NodeRecord(id="output"), UnknownRecord(kind="activations")]
    assert (
        summaries.sentence("train", made, "runs/x", 12.34) == "train: 2 saes, 1 node, 1 activations in runs/x (12.3 s)"
    )
    assert summaries.sentence("train", [], "runs/x", 0.0) == "train: nothing new in runs/x (0.0 s)"


def test_the_closing_line_names_the_places_of_files_that_are_not_in_the_run(inside: Path):
    run, outside = Run(Path("r")), Path("out")
    for folder in (run.path / "figures", outside, Path("figures")):
        folder.mkdir(parents=True)
        (folder / "a.svg").touch()
    run.update_manifest(model="m")
    told = lambda made, run="r": summaries.sentence("render", made, run, 1.0).removesuffix(" (1.0 s)")  # noqa: E731
    figure = lambda path, run=run: FigureRecord(path=recorded(Path(path), run.path))  # noqa: E731
    assert told([figure("r/figures/a.svg")]) == "render: 1 figure in r"
    # The run has a file of this name too.
    assert told([figure("figures/a.svg")]) == f"render: 1 figure: {Path('figures/a.svg').resolve()}"
    others = [figure(f"{outside}/{name}.svg") for name in "abcd"]
    assert told(others[:2]) == "render: 2 figures: out/a.svg, out/b.svg"
    assert told([sae("resid.0"), *others]) == f"render: 1 sae in r; 4 figures in {outside.resolve()}"
    exports = [ExportRecord(hook=f"resid.{n}", format="circuit", path=f"{outside}/e/resid.{n}") for n in range(2)]
    assert told(exports) == "render: 2 exports: out/e/resid.0, out/e/resid.1"
    # Without a run files lie where they were asked for.
    assert told([figure("figures/a.svg", Run(Path()))], ".") == "render: 1 figure: figures/a.svg"


def test_tables_show_each_kind_and_the_nodes_with_the_largest_effects():
    labels = [FeatureRecord(id=f"resid.0/{index}", label=f"label {index}", density=0.1, path="") for index in range(12)]
    nodes = [NodeRecord(id=f"resid.0/{index}", effect=(-1.0) ** index * index, unit="nats") for index in range(12)]
    tables = summaries.tables(
        [sae("resid.0"), *labels, *nodes, NodeRecord(id="output"), ScoreRecord(name="f", value=0.5)], Path()
    )
    saes, features, found, scores = tables
    assert saes.rows == [("resid.0", "topk", "4,096", "32", "")]
    assert features.title == "first 10 of 12 features" and len(features.rows) == 10
    assert [row[0] for row in found.rows[:2]] == ["resid.0/11", "resid.0/10"]
    assert found.rows[0][1:] == ("-11 nats", "", "label 11")
    assert scores.rows == [("f", "0.5", "", "")]


def test_coders_that_write_elsewhere_are_shown_with_where():
    made = [sae("mlp_in.1", target="mlp.1", further=("mlp.2",)), sae("mlp_in.2", target="mlp.2"), sae("resid.2")]
    made.append(sae("resid.0", hooks=("resid.0", "resid.3")))
    (table,) = summaries.tables(made, Path())
    assert [row[0] for row in table.rows] == [
        *("mlp_in.1 → mlp.1 mlp.2", "mlp_in.2 → mlp.2", "resid.2", "resid.0 resid.3")
    ]


def features_file(run: Path, hook: str, n: int, **changes: object) -> FeaturesRecord:
    path = run / "features" / f"{hook}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [{"id": f"{hook}/{index}", "label": f"label {index}", "density": 0.5, **changes} for index in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return FeaturesRecord(hook=hook, n_live=n, n_dead=3, path=f"features/{hook}.jsonl", digest="sha256:x")


def test_features_are_counted_and_some_shown_from_their_files(tmp_path: Path):
    made = [features_file(tmp_path, hook, 1200) for hook in ("resid.0", "resid.1")]
    counts, some = summaries.tables(made, tmp_path)
    assert counts.rows == [(hook, "1,200", "3", f"features/{hook}.jsonl") for hook in ("resid.0", "resid.1")]
    assert some.title == "some 10 of 2,400 features"
    assert [row[0] for row in some.rows] == [f"resid.{layer}/{index}" for layer in (0, 1) for index in range(5)]
    assert some.rows[4] == ("resid.0/4", "0.5", "label 4")
    assert summaries.sentence("interp", made, "runs/x", 1.0) == "interp: 2400 features in runs/x (1.0 s)"
    single = [made[0].model_copy(update={"n_live": 1})]
    assert summaries.sentence("interp", single, "runs/x", 1.0) == "interp: 1 feature in runs/x (1.0 s)"
    (tmp_path / "features" / "resid.0.jsonl").write_text("damaged")
    assert len(summaries.tables(made, tmp_path)[1].rows) == 5


def test_nodes_are_shown_with_the_labels_that_the_run_knows(tmp_path: Path):
    features_file(tmp_path, "resid.0", 12, sae="sha256:a")
    nodes = [NodeRecord(id=f"resid.0/{index}@3", effect=1.0 + index, unit="nats") for index in range(12)]
    shown = summaries.tables([graph_head(saes={"resid.0": "sha256:a"}), *nodes], tmp_path)[1]
    assert shown.rows[0] == ("resid.0/11@3", "12 nats", "", "label 11")
    other = summaries.tables([graph_head(saes={"resid.0": "sha256:b"}), *nodes], tmp_path)[1]
    assert other.rows[0][3] == ""


def graph_head(**changes: object) -> GraphRecord:
    fields = dict(
        name="circuit", method="grad-ig", metric="log-prob", prompt="a\nb", tokens=("a", "b"), dtype="float32"
    )
    numbers = dict(metric_clean=-1.0, metric_baseline=-9.0, unit="nats", dtype="float32", model="m")
    return GraphRecord(**{**fields, **numbers, "target": " Paris", "baseline": "mean", "positions": "all", **changes})


def test_a_graph_is_shown_with_what_it_explains():
    head = graph_head()
    assert summaries.tables([head], Path())[0].rows == [("circuit", "log-prob of  Paris", "-1", "a\nb")]


def test_of_several_prompts_tables_say_how_many_the_standard_error_and_the_share_in_which_nodes_are_active():
    head = graph_head(n_prompts=1200, prompts="pairs.jsonl")
    numbers = {"effect": -0.5, "unit": "nats", "activation": 2.0}
    nodes = [NodeRecord(id="mlp_in.1/7@verb", standard_error=0.0625, active=0.25, **numbers)]
    graphs, found = summaries.tables([head, *nodes], Path())
    assert graphs.rows[0][3] == "1,200 prompts of pairs.jsonl, the first: a\nb"
    assert found.rows == [("mlp_in.1/7@verb", "-0.5 ± 0.062 nats", "2", "25 % of prompts", "")]
    assert len(found.columns) == len(found.rows[0])
    listed = summaries.tables([graph_head(n_prompts=2)], Path())[0]
    assert listed.rows[0][3] == "2 prompts, the first: a\nb"


def test_figures_are_shown_with_paths_that_can_be_opened(tmp_path: Path):
    (tmp_path / "inside.svg").touch()
    (table,) = summaries.tables([FigureRecord(path="inside.svg"), FigureRecord(path="/out/side.svg")], tmp_path)
    assert table.rows == [(str(tmp_path / "inside.svg"),), ("/out/side.svg",)]


def test_every_stage_but_the_last_knows_the_next_command():
    assert summaries.next_step("collect") == "circuit train"
    assert summaries.next_step("render") is None
