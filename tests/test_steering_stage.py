# ruff: noqa: F811 (fixtures of another file)
"""`validate --scale`: what it records and prints, what it keeps, and with which status it refuses."""

import json

import pytest
from cli_support import here
from test_validate_stage import HOOKS, PROMPT, _one_model, ask, collected, run  # noqa: F401

from circuitcli.cli.summaries import next_step
from circuitcli.cli.told import told
from circuitcli.models.loading import load_model
from circuitcli.records import SteeringRecord, Stream
from circuitcli.runs import remember
from circuitcli.stages import steering, validate
from circuitcli.validation.steering import Steering

STEER = {"validate__generate": 5, "graph__prompt": PROMPT}


@pytest.fixture
def strongest(ask, collected) -> str:
    """The feature that is most active in the prompt, as a pin."""
    from circuitcli.saes import files
    from circuitcli.saes.coders import Coders

    request = ask()
    model = load_model(request.settings.model)
    sae = files.load(collected / "saes" / str(HOOKS[0]))
    ids = model.tokenizer.with_bos(model.tokenizer.encode(PROMPT))
    codes = Steering(model.adapter, Coders.of([sae]), {HOOKS[0]: {}}, first=1).codes(ids, clean=True)[HOOKS[0]]
    return f"{HOOKS[0].layer}:{int(codes.amax(dim=0).argmax())}"


def test_steering_is_recorded_reported_and_not_done_twice(ask, strongest, run, monkeypatch):
    record, figure = validate.run(ask(validate__scale=(f"{strongest}=8",), **STEER))
    assert isinstance(record, SteeringRecord) and record.factors == {f"resid.{strongest.replace(':', '/')}": 8.0}
    assert len(record.tokens_clean) == len(record.kl_clean) == 5 == len(record.tokens_steered) == len(record.kl_steered)
    assert "".join(record.tokens_clean) == record.clean and record.kl_clean[0] == pytest.approx(record.kl_steered[0])
    assert record.kl_clean[0] > 1e-3 and min(record.active.values()) > 0
    report = json.loads((run.path / record.path).read_text())
    assert report["kl_steered"] == list(record.kl_steered) and report["features"][0]["factor"] == 8.0
    assert next_step("validate", [record]) is None, "there is no graph to draw"
    lines = [*told([record])]
    assert repr(record.steered) in lines[1] and "times 8" in lines[2]
    assert b"along the steered text" in (run.path / figure.path).read_bytes()
    monkeypatch.setattr(steering, "_work", lambda wanted: pytest.fail("it was done before"))
    assert validate.run(ask(validate__scale=(f"{strongest}=8",), **STEER)) == [record, figure]
    assert Stream(run.stream()).of(SteeringRecord) == [record]


def test_what_cannot_be_steered_is_one_error_with_a_hint_and_its_status(collected, run, tmp_path, strongest):
    remember(run)

    def refused(*words: str) -> tuple[int, list[str]]:
        saes = ("--sae", str(collected / "saes"), "--device", "cpu", "--run", str(run.path))
        done = here("validate", *saes, *words, cwd=tmp_path)
        assert len(done.errors) == 2 and not done.stdout, done.stderr
        return done.status, done.errors

    prompt = ("--prompt", "import os", "--generate", "2")
    status, errors = refused("--scale", "1:59=3", *prompt)
    assert status == 3 and "active nowhere" in errors[0] and "active there: resid.1/" in errors[1], "a dead feature"
    for words, wanted in (
        (("--scale", "1:9999=3", *prompt), 3),
        (("--scale", "0:5=3", *prompt), 3),
        (("--scale", f"{strongest}=3"), 2),
        (("--scale", strongest, *prompt), 2),
        (("--scale", f"{strongest}=3", "--scale", f"{strongest}=4", *prompt), 2),
        (("--scale", f"{strongest}=3", "--pin", strongest, *prompt), 2),
        (("--scale", f"{strongest}=3", "--stability", "3", *prompt), 2),
        (("--scale", f"{strongest}=3", "--at-least", "0.5", *prompt), 2),
        (("--scale", f"{strongest}=3", "--prompts", "nowhere.jsonl"), 2),
        (("--scale", f"{strongest}=3", "--generate", "0", "--prompt", "a"), 2),
        (("--scale", f"{strongest}=3", "--temperature", "-1", "--prompt", "a"), 2),
    ):
        assert refused(*words)[0] == wanted, words
