"""Data sets, on the hub or in a folder, give a text or token ids for each row, from any row on."""

import importlib
import shutil
import socket
import time
from itertools import islice
from types import SimpleNamespace

import datasets
import pytest

from circuitcli.errors import InputError, ToolError
from circuitcli.models import hub
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.text import data_sets
from circuitcli.text.data_sets import DataSet
from circuitcli.text.documents import documents, source_digest, texts
from circuitcli.text.files import BUILTIN


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:a/b", DataSet("a/b")),
        ("hf:a/b:test", DataSet("a/b", split="test")),
        ("hf:a/b:en", DataSet("a/b", config="en")),
        ("hf:a/b:en:dev", DataSet("a/b", config="en", split="dev")),
        ("hf:a/b::extra", DataSet("a/b", split="extra")),
    ],
)
def test_names_of_data_sets(source: str, expected: DataSet):
    assert DataSet.parse(source) == expected


class _Rows(list):
    def skip(self, n: int) -> "_Rows":
        return _Rows(self[n:])


def _stand_in(monkeypatch: pytest.MonkeyPatch, load_dataset) -> None:
    monkeypatch.setattr(data_sets, "import_module", lambda name: SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(data_sets, "hub_answers", lambda: True)


def test_the_hub_is_streamed_from_any_row(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        return _Rows({"text": f"row {n}"} for n in range(5))

    _stand_in(monkeypatch, load_dataset)
    assert list(islice(documents("hf:a/b:en:test", start=2), 2)) == ["row 2", "row 3"]
    assert asked == [(("a/b", "en"), {"split": "test", "streaming": True})]
    with pytest.raises(InputError, match="row 0 has no text in field 'body'"):
        next(documents("hf:a/b", field="body"))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConnectionError("no route"), ToolError),
        (TimeoutError("slow"), ToolError),
        (FileNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), InputError),
        (ValueError("Bad split: tests"), InputError),
    ],
)
def test_what_the_hub_library_raises_is_explained(monkeypatch: pytest.MonkeyPatch, raised, expected):
    def load_dataset(*names, **options):
        raise raised

    _stand_in(monkeypatch, load_dataset)
    with pytest.raises(expected, match="hf:a/b") as caught:
        next(documents("hf:a/b"))
    assert caught.value.hint


def test_no_network_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed_port = listener.getsockname()[1]
    monkeypatch.setattr(data_sets, "import_module", lambda name: SimpleNamespace(load_dataset=None))
    for name in ("HTTPS_PROXY", "https_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    begin = time.monotonic()
    with pytest.raises(ToolError, match="cannot reach the hub") as caught:
        next(documents("hf:a/b"))
    assert time.monotonic() - begin < hub.TIMEOUT_S + 1
    assert BUILTIN in caught.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ToolError, match="cannot reach the hub"):
        next(documents("hf:a/b"))


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    def import_module(name: str) -> object:
        if name == "datasets":
            raise ModuleNotFoundError(name)
        return importlib.import_module(name)

    monkeypatch.setattr(data_sets, "import_module", import_module)
    with pytest.raises(ToolError, match="datasets") as caught:
        next(documents("hf:a/b"))
    assert caught.value.hint == "pip install datasets"


VOCABULARY = Vocabulary(300, 256, 257, 258)
ROWS = [{"n": n, "text": f"row {n}", "input_ids": [256, n, n + 1, 257, 257]} for n in range(5)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same rows as `datasets` saves them, as a data set and as one with splits, and as Parquet files."""
    root = tmp_path_factory.mktemp("data sets")
    rows = datasets.Dataset.from_list(ROWS)
    few = rows.select([4, 2])
    datasets.disable_progress_bars()
    # Whoever asked for tensors gets lists here all the same.
    rows.with_format("torch").save_to_disk(root / "saved")
    datasets.DatasetDict(train=rows, test=few).save_to_disk(root / "splits")
    (root / "parquet").mkdir()
    rows.to_parquet(root / "parquet" / "train-00000.parquet")
    few.to_parquet(root / "parquet" / "test-00000.parquet")
    return root


@pytest.mark.parametrize("kind", ["saved", "splits", "parquet"])
@pytest.mark.parametrize("start", [0, 2, 5, 9])
def test_a_data_set_in_a_folder_gives_texts_or_ids_from_any_row_on(folders, kind, start):
    source = f"hf:{folders / kind}"
    assert list(documents(source, start=start)) == [row["text"] for row in ROWS][start:]
    found = [ids.tolist() for ids in documents(source, field="input_ids", vocabulary=VOCABULARY, start=start)]
    assert found == [[row["n"], row["n"] + 1, 257] for row in ROWS][start:]


@pytest.mark.parametrize("kind", ["splits", "parquet"])
def test_a_split_is_chosen_by_name(folders, kind):
    assert list(documents(f"hf:{folders / kind}:test")) == ["row 4", "row 2"]
    with pytest.raises(InputError, match=r"cannot read .*nosuch"):
        next(documents(f"hf:{folders / kind}::nosuch"))


def test_a_saved_data_set_needs_no_prefix(folders):
    for kind in ("saved", "splits"):
        assert list(documents(str(folders / kind))) == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("field", "message"),
    [("n", "row 0 has no text in field 'n'"), ("nosuch", "row 0 has no text in field 'nosuch'")],
)
def test_a_column_that_is_no_document_is_named(folders, field, message):
    with pytest.raises(InputError, match=message) as caught:
        next(documents(f"hf:{folders / 'saved'}", field=field, vocabulary=VOCABULARY))
    assert "'text'" in caught.value.hint


def test_a_broken_data_set_is_an_input_error(folders, tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read hf:"):
        next(documents(str(tmp_path)))


def test_the_digest_of_a_folder_changes_with_its_files(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders / "saved", copy)
    before = {source_digest(str(copy)), source_digest(str(copy), field="n"), source_digest(f"hf:{copy}:test")}
    assert len(before) == 3
    (copy / "more.arrow").write_bytes(b"more")
    assert source_digest(str(copy)) not in before


def test_ids_are_streamed_from_the_hub(monkeypatch: pytest.MonkeyPatch):
    _stand_in(monkeypatch, lambda *names, **options: _Rows({"tokens": [256, n, 5]} for n in range(4)))
    found = documents("hf:a/b", vocabulary=VOCABULARY, start=2)
    assert [ids.tolist() for ids in found] == [[2, 5], [3, 5]]
    with pytest.raises(InputError, match="hf:a/b row 3 has token id 256 at position 0, but this model has ids 0 to 4"):
        list(documents("hf:a/b", vocabulary=Vocabulary(5, 256), start=3))
    with pytest.raises(InputError, match="row 0 has token ids, but text is needed here"):
        next(texts("hf:a/b"))
