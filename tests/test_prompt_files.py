"""Files of prompts: each known kind is read for what it holds, whatever its name; what is bad is named or counted."""

import csv
import io
import json
import logging
from pathlib import Path

import pytest
from support_collect import BOS, hf_tokenizer, language_model, tokenizer

from circuitcli.attribution.asked import asked_examples
from circuitcli.attribution.examples import BadPrompt, Example, LeftOut, digest_of
from circuitcli.attribution.prompt_files import FILE_BYTES, read_examples
from circuitcli.attribution.prompts import Needs, encode_all, encode_example
from circuitcli.cli.app import run
from circuitcli.errors import ExitStatus, InputError, SettingsError
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.chat import Conversation
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.progress import NOTE
from circuitcli.settings.graph import GraphSettings

OWN = {"prompt": "the cat", "target": " a", "foil": " b", "counterfactual": "the dog"}
PAIR = {"clean_prefix": "the cat", "patch_prefix": "the dog", "clean_answer": " a", "patch_answer": " b", "case": "x"}
LABELLED = {"clean": "the cat", "corrupted": "the dog", "label": " a", "corrupted_hard": "the cow"}
INDEXED = {"": 470, "clean": "the cat", "corrupted": "the dog", "correct_idx": 7, "incorrect_idx": 9}
WRITTEN = {"own": OWN, "pair": PAIR, "labelled": LABELLED, "indexed": INDEXED}
READ = {
    "own": Example("the cat", " a", " b", counterfactual="the dog"),
    "pair": Example("the cat", " a", " b", counterfactual="the dog"),
    "labelled": Example("the cat", " a", counterfactual="the dog"),
    "indexed": Example("the cat", 7, 9, counterfactual="the dog"),
}


def table(rows: list[dict], delimiter: str = ",") -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


FORMS = {
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "array": json.dumps,
    "csv": table,
    "tsv": lambda rows: table(rows, "\t"),
    "csv with a byte-order mark": lambda rows: "\ufeff" + table(rows),
}


@pytest.fixture(scope="module")
def adapter() -> ModelAdapter:
    return language_model().adapter


def file_of(folder: Path, text: str) -> str:
    path = folder / "some-data"
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_is_known_by_its_fields_in_any_form(tmp_path, kind, form):
    rows = [WRITTEN[kind]] * 2
    examples = read_examples(file_of(tmp_path, FORMS[form](rows)))
    assert examples == (READ[kind],) * 2
    expected = "entry 2" if form == "array" else "line 2" if form == "lines" else "line 3"
    assert examples[1].place.endswith(f"some-data {expected}")


def test_a_row_of_a_table_may_have_several_lines_and_is_named_by_its_first(tmp_path):
    rows = [{**LABELLED, "clean": "one\ntwo, three"}, LABELLED]
    first, second = read_examples(file_of(tmp_path, table(rows)))
    assert first.prompt == "one\ntwo, three" and first.place.endswith("line 2") and second.place.endswith("line 4")


def test_a_prompt_of_a_file_has_all_that_a_prompt_can_have(tmp_path):
    talk = [{"role": "user", "content": "hello"}]
    lines = (
        {"prompt": "the cat", "target": 3, "foil": 4, "counterfactual": [1, 2], "spans": {"noun": [4, 7]}},
        {"messages": talk, "counterfactual": talk, "spans": {"greeting": [0, 5]}},
        {"ids": [3, 4], "counterfactual": [5, 6]},
    )
    text, said, ids = read_examples(name := file_of(tmp_path, FORMS["lines"](lines)))
    assert text == Example("the cat", 3, 4, counterfactual=(1, 2), spans=(("noun", (4, 7)),))
    assert said.counterfactual == Conversation.of_user("hello") and said.spans == (("greeting", (0, 5)),)
    assert (ids.ids, ids.counterfactual) == ((3, 4), (5, 6))
    chat = read_examples(name, chat=True)[0]
    assert chat.written == Conversation.of_user("the cat") and chat.counterfactual == (1, 2)
    pair = read_examples(file_of(tmp_path, FORMS["lines"]([PAIR])), chat=True)[0]
    assert pair.counterfactual == Conversation.of_user("the dog")


