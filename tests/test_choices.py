# ruff: noqa: F811 (fixtures of another file)
"""Multiple-choice questions: files as they come, scores against one plain run a choice, and `validate --choices`."""

import json
import random

import pytest
import torch
from cli_support import here
from test_steering_stage import strongest  # noqa: F401
from test_validate_stage import HOOKS, _one_model, ask, collected, run  # noqa: F401

from circuitcli.cli.summaries import next_step
from circuitcli.cli.told import told
from circuitcli.errors import InputError
from circuitcli.models.loading import load_model
from circuitcli.records import ChoicesRecord, Stream
from circuitcli.runs import remember
from circuitcli.saes.coders import Coders
from circuitcli.stages import choices as stage
from circuitcli.stages import validate
from circuitcli.validation import choices
from circuitcli.validation.choices import answers
from circuitcli.validation.questions import Question, examples_of, read_questions
from circuitcli.validation.steering import Steering

QUESTIONS = [
    Question("import os", ("import sys", "return None", "def"), 0),
    Question("for i in", ("range(3)", "import"), 0),
    Question("class Foo", (" pass", "(object):"), 1),
]
LINES = [{"question": one.text, "choices": list(one.choices), "answer": one.answer} for one in QUESTIONS]


@pytest.fixture
def asked_file(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": 1}',
        '{"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": "B"}',
        '[{"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": "4"}]',
        '{"question": "2 + 2?", "mc1_targets": {"choices": ["3", "4", "5"], "labels": [0, 1, 0]}}',
        "question,x\n",
        "Type,Question,Best Answer,Incorrect Answers\nA,2 + 2?,4,3; 5\n",
    ],
)
def test_files_of_every_known_kind_give_the_same_question(text, tmp_path):
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    if text == "question,x\n":
        with pytest.raises(InputError, match="has no question"):
            read_questions(str(path))
        return
    (found,) = read_questions(str(path))
    assert found.text == "2 + 2?" and found.choices[found.answer] == "4" and sorted(found.choices) == ["3", "4", "5"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"choices": ["a", "b"], "answer": 0}', "no question"),
        ('{"question": "q", "answer": 0}', "no list of choices"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "fewer than two choices"),
        ('{"question": "q", "choices": ["a", "a"], "answer": 0}', "or one twice"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "which of its 2 choices is right"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "which of its 2 choices is right"),
        ('{"question": "q", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}', "which of its 2"),
        ("[3]", "entry 1 is not an object"),
        ("{", "line 1"),
        ("", "has no question"),
    ],
)
def test_bad_files_are_refused_with_their_place(line, message, tmp_path):
    path = tmp_path / "file"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_questions(str(path))
    assert caught.value.hint


def test_shuffled_questions_keep_their_answer_and_shots_never_hold_the_question_itself():
    for seed in range(20):
        for number, question in enumerate(QUESTIONS):
            other = question.shuffled(random.Random(seed))
            assert other.choices[other.answer] == question.choices[question.answer]
            shown = examples_of(QUESTIONS, number, shots=2, seed=seed)
            assert len(shown) == 2 and question not in shown
            assert shown == examples_of(QUESTIONS, number, shots=2, seed=seed)


@pytest.mark.parametrize("by, shots", [("text", 0), ("text", 1), ("number", 2)])
def test_answers_are_those_of_one_plain_run_for_each_choice(by, shots, ask, collected, strongest):
    from circuitcli.saes import files

    model = load_model(ask().settings.model)
    sae = files.load(collected / "saes" / str(HOOKS[0]))
    feature = int(strongest.partition(":")[2])
    steering = Steering(model.adapter, Coders.of([sae]), {HOOKS[0]: {feature: 6.0}}, first=1)
    made = choices.ask(QUESTIONS, model.tokenizer, by=by, shots=shots, seed=3)
    for clean in (True, False):
        found = answers(made, steering, clean=clean, batch_size=2)
        for number, one in enumerate(made):
            sums = []
            for ids, start in zip(one.ids, one.starts, strict=True):
                told = steering.logits(ids, clean=clean).double().log_softmax(dim=-1)
                sums.append(sum(float(told[place - 1, ids[place]]) for place in range(start, len(ids))))
            expected = torch.tensor(sums, dtype=torch.float64)
            assert int(found.chosen[number]) == int(expected.argmax())
            assert float(found.probability[number]) == pytest.approx(
                float(expected.softmax(0)[one.question.answer]), rel=1e-3, abs=1e-6
            )
            texts = [model.tokenizer.decode(ids[start:]) for ids, start in zip(one.ids, one.starts, strict=True)]
            wanted = map(str, range(1, 10)) if by == "number" else one.question.choices
            assert all(text.strip().endswith(choice.strip()) for text, choice in zip(texts, wanted, strict=False))


def test_choices_are_recorded_reported_told_and_not_asked_twice(ask, asked_file, strongest, run, monkeypatch):
    wanted = {"validate__choices": asked_file, "validate__scale": (f"{strongest}=0",)}
    (record,) = validate.run(ask(**wanted))
    assert isinstance(record, ChoicesRecord) and record.n_questions == 3
    assert record.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert record.difference == pytest.approx(record.accuracy_scaled - record.accuracy)
    assert record.n_gained - record.n_lost == round(3 * record.difference)
    assert record.accuracy_low <= record.accuracy <= record.accuracy_high
    report = json.loads((run.path / record.path).read_text())
    right = [one["chosen"] == one["answer"] for one in report["questions"]]
    assert sum(right) / 3 == pytest.approx(record.accuracy)
    assert next_step("validate", [record]) is None
    assert "of 3 questions are answered rightly" in " ".join(told([record]))
    monkeypatch.setattr(stage, "_work", lambda wanted: pytest.fail("it was done before"))
    assert validate.run(ask(**wanted)) == [record] == Stream(run.stream()).of(ChoicesRecord)


def test_what_cannot_be_asked_is_one_error_with_a_hint_and_its_status(collected, run, tmp_path, strongest, asked_file):
    remember(run)

    def refused(*words: str) -> tuple[int, list[str]]:
        saes = ("--sae", str(collected / "saes"), "--device", "cpu", "--run", str(run.path))
        done = here("validate", *saes, *words, cwd=tmp_path)
        assert len(done.errors) == 2 and not done.stdout, done.stderr
        return done.status, done.errors

    status, errors = refused("--choices", asked_file, "--scale", "1:59=3")
    assert status == 3 and "active nowhere in the questions" in errors[0], "a dead feature"
    for words, wanted in (
        (("--choices", "nowhere.jsonl"), 3),
        (("--choices", asked_file, "--pin", strongest), 2),
        (("--choices", asked_file, "--scale", "1:9999=3"), 3),
        (("--choices", asked_file, "--at-least", "0.5"), 2),
        (("--shots", "2"), 2),
    ):
        assert refused(*words)[0] == wanted, words
