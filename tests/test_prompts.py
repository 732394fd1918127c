"""A prompt is the same tokens whatever it is given as, with one BOS in front, and a chat is as the model wants it."""

import json
from pathlib import Path

import pytest
from support_collect import BOS, EOS, hf_gpt2, hf_tokenizer, language_model, save_model, tokenizer

from circuitcli.attribution.asked import asked_counterfactual, asked_prompt
from circuitcli.attribution.prompt_files import read_examples
from circuitcli.attribution.prompts import encode_prompt
from circuitcli.errors import InputError, SettingsError
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.chat import Conversation
from circuitcli.models.ids_only import IdsOnly
from circuitcli.models.loading import load_tokenizer
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.model import ModelSettings

# Written in front as many templates do; the assistant's turn is begun if that is asked for.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role not in ('user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}[{{ message.role }}]{{ message.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "3"}]


def chatting(bos: str = "auto") -> Tokenizer:
    hf = hf_tokenizer()
    hf.chat_template = TEMPLATE
    return Tokenizer(hf, bos=bos)


@pytest.fixture(scope="module")
def adapter() -> ModelAdapter:
    return language_model().adapter


@pytest.mark.parametrize("n_bos", range(4))
@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_a_prompt_has_one_bos_in_front_at_most_and_it_carries_no_nodes(adapter, bos, n_bos):
    plain = tokenizer().encode("a<|bos|>b")
    front = [BOS] if n_bos or bos != "never" else []
    for written in ("<|bos|>" * n_bos + "a<|bos|>b", (*[BOS] * n_bos, *plain)):
        prompt = encode_prompt(written, tokenizer(bos), adapter)
        assert [*prompt.ids] == [*front, *plain]
        assert (prompt.first, prompt.bos, prompt.n_spliced) == (len(front), bool(front), len(plain))
        assert len(prompt.tokens) == len(front) + len(plain)


@pytest.mark.parametrize("bos", ["auto", "never"])
@pytest.mark.parametrize("written", ["", "<|bos|>", "<|bos|><|bos|>", (), (BOS,), (BOS, BOS)])
def test_a_prompt_without_text_is_empty(adapter, written, bos):
    with pytest.raises(InputError, match="the prompt is empty"):
        encode_prompt(written, tokenizer(bos), adapter)


def test_a_prompt_of_ids_is_shown_as_its_text(adapter):
    text = "a b\N{SNOWMAN}"
    assert encode_prompt(tuple(tokenizer().encode(text)), tokenizer(), adapter).text == text


@pytest.mark.parametrize("ids", [(260,), (1, 2**31 - 1), (-1, 2)])
def test_ids_that_the_model_lacks_are_named(adapter, ids):
    with pytest.raises(InputError, match=r"the prompt has token id .*, but this model has ids 0 to 259"):
        encode_prompt(ids, tokenizer(), adapter)


def test_a_prompt_that_is_no_utf8_is_refused(adapter):
    with pytest.raises(InputError, match="not UTF-8"):
        encode_prompt("a\udcffb", tokenizer(), adapter)


@pytest.mark.parametrize("bos", ["auto", "never"])
def test_a_chat_is_written_by_the_template_with_one_bos_and_the_answer_begun(adapter, bos):
    prompt = encode_prompt(Conversation.read(TALK, place="here"), chatting(bos), adapter)
    written = "[user]one<|eos|>[assistant]two<|eos|>[user]3<|eos|>[assistant]"
    assert [*prompt.ids] == [BOS, *tokenizer().encode(written)]
    assert prompt.first == 1 and prompt.text == "3"


def test_what_the_settings_ask_for_is_a_text_a_chat_or_ids():
    assert asked_prompt(GraphSettings(prompt="a")) == "a"
    assert asked_prompt(GraphSettings(prompt="a", chat=True)) == Conversation.of_user("a")
    assert asked_prompt(GraphSettings.model_validate({"prompt_ids": "3, 4,5"})) == (3, 4, 5)
    assert asked_counterfactual(GraphSettings(counterfactual_ids=(1, 2))) == (1, 2)
    assert asked_counterfactual(GraphSettings()) is None
    with pytest.raises(SettingsError, match=r"graph.prompt and graph.prompt_ids are both set"):
        asked_prompt(GraphSettings(prompt="a", prompt_ids=(1,)))
    with pytest.raises(SettingsError, match=r"graph.chat needs a text, but graph.prompt_ids are token ids"):
        asked_prompt(GraphSettings(prompt_ids=(1,), chat=True))


def test_a_model_without_a_chat_template_and_a_chat_that_it_refuses_are_told_apart(adapter):
    with pytest.raises(InputError, match="this model has no chat template") as caught:
        encode_prompt(Conversation.of_user("a"), tokenizer(), adapter)
    assert "--chat" in caught.value.hint
    odd = Conversation.read([{"role": "tool", "content": "a"}], place="here")
    with pytest.raises(InputError, match="refuses this conversation: unknown role tool"):
        encode_prompt(odd, chatting(), adapter)


