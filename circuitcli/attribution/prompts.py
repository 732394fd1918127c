"""A prompt as the model sees it, from a text, a conversation or token ids."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from circuitcli.attribution.examples import BadPrompt, Example, LeftOut, Written, placed
from circuitcli.attribution.spans import span_positions
from circuitcli.errors import InputError
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.chat import Conversation
from circuitcli.models.ids_only import IdsOnly
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.models.window import window
from circuitcli.progress import note
from circuitcli.reading import is_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A text as the model sees it; ``first`` is the first position that can carry nodes (1 behind a BOS token).

    target, foil: token ids, None for the model's most likely one and for none. counterfactual: the other prompt, with
    BOS as ``ids``. spans: names of positions. place: where the prompt was read, for errors.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    first: int
    target: int | None = None
    foil: int | None = None
    counterfactual: tuple[int, ...] | None = None
    spans: tuple[tuple[str, tuple[int, ...]], ...] = ()
    place: str = ""

    @property
    def last(self) -> int:
        """Index of the last position."""
        return len(self.ids) - 1

    @property
    def n_spliced(self) -> int:
        """Number of positions that carry nodes."""
        return len(self.ids) - self.first

    @property
    def bos(self) -> bool:
        """Whether a BOS token stands in front, of the text's own or put there; there is never more than one."""
        return self.first > 0


@dataclass(frozen=True)
class Needs:
    """What a prompt must have beside its tokens: what the metric, the baseline and the positions ask for."""

    foil: bool = False
    counterfactual: bool = False
    spans: bool = False

    @classmethod
    def of(cls, *, metric: str, baseline: str, spans: bool) -> "Needs":
        """What a metric and a baseline ask for, and whether nodes stand at named spans."""
        return cls(foil=metric == "logit-diff", counterfactual=baseline == "counterfactual", spans=spans)


def encode_all(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    adapter: ModelAdapter,
    *,
    needs: Needs,
    left_out: LeftOut,
    most: int | None = None,
) -> tuple[Prompt, ...]:
    """The first ``most`` of the prompts that can be used.

    left_out: takes what is wrong with single ones, or raises it. Raises InputError if none is left.
    """
    prompts: list[Prompt] = []
    for example in examples:
        if len(prompts) == most:
            break
        # A prompt that was not read from among others has no place.
        with left_out.each(is_only=not example.place):
            prompts.append(encode_example(example, tokenizer, adapter, needs=needs))
    left_out.check(len(prompts), source="the file of prompts")
    if needs.spans:
        prompts = _of_same_spans(prompts, left_out)
    left_out.warn(len(prompts))
    if most is not None and len(prompts) < most:
        logger.warning("only %d prompts can be used, not %d", len(prompts), most)
    _tell_ids(examples, prompts, tokenizer)
    return tuple(prompts)


def _tell_ids(examples: Sequence[Example], prompts: Sequence[Prompt], tokenizer: Tokenizer) -> None:
    """Say what tokens a file of texts means by ids: those of another tokenizer may well exist in this one."""
    places = {example.place for example in examples if isinstance(example.target, int) and example.ids is None}
    first = next((prompt for prompt in prompts if prompt.place and prompt.place in places), None)
    if first is not None and not isinstance(tokenizer, IdsOnly):
        named = [number for number in (first.target, first.foil) if number is not None]
        shown = " and ".join(map(repr, tokenizer.token_strings(named)))
        note(
            f"{first.place} gives tokens as ids, which are {shown} here; make sure that the file is for this tokenizer"
        )


def _of_same_spans(prompts: Sequence[Prompt], left_out: LeftOut) -> list[Prompt]:
    """Those that have the spans that the first one has."""
    kept, names = [], [name for name, _ in prompts[0].spans]
    for prompt in prompts:
        with left_out.each():
            if sorted(name for name, _ in prompt.spans) != sorted(names):
                its, others = _named(prompt.spans), " ".join(names)
                raise BadPrompt(
                    f"{prompt.place}: its spans are {its}, those of the prompts before {others}",
                    reason="other spans",
                    hint="name the same spans in each prompt",
                )
            kept.append(prompt)
    return kept


def _named(spans: Iterable[tuple[str, object]]) -> str:
    return " ".join(name for name, _ in spans) or "none"


def encode_example(
    example: Example, tokenizer: Tokenizer, adapter: ModelAdapter, *, needs: Needs | None = None
) -> Prompt:
    """The prompt in tokens, with target, foil, counterfactual and spans.

    Raises BadPrompt, naming its place, for a prompt without tokens or too long, a target or foil that is not one
    token, a span without tokens, and for what is missing of what it ``needs``.
    """
    wanted = needs or Needs()
    with placed(example.place, "a prompt that cannot be encoded"):
        prompt = encode_prompt(example.written, tokenizer, adapter)
    with placed(example.place, "a target or foil that is not one token"):
        target = _token(example.target, example, tokenizer, what="target", n_ids=adapter.n_token_ids)
        foil = _token(example.foil, example, tokenizer, what="foil", n_ids=adapter.n_token_ids)
    with placed(example.place, "bad spans"):
        spans = span_positions(example, tokenizer, tokens=prompt.tokens, first=prompt.first)
    prompt = replace(prompt, target=target, foil=foil, spans=spans, place=example.place)
    if example.counterfactual is not None:
        with placed(example.place, "a counterfactual that cannot be encoded"):
            prompt = replace(prompt, counterfactual=_counterfactual(example.counterfactual, tokenizer, adapter))
    with placed(example.place, ""):
        _check_needs(prompt, wanted)
    return prompt


