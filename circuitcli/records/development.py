"""Records of features through a training: which of two coders are the same, and what became of them."""

from circuitcli.records.base import Record
from circuitcli.schema import Count, Counts, Flag, HookName, Number, Numbers, PathInRun, Texts, Word


class MatchRecord(Record):
    """Features of the checkpoint ``target`` that have a partner at ``source``, by one measure.

    by: activation or correlation (cosine or correlation of codes over the same tokens), or decoder (cosine of what
    features write). control: ``seed`` where the source is another seed of the same checkpoint, ``shuffled`` where it is
    the source with its tokens dealt anew and its directions drawn; None for the checkpoints themselves.

    shares: of the target's live features (n_target), those with a partner at a distance (1 - cosine) below each of
    ``distances``; low and high: bootstrap over features. context_shares: the same of the n_context features of which
    the current token explains less than half. cosine: mean of the pairs; other_cosine: of the same pairs by the other
    measure. histogram: pairs by cosine, from 0 to 1 in equal steps. same: share with at least the cosine from which on
    two features count as one, of lives.
    """

    kind: str = "match"
    hook: HookName
    source: Word
    target: Word
    by: Word
    control: Word | None = None
    is_step: Flag | None = None
    assignment: Word
    n_tokens: Count
    n_source: Count
    n_target: Count
    dead_source: Count
    dead_target: Count
    distances: Numbers
    shares: Numbers
    low: Numbers
    high: Numbers
    n_context: Count
    context_shares: Numbers
    cosine: Number | None = None
    other_cosine: Number | None = None
    histogram: Counts
    other_histogram: Counts
    same: Number


class DevelopmentRecord(Record):
    """What became of the features of one hook point from checkpoint to checkpoint; lists are by checkpoint.

    Two features of neighbouring checkpoints are one where they are paired with a cosine of ``least`` or more. still: of
    the features of the first checkpoint the share that is still there; since: of those of the last the share that is
    there already; whole: lives from the first to the last. matched: of the features of each checkpoint but the first
    the share with a partner at the one before; seeds: with one in another seed of the same checkpoint; shuffled: with
    one in the shuffled checkpoint before; None where there is none.
    """

    kind: str = "development"
    hook: HookName
    by: Word
    least: Number
    checkpoints: Texts
    steps: tuple[Count | None, ...]
    live: Counts
    token_level: Counts
    born: Counts
    died: Counts
    still: Numbers
    since: Numbers
    whole: Count
    lives: Count
    matched: tuple[Number | None, ...]
    seeds: tuple[Number | None, ...]
    shuffled: tuple[Number | None, ...]
    report: PathInRun
    table: PathInRun
