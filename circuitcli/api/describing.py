"""What a feature means."""

from collections.abc import Sequence

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import wrong_type
from circuitcli.api.coders import SomeCoders, by_hook, check_fits
from circuitcli.api.collecting import collect
from circuitcli.api.models import as_model
from circuitcli.errors import InputError, SettingsError
from circuitcli.features.cards import card
from circuitcli.features.lines import Details
from circuitcli.hookpoints import NodeId
from circuitcli.models.loading import LanguageModel
from circuitcli.render.cards import card_html, card_text
from circuitcli.saes.base import SparseCoder

# Tokens of text that a feature is looked for in where no text is given.
TOKENS = 50_000


class Card(Details):
    """What is known about one feature: a label, how often and how strongly it is active, the texts where it is most,
    and the tokens that it makes more and less likely; it prints as text, and draws itself in a notebook."""

    def __str__(self) -> str:
        return card_text(self)

    def _repr_html_(self) -> str:
        return card_html(self)


def describe(
    model: LanguageModel,
    coders: SomeCoders,
    feature: str,
    text: ActivationCache | str | Sequence[str] | None = None,
    *,
    tokens: int | None = None,
    contexts: int = 8,
    window: int = 16,
    logits: int = 8,
) -> Card:
    """The card of a feature, by the name that nodes have: ``resid.3/17``, also with a position behind it.

        card = circuit.describe(model, coders, "resid.1/17", cache)
        print(card)                              # its contexts, with the strongest token of each in «»
        card.label, card.density, card.promoted[:3], card.contexts[0].tokens

    text: cached activations, as `collect` gives them, of what the coder reads; or a text, or a list of texts, which the
    model then reads; without it 50,000 tokens of the model's usual text. tokens: how many to look at, by default all.
    contexts: texts shown, of ``window`` tokens on either side of the strongest; logits: promoted and suppressed tokens.

    Raises InputError for a feature that the coders do not have, SettingsError for a name that cannot be read.
    """
    coder, index = _feature(by_hook(coders), feature)
    check_fits(coder, as_model(model))
    for name, number in (("tokens", tokens), ("contexts", contexts), ("window", window), ("logits", logits)):
        if number is not None and (not isinstance(number, int) or number < (name != "window")):
            raise wrong_type(name, number, "a whole number above zero", hint=f"for example {name}=8")
    found = card(
        coder.to(model.adapter.device),
        _source(model, coder, text, tokens),
        model=model,
        feature=index,
        n_tokens=tokens,
        n_contexts=contexts,
        window=window,
        n_logits=logits,
    )
    return Card(**dict(found))


def _feature(coders: dict, feature: str) -> tuple[SparseCoder, int]:
    if not isinstance(feature, str):
        raise wrong_type("feature", feature, "the name of a feature", hint="for example feature='resid.1/17'")
    node = NodeId.parse(feature)
    if node.index is None:
        raise SettingsError(f"{feature} is an error term, which has no meaning of its own", hint="name a feature")
    if node.hook not in coders:
        raise InputError(f"no coder reads {node.hook}", hint=f"there are coders at {' '.join(map(str, coders))}")
    return coders[node.hook], node.index


def _source(
    model: LanguageModel, coder: SparseCoder, text: object, tokens: int | None
) -> ActivationCache | Sequence[str]:
    if text is None:
        return collect(model, hooks=coder.hook, tokens=tokens or TOKENS)
    if isinstance(text, ActivationCache):
        if coder.hook not in text.hooks:
            there = " ".join(map(str, text.hooks))
            raise InputError(f"the cache has no activations of {coder.hook}", hint=f"it has those of {there}")
        return text
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise wrong_type("text", text, "a cache, a text or a list of texts", hint="collect() gives a cache")
    return texts
