"""Which features are active in a text: against one forward pass for each token, and what is refused."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import here
from support_collect import hf_gpt2, language_model
from test_interp_pages import D_SAE, DEAD, HOOKS, carried, described, lines  # noqa: F401

import circuitcli as circuit
from circuitcli import progress
from circuitcli.cli.paging import token_rows
from circuitcli.errors import CircuitError, InputError
from circuitcli.features.cards import LONGEST
from circuitcli.hookpoints import HookPoint
from circuitcli.records import FigureRecord, TokenRecord
from circuitcli.saes.abstopk import AbsTopKSae
from circuitcli.saes.base import SaeConfig
from circuitcli.stages import interp_text
from circuitcli.stages.interp_text import Asked, of_source
from circuitcli.stages.request import Request

TEXT = "a text, \N{SNOWMAN}\nand more"


def coder(layer: int) -> AbsTopKSae:
    made = AbsTopKSae(SaeConfig(HookPoint(layer, "resid"), 24, 30), k=4).requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.startswith("W_"):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(layer)))
    return made


@torch.no_grad()
def test_features_on_a_text_are_those_of_one_forward_pass_for_each_token() -> None:
    """Every token is the last one of a pass of its own, with Hugging Face's model and without taps."""
    model, coders = language_model(), [coder(0), coder(1)]
    ids = model.tokenizer.with_bos(model.tokenizer.encode(TEXT))
    found = circuit.features_on(model, coders, TEXT, n=3)
    assert "".join(at.token for at in found[:8]) == TEXT[:8] and len(found) == len(ids) - 1
    n_negative = 0
    for at in found:
        states = hf_gpt2()(torch.tensor([ids[: at.position + 1]]), output_hidden_states=True).hidden_states
        expected = []
        for one in coders:
            codes = one.encode(states[one.hook.layer + 1][0, -1])
            best = sorted(codes.nonzero()[:, 0].tolist(), key=lambda index: -abs(float(codes[index])))[:3]
            expected += [(f"{one.hook}/{index}", float(codes[index])) for index in best]
        assert [one.id for one in at.features] == [name for name, _ in expected]
        assert [one.activation for one in at.features] == pytest.approx([value for _, value in expected], rel=1e-3)
        n_negative += sum(value < 0 for _, value in expected)
    assert n_negative


def test_a_text_longer_than_the_window_is_read_in_pieces() -> None:
    model, size = language_model(), 64 - 1
    assert size < LONGEST
    text = "".join(chr(97 + (7 * n) % 26) for n in range(2 * size + 5))
    found = circuit.features_on(model, [coder(1)], text, n=2)
    alone = circuit.features_on(model, [coder(1)], text[size : 2 * size], n=2)
    assert len(found) == len(text) and found[size : 2 * size] == alone
    assert [at.position for at in found] == [*range(1, size + 1), *range(1, size + 1), *range(1, 6)]


@pytest.fixture(scope="module")
def written(described: Request, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[TokenRecord], dict[str, Any]]:  # noqa: F811
    """The records of a text, and what its page carries."""
    path = tmp_path_factory.mktemp("text") / "text.html"
    *records, figure = interp_text.run(described, Asked.of(TEXT, html=str(path)), stdout=StringIO())
    assert figure == FigureRecord(path=str(path))
    page = path.read_text(encoding="utf-8")
    assert 'data-page="text"' in page
    return records, carried(page)


@pytest.fixture
def told(written: tuple[list[TokenRecord], dict[str, Any]]) -> list[TokenRecord]:
    return written[0]


def test_records_have_the_strongest_features_of_each_coder_with_their_labels(
    described: Request,  # noqa: F811
    told: list[TokenRecord],
) -> None:
    known = {line["id"]: line["label"] for hook in HOOKS for line in lines(described, hook).values()}
    assert [record.number for record in told] == [*range(len(told))]
    n_labels = 0
    for record in told:
        for hook in HOOKS:
            own = [value for name, value, _ in record.features if name.startswith(f"{hook}/")]
            assert len(own) == 5 and own == sorted(own, reverse=True)
        for name, _, label in record.features:
            assert label == known.get(name, "")
            n_labels += bool(label)
    assert n_labels
    rows = token_rows(told).rows
    assert len(rows) == sum(len(record.features) for record in told) and rows[0][:3] == (
        "1",
        "a",
        told[0].features[0][0],
    )


def test_of_named_features_all_that_is_active_is_told_and_nothing_else(
    described: Request,  # noqa: F811
    told: list[TokenRecord],
) -> None:
    name = told[3].features[0][0]
    silent = f"resid.1/{DEAD[0]}"
    found = interp_text.run(described, Asked.of(TEXT, [f"{name}@3", silent]), stdout=StringIO())
    assert [record.token for record in found] == [record.token for record in told]
    for record, whole in zip(found, told, strict=True):
        expected = [one for one in whole.features if one[0] == name]
        assert {one[0] for one in record.features} <= {name}
        assert not expected or [*record.features] == [(name, pytest.approx(expected[0][1], rel=1e-4), expected[0][2])]


