"""Graphs without a prompt: which prediction of the run's own text they explain, and that it is kept."""

import math
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from circuitcli import graphs, records
from circuitcli.activations.cache import ActivationCache
from circuitcli.attribution import clusters, predictions
from circuitcli.attribution.behaviours import Behaviour
from circuitcli.attribution.examples import Example, LeftOut
from circuitcli.attribution.predictions import best_predictions
from circuitcli.attribution.prompts import Needs, encode_all
from circuitcli.errors import InputError, SettingsError
from circuitcli.evaluation import fit
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import load_model
from circuitcli.progress import NOTE
from circuitcli.records import ActivationsRecord, ScoreRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.sources import load
from circuitcli.stages import collect, graph_grad, graph_naive, validate
from circuitcli.stages.behaviours import own_examples
from circuitcli.stages.request import Request

HOOK = HookPoint(2, "resid")
SMALL = {
    "model.device": "cpu",
    "data.layers": "2:3",
    "data.sites": "resid,mlp",
    "data.tokens": 2500,
    "data.block_length": 100,
    "graph.method": "atp",
    "graph.down": 2,
    "graph.up": 1,
    "graph.baseline_tokens": 200,
    "graph.thin": 0.05,
    "validate.samples": 2,
    "validate.minimality": False,
}


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    """A run with the text of 2,500 tokens and a random SAE beside it."""
    path = tmp_path_factory.mktemp("behaviours")
    run = Run(path / "run")
    collect.run(Request(load(SMALL, environment={}, directory=path).settings, Stream(), run))
    sae = TopKSae(SaeConfig(HOOK, 128, 200), k=8)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    files.save(sae, path / "sae")
    return path


@pytest.fixture
def ask(collected: Path, tmp_path: Path):
    run = Run(Path(shutil.copytree(collected / "run", tmp_path / "run")))

    def request(**changes) -> Request:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        chosen = SMALL | {"sae_path": str(collected / "sae")} | named
        return Request(load(chosen, environment={}, directory=tmp_path).settings, run.stream(), run)

    return request


@pytest.fixture(scope="module")
def model():
    return load_model(load({"model.device": "cpu"}, environment={}, directory=Path("/nonexistent")).settings.model)


@pytest.fixture
def cache(collected: Path) -> ActivationCache:
    return ActivationCache(collected / "run" / "activations", ())


