"""Whatever stands in a record from outside, it is read as what it says it is, or refused with its line and field."""

import json
import math

import pytest

from circuitcli import records, schema
from circuitcli.errors import InputError
from circuitcli.records import KINDS, Record

SAE = {"hook": "resid.1", "architecture": "topk", "d_in": 4, "d_sae": 8, "path": "saes/resid.1", "digest": "sha256:1"}
MANY = {"standard_error": 0.25, "active": 0.5}
GOOD: dict[str, dict[str, object]] = {
    "search": {
        "name": "search",
        "by": "nearest",
        "max_kl": 0.25,
        "n_prompts": 50,
        "median_nodes": 14.0,
        "mean_nodes": 18.1,
        "n_edges": 30.5,
        "median_kl": 0.14,
        "mean_kl": 0.15,
        "reached": 1.0,
    },
    "run": {"path": "/some/run", "model": "gpt2", "version": "1"},
    "activations": {
        **{"hook": "resid.1", "path": "activations/resid.1", "n_tokens": 8, "d_model": 4},
        **{"dtype": "float16", "digest": "sha256:0"},
    },
    "model": {
        **{"path": "models/small", "n_parameters": 9, "validation_loss": 1.5, "unit": "nats", "bits_per_byte": 2.1},
        **{"n_tokens_seen": 90, "step": 3, "digest": "sha256:4", "text": "builtin:python"},
    },
    "checkpoint": {
        **{"name": "step3", "step": 3, "path": "checkpoints/step3", "validation_loss": 1.5, "unit": "nats"},
        **{"model": "models/small", "hooks": ["resid.1"], "n_tokens": 9, "tokens": "sha256:5"},
    },
    "match": {
        **{"hook": "resid.1", "source": "step0", "target": "step3", "by": "activation", "control": "seed"},
        **{"assignment": "hungarian", "n_tokens": 9, "n_source": 3, "n_target": 2, "dead_source": 1, "dead_target": 0},
        **{"distances": [0.1], "shares": [0.5], "low": [0.2], "high": [0.7], "n_context": 1, "context_shares": [0.0]},
        **{"cosine": 0.6, "histogram": [1, 0], "other_histogram": [0, 1], "same": 0.5, "is_step": True},
    },
    "development": {
        **{"hook": "resid.1", "by": "activation", "least": 0.7, "checkpoints": ["step0", "main"], "steps": [0, None]},
        **{"live": [3, 2], "token_level": [1, 1], "born": [3, 1], "died": [2, 0], "still": [1.0, 0.5]},
        **{"since": [0.5, 1.0], "whole": 1, "lives": 4, "matched": [None, 0.5], "seeds": [None, None]},
        **{"shuffled": [None, 0.1], "report": "reports/development.json", "table": "reports/development-resid.1.csv"},
    },
    "sae": {**SAE, "hook": "mlp_in.1", "target": "mlp.1", "further": ["mlp.2"]},
    "sweep": {**SAE, "variant": "sae.k=8"},
    "evaluation": {**SAE, "report": "reports/evaluate.json", "n_eval_tokens": 9, "l0": 3.5},
    "replacement": {
        **{"hooks": ["mlp_in.1"], "replaced": ["mlp.1", "mlp.2"], "n_predictions": 9, "loss_recovered": 0.9},
        **{"ce_clean": 2.0, "ce_spliced": 2.5, "ce_mean": 7.0, "ce_zero": 8.0, "kl_spliced": 0.4},
    },
    "inspection": {**SAE, "format": "native", "problems": ["one"]},
    "release": {
        **{"name": "gpt2-small-res-jb", "id": "blocks.1", "hook": "resid.1", "format": "sae_lens"},
        **{"repository": "owner/name", "path": "blocks.1"},
    },
    "export": {"hook": "resid.1", "format": "sae_lens", "path": "/out"},
    "features": {
        **{"hook": "resid.1", "n_live": 7, "n_dead": 1, "path": "features/resid.1.jsonl", "digest": "sha256:2"},
    },
    "labels": {
        **{"hook": "resid.1", "source": "model", "n_labels": 7, "n_new": 3, "path": "labels/model.jsonl", "model": "m"},
    },
    "label-score": {
        **{"score": "detection", "labels": "model", "value": 0.75, "low": 0.5, "high": 0.875, "unit": "ratio"},
        **{"n_features": 3, "n_examples": 60, "n_invalid": 2, "shares": {"active": 0.5}, "auc": 0.8, "judge": "m"},
    },
    "token": {"number": 0, "position": 1, "token": " a", "features": [["resid.1/3", 1.5, "label"]]},
    "feature": {"id": "resid.1/3", "label": "a", "density": 0.5, "path": "features/resid.1.jsonl"},
    "graph": {
        **{"name": "circuit", "method": "grad-ig", "metric": "log-prob", "prompt": "a b", "tokens": ["a", " b"]},
        **{"metric_clean": -1.0, "metric_baseline": -9, "dtype": "float32", "unit": "nats", "baseline": "mean"},
        **{"positions": "all", "model": "gpt2", "saes": {"resid.1": "sha256:1"}, "path": "graphs/circuit.jsonl"},
        **{"effects": {"resid.1": {"gap": None, "errors": 0.5}}, "writes": {"mlp_in.1": ["mlp.1", "mlp.2"]}},
        **{"prompts": "pairs.jsonl", "prompts_digest": "sha256:3", "n_prompts": 2, "columns": [["a", "b"], [" b"]]},
        **{"span_names": ["subject", "verb"], "next_tokens": [[" c", 0.5], ["d", 0]]},
    },
    "node": {**{"id": "resid.1/3@verb", "activation": 1.5, "effect": -1, "unit": "nats"}, **MANY},
    "trace": {"feature": "resid.1/3", "activations": [0, 1.5, 0.25], "prompt": 2, "tokens": ["a", " b", "c"]},
    "edge": {
        **{"source": "resid.1/error", "target": "output", "weight": 0.1, "unit": "nats"},
        **MANY,
        "heads": {"5.3": 0.2, "stream": -0.1},
    },
    "attention": {
        **{"id": "5.3:12,4", "graph": "circuit", "head": "5.3", "query": 12, "key": 4, "score": 2.5, "pattern": 0.5},
        **{"n_pairs": 9, "rest": -0.5},
    },
    "pair": {"attention": "5.3:12,4", "query": "resid.1/3@12", "key": "embed/token@4", "weight": 3},
    "response": {
        **{"source": "resid.1/3", "of": "output", "coefficients": [0, 1], "values": [0.5, 0.25], "unit": "nats"},
        **{"standard_errors": [0.1, 0.2], "graph": "naive"},
    },
    "score": {"name": "faithfulness", "value": 0.5, "graph": "circuit", "errors": "nodes"},
    "shift": {"of": "token", "name": " a", "clean": 0.5, "ablated": 0.1, "unit": "probability", "graph": "pins"},
    "curve": {
        **{"of": "nodes", "ranked": "graph", "counts": [1, 10], "total": 10, "values": [0.5, 0.9], "cmd": 0.2},
        **{"cmd_log": 1.0, "cpr": 0.7, "cpr_log": 1.2, "best_cpr": 0.9, "best_cpr_log": 2.3, "largest": 0.9},
        **{"largest_count": 10, "low": [0.4, 0.8], "high": [0.6, 1.0], "graph": "circuit", "errors": "nodes"},
    },
    "verdict": {"verdict": "supported", "why": ["keeps 80 %"], "graph": "circuit", "errors": "nodes"},
    "stability": {
        **{"of": "bootstrap", "what": "nodes", "value": 0.6, "low": 0.4, "median": 0.6, "high": 0.9, "rank": -0.5},
        **{"values": [0.4, 0.6, 1], "bar": 0.8, "graph": "circuit", "n_prompts": 8, "coders": "other/saes"},
    },
    "steering": {
        **{"name": "steering", "prompt": "a b", "factors": {"resid.1/3": 3.0}, "clean": " c d", "steered": " c e"},
        **{
            "tokens_clean": [" c", " d"],
            "tokens_steered": [" c", " e"],
            "kl_clean": [0.1, 0.2],
            "kl_steered": [0, 1.5],
        },
        **{"unit": "nats", "temperature": 0, "active": {"resid.1/3": 2}, "path": "reports/steering.json"},
    },
    "comparison": {
        **{"graph": "circuit", "against": "other", "n_nodes": 3, "n_edges": 4, "n_nodes_against": 5},
        **{"n_edges_against": 6, "nodes": 0.3, "edges": 0.2, "node_ranks": -0.1, "nodes_anywhere": 0.4},
        **{"edges_anywhere": 0.3, "n_added": 2, "n_removed": 1, "errors": "nodes", "ablation": "mean"},
        **{"faithfulness": {"value": 0.5, "low": None}, "completeness": {"value": 0.2}, "path": "reports/a.json"},
    },
    "change": {
        **{"action": "add", "id": "resid.1/3", "source": "resid.1/3", "target": "output", "strength": 0.4},
        **{"graph": "circuit", "against": "other"},
    },
    "circuit": {
        **{"checkpoint": "step8", "step": 8, "graph": "behaviour", "path": "checkpoints/step8/graphs/behaviour.jsonl"},
        **{"unit": "nats", "metric_clean": -1.5, "metric_chance": -4, "gain_low": 2.0, "gain_high": 3.0, "there": True},
        **{"n_prompts": 9, "n_nodes": 8, "n_edges": 9, "n_features": 7, "error_share": 0.25, "faithfulness": 0.7},
        **{"low": 0.6, "high": 0.8, "completeness": 0.2, "before": {"jaccard": 0.5, "weighted": None}},
    },
    "crosscoder": {
        **{"hook": "resid.1", "checkpoints": ["step0", "step8"], "steps": [0, 8], "d_in": 8, "d_sae": 9, "l0": 3.5},
        **{"path": "crosscoder/resid.1", "digest": "sha256:6", "dead": 0.25, "n_live": 7, "unit": "nats"},
        **{"explained_variance": [0.5, None], "ce_clean": [4, 2.5], "kinds": {"early": 3.0}, "born": [0, 2]},
        **{"died": [0, 1], "turned": 1, "staying": 4, "reldec": [0.4, 0.6], "histograms": [[1, 6], [6, 1]]},
        **{"two_ended": [3, 4], "table": "reports/crosscoder-resid.1.csv", "relie": [0.5, 0.5]},
    },
    "interaction": {
        **{"name": "interaction", "source": "resid.1", "target": "resid.2", "n_edges": [0, 1, 9], "kl": [3, 2.5, 1]},
        **{"kl_low": [2, 2, 0.5], "kl_high": [4, 3, 1.5], "floor": 1, "unit": "nats", "n_live": 1, "n_possible": 9},
        **{"absolute": {"value": 9.5, "low": None}, "relative": {"value": 1}, "absolute_above": {"value": 2}},
        **{
            "relative_above": {"value": 0.2},
            "live_above": {"value": 2},
            "n_prompts": 3,
            "n_tokens": 12,
            "path": "reports/interaction.json",
            "capped": {"value": 9.5},
            "kl_circuit": [2, 1.5, 0],
            "order": "attribution",
            "method": "ig",
            "rule": "own",
        },
    },
    "interactions": {
        **{"name": "staircase", "against": "topk", "source": "resid.1", "target": "resid.2", "n_pairs": 1},
        **{"absolute": {"value": 9.5, "improvement": 59.7}, "relative": {"value": 1}, "absolute_above": {"value": 2}},
        **{"relative_above": {"value": 0.2}, "capped": {"value": 1}, "relative_capped": {"value": 1}},
        **{"n_prompts": 3, "unit": "nats"},
    },
    "attributions": {
        **{"name": "interaction", "source": "resid.1", "target": "resid.2", "method": "ig", "measure": "square"},
        **{"n_sources": 8, "n_targets": 9, "n_nonzero": 5, "n_kept": 72, "n_prompts": 3, "n_tokens": 12},
        **{"path": "reports/interaction.resid.1-resid.2.safetensors"},
    },
    "baseline": {
        **{"hook": "resid.1", "name": "pca", "k": 4, "d_sae": 8, "report": "reports/evaluate.json", "n_eval_tokens": 9},
        **{"explained_variance": 0.5, "l0": 4.0, "loss_recovered": 0.9, "ce_increase": 0.25},
    },
    "choices": {
        **{"name": "choices", "n_questions": 9, "by": "sum", "shots": 2, "chance": 0.25, "accuracy": 0.5},
        **{"accuracy_low": 0.25, "accuracy_high": 0.75, "probability": 0.375, "factors": {"resid.1/3": 0.0}},
        **{"accuracy_scaled": 0.25, "difference": -0.25, "n_gained": 1, "n_lost": 3, "path": "reports/choices.json"},
    },
    "synthetic": {
        **{"coder": "topk", "group": "sae", "n_features": 64, "d_model": 8, "true_l0": 3.5, "f1": 0.5, "mcc": 0.75},
        **{"precision": 0.5, "recall": 0.75, "d_sae": 16, "samples": 1000, "n_eval": 100, "seconds": 1.5},
        **{"path": "toys/synthetic/topk", "csv": "reports/synthetic.csv"},
    },
    "toy": {
        **{"name": "l1=0.1,ratio=2", "l1_weight": 0.1, "ratio": 2.0, "d_model": 8, "n_features": 16, "d_dict": 32},
        **{"steps": 30, "mmcs": 0.5, "mmcs_with_larger": 0.25, "found": 0.125, "quarters": [0.5, 0.25], "dead": 0.5},
        **{"collapsed": False, "loss": 0.25, "fvu": 0.5, "l0": 3.5, "path": "toy/dictionaries.safetensors"},
        "digest": "sha256:7",
    },
    "figure": {"path": "../circuit.svg"},
    "report": {"path": "reports/circuit.json"},
    "stage": {"name": "graph:circuit", "state": "finished", "command": "circuit graph-grad", "seconds": 2.5},
}
# What a field can hold that its neighbours can, and what no field can; NaN and infinity are read by Python's parser.
WRONG: list[object] = [
    *(None, True, -1, 0, 1.5, math.nan, math.inf, -math.inf, 10**30, 10**400),
    *("", "\0", "../../evil", "/etc/evil", ".hidden", "a/b", "a\\b", "a\x1b[2J", "é", "nats", "1", "\ud800"),
    *(
        "resid.1",
        "resid.1/3",
        "resid.01/3",
        "resid.9999999999999999999/1",
        "resid.1/3@",
        "resid.1/3@4th",
        "embed",
        "mlp.²/1",
        "output",
    ),
    *("x" * (schema.LONGEST_WORD + 1), [], ["a"], [1], [[1]]),
    *({}, {"a": 1}, {"resid.1": 1}, {"resid.1": {"gap": "none"}}, {"a": {}}, {"resid.1": "sha256:1"}),
]
FIELDS = [(kind, field) for kind, model in KINDS.items() for field in model.model_fields if field != "kind"]


