"""Attention scores split into pairs of sources: sums, single parts against a slow frozen model, and what is refused."""

from itertools import product

import pytest
import torch
from frozen_oracle import FrozenOracle, writes_of
from subjects import mixed_subject, panel_of, random_baseline, random_subject
from support import adapter_of
from test_graphs import head

from circuitcli.attribution.attention import scores
from circuitcli.attribution.attention.records import score_records
from circuitcli.attribution.attention.scores import CONSTANTS, split_score
from circuitcli.cli.attention_view import score_tables
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import AttentionScore, HookPoint
from circuitcli.models.attention import attention_of
from circuitcli.records import AttentionRecord, FeatureRecord, PairRecord

FIVE = ("gpt2", "neox-parallel", "llama", "qwen3", "gemma2", "gemma3")
ASKED = AttentionScore(2, 1, 4, 2)


def eager(subject):
    """The subject with attention whose patterns can be seen."""
    subject.adapter.model.set_attn_implementation("eager")
    return subject


@pytest.fixture(
    scope="module", params=[*product(FIVE, ("sparse", "clt-skip")), ("gpt2", "resid"), ("qwen3", "attention")]
)
def subject(request):
    family, splice = request.param
    if splice == "resid":
        return eager(random_subject(family, n=6, first=0, normalisation="layer-norm"))
    if splice == "sparse":
        return eager(random_subject(family, layers=(0,), sites=("mlp", "attn"), n=6, first=1))
    return eager(mixed_subject(family, splice))


@pytest.fixture(scope="module")
def split(subject):
    return split_score(subject, ASKED)


def test_pairs_and_the_sources_of_each_side_sum_to_the_score(split):
    pairs = split.strongest(10**6)
    assert len(pairs) == split.n_pairs
    for parts in ([weight for _, _, weight in pairs], split.query_shares().tolist(), split.key_shares().tolist()):
        assert sum(parts) == pytest.approx(split.score, abs=1e-9)


def test_scores_are_the_models_own(subject):
    """Patterns are softmaxes of capped scores, so logarithms of their ratios are differences of scores."""
    ids = subject.clean.input_ids
    pattern = subject.adapter.model(input_ids=ids, output_attentions=True, use_cache=False).attentions[2][0, 1, 4]
    here, there = split_score(subject, ASKED), split_score(subject, AttentionScore(2, 1, 4, 3))
    capped = [one.score for one in (here, there)]
    if subject.adapter.model_type == "gemma2":
        capped = [50.0 * torch.tensor(score / 50.0).tanh() for score in capped]
    assert float(capped[0] - capped[1]) == pytest.approx(float((pattern[2] / pattern[3]).log()), abs=1e-5)
    assert here.pattern == pytest.approx(float(pattern[2]), abs=1e-6)


@pytest.mark.parametrize("side", ["query", "key"])
def test_a_source_is_what_the_frozen_model_adds_when_it_writes_twice(subject, split, side):
    parts = getattr(split, side)
    names = [name for name in parts.names if name not in CONSTANTS]
    hook, position = HookPoint(2, "attn_in"), getattr(ASKED, side)
    oracle = FrozenOracle(subject)
    moved = oracle.moved(writes_of(subject, names))[hook][:, position]
    x = oracle.clean[hook]
    attention = attention_of(subject.adapter, 2, subject.clean.arguments[2][1], device=x.device, dtype=x.dtype)
    made = getattr(attention, side)
    head = ASKED.head if side == "query" else attention.group(ASKED.head)
    rows = slice(head * attention.width, (head + 1) * attention.width)
    expected = moved @ made.projection.weight[rows].T
    if made.norm is not None:
        expected = expected * made.norm.gain * made.norm.normed(made.projected(x)[0, head, position]).scale
    if made.rotation is not None:
        expected = made.rotation.at(position)(expected[:, None])[:, 0]
    assert expected.abs().max() > 1e-3
    # Norms compute in float32 in most families.
    torch.testing.assert_close(
        parts.vectors[: len(names)], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("family", FIVE)
def test_nothing_is_left_unexplained_behind_a_residual_autoencoder(family):
    split = split_score(random_subject(family, sites=("resid",), n=5, normalisation="layer-norm"), ASKED)
    shares = dict(zip(split.query.names, split.query.vectors, strict=True))
    assert shares["rest"].abs().max() < 1e-5 and not shares["bos"].any()
    assert {name.partition("/")[0] for name in split.query.names} == {"resid.1", *CONSTANTS}
    assert all(name.endswith("@4") for name in split.query.names if name not in CONSTANTS)


def test_sources_at_other_positions_come_through_earlier_attention():
    split = split_score(random_subject("llama", layers=(0,), sites=("mlp",), n=6, first=1), ASKED)
    assert {"mlp.1"} == {name for name in split.query.names if "@" not in name} - {*CONSTANTS}
    positions = {int(name.partition("@")[2]) for name in split.query.names if "@" in name}
    assert positions == {1, 2, 3, 4}
    assert {"embed/token@1", "embed/token@4"} <= set(split.query.names), "moved to the query by attention, and its own"


def test_the_strongest_pairs_are_those_of_the_whole_table(split, monkeypatch):
    table = split.query.vectors @ split.key.vectors.T * split.scale
    sizes = table.abs().flatten().sort(descending=True).values[:7]
    monkeypatch.setattr(scores, "_PAIRS_AT_ONCE", 100)
    found = split.strongest(7)
    assert [abs(weight) for _, _, weight in found] == pytest.approx(sizes.tolist())
    for query, key, weight in found:
        assert weight == pytest.approx(float(table[split.query.names.index(query), split.key.names.index(key)]))


def test_records_hold_the_strongest_pairs_and_the_sum_of_the_others():
    subject = random_subject(n=6, first=1)
    panel = panel_of(subject, random_baseline(subject))
    made = score_records(panel, ["2.1:4,2", "0.2:5,5"], count=3, graph="circuit")
    heads = [record for record in made if isinstance(record, AttentionRecord)]
    assert [(one.id, one.head, one.query, one.key) for one in heads] == [
        ("2.1:4,2", "2.1", 4, 2),
        ("0.2:5,5", "0.2", 5, 5),
    ]
    for split in heads:
        pairs = [record for record in made if isinstance(record, PairRecord) and record.attention == split.id]
        both = [pair for pair in pairs if pair.query and pair.key]
        assert len(both) == 3 and len(pairs) == 9
        assert sum(pair.weight for pair in both) + split.rest == pytest.approx(split.score)


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        ("2.3:4,2", "no head 3", "0 to 2"),
        ("2.1:6,2", "no position 6", "0 to 5"),
        ("3.1:4,2", "3 layers", "0 to 2"),
    ],
)
def test_scores_that_are_not_there_are_refused(asked, message, hint):
    with pytest.raises(SettingsError, match=message) as caught:
        split_score(random_subject(n=6), AttentionScore.parse(asked))
    assert hint in caught.value.hint


