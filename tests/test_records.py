"""Lines and records are two forms of one thing; whatever this version does not know is kept."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcli import reading, records, schema
from circuitcli.errors import InputError
from circuitcli.records import (
    KINDS,
    ActivationsRecord,
    EdgeRecord,
    FeatureRecord,
    FeaturesRecord,
    GraphRecord,
    NodeRecord,
    Record,
    RunRecord,
    SaeRecord,
    ScoreRecord,
    Stream,
    UnknownRecord,
)

texts = st.text(max_size=40) | st.sampled_from(["\u2028", "\x85", "\r\n", '"\\', "\x00", "é\u0301", "💥", "</script>"])
finite = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(reading.SMALLEST, reading.LARGEST)
values = st.recursive(st.none() | st.booleans() | whole | finite | texts, lambda v: st.lists(v, max_size=3))
unknown_fields = st.dictionaries(texts.map(lambda text: "later_" + text), values, max_size=3)

paths = texts.filter(lambda text: "\0" not in text)
features = st.builds("resid.{}/{}{}".format, st.integers(0, 99), st.integers(0, 9) | st.just("error"), st.just(""))
nodes = features | st.builds("mlp.{}/{}@{}".format, *[st.integers(0, 99)] * 3) | st.sampled_from(["output", "embed/1"])
units = st.sampled_from(schema.UNITS)

some_records = st.one_of(
    st.builds(RunRecord, path=paths, model=texts, revision=st.none() | texts, layers=texts, version=texts),
    st.builds(FeatureRecord, id=features, label=texts, density=finite, path=st.just("features/resid.1.jsonl")),
    st.builds(
        FeaturesRecord,
        hook=st.just("resid.1"),
        n_live=st.integers(0, 2**63 - 1),
        n_dead=st.integers(0, 9),
        path=st.just("features/resid.1.jsonl"),
        digest=texts,
    ),
    st.builds(NodeRecord, id=nodes, activation=st.none() | finite, effect=st.none() | finite, unit=st.none() | units),
    st.builds(EdgeRecord, source=nodes, target=nodes, weight=finite, unit=units),
    st.builds(ScoreRecord, name=texts, value=finite, low=st.none() | finite, high=st.none() | finite),
)


@given(st.lists(some_records))
def test_what_is_written_reads_back_equal(some: list[Record]):
    assert list(records.read([records.to_line(record) for record in some])) == some


def test_a_file_of_records_reads_back_equal(tmp_path: Path):
    some = [NodeRecord(id="output"), FeatureRecord(id="resid.1/2", label="é \u2028\x85\r\n", density=0.5, path="")]
    path = tmp_path / "some.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        records.write(some, stream)
    with path.open(encoding="utf-8") as lines:
        assert list(records.read(lines)) == some


@given(some_records, unknown_fields)
def test_a_record_is_one_line_that_begins_with_its_kind_and_keeps_unknown_fields(record: Record, extra: dict):
    whole = record.model_copy(update=extra)
    line = records.to_line(type(record).model_validate({**record.model_dump(), **extra}))
    assert "\n" not in line and "\r" not in line
    assert line.startswith(f'{{"kind": "{record.kind}"')
    read = records.parse_line(line)
    assert read.model_dump(exclude_none=True) == whole.model_dump(exclude_none=True)


@given(st.dictionaries(texts, values, max_size=4))
def test_records_of_an_unknown_kind_keep_every_field_and_null(fields: dict):
    content = {**fields, "kind": "of another version"}
    record = records.parse_line(json.dumps(content))
    assert isinstance(record, UnknownRecord)
    assert json.loads(records.to_line(record)) == content


def test_every_kind_of_the_design_has_a_type_of_its_own():
    assert {kind: type_.model_fields["kind"].default for kind, type_ in KINDS.items()} == {kind: kind for kind in KINDS}


def test_fields_that_are_not_set_are_left_out():
    assert records.to_line(NodeRecord(id="output")) == '{"kind": "node", "id": "output"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind":"run"', "is not JSON"),
        ("[]", "is not a record: []"),
        ("3", "is not a record"),
        ('{"id":"output"}', "is not a record"),
        ('{"kind":7}', "is not a record"),
        ('{"kind":"edge","source":"embed/1","target":"output","unit":"nats"}', "edge record: weight: field required"),
        ('{"kind":"node","id":3}', "node record: id"),
    ],
)
def test_a_damaged_line_is_refused_with_its_place(line: str, message: str):
    with pytest.raises(InputError) as caught:
        records.read(['{"kind":"something"}', "", line], name="pipe")
    assert caught.value.message.startswith("pipe line 3: ")
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_never_written(value: float):
    with pytest.raises(ValueError, match="JSON"):
        records.to_line(ScoreRecord.model_construct(name="faithfulness", value=value))


def sae(hook: str, digest: str) -> SaeRecord:
    return SaeRecord(hook=hook, architecture="topk", d_in=3, d_sae=5, path="saes", digest=digest)


def test_of_several_records_about_one_thing_the_last_counts_and_the_order_stays():
    stream = Stream([sae("resid.1", "a"), sae("resid.0", "b"), NodeRecord(id="output"), sae("resid.1", "c")])
    assert [(record.hook, record.digest) for record in stream.of(SaeRecord)] == [("resid.1", "c"), ("resid.0", "b")]
    assert stream.of(ActivationsRecord) == []


@given(st.lists(some_records), st.lists(some_records))
def test_streams_add_up_and_know_their_last_records(first: list[Record], second: list[Record]):
    both = Stream(first) + Stream(second)
    assert list(both) == [*first, *second] == list(Stream(first) + second)
    assert len(both) == len(first) + len(second)
    nodes = [record for record in both if isinstance(record, NodeRecord)]
    assert both.last(NodeRecord) == (nodes[-1] if nodes else None)
    assert both.last(GraphRecord) is None
