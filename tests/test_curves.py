"""`circuit render --curves`: a row for each hook point, shared axes, parts of the loss, trainings that still run."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from circuitcli.errors import InputError, SettingsError
from circuitcli.records import Stream
from circuitcli.render.curves import PLOTS, find_curves, plot
from circuitcli.render.plots import NOT_FINITE, Panel, draw
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


def panels(saes: Path) -> dict[str, Panel]:
    """What is drawn of the trainings below a folder, by title."""
    return {panel.title: panel for row in plot(find_curves(saes), title="").rows for panel in row}


def test_each_hook_point_has_a_row_in_the_order_of_the_model(tmp_path: Path) -> None:
    for name in ("resid.10", "resid.2", "attn.10"):
        write(tmp_path / name)
    (tmp_path / "checkpoint").mkdir()
    found = find_curves(tmp_path)
    assert [curve.hook for curve in found] == ["resid.2", "attn.10", "resid.10"]
    rows = plot(found, title="t").rows
    assert [panel.title for panel in rows[0]] == [f"resid.2: {heading}" for _, heading, _ in PLOTS]
    assert len(rows) == 3 and all(len(panel.series) == 1 for row in rows for panel in row)


def test_the_numbers_are_those_of_the_file_over_tokens(tmp_path: Path) -> None:
    write(tmp_path / "resid.1")
    by_title = panels(tmp_path)
    (line,) = by_title["resid.1: missed variance"].series
    assert (line.x, line.y) == ([1000 * step for step in range(1, 6)], [1 / step for step in range(1, 6)])
    assert by_title["resid.1: dead features"].series[0].y[-1] == 0.05


def test_parts_of_the_loss_are_drawn_beside_it_and_named_in_the_legend(tmp_path: Path) -> None:
    write(tmp_path / "resid.1", loss_auxk=0.02, loss_held_out=0.5)
    figure = draw(plot(find_curves(tmp_path), title=""))
    assert [line.get_label() for line in figure.axes[0].lines] == ["loss", "auxk", "held out"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["loss", "auxk", "held out"]


def test_trainings_of_one_hook_point_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("resid.1", "sweep/sae.k=16/resid.1", "sweep/sae.k=32/resid.1"):
        write(tmp_path / name, loss_auxk=0.02)
    drawn = panels(tmp_path)
    assert len(drawn) == len(PLOTS)
    assert all(
        [series.label for series in panel.series] == ["the run's own", "sae.k=16", "sae.k=32"]
        for panel in drawn.values()
    )


def test_every_panel_has_labelled_axes_and_plots_below_each_other_share_them(tmp_path: Path) -> None:
    write(tmp_path / "resid.1", n_lines=9)
    write(tmp_path / "resid.2", dead=0.4)
    axes = {one.get_title(loc="left"): one for one in draw(plot(find_curves(tmp_path), title="")).axes}
    assert all(one.get_ylabel() for one in axes.values())
    assert all(one.get_xlabel() == ("tokens" if name.startswith("resid.2") else "") for name, one in axes.items())
    first, second = axes["resid.1: dead features"], axes["resid.2: dead features"]
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()
    assert second.get_xlim()[1] > 9000 and first.get_ylim()[1] > 0.4


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
    outputs = [str(tmp_path / name) for name in ("c.svg", "c.png", "c.PDF")]
    records = stage.run(request(tmp_path / "run", *outputs, "-"), stdout=stdout)
    assert [record.path for record in records] == outputs
    assert all(Path(name).stat().st_size > 10_000 for name in outputs)
    assert (tmp_path / "c.svg").read_text(encoding="utf-8") == stdout.getvalue() == text


def test_nothing_trained_and_other_suffixes_are_errors_with_hints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no training") as caught:
        stage.run(request(tmp_path), stdout=io.StringIO())
    assert "circuit train" in caught.value.hint
    with pytest.raises(SettingsError, match=r"a plot as 'c\.html'") as refused:
        stage.run(request(tmp_path, "c.html"), stdout=io.StringIO())
    assert ".svg .png .pdf" in refused.value.hint


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
    drawn = panels(tmp_path / "run" / "saes")
    assert [len(panel.series[0].y) for panel in drawn.values()][-1] == 2
    text = (tmp_path / "run" / "figures" / "curves.svg").read_text(encoding="utf-8")
    assert f">{NOT_FINITE}<" in text and "8e+35" in text


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


def test_command_draws_curves_without_torch_and_a_word_of_matplotlib(tmp_path: Path) -> None:
    write(tmp_path / "特征" / "saes" / "resid.1")
    Run(tmp_path / "特征").update_manifest(model="builtin:tiny")
    code = (
        "import os, sys\nos.environ['MPLCONFIGDIR'] = os.devnull\nfrom circuitcli.cli.app import run\n"
        "status = run(['render', '--curves', '--run', '特征', '-o', 'c.png'])\n"
        "sys.exit(bool(status) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"kind": "figure"' in done.stdout and (tmp_path / "c.png").is_file()
    assert len(done.stderr.splitlines()) == 1