def test_scores_of_several_prompts_are_refused():
    subject = mixed_subject("gpt2", "clt", n_texts=2)
    with pytest.raises(SettingsError, match="one prompt, and there are 2"):
        score_records(panel_of(subject, random_baseline(subject)), ["2.1:4,2"], count=3, graph="circuit")


def test_a_model_whose_heads_are_not_known_is_refused():
    assert adapter_of("generic").layout.heads is None
    with pytest.raises(InputError, match="heads of model type 'stablelm'"):
        split_score(random_subject("generic", n=6), ASKED)


@pytest.mark.parametrize(
    "text", ["5.3", "5:3,4", "5.3:12", "5.3:12,4,1", "5.3:a,4", "x.3:12,4", "5.3.1:12,4", "5.3:4,12", ""]
)
def test_what_is_no_score_is_refused_with_how_to_write_one(text):
    with pytest.raises(SettingsError) as caught:
        AttentionScore.parse(text)
    assert "LAYER.HEAD:QUERY,KEY" in caught.value.hint


def test_a_score_prints_as_it_is_written():
    assert str(AttentionScore.parse(" 5.3:12,4 ")) == "5.3:12,4"


def test_scores_split_a_few_numbers_of_a_head_at_once_are_the_same(monkeypatch):
    subject = mixed_subject("llama", "clt-skip")
    whole = split_score(subject, ASKED)
    monkeypatch.setattr(scores, "budget_of", lambda adapter: 1)
    monkeypatch.setattr(scores, "_PAIRS_AT_ONCE", 100)
    again = split_score(subject, ASKED)
    assert again.query.names == whole.query.names and again.key.names == whole.key.names
    assert [pair[:2] for pair in again.strongest(9)] == [pair[:2] for pair in whole.strongest(9)]
    torch.testing.assert_close(again.query.vectors, whole.query.vectors)


def test_tables_tell_tokens_labels_and_what_is_not_listed(tmp_path):
    made = [
        FeatureRecord(id="resid.0/3", label="a name", density=0.5, path="features/resid.0.jsonl"),
        head(tokens=("a", " b"), saes={"resid.0": "sha256:1"}),
        AttentionRecord(id="2.1:1,0", head="2.1", query=1, key=0, score=2.0, pattern=0.25, n_pairs=9, rest=0.5),
        PairRecord(attention="2.1:1,0", query="resid.0/3@1", key="embed/token@0", weight=1.5),
        PairRecord(attention="2.1:1,0", query="bias", weight=-0.25),
        PairRecord(attention="2.1:1,0", key="resid.0/error@0", weight=3.0),
    ]
    pairs, query, key = score_tables(made, tmp_path)
    assert pairs.title.startswith("head 2.1 at 1 ' b' looks at 0 'a': score 2, 25 % of its attention")
    assert pairs.rows == [
        ("+1.5", "resid.0/3@1 ' b' a name", "embed/token@0 'a'"),
        ("+0.5", "all others", ""),
    ]
    assert query.rows == [("-0.25", "bias")] and key.rows == [("+3", "resid.0/error@0 'a'")]
