"""What a node is set to when it is taken away: ``f0`` for each coder and ``e0`` for each written hook point."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.activations.cache import ActivationCache
from circuitcli.attribution.memory import in_batches, rows_at_once
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.subject import Subject, code_run
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.partial import block_pass
from circuitcli.progress import task, track
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.coders import Coders
from circuitcli.saes.splice import Edit, splice

ROWS = 2048
# Rounding of a number, in units of the largest at its position: other batches round otherwise.
_ROUNDING = 16


@dataclass(frozen=True)
class Baseline:
    """Codes and errors of nodes that are taken away; one row for all texts or a row for each, and so of positions."""

    codes: Mapping[HookPoint, Float[Tensor, "text position d_sae"]]
    errors: Mapping[HookPoint, Float[Tensor, "text position d_out"]]

    @property
    def n_bytes(self) -> int:
        """Size of its tensors."""
        parts = (self.codes, self.errors)
        return sum(value.numel() * value.element_size() for part in parts for value in part.values())


def differs(
    values: Float[Tensor, "*batch position width"], absent: Float[Tensor, "*#batch #position width"]
) -> Bool[Tensor, "*batch position width"]:
    """Which codes (or numbers of an error) are not at their baseline: beyond rounding, or, where the baseline of a
    whole position is zero, at all, as nothing was computed there that could be rounded."""
    at_baseline = absent.abs().amax(dim=-1, keepdim=True)
    largest = torch.maximum(values.abs().amax(dim=-1, keepdim=True), at_baseline)
    rounding = _ROUNDING * torch.finfo(values.dtype).eps * largest
    return (values - absent).abs() > torch.where(at_baseline == 0, 0.0, rounding)


def metric_at(subject: Subject, baseline: Baseline) -> Float[Tensor, " text"]:
    """The metric of each prompt with every node and error at its baseline."""
    d_codes = sum(coder.d_sae for coder in subject.coders.values())
    codes = 3 * subject.n_spliced * d_codes
    size = rows_at_once(subject, 0, backward=False, codes=codes, at_most=subject.n_texts)

    def run(texts: Sequence[int]) -> Tensor:
        rows = torch.tensor(texts, device=subject.adapter.device)

        def moved(absent: Tensor, values: Tensor) -> Tensor:
            return (absent if len(absent) == 1 else absent[rows]) - values

        edit = Edit(
            lambda hook, codes: moved(baseline.codes[hook], codes),
            lambda hook, error: moved(baseline.errors[hook], error),
        )
        return subject.metric_of(splice(subject.coders, edit, first=subject.first), texts=rows)

    with torch.no_grad():
        return torch.cat(list(in_batches(range(subject.n_texts), run, size=size)))


def zero(coders: Coders) -> Baseline:
    """No feature and no error."""
    widths = {hook: coders.writers(hook)[0] for hook in coders.written}
    return Baseline(
        codes={hook: coder.W_enc.new_zeros(1, 1, coder.d_sae) for hook, coder in coders.items()},
        errors={hook: coder.W_enc.new_zeros(1, 1, coder.d_out) for hook, coder in widths.items()},
    )


def mean(coders: Coders, cache: ActivationCache, *, n_tokens: int) -> Baseline:
    """Mean code and mean error over the last ``n_tokens`` rows of the cache, which training holds out first."""
    rows = range(max(0, cache.n_tokens - n_tokens), cache.n_tokens)
    codes: dict[HookPoint, Tensor] = {}
    decoded: dict[tuple[HookPoint, HookPoint], Tensor] = {}
    for coder in coders.values():
        codes[coder.hook], parts = _means(coder, cache, rows)
        decoded |= {(coder.hook, hook): part for hook, part in parts.items()}
    errors = {}
    for hook in coders.written:
        writers = coders.writers(hook)
        total = sum(
            (decoded[coder.hook, hook] for coder in writers), torch.zeros(writers[0].d_out, dtype=torch.float64)
        )
        if writers[0].is_transcoder:
            # Of an autoencoder the mean of the errors themselves is taken, row by row.
            total = _mean_row(cache, hook, rows) - total
        errors[hook] = total.to(writers[0].W_enc)[None, None]
    return Baseline({hook: value.to(coders[hook].W_enc)[None, None] for hook, value in codes.items()}, errors)


def _means(coder: SparseCoder, cache: ActivationCache, rows: range) -> tuple[Tensor, dict[HookPoint, Tensor]]:
    """The mean code, and for each hook point that it writes the mean of what it decodes and its skip carries there; of
    an autoencoder the mean error. float64."""
    codes = torch.zeros(coder.d_sae, dtype=torch.float64)
    written = {hook: torch.zeros(coder.d_out, dtype=torch.float64) for hook in coder.writes}
    hook, count = coder.hook, 0
    pieces = cache.pieces(rows.start, rows.stop, size=min(ROWS, coder.rows_at_once), by_text=coder.reads_context)
    with torch.no_grad(), task(f"mean of {hook}", total=len(rows), unit="tokens") as advance:
        for first, last in pieces:
            x = cache.rows(hook, first, last).to(coder.W_enc)
            active, frame = coder.encode_framed(x)
            codes += active.sum(dim=0).cpu().double()
            for place, total in written.items():
                part = coder.decode(active, frame, hook=place)
                carried = coder.skip(x, place)
                part = part if carried is None else part + carried
                total += (part if coder.is_transcoder else x - part).sum(dim=0).cpu().double()
            # Of coders that read context what lies in front of the first whole text is left out.
            count += last - first
            advance(last - first)
    return codes / count, {place: total / count for place, total in written.items()}


def _mean_row(cache: ActivationCache, hook: HookPoint, rows: range) -> Float[Tensor, " d_model"]:
    total = torch.zeros(cache.d_model(hook), dtype=torch.float64)
    for first, last in cache.pieces(rows.start, rows.stop, size=ROWS):
        total += cache.rows(hook, first, last).double().sum(dim=0)
    return total / len(rows)


def counterfactual(subject: Subject) -> Baseline:
    """Codes and errors of the other prompts, position by position. Raises InputError unless each has as many tokens."""
    for prompt in subject.prompts:
        if prompt.counterfactual is None:
            raise InputError(
                f"{prompt.place + ': ' if prompt.place else ''}the counterfactual baseline needs another prompt",
                hint="add --counterfactual TEXT, or a counterfactual to each line of the prompts",
            )
        if len(prompt.counterfactual) != len(prompt.ids):
            raise InputError(
                f"{prompt.place + ': ' if prompt.place else ''}the counterfactual has {len(prompt.counterfactual)} "
                f"tokens, the prompt {len(prompt.ids)}",
                hint="both must have the same number of tokens, so that positions match",
            )
    return _of_run(subject, [prompt.counterfactual for prompt in subject.prompts if prompt.counterfactual is not None])


def by_position(subject: Subject, prompts: Sequence[Prompt]) -> Baseline:
    """Mean code and mean error at each position over prompts, which are as long as those of the subject.

    Raises InputError if they are not.
    """
    own, other = len(subject.prompts[0].ids), len(prompts[0].ids)
    if (own, subject.first) != (other, prompts[0].first):
        raise InputError(
            f"the means by position are over prompts of {other} tokens, this one has {own}",
            hint="use --baseline mean, or prompts of one length",
        )
    d_codes = subject.n_spliced * sum(coder.d_sae for coder in subject.coders.values())
    size = rows_at_once(subject, 0, backward=False, codes=d_codes, at_most=len(prompts))
    total: Baseline | None = None
    runs = in_batches(prompts, lambda some: _summed(_of_run(subject, [prompt.ids for prompt in some])), size=size)
    for part in track(runs, "means by position", unit="batches"):
        total = part if total is None else _added(total, part)
    assert total is not None
    n = len(prompts)
    return Baseline(
        {hook: value / n for hook, value in total.codes.items()},
        {hook: value / n for hook, value in total.errors.items()},
    )


def _summed(run: Baseline) -> Baseline:
    """All rows added up to one."""
    return Baseline(
        {hook: value.sum(dim=0, keepdim=True) for hook, value in run.codes.items()},
        {hook: value.sum(dim=0, keepdim=True) for hook, value in run.errors.items()},
    )


def _added(one: Baseline, other: Baseline) -> Baseline:
    return Baseline(
        {hook: value + other.codes[hook] for hook, value in one.codes.items()},
        {hook: value + other.errors[hook] for hook, value in one.errors.items()},
    )


def drawn_rows(cache: ActivationCache, *, n_positions: int, seeds: Sequence[int]) -> list[list[int]]:
    """Token ids of pieces of the cached text with so many positions, BOS included, one drawn with each seed.

    Raises InputError if no cached block is as long.
    """
    count = sum(1 for _ in _fitting(cache, n_positions))
    if not count:
        raise InputError(
            f"no cached block of text is as long as the prompt ({n_positions} tokens)", hint="use --baseline mean"
        )
    draws = [int(torch.randint(count, (1,), generator=torch.Generator().manual_seed(seed))) for seed in seeds]
    wanted, found = set(draws), {}
    for number, row in enumerate(islice(_fitting(cache, n_positions), max(draws) + 1)):
        if number in wanted:
            found[number] = row
    return [found[draw] for draw in draws]


def _fitting(cache: ActivationCache, length: int) -> Iterator[list[int]]:
    """What the blocks that are long enough begin with, one after the other: a cache may hold more than fits memory."""
    return (block.ids[:length] for block in cache.blocks(0, cache.n_tokens) if len(block.ids) >= length)


def resample(subject: Subject, rows: Sequence[Sequence[int]]) -> Baseline:
    """Codes and errors of other pieces of text, one for each prompt as `drawn_rows` gives them, position by position.

    Raises InputError unless each has as many tokens as its prompt, all of them in the model's vocabulary.
    """
    n_ids = subject.adapter.n_token_ids
    for prompt, ids in zip(subject.prompts, rows, strict=True):
        if len(ids) != len(prompt.ids):
            raise InputError(
                f"the row of the resample baseline has {len(ids)} tokens, the prompt {len(prompt.ids)}",
                hint="make the graph again",
            )
        if not all(0 <= token < n_ids for token in ids):
            raise InputError(
                f"the row of the resample baseline has token ids beyond those of this model, 0 to {n_ids - 1}"
            )
    return _of_run(subject, rows)


def _of_run(subject: Subject, rows: Sequence[Sequence[int]]) -> Baseline:
    ids = torch.tensor([list(row) for row in rows], device=subject.adapter.device)
    run = block_pass(subject.adapter, ids, None, subject.coders.hooks, starts=())
    coded = code_run(subject.coders, run.activations, first=subject.first)
    return Baseline(coded.codes, coded.errors)


@dataclass(frozen=True)
class BaselineRule:
    """How the baseline of each batch of prompts is taken: `zero`, `mean`, `mean-position`, `resample` or
    `counterfactual`.

    prompts: over which `mean-position` takes means, see `over`.
    cache: of the hook points that coders read and write for `mean`, of any for `resample`. rows: token ids that
    `resample` goes to by the number of the prompt, drawn from the cache with seed plus number unless given.
    """

    kind: str
    coders: Coders
    cache: ActivationCache | None = None
    n_tokens: int = 16_384
    seed: int = 0
    rows: Mapping[int, Sequence[int]] = field(default_factory=dict)
    prompts: tuple[Prompt, ...] = ()
    _kept: dict[str, Baseline] = field(default_factory=dict, compare=False, repr=False)

    def over(self, prompts: Sequence[Prompt]) -> "BaselineRule":
        """This rule for a behaviour of these prompts, unless it was made for others before.

        Raises SettingsError for means by position of prompts whose positions do not correspond, or of one prompt.
        """
        if self.kind != "mean-position" or self.prompts:
            return self
        lengths = sorted({len(prompt.ids) for prompt in prompts})
        if len({(len(prompt.ids), prompt.first) for prompt in prompts}) > 1:
            raise SettingsError(
                f"the prompts have {lengths[0]} to {lengths[-1]} tokens, so their positions do not correspond",
                hint="use --baseline mean, whose means are over cached text",
            )
        if len(prompts) < 2:
            raise SettingsError(
                "the mean over one prompt is the prompt itself, so nothing would be taken away",
                hint="use --baseline mean, or several prompts of one length with --prompts FILE",
            )
        return replace(self, prompts=tuple(prompts), _kept={})

    def __call__(self, subject: Subject, numbers: Sequence[int]) -> Baseline:
        """The baseline of prompts with these numbers. Raises InputError if it needs a cache or other prompts."""
        if self.kind == "counterfactual":
            return counterfactual(subject)
        if self.kind == "resample":
            return resample(subject, self.drawn(subject, numbers))
        if self.kind == "mean-position":
            if self.kind not in self._kept:
                self._kept[self.kind] = by_position(subject, self.prompts or subject.prompts)
            return self._kept[self.kind]
        return self._of_all

    def drawn(self, subject: Subject, numbers: Sequence[int]) -> list[Sequence[int]]:
        """The token ids that `resample` goes to. Raises InputError as `drawn_rows` does."""
        if all(number in self.rows for number in numbers):
            return [self.rows[number] for number in numbers]
        seeds = [self.seed + number for number in numbers]
        return [*drawn_rows(self._needed(), n_positions=len(subject.prompts[0].ids), seeds=seeds)]

    @cached_property
    def _of_all(self) -> Baseline:
        """What is the same for all prompts; the mean takes a pass over the cache."""
        return zero(self.coders) if self.kind == "zero" else mean(self.coders, self._needed(), n_tokens=self.n_tokens)

    def _needed(self) -> ActivationCache:
        if self.cache is None:
            raise InputError(
                f"the {self.kind} baseline needs cached activations",
                hint="run `circuit collect` for them, or use --baseline zero",
            )
        return self.cache