def read_one(kind: str, content: dict[str, object]) -> Record:
    (record,) = records.read([json.dumps({"kind": kind, **content})], name="file")
    return record


def test_every_kind_has_an_example_here_that_is_read():
    assert {kind: type(read_one(kind, content)) for kind, content in GOOD.items()} == KINDS


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_whatever_a_field_holds_it_is_read_to_be_written_again_or_refused_by_name(kind: str, field: str):
    refused = 0
    for value in WRONG:
        try:
            record = read_one(kind, {**GOOD[kind], field: value})
        except InputError as error:
            refused += 1
            assert error.message.startswith(("file line 1: this line", f"file line 1: {kind} record: {field}"))
            assert error.hint and len(error.message) < 400
        else:
            assert list(records.read([records.to_line(record)])) == [record]
    assert refused > len(WRONG) // 3


ESCAPES = ("../../evil", "/etc/evil", "a/../../b", "..", "a\0b")
NAMES = (*ESCAPES, ".hidden", "a/b", "a\\b", "", "a\nb", "a\x1b[2J", "x" * 201, "\u202eabc")
REFUSED = [
    *(("graph", "name", name) for name in NAMES),
    *(("score", "graph", name) for name in NAMES),
    *(("graph", "path", path) for path in ESCAPES),
    *((kind, "path", path) for kind in ("activations", "sae", "sweep", "features", "feature") for path in ESCAPES),
    *(("evaluation", "report", path) for path in ESCAPES),
    *(
        ("graph", field, "bogus")
        for field in ("method", "metric", "baseline", "positions", "unit", "metric_clean", "steps", "bos", "seed")
    ),
    *(
        ("graph", field, value)
        for field in ("metric_clean", "metric_baseline")
        for value in (math.nan, None, "1", True)
    ),
    *(("graph", "baseline_ids", value) for value in ([-1], ["1"], [1.5], "1", [10**30])),
    *(("graph", "saes", value) for value in ({"bogus": "x"}, {"resid.1": 3}, ["resid.1"])),
    *(("graph", field, value) for field in ("target_id", "n_positions", "seed") for value in (-1, 0.5, "3", True)),
    *((kind, field, value) for kind, field in (("node", "effect"), ("edge", "weight")) for value in (math.nan, "1")),
    *(
        ("node", "id", value)
        for value in ("resid.1", "resid.01/3", "nowhere.1/3", "resid.1/error@2x", "resid.1/3 ", "")
    ),
    *(("edge", field, "resid.1") for field in ("source", "target")),
    *(("score", field, value) for field in ("value", "low") for value in (math.inf, "0.5", True)),
    *(("sae", field, -1) for field in ("d_in", "d_sae")),
    *(("evaluation", field, "many") for field in ("l0", "cosine", "n_eval_tokens")),
]