def test_the_page_of_a_text_has_every_activation(written: tuple[list[TokenRecord], dict[str, Any]]) -> None:
    told, content = written
    assert content["tokens"] == [record.token for record in told] and content["left_out"] == 0
    at = {(one["id"], token): value for one in content["features"] for token, value in one["activations"]}
    assert len(at) == len(told) * len(HOOKS) * 6
    for record in told:
        for name, value, _ in record.features:
            assert at[name, record.number] == pytest.approx(value, rel=1e-3)


def test_a_page_on_stdout_leaves_out_the_weakest_features_where_there_are_too_many_and_says_so(
    described: Request,  # noqa: F811
    written: tuple[list[TokenRecord], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interp_text, "MOST", 40)
    out = StringIO()
    assert interp_text.run(described, Asked.of(TEXT, html="-"), stdout=out) == []
    kept, every = carried(out.getvalue()), written[1]
    assert 0 < sum(len(one["activations"]) for one in kept["features"]) <= 40
    assert kept["features"] == every["features"][: len(kept["features"])]
    assert kept["left_out"] == len(every["features"]) - len(kept["features"]) > 0


@pytest.mark.parametrize(
    ("text", "features", "html", "message"),
    [
        ("", [], None, "no token"),
        ("a", [f"resid.1/{D_SAE}"], None, f"there is no feature resid.1/{D_SAE}"),
        ("a", ["resid.2/1"], None, r"no coder reads resid\.2"),
        ("a", ["resid.1/error"], None, "error term"),
        ("a", ["resid.1"], None, "is not a feature"),
        ("a", [], "page.txt", "is not a name of a page"),
    ],
)
def test_what_cannot_be_told_is_refused(
    described: Request,  # noqa: F811
    text: str,
    features: list[str],
    html: str | None,
    message: str,
) -> None:
    with pytest.raises(CircuitError, match=message):
        interp_text.run(described, Asked.of(text, features, html=html), stdout=StringIO())


def test_a_text_is_what_stdin_brought_or_a_file_holds_or_itself(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("of a file", encoding="utf-8")
    assert of_source("-", stdin="of stdin") == "of stdin"
    assert of_source(str(path)) == "of a file"
    for text in ("itself", "x" * 10_000, "with\0NUL", str(tmp_path)):
        assert of_source(text) == text
    told = []
    monkeypatch.setattr(progress, "note", told.append)
    for name in ("nothere.txt", "a/b.jsonl", "print(x.py)", "See x.txt", "end."):
        assert of_source(name) == name
    assert [line.split(":")[0] for line in told] == ["there is no file nothere.txt", "there is no file a/b.jsonl"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        of_source(str(path))


def test_the_command_line_writes_pages_and_tells_of_texts(
    described: Request,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saes = f"{described.run.path}/saes"
    run = ["--run", str(described.run.path), "--sae", saes, "--set", "pages.neighbours=0"]
    pages = here("interp", *run, "--html", "site", "--set", "pages.correlation_tokens=0", cwd=tmp_path)
    assert (pages.status, pages.records[-1]) == (0, {"kind": "figure", "path": "site/index.html"})
    assert (tmp_path / "site" / "feature.html").is_file()
    (tmp_path / "stdin.txt").write_text(TEXT, encoding="utf-8")
    with (tmp_path / "stdin.txt").open(encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        text = here("interp", *run, "--text", "-", "--set", "pages.per_token=1", cwd=tmp_path)
    assert text.status == 0 and "".join(one["token"] for one in text.records).startswith("a text, ")
    assert all(len(one["features"]) == len(HOOKS) for one in text.records) and set(text.kinds) == {"token"}


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--html", "-"], 2, "are a directory"),
        (["--text", "a", "--html", "site"], 2, "is not a name of a page"),
        (["--feature", "resid.1/119", "--html", "site"], 2, "is not a name of a page"),
        (["--feature", "resid.1/60", "--html", "-"], 3, "never fired"),
        (["--text", "a", "--feature", "resid.7/60"], 3, "no coder reads"),
    ],
)
def test_the_command_line_says_in_two_lines_what_is_wrong(
    described: Request,  # noqa: F811
    tmp_path: Path,
    words: list[str],
    status: int,
    message: str,
) -> None:
    run = ["--run", str(described.run.path), "--sae", f"{described.run.path}/saes"]
    found = here("interp", *run, *words, cwd=tmp_path)
    assert found.status == status and found.stdout == "" and len(found.errors) == 2
    assert message in found.errors[0] and not [*tmp_path.glob("*.html"), *tmp_path.glob("site*")]


def test_a_text_from_stdin_needs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stdin.txt").write_text(TEXT, encoding="utf-8")
    with (tmp_path / "stdin.txt").open(encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        found = here("interp", "--text", "-", cwd=tmp_path)
    assert found.status == 3 and "no run" in found.errors[0]
