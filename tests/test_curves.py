"""`circuit render --curves`: a row for each hook point, shared axes, parts of the loss, trainings that still run."""

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcli.errors import InputError, SettingsError
from circuitcli.records import Stream
from circuitcli.render.curves import PLOTS, Curve, figure, find_curves
from circuitcli.render.plot import svg
from circuitcli.runs import Run
from circuitcli.settings.sources import load
from circuitcli.stages import curves as stage
from circuitcli.stages.request import Request


def write(directory: Path, *, n_lines: int = 5, end: str = "", **changes: float) -> None:
    directory.mkdir(parents=True)
    lines = []
    for step in range(1, n_lines + 1):
        numbers = {"fvu": 1 / step, "l0": 32.0, "dead": 0.01 * step, "learning_rate": 1e-3, "loss": 1.1 / step}
        lines.append(json.dumps({"step": step, "tokens": 1000 * step, **numbers, **changes}) + "\n")
    (directory / "metrics.jsonl").write_text("".join(lines) + end)


def request(path: Path, *outputs: str) -> Request:
    return Request(load({"render.output": list(outputs)}).settings, Stream(), Run(path))


def polylines(text: str) -> list[str]:
    return [
        line.get("points", "") for line in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}polyline")
    ]


def test_each_hook_point_has_a_row_in_the_order_of_the_model(tmp_path: Path) -> None:
    for name in ("resid.10", "resid.2", "attn.10"):
        write(tmp_path / name)
    (tmp_path / "checkpoint").mkdir()
    found = find_curves(tmp_path)
    assert [curve.hook for curve in found] == ["resid.2", "attn.10", "resid.10"]
    drawn = figure(found, title="t")
    assert [panel.title for panel in drawn.panels[: len(PLOTS)]] == [f"resid.2: {heading}" for _, heading, _ in PLOTS]
    assert len(drawn.panels) == 3 * len(PLOTS) and len(polylines(svg(drawn))) == 3 * len(PLOTS)


def test_the_numbers_are_those_of_the_file_over_tokens(tmp_path: Path) -> None:
    write(tmp_path / "resid.1")
    by_title = {panel.title: panel for panel in figure(find_curves(tmp_path), title="").panels}
    points = by_title["resid.1: missed variance"].series[0].points
    assert [(point.x, point.y) for point in points] == [(1000 * step, 1 / step) for step in range(1, 6)]
    assert [point.y for point in by_title["resid.1: dead features"].series[0].points][-1] == 0.05


def test_parts_of_the_loss_are_drawn_beside_it_and_named_in_the_legend(tmp_path: Path) -> None:
    write(tmp_path / "resid.1", loss_auxk=0.02, loss_reconstruction=0.5)
    drawn = figure(find_curves(tmp_path), title="")
    assert [series.label for series in drawn.panels[0].series] == ["loss", "auxk", "reconstruction"]
    assert list(drawn.styles) == ["loss", "auxk", "reconstruction"]


def test_trainings_of_one_hook_point_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("resid.1", "sweep/sae.k=16/resid.1", "sweep/sae.k=32/resid.1"):
        write(tmp_path / name, loss_auxk=0.02)
    drawn = figure(find_curves(tmp_path), title="")
    assert len(drawn.panels) == len(PLOTS)
    assert all(
        [series.label for series in panel.series] == ["the run's own", "sae.k=16", "sae.k=32"] for panel in drawn.panels
    )


def test_plots_below_each_other_share_their_axes(tmp_path: Path) -> None:
    write(tmp_path / "resid.1", n_lines=9)
    write(tmp_path / "resid.2", dead=0.4)
    first, second = [panel for panel in figure(find_curves(tmp_path), title="").panels if "dead" in panel.title]
    assert first.x_span == second.x_span and first.y_span == second.y_span
    assert first.x_span is not None and first.x_span.place(9000) is not None
    assert first.y_span is not None and 0.9 < (first.y_span.place(0.4) or 0) <= 1


def test_a_half_written_line_of_a_training_that_runs_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "resid.1", end='{"step": 6, "tok')
    (curve,) = find_curves(tmp_path)
    assert [line["step"] for line in curve.lines] == [1, 2, 3, 4, 5]