def test_what_counts_is_what_is_asked_not_the_file(tmp_path):
    name = file_of(tmp_path, FORMS["lines"]([OWN]))
    moved = Path(name).rename(tmp_path / "moved")
    moved.write_text("\n" + moved.read_text())
    before, after = (READ["own"],), read_examples(str(moved))
    assert (
        digest_of(before)
        == digest_of(after)
        != digest_of(read_examples(file_of(tmp_path, FORMS["lines"]([PAIR | {"patch_answer": "c"}]))))
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[]", "has no prompt"),
        ("clean,corrupted,label\n", "has no prompt"),
        ("id,text,label\n0,a,1\n", r"its columns are id, text, label"),
        ("x" * 10_000 + ',"a\nb"\n', r"its columns are x{40}, a b$"),
        (",".join(map(str, range(99))), r"its columns are 0, .*, 11 \.\.\.$"),
        ("a text\n", "its columns are a text"),
        ("clean,clean,corrupted,label\na,b,c,d\n", "two columns named clean"),
        ("clean,corrupted,label\na,b,c\nd,e\n", r"line 3 is not a prompt: it has 2 fields, the header 3"),
        ("clean,corrupted,label\na,,c\n", r"line 2 is not a prompt: its fields are clean, label"),
        ('clean,corrupted,label\na,b,"' + "x" * 200_000 + '"\n', "line 2 is not a row of a table"),
        ("[" * 100_000, "nested too deep"),
        ('[{"prompt": "a"}, 3]', "entry 2 is not a prompt: it is not an object"),
        ('{"prompt": "a"}\n\n{"prompt": 1}\n', r"line 3 is not a prompt: prompt is the number 1, not a text"),
        ('{"prompt": "a"}\n{"prompt"\n', r"line 2 is no"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_file_is_an_error_that_names_the_place(tmp_path, text, told):
    with pytest.raises(InputError, match=told) as caught:
        read_examples(file_of(tmp_path, text))
    assert "some-data" in caught.value.message and caught.value.hint and "\n" not in caught.value.hint


def test_a_file_that_never_ends_or_is_no_text_is_refused(tmp_path):
    huge = tmp_path / "huge"
    with huge.open("wb") as stream:
        stream.write(b'{"prompt": "a"}\n')
        stream.truncate(FILE_BYTES + 1)
    (tmp_path / "bytes").write_bytes(b'{"prompt": "\xff"}\n')
    for name, told in (
        (str(huge), "has more than"),
        ("/dev/zero", "it is a device"),
        (str(tmp_path), "it is a folder"),
        (str(tmp_path / "absent"), "No such file"),
        (str(tmp_path / "bytes"), "UTF-8"),
    ):
        with pytest.raises(InputError, match=told):
            read_examples(name)


def test_a_target_is_the_token_that_continues_the_prompt(adapter):
    """A tokenizer that puts a blank before every text would write a lone ``b`` as another token than in ``ab``."""

    class Spacing(Tokenizer):
        def encode_all(self, texts):
            return super().encode_all([f" {text}" for text in texts])

    spacing = Spacing(hf_tokenizer())
    plain = tokenizer()
    (token,) = plain.encode("b")
    assert len(spacing.encode("b")) == 2
    assert encode_example(Example("a", "b"), spacing, adapter).target == token
    assert encode_example(Example("a", "b", "c"), plain, adapter).target == token
    with pytest.raises(BadPrompt, match="'bc' is not one token but 2"):
        encode_example(Example("a", "bc"), plain, adapter)
    as_ids = encode_example(Example("", "b", 3, ids=(1, 2)), plain, adapter)
    assert (as_ids.target, as_ids.foil) == (token, 3)


def test_a_prompt_has_its_counterfactual_in_tokens_with_bos_and_its_place(adapter):
    example = Example("ab", counterfactual="cde", place="f line 3")
    prompt = encode_example(example, tokenizer(), adapter)
    assert prompt.counterfactual == (BOS, *tokenizer().encode("cde")) and prompt.place == "f line 3"
    with pytest.raises(BadPrompt, match="f line 3: the counterfactual has 4 tokens, the prompt 3"):
        encode_example(example, tokenizer(), adapter, needs=Needs(counterfactual=True))


@pytest.mark.parametrize("bos", ["auto", "never"])
@pytest.mark.parametrize("front", ["", "<|bos|>", "<|bos|><|bos|>"])
def test_a_span_is_the_tokens_that_spell_it(adapter, bos, front):
    text = front + "the c\N{SNOWMAN}t sat"
    spans = tuple(
        (name, (text.index(word), text.index(word) + len(word)))
        for name, word in (("x", "c\N{SNOWMAN}t"), ("y", " sat"))
    )
    prompt = encode_example(Example(text, spans=spans), tokenizer(bos), adapter)
    spelled = {name: tokenizer().decode([prompt.ids[at] for at in where]).strip() for name, where in prompt.spans}
    assert spelled == {"x": "c\N{SNOWMAN}t", "y": "sat"}


def test_spans_of_slow_tokenizers_are_those_of_fast_ones(adapter):
    slow = tokenizer()
    slow._quick = None
    text = "the c\N{SNOWMAN}t sat"
    assert slow.ranges(text) == tokenizer().ranges(text)


def test_spans_of_a_chat_are_found_in_what_the_template_writes(adapter):
    hf = hf_tokenizer()
    hf.chat_template = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}!"
    example = Example("to be", spans=(("verb", (3, 5)),)).with_chat(True)
    prompt = encode_example(example, Tokenizer(hf), adapter)
    ((name, where),) = prompt.spans
    assert name == "verb" and tokenizer().decode([prompt.ids[at] for at in where]) == "be"


BAD = {
    "several tokens": ({"prompt": "a", "target": "xyz"}, "a target or foil that is not one token"),
    "no tokens": ({"prompt": ""}, "a prompt that cannot be encoded"),
    "length": ({"prompt": "ab", "counterfactual": "a"}, "a counterfactual of another length"),
    "none": ({"prompt": "ab"}, "no counterfactual"),
    "type": ({"prompt": 3}, "a field that is missing or of a wrong type"),
    "json": ("{", "no JSON"),
    "span": ({"prompt": "ab", "spans": {"x": [0, 3]}}, "bad spans"),
}
GOOD = {"prompt": "ab", "counterfactual": "cd"}


def all_of(name: str, adapter: ModelAdapter, left_out: LeftOut, **options) -> tuple:
    examples = read_examples(name, left_out=left_out)
    return encode_all(examples, tokenizer(), adapter, needs=Needs(counterfactual=True), left_out=left_out, **options)


@pytest.mark.parametrize("kind", BAD)
def test_the_first_bad_prompt_is_an_error_that_names_its_line(tmp_path, adapter, kind):
    line, reason = BAD[kind]
    name = file_of(tmp_path, json.dumps(GOOD) + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(InputError, match="some-data line 2") as caught:
        all_of(name, adapter, LeftOut())
    assert caught.value.hint.endswith("--skip-bad leaves such prompts out")
    left_out = LeftOut(allowed=True)
    assert [prompt.place[-6:] for prompt in all_of(name, adapter, left_out)] == ["line 1"]
    assert dict(left_out.reasons) == {reason: 1}


@pytest.mark.parametrize("line", [{**GOOD, "target": 260}, {**GOOD, "foil": 10**6}, {"ids": [1, 260]}], ids=str)
def test_ids_of_another_tokenizer_are_an_error_whatever_is_left_out(tmp_path, adapter, line):
    """Others of the same file may lie in the model's vocabulary and mean something else there."""
    name = file_of(tmp_path, FORMS["lines"]([GOOD, line]))
    with pytest.raises(InputError, match=r"line 2: .* token id .*, but this model has ids 0 to 259"):
        all_of(name, adapter, LeftOut(allowed=True))


def test_what_a_file_means_by_ids_is_told_once(tmp_path, adapter, caplog):
    token = tokenizer().encode("b")[0]
    rows = [{**INDEXED, "correct_idx": token, "incorrect_idx": token + 1}] * 2
    examples = read_examples(file_of(tmp_path, FORMS["csv"](rows)))
    with caplog.at_level(NOTE):
        encode_all(examples, tokenizer(), adapter, needs=Needs(), left_out=LeftOut())
        for other in (Example("a", token), Example("", token, ids=(1, 2), place="f line 3")):
            encode_all([other], tokenizer(), adapter, needs=Needs(), left_out=LeftOut())
    (said,) = [record.message for record in caplog.records]
    assert "some-data line 2 gives tokens as ids, which are 'b' and 'c' here" in said


def test_a_long_target_is_not_shown_whole(adapter):
    with pytest.raises(InputError) as caught:
        encode_example(Example("a", "x" * 5000), tokenizer(), adapter)
    assert "is not one token but 5000" in caught.value.message and len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("clean", "label", "target"),
    [
        ("from the year 1702 to the year 17", 2, "02"),
        ("from the year 1702 to the year 17", "02", "02"),
        ("from the year 1752 to the year 17", "52", "52"),
        ("from the year 172 to the year 17", "2", "2"),
        ("from 11702 to 17", "2", "2"),
        ("2 + 3 = ", 5, "5"),
        ("1702 to", "2", "2"),
        ("1702 to 17", " 2", " 2"),
    ],
)
def test_a_label_has_the_zeros_that_it_has_in_the_prompt(tmp_path, clean, label, target):
    rows = [{"clean": clean, "corrupted": "x", "label": label}]
    for form in ("lines", "csv"):
        assert read_examples(file_of(tmp_path, FORMS[form](rows)))[0].target == target


def test_bad_prompts_are_left_out_and_counted_in_one_warning(tmp_path, adapter, caplog):
    lines = [GOOD, *(line for line, _ in BAD.values()), GOOD, BAD["length"][0], GOOD]
    name = file_of(tmp_path, "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with caplog.at_level(logging.WARNING):
        prompts = all_of(name, adapter, left_out := LeftOut(allowed=True))
    assert [prompt.place.rpartition(" ")[2] for prompt in prompts] == ["1", "9", "11"]
    assert left_out.n == 8
    (record,) = caplog.records
    assert record.message.startswith("left out 8 of 11 prompts: 2 with ")
    assert "2 with a counterfactual of another length" in record.message and "some-data line 6" in record.message


def test_the_first_usable_prompts_are_taken_and_none_behind_them_is_looked_at(tmp_path, adapter, caplog):
    lines = [BAD["length"][0], GOOD, GOOD, BAD["length"][0], GOOD]
    name = file_of(tmp_path, FORMS["lines"](lines))
    left_out = LeftOut(allowed=True)
    assert len(all_of(name, adapter, left_out, most=2)) == 2 and left_out.n == 1
    assert "can be used" not in caplog.text
    assert len(all_of(name, adapter, LeftOut(allowed=True), most=4)) == 3
    assert "only 3 prompts can be used, not 4" in caplog.text


def test_where_all_are_bad_that_is_an_error(tmp_path, adapter):
    for kind in ("type", "length"):
        name = file_of(tmp_path, FORMS["lines"]([BAD[kind][0]] * 3))
        with pytest.raises(InputError, match=f"3 with {BAD[kind][1]}; the first: .*line 1") as caught:
            all_of(name, adapter, LeftOut(allowed=True))
        assert caught.value.hint


def test_prompts_with_other_spans_than_the_first_are_bad_where_spans_are_asked_for(tmp_path, adapter):
    spans = [{"a": [0, 1], "b": [1, 2]}, {"b": [0, 1], "a": [1, 2]}, {"a": [0, 1]}, {}]
    examples = read_examples(file_of(tmp_path, FORMS["lines"]([{**GOOD, "spans": each} for each in spans])))
    left_out = LeftOut(allowed=True)
    kept = encode_all(examples, tokenizer(), adapter, needs=Needs(spans=True), left_out=left_out)
    assert [prompt.spans for prompt in kept] == [(("a", (1,)), ("b", (2,))), (("b", (1,)), ("a", (2,)))]
    assert dict(left_out.reasons) == {"no spans": 1, "other spans": 1}
    assert len(encode_all(examples, tokenizer(), adapter, needs=Needs(), left_out=LeftOut())) == 4
    with pytest.raises(InputError, match="line 3: its spans are a, those of the prompts before a b"):
        encode_all(examples[:3], tokenizer(), adapter, needs=Needs(spans=True), left_out=LeftOut())


def test_two_spans_never_share_a_token(adapter):
    text = "\N{SNOWMAN}\N{SNOWMAN}"

    class Coarse(Tokenizer):
        def ranges(self, text):
            return [(0, len(text))] * len(self.encode(text))

    spans = (("a", (0, 1)), ("b", (1, 2)))
    assert len(encode_example(Example(text, spans=spans), tokenizer(), adapter).spans) == 2
    with pytest.raises(BadPrompt, match="spans 'a' and 'b' share the token"):
        encode_example(Example(text, spans=spans), Coarse(hf_tokenizer()), adapter)


def test_ten_thousand_prompts_are_read_and_as_many_encoded_as_are_wanted(tmp_path, adapter):
    name = file_of(tmp_path, FORMS["lines"]([{**PAIR, "clean_answer": "a", "patch_answer": "b"}] * 10_000))
    examples = read_examples(name)
    assert len(examples) == 10_000 and examples[-1].place.endswith("line 10000")
    prompts = encode_all(examples, tokenizer(), adapter, needs=Needs(), left_out=LeftOut(), most=300)
    assert [prompt.place for prompt in prompts] == [example.place for example in examples[:300]]


def test_a_file_and_what_only_one_prompt_has_do_not_go_together(tmp_path):
    name = file_of(tmp_path, FORMS["lines"]([OWN]))
    assert asked_examples(GraphSettings(prompts=name)) == asked_examples(GraphSettings(), path=name) == (READ["own"],)
    assert asked_examples(GraphSettings()) is None
    single = GraphSettings(prompt="the cat", target=" a", foil=" b", counterfactual="the dog")
    assert asked_examples(single) == (READ["own"],)
    for option in ({"prompt": "a"}, {"prompt_ids": (1,)}, {"target": "a"}, {"foil": "a"}, {"counterfactual": "a"}):
        with pytest.raises(SettingsError, match=r"--prompts names a file of prompts, but .* is about a single one"):
            asked_examples(GraphSettings(prompts=name, **option))
    with pytest.raises(SettingsError, match="needs a file of prompts"):
        asked_examples(GraphSettings(prompt="a", n_prompts=3))


@pytest.mark.parametrize("command", ["graph-grad", "graph-naive", "validate"])
def test_every_command_refuses_a_file_beside_one_prompt_before_a_run_is_sought(tmp_path, command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([command, "--prompts", "pairs.jsonl", "--prompt", "The cat"]) == ExitStatus.USAGE
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: --prompts names a file of prompts, but --prompt is about a single one" and hint.startswith(
        "hint: "
    )
    assert run([command, "--n-prompts", "7"]) == ExitStatus.USAGE