def _counterfactual(written: Written, tokenizer: Tokenizer, adapter: ModelAdapter) -> tuple[int, ...]:
    return tuple(_encoded(written, tokenizer, adapter, what="counterfactual"))


def _check_needs(prompt: Prompt, needs: Needs) -> None:
    other, length = prompt.counterfactual, len(prompt.tokens)
    if needs.foil and prompt.foil is None:
        raise BadPrompt("the metric logit-diff needs a foil", reason="no foil", hint="add --foil TOKEN, or a foil each")
    if needs.counterfactual and other is None:
        raise BadPrompt(
            "the counterfactual baseline needs another prompt",
            reason="no counterfactual",
            hint="give graph-grad or graph-naive --counterfactual TEXT, or each prompt of a file its counterfactual",
        )
    if needs.counterfactual and other is not None and len(other) != length:
        raise BadPrompt(
            f"the counterfactual has {len(other)} tokens, the prompt {length}",
            reason="a counterfactual of another length",
            hint="both must have the same number of tokens, so that positions match",
        )
    if needs.spans and not prompt.spans:
        raise BadPrompt(
            "the prompt has no spans", reason="no spans", hint='add "spans": {"verb": [12, 17]}, or --positions sum'
        )


def _token(token: str | int | None, example: Example, tokenizer: Tokenizer, *, what: str, n_ids: int) -> int | None:
    """The id of a target or foil: of a text that which continues the prompt, or else the text's own."""
    if isinstance(token, int):
        if not 0 <= token < n_ids:
            raise BadPrompt(
                f"the {what} is token id {token}, but this model has ids 0 to {n_ids - 1}",
                reason="a token id of another tokenizer",
                hint="ids are those of one tokenizer; give tokens as text, or ids of this model's own",
                is_of_all=True,
            )
        return token
    if token is None:
        return None
    following = _continuation(token, example, tokenizer)
    return tokenizer.single_token(token, what=what) if following is None else following


def _continuation(token: str, example: Example, tokenizer: Tokenizer) -> int | None:
    """The one token that is new if the text stands behind the prompt: some tokenizers write words alone otherwise."""
    if not isinstance(example.written, str) or isinstance(tokenizer, IdsOnly):
        return None
    after = tokenizer.encode(example.prompt + token)
    return after[-1] if after[:-1] == tokenizer.encode(example.prompt) else None


def encode_prompt(written: Written, tokenizer: Tokenizer, adapter: ModelAdapter) -> Prompt:
    """The prompt in tokens, with BOS in front where the tokenizer puts one, and never with two.

    A conversation is written by the model's chat template, with the assistant's turn begun. Raises InputError if the
    prompt has no token, more than the model's window, or one that the model does not know.
    """
    ids = _encoded(written, tokenizer, adapter, what="prompt")
    return Prompt(
        text=_text(written, tokenizer),
        ids=tuple(ids),
        tokens=tuple(tokenizer.token_strings(ids)),
        first=tokenizer.n_bos(ids),
    )


def _encoded(written: Written, tokenizer: Tokenizer, adapter: ModelAdapter, *, what: str) -> list[int]:
    """Token ids, BOS included. Raises InputError as `encode_prompt` does."""
    ids = _ids(written, tokenizer, n_ids=adapter.n_token_ids, what=what)
    full = tokenizer.with_bos(ids)
    if tokenizer.n_bos(full) == len(full):
        raise InputError(f"the {what} is empty", hint=f"give some text with --{what}")
    longest = window(adapter.model.config)
    if longest is not None and len(full) > longest:
        raise InputError(f"the {what} has {len(full)} tokens, the model's window {longest}", hint=f"shorten the {what}")
    return full


def _ids(written: Written, tokenizer: Tokenizer, *, n_ids: int, what: str) -> Sequence[int]:
    if isinstance(written, Conversation):
        return tokenizer.encode(tokenizer.render(written, answers=True))
    if isinstance(written, str):
        if not is_text(written):
            raise InputError(f"the {what} is not text: it holds bytes that are not UTF-8", hint="give UTF-8 text")
        return tokenizer.encode(written)
    wrong = [number for number in written if not 0 <= number < n_ids]
    if wrong:
        raise BadPrompt(
            f"the {what} has token id {wrong[0]}, but this model has ids 0 to {n_ids - 1}",
            reason="a token id of another tokenizer",
            hint="give ids of this model's own tokenizer",
            is_of_all=True,
        )
    return [*written]


def _text(written: Written, tokenizer: Tokenizer) -> str:
    """What people are shown as the prompt: of a conversation what was said last."""
    if isinstance(written, str):
        return written
    return written.messages[-1].content if isinstance(written, Conversation) else tokenizer.decode([*written])
