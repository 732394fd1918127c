"""Scores of labels against a slow count over tokens, and what they say of labels that are right or tell nothing."""

import pytest
import torch
from support import D_SAE, VOCAB, random_sae
from test_features import HOOK, MemoryCache

from circuitcli.features import scan
from circuitcli.features.conditions import N_NEAR, Condition, Peak, word_of
from circuitcli.features.kinds import KINDS
from circuitcli.features.labels import Rule, label
from circuitcli.features.peaks import CodedBlocks
from circuitcli.features.scores import Detection, held_out
from circuitcli.features.surroundings import MARKS, Surroundings, names

WORDS = [" the", "The", "ing", " sing", " ring", ",", "\n", " 12", " Paris", "unfold", " unseen", "ed"]
RULES = [
    Rule("", (Condition("token", "the"),)),
    Rule("", (Condition("token", "the"), Condition("previous", ","))),
    Rule("", (Condition("previous", None),)),
    Rule("", (Condition("previous", "the"),)),
    Rule("", (Condition("tokens", frozenset({"ed", ",", "newline"})),)),
    Rule("", (Condition("ending", "ing"),)),
    Rule("", (Condition("beginning", "un"),)),
    Rule("", (Condition("following", "ed"),)),
    Rule("", (Condition("following tokens", frozenset({"the", "ing"})), Condition("previous kind", "punctuation"))),
    Rule("", (Condition("previous tokens", frozenset({"paris", "newline"})),)),
    Rule("", (Condition("following kind", "line breaks"),)),
    Rule("", (Condition("near", frozenset({"paris", "unseen"})),)),
    *(Rule("", (Condition("mark", name),)) for name in MARKS),
    *(Rule("", (Condition("kind", name),)) for name in KINDS),
]


def token_strings(ids: list[int]) -> list[str]:
    """Of a tokenizer of a few words."""
    return [WORDS[one % len(WORDS)] + ("" if one < len(WORDS) else "s") for one in ids]


@pytest.mark.parametrize("left_out", [(), (3, 17)])
def test_counts_are_those_of_a_look_at_every_token(left_out: tuple[int, ...]) -> None:
    cache, sae = MemoryCache([7, 1, 12, 20], left_out=left_out), random_sae(HOOK)
    found = held_out(scan.coded_pieces(cache, sae, 0, cache.n_tokens, batch_size=9), token_strings, n_features=D_SAE)
    codes = sae.encode(cache.activations)
    text, strings = cache.everything, token_strings(list(range(VOCAB)))
    seen = []
    for row, (token, block) in enumerate(zip(text.token.tolist(), text.block.tolist(), strict=True)):
        own = [at for at, other in enumerate(text.block.tolist()) if other == block]
        tokens = [strings[int(text.token[at])] for at in own]
        at = own.index(row)
        marks = Surroundings(token_strings).marks(text.token[own], torch.tensor([0, len(own)]))
        near = frozenset(word for one in tokens[max(at - N_NEAR, 0) : at] if (word := word_of(one)))
        following = tokens[at + 1] if at + 1 < len(tokens) else None
        seen.append(Peak(strings[token], tokens[at - 1] if at else None, following, names(int(marks[at])), near))
    kept = [peak for peak, is_kept in zip(seen, cache.has_row.tolist(), strict=True) if is_kept]
    for rule in RULES:
        covered = torch.tensor([rule.covers(peak) for peak in kept])
        for feature in range(D_SAE):
            active = codes[:, feature] > 0
            expected = Detection(len(kept), int(active.sum()), int(covered.sum()), int((covered & active).sum()))
            assert found.detection(rule, feature) == expected


def test_a_label_that_is_right_scores_one_and_one_that_tells_nothing_a_half() -> None:
    token = torch.arange(200) % len(WORDS)
    codes = torch.zeros(200, 2)
    codes[token == 2, 0] = 1.0
    codes[torch.arange(200) % 2 == 0, 1] = 1.0
    blocks = CodedBlocks(codes, token, token * 0, torch.arange(200), torch.tensor([0, 200]))
    found = held_out([blocks], token_strings, n_features=2)
    right = label([Peak("ing", "The")] * 8)
    assert found.detection(right, 0).balanced_accuracy == found.detection(right, 0).precision == 1.0
    everywhere, nowhere = Rule("", ()), Rule("", (Condition("token", "absent"),))
    assert found.detection(everywhere, 1).balanced_accuracy == found.detection(nowhere, 1).balanced_accuracy == 0.5
    assert found.detection(nowhere, 1).precision is None


def test_a_feature_that_is_silent_or_active_at_every_token_has_no_score() -> None:
    blocks = CodedBlocks(
        torch.tensor([[0.0, 1.0]]).repeat(5, 1),
        torch.arange(5),
        torch.zeros(5).long(),
        torch.arange(5),
        torch.tensor([0, 5]),
    )
    found = held_out([blocks], token_strings, n_features=2)
    rule = Rule("", (Condition("token", "the"),))
    assert found.detection(rule, 0).balanced_accuracy is None and found.detection(rule, 0).recall is None
    assert found.detection(rule, 1).balanced_accuracy is None and found.detection(rule, 1).n_both == 2


def test_rules_hold_at_the_peaks_that_made_them() -> None:
    """Each label is true of at least half of the peaks it was made from, unless it only lists the commonest."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        n = int(torch.randint(1, 12, (), generator=generator))
        drawn = torch.randint(len(WORDS), (n, 2), generator=generator).tolist()
        peaks = [Peak(WORDS[token], WORDS[previous]) for token, previous in drawn]
        rule = label(peaks)
        assert sum(map(rule.covers, peaks)) >= (1 if rule.conditions[0].about == "tokens" else n / 2)
