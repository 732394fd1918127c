"""`circuit render --curves`: a row for each hook point, shared axes, parts of the loss, trainings that still run."""

import io
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from circuitcli.errors import InputError, SettingsError
from circuitcli.records import Stream
from circuitcli.render.curves import PLOTS, figure, find_curves
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
