"""Labels by hand and from other sources: which one counts, what a file may hold, and that every view shows it."""

import json
from itertools import chain, combinations
from pathlib import Path

import pytest
from cli_support import here
from test_render import feature, small_graph

from circuitcli import runs
from circuitcli.errors import InputError
from circuitcli.features.label_files import SOURCES, Label, LabelBook, keep, read_by_hand
from circuitcli.features.lines import Details
from circuitcli.graphs import to_records
from circuitcli.records import FeatureRecord, SaeRecord, Stream
from circuitcli.render.details import read_details
from circuitcli.runs import Run

HOSTILE = ("<script>alert(1)</script>", "\"'&\\", "🙂", "\u202eright to left", "e\u0301" * 9, "x" * 10_000, "\x1b[31m")


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("present", [*chain.from_iterable(combinations(SOURCES, n) for n in range(1, 5))])
def test_of_several_sources_the_first_counts_wherever_it_is_told(present: tuple[str, ...], tmp_path: Path) -> None:
    """In the run's files, on the stream, in a features file: for a graph and for a single line alike."""
    for source in present:
        keep(tmp_path, source, [Label(id="resid.0/7", label=f"by {source}", label_source=source)])
    expected = f"by {present[0]}"
    book = LabelBook.of(tmp_path)
    assert book.line({"id": "resid.0/7", "label": "x"})["label"] == expected
    assert read_details(small_graph(), Stream(), tmp_path)["resid.0/7"].label == expected
    for number, source in enumerate(SOURCES):
        told = FeatureRecord(id="resid.0/7", label="told", label_source=source, density=0.1, path="features/gone.jsonl")
        shown = read_details(small_graph(), Stream([told]), tmp_path)["resid.0/7"].label
        known = book.details(Details(id="resid.0/7", label="told", label_source=source)).label
        assert shown == known == (expected if SOURCES.index(present[0]) <= number else "told")


def test_both_notations_say_the_same_and_labels_are_kept_to_the_letter(tmp_path: Path) -> None:
    names = [f"resid.0/{number}" for number in range(len(HOSTILE))]
    tabs = "".join(f"{name}@4\t{label}\n" for name, label in zip(names, HOSTILE, strict=True))
    lines = "".join(json.dumps({"id": name, "label": label}) + "\n" for name, label in zip(names, HOSTILE, strict=True))
    by_tabs = read_by_hand(written(tmp_path / "a.tsv", "feature\tlabel\n# mine\n\n" + tabs))
    by_lines = read_by_hand(written(tmp_path / "a.jsonl", lines))
    assert by_tabs == by_lines and [label.label for label in by_lines.values()] == list(HOSTILE)
    keep(tmp_path, "hand", by_lines.values())
    book = LabelBook.of(tmp_path)
    assert {name: book.of_feature(name) for name in names} == by_lines