def test_curves_go_into_the_run_or_where_they_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "run" / "saes" / "resid.1")
    stdout = io.StringIO()
    (record,) = stage.run(request(tmp_path / "run"), stdout=stdout)
    assert record.path == "figures/curves.svg" and (tmp_path / "run" / record.path).is_file()
    text = (tmp_path / "run" / record.path).read_text(encoding="utf-8")
    records = stage.run(request(tmp_path / "run", str(tmp_path / "c.svg"), "-"), stdout=stdout)
    assert [record.path for record in records] == [str(tmp_path / "c.svg")]
    assert (tmp_path / "c.svg").read_text(encoding="utf-8") == stdout.getvalue() == text


def test_nothing_trained_and_other_suffixes_are_errors_with_hints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no training") as caught:
        stage.run(request(tmp_path), stdout=io.StringIO())
    assert "circuit train" in caught.value.hint
    with pytest.raises(SettingsError, match=r"curves as 'c\.png'") as refused:
        stage.run(request(tmp_path, "c.png"), stdout=io.StringIO())
    assert ".svg" in refused.value.hint


numbers = st.floats() | st.integers(-(2**63), 2**64) | st.sampled_from([0.0, 1e308, -1e308, 5e-324, math.inf, math.nan])


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_numbers_can_be_drawn(found: list[tuple]) -> None:
    lines = [dict(step=1, tokens=tokens, loss=loss, dead=dead, learning_rate=loss) for tokens, loss, dead in found]
    text = svg(figure([Curve("resid.1", "", lines)], title="t"))
    drawn = [element.attrib for element in ElementTree.fromstring(text).iter()]
    shown = " ".join(value for attributes in drawn for name, value in attributes.items() if name != "font-family")
    assert not re.search(r"\b(nan|inf)\b|e\+", shown) and len(text) < 100_000


def test_curves_of_a_diverged_training_are_drawn(tmp_path: Path) -> None:
    """As far as its numbers are numbers; one that has no dead features at all is drawn too."""
    case = Path(__file__).parents[2] / "shared" / "cases" / "metrics-of-a-diverged-training.jsonl"
    lines = (
        case.read_text() if case.is_file() else json.dumps({"step": 1, "tokens": 128, "learning_rate": 8.7e35}) + "\n"
    )
    (tmp_path / "run" / "saes" / "resid.1").mkdir(parents=True)
    spoilt = (
        '{"step": 2, "tokens": 256, "loss": Infinity, "fvu": NaN, "l0": 4.0, "dead": 0.0, "learning_rate": 8.7e35}\n'
    )
    (tmp_path / "run" / "saes" / "resid.1" / "metrics.jsonl").write_text(lines + spoilt)
    stage.run(request(tmp_path / "run"), stdout=io.StringIO())
    assert polylines((tmp_path / "run" / "figures" / "curves.svg").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"\xff",
        b"{" * 50_000,
        b'{"step": 1}',
        b'{"step": "1", "tokens": 1}',
        b'{"step": 1, "tokens": null}',
        b'{"step": 1.5, "tokens": 1}',
        b'{"step": 1, "tokens": 1, "loss": true}',
        b'{"step": 1, "tokens": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_line_that_is_no_line_of_metrics_is_named(tmp_path: Path, line: bytes) -> None:
    write(tmp_path / "resid.1", n_lines=2)
    with (tmp_path / "resid.1" / "metrics.jsonl").open("ab") as file:
        file.write(line[:1])
    assert [len(curve.lines) for curve in find_curves(tmp_path)] == [2]
    with (tmp_path / "resid.1" / "metrics.jsonl").open("ab") as file:
        file.write(line[1:] + b"\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl line 3"):
        find_curves(tmp_path)


def test_command_draws_curves_without_torch(tmp_path: Path) -> None:
    write(tmp_path / "run" / "saes" / "resid.1")
    Run(tmp_path / "run").update_manifest(model="builtin:tiny")
    code = (
        "import sys\nfrom circuitcli.cli.app import run\n"
        "status = run(['render', '--curves', '--run', 'run', '-o', 'c.svg'])\n"
        "sys.exit(bool(status) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"kind": "figure"' in done.stdout and (tmp_path / "c.svg").is_file()