@pytest.mark.parametrize(
    "value",
    [[], {}, "a", None, [1], ["a"], [{}], [{"role": "user"}], [{"role": 1, "content": "a"}], [*TALK, {"role": "x"}]],
)
def test_what_is_no_conversation_is_named(value):
    with pytest.raises(InputError, match="line 7 has no messages"):
        Conversation.read(value, place="line 7")


def prompts_file(folder: Path, *lines: object) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_prompts_of_a_file_are_texts_ids_or_messages(tmp_path, adapter):
    name = prompts_file(
        tmp_path, {"prompt": "one", "target": " a", "foil": "b"}, {"ids": [1, 2], "target": 7}, {"messages": TALK}
    )
    plain, ids, talk = read_examples(name)
    assert (plain.written, plain.target, plain.foil) == ("one", " a", "b")
    assert (ids.written, ids.target, ids.prompt) == ((1, 2), 7, "1 2")
    assert talk.written == Conversation.read(TALK, place="") and talk.prompt == "3"
    as_chats = [example.written for example in read_examples(name, chat=True)]
    assert as_chats == [Conversation.of_user("one"), (1, 2), talk.written]


@pytest.mark.parametrize(
    "line",
    [
        "[" * 50_000 + "\n",
        '{"prompt": ' + "9" * 5000 + "}\n",
        '{"prompt": "a\\ud800"}\n',
        '{"prompt": "a", "ids": [1]}\n',
        '["prompt"]\n',
        *({"prompt": value} for value in (1, ["a"], {}, None)),
        *({"ids": value} for value in ("1,2", [1.0], [True], [-1], [2**40], [[1]], {}, 3)),
        *({"messages": value} for value in ([], "a", [1], [{"role": "user"}])),
        *({"prompt": "a", "target": value} for value in (1.5, [], True)),
        *({"prompt": "a", "foil": value} for value in (1.5, [], True)),
        *({"prompt": "a", "counterfactual": value} for value in (1, {}, [True], [-1], [{"role": "user"}])),
        *({"prompt": "abc", "spans": value} for value in ([], {"x": 1}, {"x": [0]}, {"x": [0, 1.5]})),
        *({"prompt": "abc", "spans": {"x": value}} for value in ([1, 1], [2, 1], [-1, 2], [0, 4])),
        *({"prompt": "abc", "spans": {name: [0, 1]}} for name in ("", "4", "a b", "a@b")),
        {"prompt": "abc", "spans": {"x": [0, 2], "y": [1, 3]}},
        {"ids": [1, 2], "spans": {"x": [0, 1]}},
        {"clean_prefix": "a", "patch_prefix": "b", "clean_answer": "c"},
        {"clean_prefix": "a", "patch_prefix": "b", "clean_answer": "c", "patch_answer": 3},
        {"clean": "a", "corrupted": "b"},
        {"clean": "a", "corrupted": ["b"], "label": "c"},
        *({"clean": "a", "corrupted": "b", "label": value} for value in (1.5, True, [])),
        *({"clean": "a", "corrupted": "b", "correct_idx": value, "incorrect_idx": 1} for value in ("x", -1, 1.0)),
        {},
    ],
    ids=lambda line: str(line)[:24],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, line):
    with pytest.raises(InputError, match=r"prompts\.jsonl line 2") as caught:
        read_examples(prompts_file(tmp_path, {"prompt": "good"}, line))
    assert caught.value.hint


def test_without_a_tokenizer_ids_are_read_and_shown_and_texts_refused(tmp_path, adapter):
    hf_gpt2().save_pretrained(tmp_path)
    bare = load_tokenizer(ModelSettings(name=str(tmp_path)))
    assert isinstance(bare, IdsOnly) and (bare.bos_id, bare.special_ids) == (BOS, {BOS, EOS})
    prompt = encode_prompt((7, 3), bare, adapter)
    assert ([*prompt.ids], prompt.tokens, prompt.text) == ([BOS, 7, 3], ("256", "7", "3"), "7 3")
    assert bare.single_token("12", what="target") == 12
    for refused in (
        lambda: encode_prompt("a text", bare, adapter),
        lambda: encode_prompt(Conversation.of_user("a"), bare, adapter),
        lambda: bare.single_token(" Paris", what="target"),
        lambda: bare.single_token("260", what="target"),
    ):
        with pytest.raises(InputError) as caught:
            refused()
        assert "--prompt-ids" in caught.value.hint
    assert isinstance(load_tokenizer(ModelSettings(name=str(save_model(tmp_path)))), Tokenizer)
