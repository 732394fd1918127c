"""Every bad kind of JSON, TOML and path ends in the error that the caller chose, naming the place."""

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcli import reading
from circuitcli.errors import CircuitError, InputError, SettingsError

DEEP = 50_000
# Each with what the message says about it.
BAD_JSON = {
    b"": "is not JSON",
    b"{": "is not JSON",
    b"\0": "is not JSON",
    b'"\0"': "is not JSON",
    b'{"a": 1} x': "is not JSON",
    b"[" * DEEP: "nested",
    b"[" * DEEP + b"]" * DEEP: "nested",
    b'{"a":' * DEEP + b"1" + b"}" * DEEP: "nested",
    b"[" * 65 + b"]" * 65: "nested",
    b"1" * 5000: "digits",
    b'{"a": [' + b"9" * 4400 + b"]}": "digits",
    b"9" * 20: "64 bits",
    b"-9223372036854775809": "64 bits",
    b"1e309": "finite",
    b"1" * 400 + b".0": "finite",
    b"[NaN]": "finite",
    b'{"a": {"b": [-Infinity]}}': "finite",
    b'"\\ud800"': "surrogate",
    b'{"\\udfff": 1}': "surrogate",
    b'"\xff"': "UTF-8",
    b'"\xed\xa0\x80"': "UTF-8",
}
GOOD_JSON = (
    b'{"a": [1, -2.5e10, true, null, "1e999 NaN Infinity \\\\ud800"]}',
    b"18446744073709551615",
    b"-9223372036854775808",
    b'"\\ud83d\\ude00"',
    b'["' + b"9" * 5000 + b'"]',
    b"[" * 64 + b"]" * 64,
    b"[" + b"[]," * 5000 + b"[]]",
    b"1.7976931348623157e308",
    b"1e-400",
)
BAD_TOML = {
    "a = " + "[" * DEEP: "nested",
    ".".join(["a"] * 500) + " = 1": "nested",
    "a = " + "9" * 5000: "digits",
    "a = 18446744073709551616": "64 bits",
    "a = 1e": "is not TOML",
    "a = 1\na = 2": "is not TOML",
    "\0": "is not TOML",
    "[a": "is not TOML",
    'a = "\\ud800"': "is not TOML",
    "d = 2021-02-30": "is not TOML",
}


@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:16].decode("latin1"))
def test_each_kind_of_bad_json_is_refused_by_the_callers_error_with_the_place(text: bytes, tmp_path: Path):
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    for error in (InputError, SettingsError):
        with pytest.raises(error, match=BAD_JSON[text]) as caught:
            reading.read_json(path, hint="copy it again", error=error)
        assert caught.value.hint == "copy it again" and "bad.json" in caught.value.message
        assert len(caught.value.message) < len(str(path)) + 120
    path.write_bytes(b'{"ok": 1}\n\n' + text.replace(b"\n", b" ") + b"\n")
    lines = reading.json_lines(path)
    assert next(lines) == (f"{path} line 1", {"ok": 1})
    if text:
        with pytest.raises(InputError, match="line 3"):
            next(lines)


@pytest.mark.parametrize("text", GOOD_JSON, ids=lambda text: text[:16].decode("latin1"))
def test_json_at_the_limits_is_read_as_python_reads_it(text: bytes, tmp_path: Path):
    path = tmp_path / "good.json"
    path.write_bytes(text)
    assert reading.read_json(path) == json.loads(text) == reading.parse_json(text, name="text")
    path.write_bytes(b"\xef\xbb\xbf" + text)
    assert reading.read_json(path) == json.loads(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x), max_leaves=9
    )
)
def test_a_value_is_refused_if_and_only_if_a_walk_over_it_finds_something_bad(value: object):
    text = json.dumps(value)
    bad = _has_bad(json.loads(text))
    if bad:
        with pytest.raises(InputError):
            reading.parse_json(text, name="text")
    else:
        assert reading.parse_json(text, name="text") == value


def _has_bad(value: object) -> bool:
    """The slow definition, by recursion."""
    if isinstance(value, list):
        return any(map(_has_bad, value))
    if isinstance(value, float):
        return value != value or value in (float("inf"), -float("inf"))
    return isinstance(value, int) and not -(2**63) <= value < 2**64


