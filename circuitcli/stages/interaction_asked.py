"""What ``circuit validate --interaction`` is asked for: pairs of hook points with SAEs, and prompts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from circuitcli.attribution.asked import asked_examples
from circuitcli.attribution.examples import Example, LeftOut, digest_of
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord
from circuitcli.runs import Fingerprint
from circuitcli.settings.model import PLACEMENT
from circuitcli.settings.section import PAIRS
from circuitcli.stages.inputs import activation_digests
from circuitcli.stages.naming import Reported, report_name
from circuitcli.stages.request import Request, fingerprint
from circuitcli.stages.saes import SaeSource, sae_sources
from circuitcli.validation.pairs import Pair, pairs_of

if TYPE_CHECKING:
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.models.loading import LanguageModel

_READ = (
    *("validate.interaction", "validate.bootstrap", "validate.sequences", "graph.ig_steps", "graph.n_prompts"),
    *("graph.skip_bad", "model.", "seed", "sae_path", "interaction."),
)
# Points on the path of the ranking; pieces of the run's text unless more are asked for.
_STEPS, _PIECES = {"ig": 10, "paper": 4, "grad-act": 1, "jacobian": 1}, 4


@dataclass(frozen=True)
class Wanted(Reported):
    """Pairs of hook points with SAEs, and prompts, None for the run's own text."""

    pairs: tuple[Pair, ...]
    sources: dict[HookPoint, SaeSource]
    examples: tuple[Example, ...] | None
    left_out: LeftOut

    @classmethod
    def of(cls, request: Request) -> "Wanted":
        settings = request.settings
        asked = settings.validation.interaction
        left_out = LeftOut(allowed=settings.graph.skip_bad)
        examples = asked_examples(settings.graph, path=settings.validation.prompts, left_out=left_out)
        if examples is None and not request.records.of(ActivationsRecord):
            raise SettingsError(
                "--interaction has no prompt, and the run has no collected text", hint="add --prompt TEXT"
            )
        layers = {HookPoint.parse(name).layer for text in asked if text not in PAIRS for name in text.split(",")}
        sources = sae_sources(request, stage="validate", layers=layers)
        pairs = pairs_of(asked, sources)
        chosen = {hook: sources[hook] for hook in sorted({hook for pair in pairs for hook in pair})}
        default = f"interaction-{_word(asked)}"
        made = cls(request, default, pairs, chosen, examples, left_out)
        name = report_name(
            request,
            asked=settings.validation.name,
            default=default,
            fingerprint=made.fingerprint,
        )
        return replace(made, name=name)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Over the settings that are read, the SAEs, and the prompts or the text."""
        inputs = {f"SAE at {hook}": source.digest for hook, source in self.sources.items()}
        if self.examples is None:
            inputs |= activation_digests(self.request)
        else:
            inputs["prompts"] = digest_of(self.examples)
        return fingerprint(self.request, _READ, inputs, without=PLACEMENT)

    @property
    def n_steps(self) -> int:
        """Points on the path of the ranking."""
        settings = self.request.settings
        return settings.interaction.steps or settings.graph.ig_steps or _STEPS[settings.interaction.method]

    @property
    def points(self) -> tuple[int, ...] | None:
        """Of the curves; None for powers of two."""
        from circuitcli.validation.interaction import PAPER_POINTS

        text = self.request.settings.interaction.points
        if text == "powers":
            return None
        return PAPER_POINTS if text == "paper" else tuple(int(part) for part in text.split(","))


def _word(asked: Iterable[str]) -> str:
    """What is asked for, as a part of a name."""
    texts = [text.replace(",", "-") for text in asked]
    return texts[0] if len(texts) == 1 else f"{len(texts)}-pairs"


def prompts(wanted: Wanted, model: "LanguageModel") -> "Iterator[Prompt]":
    """Of the examples, or pieces of the run's own text."""
    from circuitcli.attribution.prompts import Needs, encode_all

    if wanted.examples is None:
        yield from _pieces(wanted, model)
        return
    needs, most = Needs(), wanted.request.settings.graph.n_prompts
    yield from encode_all(
        wanted.examples, model.tokenizer, model.adapter, needs=needs, left_out=wanted.left_out, most=most
    )


def _pieces(wanted: Wanted, model: "LanguageModel") -> "Iterator[Prompt]":
    """The beginnings of the last blocks of the cached text, which training holds out, or of its first ones."""
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.validation.pinned import MOST_TOKENS

    settings, asked = wanted.request.settings.validation, wanted.request.settings.interaction
    count = settings.sequences if "sequences" in settings.model_fields_set else _PIECES
    cache = ActivationCache(wanted.request.run.path / "activations", ())
    is_last = asked.pieces == "last"
    rows = range(max(0, cache.n_tokens - MOST_TOKENS), cache.n_tokens) if is_last else range(cache.n_tokens)
    rows = rows if is_last else rows[:MOST_TOKENS]
    blocks = [block for block in cache.blocks(rows.start, rows.stop) if len(block.ids) > 1]
    if not blocks:
        raise InputError("the collected text has no two tokens in a row", hint="add --prompt TEXT")
    for block in reversed(blocks[-count:]) if is_last else blocks[:count]:
        ids = tuple(block.ids[: asked.length])
        yield Prompt("", ids, tuple(model.tokenizer.token_strings(ids)), model.tokenizer.n_bos(ids))
