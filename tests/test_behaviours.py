"""Graphs without a prompt: which prediction of the run's own text they explain, and that it is kept."""

import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from circuitcli import graphs, records
from circuitcli.activations.cache import ActivationCache
from circuitcli.attribution import behaviours
from circuitcli.attribution.behaviours import best_prediction
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
    monkeypatch.setattr(behaviours, "CONTEXT", context)
    rows = range(cache.n_tokens - 250, cache.n_tokens)
    slow = slow_gains(cache, model, rows, context)
    best = max(slow, key=lambda ids: slow[ids][2])
    found = best_prediction(cache, model, rows)
    assert (found.ids, found.target) == (best, slow[best][0])
    assert (found.log_prob, found.gain) == pytest.approx(slow[best][1:], abs=1e-4)
    assert len(slow) > 100 and max(map(len, slow)) == context + 1


def test_special_tokens_and_what_has_no_row_are_no_targets(cache, model, monkeypatch):
    rows = range(cache.n_tokens - 250, cache.n_tokens)
    best = best_prediction(cache, model, rows)
    monkeypatch.setitem(vars(model.tokenizer), "special_ids", frozenset({best.target}))
    second = best_prediction(cache, model, rows)
    assert second.target != best.target and second.gain < best.gain
    original = cache.blocks

    def without(start: int, stop: int):
        for block in original(start, stop):
            block.positions[:] = [at for at in block.positions if block.ids[at] != second.target]
            yield block

    monkeypatch.setattr(cache, "blocks", without)
    assert best_prediction(cache, model, rows).target not in (best.target, second.target)


def test_graphs_without_a_prompt_explain_a_prediction_of_the_runs_own_text_that_is_chosen_once(
    ask, cache, model, monkeypatch, caplog
):
    caplog.set_level(NOTE, logger="circuitcli")
    made = graph_grad.run(ask())
    head = graphs.from_records(Stream(made))[-1].head
    expected = best_prediction(cache, model, range(cache.n_tokens - cache.n_tokens // 10, cache.n_tokens))
    assert (head.ids, head.target_id, head.n_prompts) == (expected.ids, expected.target, 1)
    assert head.metric_clean == pytest.approx(expected.log_prob, abs=1e-4)
    assert head.prompt == "".join(head.tokens[1:]), "BOS is no part of what people are shown"
    text = [*head.ids[1:], head.target_id]
    blocks = [block.ids for block in cache.blocks(0, cache.n_tokens)]
    assert any(ids[at : at + len(text)] == text for ids in blocks for at in range(len(ids)))
    said = [record.message for record in caplog.records if record.levelno == NOTE]
    assert len(said) == 1 and repr(head.target) in said[0] and f"{expected.gain:.2f} nats" in said[0]
    monkeypatch.setattr(behaviours, "best_prediction", lambda *given: pytest.fail("searched again"))
    naive = graphs.from_records(Stream(graph_naive.run(ask(graph__batch_size=3))))[-1].head
    assert (naive.ids, naive.target_id) == (head.ids, head.target_id)
    scores = Stream(validate.run(ask(validate__graph="circuit"))).of(ScoreRecord)
    assert next(score.metric_clean for score in scores if score.name == "faithfulness") == head.metric_clean
    monkeypatch.setattr("circuitcli.models.loading.load_model", lambda *given: pytest.fail("worked again"))
    again = graph_grad.run(ask())
    assert [*map(records.to_line, again)] == [*map(records.to_line, made)]


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
        with pytest.raises(SettingsError, match="belongs to a prompt, and graph-grad has none") as caught:
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
