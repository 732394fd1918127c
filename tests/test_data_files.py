"""Files of data are read as data, in bounded memory; what is wrong with them is named; a field means something."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_prompts import TALK

from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.models.chat import Conversation
from circuitcli.models.tokenizer import Vocabulary
from circuitcli.text import data_files
from circuitcli.text.documents import documents, source_digest, texts

CASES = Path(__file__).parents[2] / "shared" / "cases"
ROWS = [
    {"id": "0", "text": "first", "body": "a"},
    {"id": "1", "text": 'second, with "quotes"\nand lines', "body": "b"},
    {"id": "2", "text": "", "body": "ç\N{SNOWMAN}"},
]
WRITTEN = data_files.SUFFIXES


def quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def write(folder: Path, suffix: str, rows: list[dict[str, str]]) -> Path:
    """The rows as a file of the kind that its suffix says."""
    path = folder / f"rows{suffix}"
    if suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        lines = [mark.join(rows[0]), *(mark.join(map(quoted, row.values())) for row in rows)]
        path.write_bytes("\r\n".join([*lines, ""]).encode())
    elif suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", WRITTEN)
def test_every_kind_of_file_gives_the_same_documents_from_any_number_on(tmp_path, suffix):
    path = write(tmp_path, suffix, ROWS)
    for field in (None, "text", "body", "id"):
        expected = [row[field or "text"] for row in ROWS]
        for start in range(len(ROWS) + 2):
            assert list(documents(str(path), field=field, start=start)) == expected[start:]
    assert list(documents(str(tmp_path), field="body")) == [row["body"] for row in ROWS]
    assert source_digest(str(path)) != source_digest(str(path), field="body")


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_field_that_no_record_has_is_named_with_those_that_it_has(tmp_path, suffix):
    path = write(tmp_path, suffix, ROWS)
    with pytest.raises(InputError, match=r"rows\.\w+ (line|record|row) \d+ has no text in field 'nope'") as caught:
        list(documents(str(path), field="nope"))
    assert "'body'" in caught.value.hint


@pytest.mark.skipif(not CASES.is_dir(), reason="there are no shared cases beside this checkout")
def test_the_cases_that_were_read_as_raw_text_are_data():
    from_json, from_csv = (list(texts(str(CASES / name))) for name in ("arr.json", "a.csv"))
    assert from_json[0].startswith("The quick brown fox") and len(from_json) > 10
    assert from_csv[:2] == ['row 0, value is "0"', 'row 1, value is "1"']
    assert list(texts(str(CASES / "a.csv"), field="label"))[:4] == ["0", "1", "2", "0"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=9), st.fixed_dictionaries({"text": st.text(max_size=9)})), max_size=6),
    st.data(),
)
def test_a_json_file_is_read_piece_by_piece_as_python_reads_it_whole(tmp_path_factory, values, data):
    path = tmp_path_factory.mktemp("json") / "rows.json"
    indent = data.draw(st.sampled_from([None, 2]))
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=data.draw(st.booleans())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_files, "_READ_CHARACTERS", data.draw(st.integers(1, 9)))
        found = list(documents(str(path)))
    assert found == [value if isinstance(value, str) else value["text"] for value in values]


def test_json_may_be_one_record_or_several_behind_one_another(tmp_path):
    path = tmp_path / "rows.json"
    for content, expected in (
        ('{"text": "a"}', ["a"]),
        ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        ('\ufeff[\n{"text": "a"}]\n', ["a"]),
        ("[]", []),
        ("", []),
        ('"a"', ["a"]),
    ):
        path.write_text(content, encoding="utf-8")
        assert list(documents(str(path))) == expected


def test_a_table_of_one_column_needs_no_field(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sentence\none\n\ntwo\n")
    assert list(documents(str(path))) == list(documents(str(path), field="sentence")) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[" * 100_000, "cannot be read as JSON: it is nested too deep"),
        (
            "a.json",
            '[{"text": "a"}, {"text": ' + "9" * 5000 + "}]",
            "record 2 cannot be read as JSON: it contains a number with thousands",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": ' + "9" * 5000 + "}\n",
            "line 2 cannot be read as JSON: it contains a number with thousands",
        ),
        ("a.json", '[{"text": "a"}', "is not JSON"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "is not JSON: a comma"),
        ("a.json", '["a"] x', "is not JSON: more text follows"),
        ("a.json", '{"data": ["a"]}', "has no text in field"),
        ("a.json", "[1]", "is not a JSON object"),
        ("a.json", "[null]", "is not a JSON object"),
        ("a.json", '["a", ["b"]]', "record 2 is not a JSON object"),
        ("a.json", '[{"text": 3}]', "has no text in field"),
        ("a.jsonl", '{"messages": [{"role": 3}]}', "field 'messages' of .* has no messages"),
        ("a.jsonl", '{"tokens": [99999999999999999999]}', "has no list of token ids"),
        ("a.jsonl", '{"tokens": [9223372036854775807]}', "has token id 9223372036854775807 at position 0"),
        ("a.jsonl", '{"tokens": [-1]}', "has token id -1 at position 0"),
        ("a.jsonl", '{"tokens": ' + "[" * 70 + "1" + "]" * 70 + "}", "has no list of token ids"),
        ("a.csv", 'text\n"' + "x" * 3000, "is not a row of a table|more than"),
        ("a.csv", "id,body\n1,2\n", "has no text in field"),
        ("a.parquet", "PAR1 and then nothing", "is not a Parquet file"),
        ("a.npy", "\x93NUMPY and then nothing", "cannot be read as token ids"),
        ("a.npy", "\x93NUMPY\x01\x00\x10\x00{'descr': '|b1' ]", "cannot be read as token ids"),
        ("a.safetensors", "\xff" * 64, "cannot be read as token ids"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_clear_line(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(data_files, "LONGEST_CHARACTERS", 2000 if name.endswith(".csv") else 10**6)
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        list(documents(str(path), vocabulary=Vocabulary(10)))
    assert caught.value.hint and str(path) in caught.value.message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_bytes_that_are_no_utf8_are_refused_in_every_kind(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match="is not UTF-8 text"):
        list(documents(str(tmp_path / name)))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_record_that_does_not_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(data_files, "LONGEST_CHARACTERS", 200_000)
    path = tmp_path / f"rows{suffix}"
    path.write_text('{"text": "' + "x" * 20_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"more than 200,000 characters|field larger than field limit"):
            list(documents(str(path)))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl", "pipe.npy", "pipe.csv", "zero", "random", "loop"])
def test_what_may_never_end_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    if name.startswith("pipe"):
        os.mkfifo(path)
    else:
        path.symlink_to({"zero": "/dev/zero", "random": "/dev/urandom", "loop": path}[name])
    for ask in (documents, source_digest):
        with pytest.raises(InputError) as caught:
            ask(str(path), field=None)
        assert caught.value.hint


@pytest.mark.parametrize("source", ["~nobody-of-that-name/x", "a\0b", "a\udcff"])
def test_a_source_that_is_no_path_is_no_fault(source, inside):
    for ask in (documents, source_digest):
        with pytest.raises(CircuitError, match="is not a path"):
            ask(source)


def test_a_field_is_refused_where_there_is_none(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("a")
    (tmp_path / "a.txt").write_text("a")
    np.save(tmp_path / "a.npy", np.arange(3))
    for source in ("builtin:python", tmp_path / "texts", tmp_path / "a.txt", tmp_path / "a.npy"):
        with pytest.raises(SettingsError, match="--field body does not apply to"):
            documents(str(source), field="body", vocabulary=Vocabulary(10))
    (tmp_path / "texts" / "b.jsonl").write_text('{"body": "b"}\n')
    assert list(documents(str(tmp_path / "texts"), field="body")) == ["a", "b"]


def test_a_chat_is_refused_where_there_is_no_text(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(SettingsError, match="--chat needs text"):
        documents(str(tmp_path / "a.npy"), chat=True, vocabulary=Vocabulary(10))


def test_configurations_among_texts_stay_texts_unless_a_field_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "x"}')
    (tmp_path / "b.json").write_text('[{"text": "b"}]')
    (tmp_path / "c.csv").write_text("x,y\n1,2\n")
    expected = ['{"name": "x"}', "b", "x,y\n1,2\n"]
    for start in range(5):
        assert list(documents(str(tmp_path), start=start)) == expected[start:]
    rows = documents(str(tmp_path), field="name")
    assert next(rows) == "x"
    with pytest.raises(InputError, match=r"b.json record 1 has no text in field 'name'"):
        next(rows)


def test_messages_are_conversations_and_texts_become_some_if_asked(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"text": "a\ud800"}) + "\n")
    talk = Conversation.read(TALK, place="")
    assert list(documents(str(path))) == [talk, "a\N{REPLACEMENT CHARACTER}"]
    assert list(documents(str(path), chat=True)) == [talk, Conversation.of_user("a\N{REPLACEMENT CHARACTER}")]
    with pytest.raises(InputError, match="holds conversations, but text is needed here"):
        list(texts(str(path)))
