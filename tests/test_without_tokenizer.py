"""A model that comes without a tokenizer goes through every command on token ids; what needs a text says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support_collect import BOS, hf_gpt2, hf_tokenizer, tokenizer
from test_prompts import TEMPLATE

from circuitcli.cli.app import run as circuit
from circuitcli.runs import Run

TRAINING = ["--set", "sae.d_sae=48", "--set", "sae.k=4", "--set", "train.tokens=1024", "--set", "train.batch_size=128"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, token ids, and a run with SAEs, features and a graph, made by the commands in this process."""
    folder = tmp_path_factory.mktemp("bare")
    hf_gpt2().save_pretrained(folder / "model")
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, 250, (60, 30)).astype(np.uint16))
    run = ["--run", str(folder / "run"), "--json", "-q"]
    source = ["--model", str(folder / "model"), "--text", str(folder / "ids.npy")]
    for words in (
        ["collect", *source, "--layers", "1:", "--sites", "resid", "--tokens", "1500", "--device", "cpu"],
        ["train", *TRAINING],
        ["interp"],
        ["graph-grad", "--prompt-ids", "7,3,11,2", "--target", "5", "--down", "3", "--up", "2", "--baseline", "zero"],
        ["validate", "--set", "validate.samples=2", "--set", "validate.bootstrap=10"],
        ["render", "-o", str(folder / "graph.dot")],
    ):
        assert circuit([*words, *run]) == 0, words
    return folder


def test_tokens_are_shown_as_ids(folder):
    feature = json.loads((folder / "run" / "features" / "resid.2.jsonl").read_text().splitlines()[0])
    assert all(token.isdigit() for token in feature["contexts"][0]["tokens"])
    head = json.loads((folder / "run" / "graphs" / "circuit.jsonl").read_text().splitlines()[0])
    assert head["tokens"] == [str(BOS), "7", "3", "11", "2"] and head["ids"] == [BOS, 7, 3, 11, 2]
    assert (head["prompt"], head["target"], head["target_id"], head["bos"]) == ("7 3 11 2", "5", 5, True)
    assert '"7' in (folder / "graph.dot").read_text() or "7 3 11 2" in (folder / "graph.dot").read_text()


def test_prompts_of_ids_test_a_circuit(folder):
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"ids": [9, 8, 7], "target": 6}\n{"ids": [256, 1, 2], "target": "4"}\n')
    words = ["validate", "--prompts", str(prompts), "--set", "validate.samples=1", "--set", "validate.bootstrap=5"]
    assert circuit([*words, "--force", "--run", str(folder / "run"), "--json", "-q"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["graph-grad", "--prompt", "a text"],
        ["graph-grad", "--prompt", "a text", "--chat"],
        ["graph-naive", "--prompt-ids", "1,2", "--target", " Paris"],
        [
            "graph-naive",
            "--prompt-ids",
            "1,2",
            "--set",
            "graph.baseline=counterfactual",
            "--set",
            "graph.counterfactual=a",
        ],
        ["validate", "--pin", "2:1", "--prompt", "a text"],
        ["collect", "--text", "builtin:python", "--force"],
    ],
    ids=" ".join,
)
def test_what_needs_a_text_says_that_there_is_no_tokenizer_and_what_to_give(folder, words, capsys):
    model = ["--model", str(folder / "model")] if words[0] == "collect" else []
    before = Run(folder / "run").manifest()["stages"].keys()
    status = circuit([*words, *model, "--run", str(folder / "run"), "--json"])
    error = capsys.readouterr().err
    assert status == 3, error
    assert "has no tokenizer" in error and "hint: give token ids" in error
    assert Run(folder / "run").manifest()["stages"].keys() == before


def test_with_a_tokenizer_the_same_run_explains_chats_and_tests_them_on_chats(folder):
    run, model = Run(folder / "chats"), folder / "chatting"
    shutil.copytree(folder / "run", run.path)
    shutil.copytree(folder / "model", model)
    hf = hf_tokenizer()
    hf.chat_template = TEMPLATE
    hf.save_pretrained(model)
    run.update_manifest(model_settings=run.manifest()["model_settings"] | {"model.name": str(model)})
    options = ["--run", str(run.path), "--json", "-q"]
    asked = ["--chat", "--prompt", "hi", "--target", "a", "--baseline", "zero", "--down", "3", "--up", "2"]
    assert circuit(["graph-grad", *asked, "--name", "chat", *options]) == 0
    head = json.loads((run.path / "graphs" / "chat.jsonl").read_text().splitlines()[0])
    assert head["ids"] == [BOS, *tokenizer().encode("[user]hi<|eos|>[assistant]")]
    assert (head["prompt"], head["chat"], head["bos"]) == ("hi", True, True)
    (folder / "texts.jsonl").write_text('{"prompt": "ho", "target": "b"}\n')
    quick = ["--set", "validate.samples=1", "--set", "validate.bootstrap=5", "--set", "validate.minimality=false"]
    for more in ([], ["--prompts", str(folder / "texts.jsonl"), "--force"]):
        assert circuit(["validate", "--graph", "chat", *quick, *more, *options]) == 0
    report = json.loads((run.path / "reports" / "chat.json").read_text())
    assert [example["messages"] for example in report["prompts"]] == [[{"role": "user", "content": "ho"}]]