@pytest.mark.parametrize(
    "text",
    [
        "resid.0/1 no tab\n",
        "resid.0/1\ta\nresid.0/1@3\tb\n",
        "resid.0/error\ta\n",
        "embed/token\ta\n",
        "output\ta\noutput\tb\n",
        "resid.0/1\ta\nfeature\tlabel\n",
        "resid.0/-1\ta\n",
        "resid.0/99999999999999999999999\ta\n",
        '{"id": "resid.0/1"}\n',
        '{"id": 4, "label": "a"}\n',
        '{"id": "resid.0/1", "label": 4}\n',
        '{"id": "resid.0/1", "label": "\\ud800"}\n',
        '{"id": "resid.0/1", "label": "a"\n',
        json.dumps({"id": "resid.0/1", "label": "x" * (2**20 + 1)}),
    ],
)
def test_a_bad_line_is_refused_by_its_place(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.tsv"):
        read_by_hand(written(tmp_path / "a.tsv", text))


@pytest.mark.parametrize("content", [b"resid.0/1\t\xff\n", None])
def test_what_is_no_text_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tsv"):
        read_by_hand(tmp_path / "a.tsv")


def test_a_label_of_another_sae_is_not_shown(tmp_path: Path) -> None:
    keep(tmp_path, "model", [Label(id="resid.0/7", label="old", label_source="model", sae="sha256:other")])
    line = {"id": "resid.0/7", "label": "x", "sae": "sha256:a"}
    assert LabelBook.of(tmp_path).line(line) == line
    assert LabelBook.of(tmp_path).details(Details.model_validate(line)).label == "x"


@pytest.mark.parametrize("stale", ["hand", "model"])
def test_a_label_of_another_sae_does_not_hide_one_of_the_features_own(stale: str, tmp_path: Path) -> None:
    fresh = {"hand": "model", "model": "neuronpedia"}[stale]
    for source, sae in ((stale, "sha256:other"), (fresh, "sha256:a")):
        keep(tmp_path, source, [Label(id="resid.0/7", label=source, label_source=source, sae=sae)])
    book = LabelBook.of(tmp_path)
    told = {sae: book.of_feature("resid.0/7", sae=sae) for sae in ("sha256:a", "sha256:other", "sha256:third", None)}
    assert [one and one.label for one in told.values()] == [fresh, stale, None, stale]
    gone = written(tmp_path / "gone.tsv", "resid.0/7\t\n")
    assert LabelBook.of(tmp_path, [gone]).of_feature("resid.0/7", sae="sha256:a") is None


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with an SAE, a graph of two features, and a description of one of them."""
    made = Run(tmp_path / "run")
    place = {"hook": "resid.0", "path": "saes/resid.0", "architecture": "topk", "digest": "sha256:a"}
    graph = small_graph(saes={"resid.0": "sha256:a"})
    for stage, emitted in (("train", [SaeRecord(**place, d_in=4, d_sae=9)]), ("graph:circuit", [*to_records(graph)])):
        made.begin(stage, runs.Fingerprint({}, {}))
        made.finish(stage, emitted, seconds=0.0)
    (made.path / "features").mkdir()
    line = json.dumps(feature(histogram=None) | {"d_sae": 9}) + "\n"
    written(made.path / "features" / "resid.0.jsonl", line)
    return made


def test_labels_by_hand_are_in_the_picture_and_in_the_feature_view_until_they_are_taken_away(
    run: Run, tmp_path: Path
) -> None:
    file = written(tmp_path / "mine.tsv", "resid.0/7\tmy own words\nresid.0/9\tbeyond\nattn.3/1\tnowhere\n")
    done = here("interp", "--labels", str(file), "--run", str(run.path), cwd=tmp_path)
    assert done.status == 0 and done.records[-1]["n_new"] == 1 and done.records[-1]["source"] == "hand"
    assert "resid.0/9, attn.3/1" in done.stderr

    def label(*words: str) -> str:
        drawn = here("render", "-o", "a.json", *words, "--run", str(run.path), cwd=tmp_path)
        assert drawn.status == 0, drawn.stderr
        nodes = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
        shown = here("interp", "--feature", "resid.0/7", *words, "--run", str(run.path), cwd=tmp_path).records[0]
        assert f'"{shown["label"]}"' in json.dumps(nodes) or shown["label"].startswith("names")
        return shown["label"]

    assert label() == "my own words"
    other = written(tmp_path / "other.jsonl", '{"id": "resid.0/7", "label": "for one picture"}\n')
    assert label("--labels", str(other)) == "for one picture"
    assert label() == "my own words"
    gone = written(tmp_path / "gone.tsv", "resid.0/7\t\n")
    assert here("interp", "--labels", str(gone), "--run", str(run.path), cwd=tmp_path).status == 0
    assert label() == feature()["label"]


def test_labels_of_no_feature_of_the_run_are_an_error(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path / "mine.tsv", "resid.5/7\tx\n")
    done = here("interp", "--labels", str(file), "--run", str(run.path), cwd=tmp_path)
    assert done.status == 3 and len(done.errors) == 2 and not (run.path / "labels").exists()