def slow_gains(cache, model, rows: range, context: int) -> dict[tuple[int, ...], tuple[int, float, float]]:
    """Each prediction by a pass of its own: context -> target, log p, gain."""
    before = cache.tokens(0, rows.start).token.tolist()
    counts, total = Counter(before), len(before) + model.adapter.n_token_ids
    found = {}
    for block in cache.blocks(rows.start, rows.stop):
        text = block.ids[1:]
        for at in range(1, len(text)):
            start = (at - 1) // context * context
            ids = [block.ids[0], *text[start:at]]
            logs = model.adapter.logits(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
            value = float(logs[text[at]])
            found[tuple(ids)] = text[at], value, value - math.log((counts[text[at]] + 1) / total)
    return found


@pytest.mark.parametrize("context", [64, 7])
def test_the_best_prediction_is_that_of_its_slow_definition(cache, model, context, monkeypatch):
    monkeypatch.setattr(predictions, "CONTEXT", context)
    rows = range(cache.n_tokens - 250, cache.n_tokens)
    slow = slow_gains(cache, model, rows, context)
    best = max(slow, key=lambda ids: slow[ids][2])
    (found,) = best_predictions(cache, model, rows, 1)
    assert (found.ids, found.target) == (best, slow[best][0])
    assert (found.log_prob, found.gain) == pytest.approx(slow[best][1:], abs=1e-4)
    assert len(slow) > 100 and max(map(len, slow)) == context + 1


@pytest.mark.parametrize("context", [64, 7])
def test_the_best_predictions_are_those_that_a_greedy_search_takes_without_overlap(cache, model, context, monkeypatch):
    monkeypatch.setattr(predictions, "CONTEXT", context)
    rows = range(cache.n_tokens - 250, cache.n_tokens)
    slow = slow_gains(cache, model, rows, context)
    taken: list[tuple[int, ...]] = []
    for ids in sorted(slow, key=lambda ids: -slow[ids][2]):
        # Contexts of one place have the same beginning, of which one is all of the other.
        if all(ids[: len(other)] != other[: len(ids)] for other in taken):
            taken.append(ids)
    for n in (1, 3, 10_000):
        found = best_predictions(cache, model, rows, n)
        assert [each.ids for each in found] == taken[:n]
        assert [each.gain for each in found] == pytest.approx([slow[ids][2] for ids in taken[:n]], abs=1e-4)
    assert 3 < len(taken) < len(slow) / 4


def test_a_text_that_repeats_itself_is_explained_once(cache, model, monkeypatch):
    rows = range(cache.n_tokens - 250, cache.n_tokens)
    once = best_predictions(cache, model, rows, 100)
    blocks = list(cache.blocks(rows.start, rows.stop))
    monkeypatch.setattr(cache, "blocks", lambda start, stop: iter(blocks * 2))
    assert best_predictions(cache, model, rows, 100) == once


def test_special_tokens_and_what_has_no_row_are_no_targets(cache, model, monkeypatch):
    rows = range(cache.n_tokens - 250, cache.n_tokens)
    (best,) = best_predictions(cache, model, rows, 1)
    monkeypatch.setitem(vars(model.tokenizer), "special_ids", frozenset({best.target}))
    (second,) = best_predictions(cache, model, rows, 1)
    assert second.target != best.target and second.gain < best.gain
    original = cache.blocks

    def without(start: int, stop: int):
        for block in original(start, stop):
            block.positions[:] = [at for at in block.positions if block.ids[at] != second.target]
            yield block

    monkeypatch.setattr(cache, "blocks", without)
    assert best_predictions(cache, model, rows, 1)[0].target not in (best.target, second.target)


def test_graphs_without_a_prompt_explain_a_prediction_of_the_runs_own_text_that_is_chosen_once(
    ask, cache, model, monkeypatch, caplog
):
    caplog.set_level(NOTE, logger="circuitcli")
    made = graph_grad.run(ask())
    head = graphs.from_records(Stream(made))[-1].head
    (expected,) = best_predictions(cache, model, range(cache.n_tokens - cache.n_tokens // 10, cache.n_tokens), 1)
    assert (head.ids, head.target_id, head.n_prompts) == (expected.ids, expected.target, 1)
    assert head.metric_clean == pytest.approx(expected.log_prob, abs=1e-4)
    assert head.prompt == "".join(head.tokens[1:]), "BOS is no part of what people are shown"
    text = [*head.ids[1:], head.target_id]
    blocks = [block.ids for block in cache.blocks(0, cache.n_tokens)]
    assert any(ids[at : at + len(text)] == text for ids in blocks for at in range(len(ids)))
    said = [record.message for record in caplog.records if record.levelno == NOTE]
    assert len(said) == 1 and repr(head.target) in said[0] and f"{expected.gain:.2f} nats" in said[0]
    monkeypatch.setattr(predictions, "best_predictions", lambda *given: pytest.fail("searched again"))
    naive = graphs.from_records(Stream(graph_naive.run(ask(graph__batch_size=3))))[-1].head
    assert (naive.ids, naive.target_id) == (head.ids, head.target_id)
    scores = Stream(validate.run(ask(validate__graph="circuit"))).of(ScoreRecord)
    assert next(score.metric_clean for score in scores if score.name == "faithfulness") == head.metric_clean
    monkeypatch.setattr("circuitcli.models.loading.load_model", lambda *given: pytest.fail("worked again"))
    again = graph_grad.run(ask())
    assert [*map(records.to_line, again)] == [*map(records.to_line, made)]


def test_several_predictions_are_kept_and_told_and_are_prompts_like_others(ask, cache, model, monkeypatch, caplog):
    caplog.set_level(NOTE, logger="circuitcli")
    request = ask(graph__sequences=3, graph__foil="(")
    rows = range(cache.n_tokens - cache.n_tokens // 10, cache.n_tokens)
    expected = best_predictions(cache, model, rows, 3)
    given = (request.settings, request.records, request.run.path, model)
    examples = own_examples(*given)
    prompts = encode_all(examples, model.tokenizer, model.adapter, needs=Needs(foil=True), left_out=LeftOut())
    assert [prompt.target for prompt in prompts] == [each.target for each in expected]
    assert [prompt.ids for prompt in prompts] == [each.ids for each in expected]
    (said,) = [record.message for record in caplog.records if record.levelno == NOTE]
    assert "the 3 predictions of the held-out text" in said and "more" not in said
    assert f"{expected[0].gain:.2f} to {expected[2].gain:.2f} nats" in said
    assert all(repr(model.tokenizer.token_strings([each.target])[0]) in said for each in expected)
    monkeypatch.setattr(predictions, "best_predictions", lambda *given: pytest.fail("searched again"))
    assert own_examples(*given) == examples


def test_fewer_predictions_than_asked_for_are_told_with_the_first_three(ask, model, caplog):
    caplog.set_level(NOTE, logger="circuitcli")
    request = ask(graph__sequences=5000)
    examples = own_examples(request.settings, request.records, request.run.path, model)
    assert 3 < len(examples) < 5000
    warning, said = [record.message for record in caplog.records]
    assert f"has {len(examples)} pieces to predict in, not 5000" in warning
    assert said.count(" after ") == 3 and said.endswith(f", and {len(examples) - 3} more")


def test_a_behaviour_is_a_text_or_several_or_a_file(model, tmp_path):
    path = tmp_path / "prompts"
    path.write_text('{"prompt": "import", "target": " os", "counterfactual": "return"}\n{"prompt": 3}\n')
    assert Behaviour.of("import").examples == (Example("import"),)
    several = Behaviour.of(["import", Example("def", " f")], target=" os", metric="logit-diff", foil=" x")
    assert several.examples == (Example("import", " os", " x"), Example("def", " f", " x"))
    found = Behaviour.of(
        path, foil=" x", baseline="counterfactual", metric="logit-diff", left_out=LeftOut(allowed=True)
    )
    assert found.examples == (Example("import", " os", " x", counterfactual="return"),) and found.source == str(path)
    (prompt,) = found.encoded(model.tokenizer, model.adapter)
    assert prompt.foil is not None and prompt.counterfactual is not None
    assert Behaviour.of("import", chat=True).examples[0].messages == (("user", "import"),)
    assert found.digest != several.digest == Behaviour.of(several.examples).digest
    with pytest.raises(SettingsError, match="no prompt is given"):
        Behaviour.of([])
    with pytest.raises(InputError, match="line 2"):
        Behaviour.of(path)
    with pytest.raises(InputError, match="needs a foil"):
        Behaviour.of("import", metric="logit-diff").encoded(model.tokenizer, model.adapter)
    with pytest.raises(InputError, match="needs another prompt"):
        Behaviour.of("import", baseline="counterfactual").encoded(model.tokenizer, model.adapter)


def test_a_choice_that_cannot_be_read_is_made_again(ask):
    first = graphs.from_records(Stream(graph_grad.run(request := ask())))[-1].head
    (kept,) = (request.run.path / "behaviours").iterdir()
    whole = kept.read_text(encoding="utf-8")
    kept.write_text('{"ids": 7}', encoding="utf-8")
    second = graphs.from_records(Stream(graph_grad.run(ask(graph__down=1))))[-1].head
    assert second.ids == first.ids and kept.read_text(encoding="utf-8") == whole


def test_where_little_is_held_out_the_last_whole_block_is_taken(ask, cache):
    head = graphs.from_records(Stream(graph_grad.run(ask(train__eval_tokens=3))))[-1].head
    *_, last = cache.blocks(0, cache.n_tokens)
    assert set(head.ids) <= set(last.ids)


def test_what_a_graph_without_a_prompt_cannot_do_is_refused(ask):
    for option in ({"graph__target": " x"}, {"graph__chat": True}, {"graph__counterfactual": "x"}):
        with pytest.raises(SettingsError, match="needs a prompt, but graph-grad has none") as caught:
            graph_grad.run(ask(**option))
        assert "--prompt" in caught.value.hint
    whole = ask()
    bare = Stream(record for record in whole.records if not isinstance(record, ActivationsRecord))
    with pytest.raises(SettingsError, match="has no prompt, and the run has no collected text"):
        graph_naive.run(Request(whole.settings, bare, whole.run))


def test_a_foil_goes_with_the_chosen_prompt(ask):
    found = graphs.from_records(Stream(graph_grad.run(ask(graph__metric="logit-diff", graph__foil="("))))[-1].head
    assert (found.unit, found.foil) == ("logits", "(")
    with pytest.raises(InputError, match="is not one token"):
        graph_grad.run(ask(graph__metric="logit-diff", graph__foil=" two words"))


def test_an_sae_that_misfits_is_tried_under_each_other_convention_once(ask, monkeypatch, caplog):
    tried = []
    original = fit._quality
    monkeypatch.setattr(fit, "_quality", lambda sae, *given: tried.append(sae) or original(sae, *given))
    graph_grad.run(ask())
    conventions = len(fit._others(tried[0]))
    assert conventions > 3 and "explains -" in caplog.text
    assert len(tried) == 1 + conventions + 1, "as it is, under each convention, and at the other collected hook point"


def test_resampling_needs_collected_text_and_no_activations_of_the_spliced_hook_points(ask, tmp_path):
    files.save(TopKSae(SaeConfig(HookPoint(1, "resid"), 128, 30), k=3), tmp_path / "other")
    other = {"sae_path": str(tmp_path / "other"), "graph__prompt": "import os"}
    head = graphs.from_records(Stream(graph_grad.run(ask(graph__baseline="resample", **other))))[-1].head
    assert len(head.baseline_ids) == head.n_positions and set(head.saes) == {"resid.1"}
    with pytest.raises(InputError, match=r"the mean baseline needs cached activations of resid\.1"):
        graph_grad.run(ask(graph__baseline="mean", **other))


LINES = (
    '{"prompt": "import os", "target": ".", "foil": "(", "counterfactual": "import re", "spans": {"module": [7, 9]}}',
    '{"prompt": "return x", "target": ".", "foil": "(", "counterfactual": "return y", "spans": {"module": [7, 8]}}',
)


def test_a_graph_is_about_what_a_file_asks_wherever_it_lies(ask, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("\n".join(LINES))
    made = graph_grad.run(ask(graph__prompts=str(first)))
    head = graphs.from_records(Stream(made))[-1].head
    assert head.n_prompts == 2
    first.rename(second)
    monkeypatch.setattr("circuitcli.models.loading.load_model", lambda *given: pytest.fail("worked again"))
    # A pipe gives its text once.
    reading, writing = os.pipe()
    os.write(writing, ("\n".join(LINES)).encode())
    os.close(writing)
    for path in (second, f"/dev/fd/{reading}"):
        again = graph_grad.run(ask(graph__prompts=str(path)))
        assert [*map(records.to_line, again)] == [*map(records.to_line, made)]
    os.close(reading)
    second.write_text(LINES[0])
    with pytest.raises(pytest.fail.Exception, match="worked again"):
        graph_grad.run(ask(graph__prompts=str(second)))


def test_a_graph_of_the_only_prompt_of_a_file_is_tested_on_all_that_the_file_says_of_it(ask, tmp_path):
    path = tmp_path / "one"
    path.write_text(LINES[0])
    options = {"graph__baseline": "counterfactual", "graph__metric": "logit-diff", "graph__positions": "spans"}
    head = graphs.from_records(Stream(graph_grad.run(ask(graph__prompts=str(path), **options))))[-1].head
    assert (head.n_prompts, head.span_names) == (1, ("module",))
    path.unlink()
    scores = Stream(validate.run(ask())).of(ScoreRecord)
    assert next(score.metric_clean for score in scores if score.name == "faithfulness") == head.metric_clean


def test_a_file_of_prompts_that_cannot_be_read_is_refused_before_a_model_is_loaded(ask, tmp_path, monkeypatch):
    monkeypatch.setattr("circuitcli.models.loading.load_model", lambda *given: pytest.fail("loaded"))
    for stage in (graph_grad, graph_naive, validate):
        setting = "validate__prompts" if stage is validate else "graph__prompts"
        pins = {"validate__pin": "2:1"} if stage is validate else {}
        for path, told in (("/dev/zero", "a device"), (tmp_path / "none", "No such file"), (tmp_path, "a folder")):
            with pytest.raises(InputError, match=told) as caught:
                stage.run(ask(**{setting: str(path)}, **pins))
            assert caught.value.hint


def test_bad_lines_and_bad_prompts_are_one_warning(ask, tmp_path, caplog):
    path = tmp_path / "some"
    path.write_text("\n".join([*LINES, '{"prompt": 3}', '{"prompt": "a", "target": "two words"}', '{"prompt": "a"']))
    pins = f"2:{','.join(map(str, range(200)))}"
    made = {
        "graph_grad": lambda: graph_grad.run(ask(graph__prompts=str(path), graph__skip_bad=True)),
        "pins": lambda: validate.run(ask(validate__prompts=str(path), graph__skip_bad=True, validate__pin=pins)),
        "validate": lambda: validate.run(ask(validate__prompts=str(path), graph__skip_bad=True)),
    }
    for name, run in made.items():
        caplog.clear()
        run()
        told = [record.message for record in caplog.records if "left out " in record.message]
        assert len(told) == 1 and told[0].startswith("left out 3 of 5 prompts: "), name
    with pytest.raises(InputError, match="some line 3"):
        graph_grad.run(ask(graph__prompts=str(path)))


def test_predictions_are_explained_group_by_group(ask, model, monkeypatch, caplog):
    caplog.set_level(NOTE, logger="circuitcli")
    whole = ask(graph__sequences=8)
    every = own_examples(whole.settings, whole.records, whole.run.path, model)
    found = []
    for number in range(3):
        request = ask(graph__sequences=8, graph__clusters=3, graph__cluster=number)
        caplog.clear()
        found.append(own_examples(request.settings, request.records, request.run.path, model))
        said = [record.message for record in caplog.records if record.message.startswith("group ")]
        assert [int(line.split()[2]) for line in said] == sorted((int(line.split()[2]) for line in said), reverse=True)
        assert said[number].startswith(f"group {number}: {len(found[-1])} predictions")
        # The groups are kept, and not made again for the next one.
        monkeypatch.setattr(clusters, "clustered", lambda *given: pytest.fail("grouped again"))
    assert sorted((one for group in found for one in group), key=every.index) == list(every)


def test_groups_are_directions_and_numbered_by_size():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(5)[:3] * torch.tensor([[1.0], [30.0], [0.2]])
    truth = torch.tensor([1] * 5 + [0] * 9 + [2] * 3)[torch.randperm(17, generator=generator)]
    vectors = centres[truth] * (1 + 0.05 * torch.randn(17, 5, generator=generator))
    vectors = vectors + 0.01 * vectors.norm(dim=1, keepdim=True) * torch.randn(17, 5, generator=generator)
    for seed in range(5):
        assert torch.equal(clusters.clustered(vectors, 3, seed=seed), truth)
        assert torch.equal(clusters.clustered(vectors, 3, seed=seed), clusters.clustered(3 * vectors, 3, seed=seed))
    assert clusters.clustered(torch.ones(4, 2), 3, seed=0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"graph__cluster": 2}, "there are none"),
        ({"graph__sequences": 9, "graph__clusters": 3, "graph__cluster": 3}, "not one of 3"),
        ({"graph__sequences": 2, "graph__clusters": 3}, "cannot be put into 3"),
        ({"graph__prompt": "import", "graph__sequences": 9, "graph__clusters": 3}, "a prompt is given"),
    ],
)
def test_groups_that_cannot_be_are_refused(ask, changes, message):
    with pytest.raises(SettingsError, match=message) as caught:
        graph_grad.run(ask(**changes))
    assert caught.value.hint