@pytest.mark.parametrize(("kind", "field", "value"), REFUSED)
def test_what_would_mislead_or_lead_out_of_the_run_is_refused(kind: str, field: str, value: object):
    with pytest.raises(
        InputError, match=f"file line 1: ({kind} record: {field}|this line .*(not finite|64 bits))"
    ) as caught:
        read_one(kind, {**GOOD[kind], field: value})
    assert int(caught.value.exit_status) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("prompt", "x" * (schema.LONGEST_TEXT + 1)), ("tokens", ["a"] * (schema.LONGEST_LIST + 1))),
        *(("baseline_ids", [1] * (schema.LONGEST_LIST + 1)), ("target", "x" * (schema.LONGEST_TEXT + 1))),
        ("saes", {f"resid.{layer}": "" for layer in range(schema.LONGEST_TABLE + 1)}),
    ],
    ids=["prompt", "tokens", "ids", "target", "saes"],
)
def test_texts_and_lists_longer_than_any_model_takes_are_refused(field: str, value: object):
    with pytest.raises(InputError, match=f"graph record: {field}: .*at most") as caught:
        read_one("graph", {**GOOD["graph"], field: value})
    assert len(caught.value.message) < 400


def test_kinds_that_nobody_knows_pass_through_unchanged():
    content = {"kind": "of another tool", "name": "../../evil", "path": "/etc", "value": None, "saes": 3}
    assert json.loads(records.to_line(records.parse_line(json.dumps(content)))) == content


def test_fields_that_this_version_does_not_know_are_kept():
    read = read_one("node", {**GOOD["node"], "later": [1, {"a": None}]})
    assert json.loads(records.to_line(read))["later"] == [1, {"a": None}]


@pytest.mark.parametrize("name", ["circuit", "circuit-2", "my graph", "Große.v2", "x" * 200, "a..b"])
def test_ordinary_names_are_names(name: str):
    assert schema.name_problem(name) is None
    assert read_one("graph", {**GOOD["graph"], "name": name})