@pytest.mark.parametrize("text", BAD_TOML, ids=lambda text: text[:16])
def test_each_kind_of_bad_toml_is_refused_by_the_callers_error_with_the_place(text: str, tmp_path: Path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=BAD_TOML[text]) as caught:
        reading.read_toml(path, error=SettingsError)
    assert "bad.toml" in caught.value.message


def test_toml_is_read_as_python_reads_it(tmp_path: Path):
    text = "a = [1, 2.5, inf]\n[b]\nc = 'x'\nd = 1979-05-27\n"
    (tmp_path / "good.toml").write_text(text)
    assert reading.read_toml(tmp_path / "good.toml") == tomllib.loads(text)


def test_numbers_that_are_not_finite_pass_where_the_caller_allows_them():
    assert reading.parse_json("[Infinity, 1e999]", name="text", finite=False) == [float("inf")] * 2


@pytest.mark.parametrize("text", ["[]", "1", "null", "true", '"x"', "1.5"])
def test_another_type_at_the_top_is_refused(text: str, tmp_path: Path):
    (tmp_path / "x").write_text(text)
    for read in (lambda: reading.read_object(tmp_path / "x"), lambda: list(reading.json_lines(tmp_path / "x"))):
        with pytest.raises(InputError, match="not a JSON object"):
            read()


READERS: tuple[Callable[[Path], object], ...] = (
    reading.read_bytes,
    reading.read_text,
    reading.read_json,
    reading.read_object,
    reading.read_toml,
    lambda path: list(reading.text_lines(path)),
    lambda path: list(reading.json_lines(path)),
)


def test_what_is_no_regular_file_is_refused_at_once_by_every_reader(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    bad = ["/dev/zero", "/dev/null", tmp_path, tmp_path / "fifo", tmp_path / "missing", tmp_path / ("x" * 5000)]
    bad += ["a\0b", "a\ud800b", tmp_path / "x" / "y"]
    for read in READERS:
        for path in bad:
            with pytest.raises(CircuitError, match=r"cannot read"):
                read(path)  # type: ignore[arg-type]


def test_more_bytes_than_the_use_allows_are_refused(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"1" * 100 + b"\n2\n")
    assert reading.read_text(path, limit_bytes=103) == "1" * 100 + "\n2\n"
    with pytest.raises(InputError, match="more than 102 bytes"):
        reading.read_text(path, limit_bytes=102)
    assert [line for _, line in reading.text_lines(path, limit_bytes=101)] == ["1" * 100, "2"]
    with pytest.raises(InputError, match="line 1 has more than 99 bytes"):
        list(reading.text_lines(path, limit_bytes=99))


@pytest.mark.parametrize("read", [reading.read_object, lambda path: next(reading.json_lines(path))[1]])
def test_a_pipe_that_the_shell_opened_is_read_as_a_file_is(read: Callable[[str], object]):
    reader, writer = os.pipe()
    os.write(writer, b'{"a": 1}\n')
    os.close(writer)
    try:
        assert read(f"/dev/fd/{reader}") == {"a": 1}
    finally:
        os.close(reader)


@pytest.mark.parametrize("text", ["~no-such-user-here/x", "a\0b", "\udcff", "~\0"])
def test_what_can_name_no_file_is_no_path(text: str):
    with pytest.raises(SettingsError, match="is not a path"):
        reading.as_path(text, error=SettingsError)


def test_a_path_has_its_home_folder_expanded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert reading.as_path("~/x") == Path("/home/someone/x")
    assert reading.as_path("./~x") == Path("~x")


@given(st.text(max_size=20) | st.integers().map(str))
def test_whole_numbers_are_those_that_ascii_digits_write(text: str):
    expected = int(text) if text and set(text) <= set("0123456789") and len(text) <= 18 else None
    assert reading.whole_number(text) == expected


@pytest.mark.parametrize("text", ["²", "٣", "1_0", "+1", "-1", " 1", "1\n", "", "1" * 19, "0x1"])
def test_other_digits_write_no_whole_number(text: str):
    assert reading.whole_number(text) is None
